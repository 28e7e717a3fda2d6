from types import SimpleNamespace

import pytest
import torch
from merge._toy import bank, body, close, sites, trees, vector

from anabranch.core.bank import Bank
from anabranch.core.fold import changes, fold
from anabranch.core.names import make

F = body(5, 6, 4)
TARGETS = trees(F, 2)
N = vector(TARGETS[0]).numel()


class Train:
    """Jumps ``reach`` of the way to the target: dense all of it, sparse where it may."""

    def __init__(self, reach: float = 0.5) -> None:
        self.reach, self.calls = reach, []

    def __call__(self, delta, base, share, starts) -> Bank:
        self.calls.append((delta, share, starts))
        out = []
        for j, target in enumerate(TARGETS):
            if delta == "dense":
                start = starts[j] if starts else {k: {n: 0 * t for n, t in p.items()} for k, p in target.items()}
                out.append({k: {n: t + self.reach * (target[k][n] - t) for n, t in p.items()} for k, p in start.items()})
            else:
                slot = {}
                for k, p in starts[j].items():
                    goal = torch.cat([target[k]["W"].flatten(), target[k]["b"]])[p["places"].clamp(min=0).long()]
                    moved = p["values"] + self.reach * (goal - p["values"])
                    slot[k] = {"values": torch.where(p["places"] >= 0, moved, 99.0), "places": p["places"]}
                out.append(slot)
        return bank(F, out, delta)


def sft(train, **settings):
    return make("merge", {"composable_sft": settings})(train, SimpleNamespace(f=F), ["task", "language"])


def change(made, slot):
    return vector({k: {"W": c[0], "b": c[1]} for k, c in changes(F, made, slot).items()})


def test_only_the_numbers_that_full_tuning_changed_most_are_tuned_again_from_f():
    train = Train()
    made = sft(train, density=0.25, l1=0.1, dense=0.4)
    for j, target in enumerate(TARGETS):
        goal = vector(target)
        most = goal.abs() >= goal.abs().sort().values[-round(0.25 * N)]
        close(change(made, j + 1), torch.where(most, 0.5 * goal, 0))  # half of the way once: (1) was rewound
    (dense, sparse) = train.calls
    assert (
        dense == ("dense", 0.4, None)
        and sparse[0] == {"sparse": {"density": 0.25, "l1": 0.1}}
        and sparse[1] == pytest.approx(0.6)
    )


def test_rounds_add_places_and_keep_the_values_of_those_before():
    train = Train()
    made = sft(train, density=0.2, rounds=2)
    assert [share for _, share, _ in train.calls] == [0.25] * 4
    for j, target in enumerate(TARGETS):
        goal, first = vector(target), round(0.1 * N)
        rank = goal.abs().argsort(descending=True, stable=True)
        got = change(made, j + 1)
        assert set(got.nonzero()[:, 0].tolist()) >= set(rank[:first].tolist()) and (got != 0).sum() == round(0.2 * N)
        close(got[rank[:first]], 0.75 * goal[rank[:first]])  # tuned in both rounds
        late = [i for i in got.nonzero()[:, 0].tolist() if i not in rank[:first].tolist()]
        close(got[late], 0.5 * goal[late])


def test_they_add_up_to_one_model():
    made = sft(Train(), density=0.3)
    state = fold(F, [(made, 1, 1.0), (made, 2, 1.0)])
    flat = torch.cat(
        [state[n].flatten() - F.state_dict()[n].flatten() for s in sites(F) for n in (f"{s.name}.weight", f"{s.name}.bias")]
    )
    close(flat, change(made, 1) + change(made, 2))


def test_it_stores_places_and_values_alone():
    made = sft(Train(), density=0.1)
    assert made.tables["own"].n == made.tables["fixed.int32"].n < 0.2 * N
