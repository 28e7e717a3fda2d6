import pytest
import torch
from laws._nasty import backbone
from merge._toy import vector

from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError
from anabranch.merge.layer_swapping import trapezoid

F = backbone("bert", blocks=4)
SITES = find(F, ["embeddings.word_embeddings", "attention.query", "mlp.out"])


class Eye:
    f, sites = F, SITES

    @staticmethod
    def losses(tree):
        return torch.stack(
            [
                sum(abs(float(p["W"].mean()) - best[s.depth + 1]) for s, p in zip(SITES, tree.values(), strict=True))
                * torch.ones(())
                for best in ([0, 0, 1, 0, 0],)
            ]
        )


def expert(*sizes):
    """One value per depth: before the blocks, then each block."""
    return {s.key: {"W": torch.full((3, 2), float(sizes[s.depth + 1]))} for s in SITES}


def swap(first, second, **settings):
    tree = make("merge", {"layer_swapping": settings})([first, second], Eye)
    return {s.depth: float(tree[s.key]["W"][0, 0]) for s in SITES}


def test_the_trapezoid():
    assert trapezoid(6, 1, 2, 1).tolist() == [0, 0.5, 1, 0.5, 0, 0]
    assert trapezoid(5, 1, 1, 0).tolist() == [0, 1, 1, 1, 0]
    assert trapezoid(7, 1, 1, 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0])
    assert trapezoid(3, 0, 0, 0).tolist() == [1, 1, 1]


def test_outer_blocks_from_the_language_and_the_middle_from_the_skill():
    ones, twos = expert(1, 1, 1, 1, 1), expert(2, 2, 2, 2, 2)
    assert swap(ones, twos, bottom=1, top=1, transition=0) == {-1: 2, 0: 2, 1: 1, 2: 1, 3: 2}
    assert swap(ones, twos, bottom=1, top=1, transition=0, skill=2) == {-1: 1, 0: 1, 1: 2, 2: 2, 3: 1}
    assert swap(ones, twos, bottom=0, top=1, transition=1) == {-1: 1.5, 0: 1.5, 1: 1, 2: 1.5, 3: 2}


def test_the_edges_follow_from_where_the_experts_changed():
    skill, language = expert(0, 1, 5, 4, 1), expert(3, 4, 1, 1, 5)
    assert swap(skill, language, transition=0) == {-1: 3, 0: 4, 1: 5, 2: 4, 3: 5}
    assert swap(skill, language, transition=0, bottom=2) == {-1: 3, 0: 4, 1: 1, 2: 4, 3: 5}  # one edge given, the other chosen


def test_or_from_the_losses():
    skill, language = expert(1, 1, 1, 1, 1), expert(0, 0, 0, 0, 0)
    assert swap(skill, language, transition=0, choose="loss") == {-1: 0, 0: 0, 1: 1, 2: 0, 3: 0}


def test_it_wants_two_tasks_and_a_middle():
    with pytest.raises(InputError, match="two tasks"):
        make("merge", "layer_swapping")([expert(1, 1, 1, 1, 1)] * 3, Eye)
    with pytest.raises(InputError, match="no block of the 4"):
        swap(expert(1, 1, 1, 1, 1), expert(1, 1, 1, 1, 1), bottom=2, top=2)
    assert vector(expert(1, 1, 1, 1, 1)).numel() == 6 * len(SITES)
