"""What every merge promises (``promises``, ``neutral`` in its file), on hard inputs. Balancers that aggregate share it."""

import inspect

import pytest
import torch
from laws._nasty import ROWS, backbone, bank
from torch import Tensor

from anabranch.core.fold import merge
from anabranch.core.names import every, find, make
from anabranch.errors import InputError


def members() -> list[tuple[str, str]]:
    return [("merge", name) for name in every("merge")] + [("balance", name) for name in every("balance")]


def module_of(family: str, name: str) -> object:
    return inspect.getmodule(find(f"{family}.{name}"))


def promises(family: str, name: str) -> frozenset[str]:
    return getattr(module_of(family, name), "promises", frozenset())


def hard() -> dict[str, Tensor]:
    """[t, n] task vectors: ordinary, zero rows, rank 1, tiny, huge, one task."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 60, generator=g)
    return {
        "ordinary": base,
        "zero rows": base * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None],
        "all zero": torch.zeros(3, 60),
        "rank 1": torch.randn(4, 1, generator=g) * torch.randn(1, 60, generator=g),
        "tiny": base * 1e-10,
        "huge": base * 1e10,
        "one": base[:1],
    }


HARD = {**hard(), **{name: rows.reshape(len(rows), -1) for name, rows in ROWS.items()}}
CASES = [(f, n, case) for f, n in members() for case in HARD]


@pytest.mark.parametrize(("family", "name", "case"), CASES)
def test_it_is_finite_shaped_and_pure(family: str, name: str, case: str) -> None:
    rows = HARD[case]
    before = rows.clone()
    first, again = make(family, name)(rows), make(family, name)(rows)
    assert first.shape == rows.shape[1:] and torch.isfinite(first).all()
    assert torch.equal(rows, before) and torch.equal(first, again)


@pytest.mark.parametrize(("family", "name", "case"), CASES)
def test_shape_is_kept(family: str, name: str, case: str) -> None:
    """[t, 1, n, 1] merges to what the flat rows do, for merges of entries."""
    if family == "balance":
        pytest.skip("balancers see flat gradients")
    rows = HARD[case]
    folded = rows.view(len(rows), 1, -1, 1)
    torch.testing.assert_close(make(family, name)(folded).flatten(), make(family, name)(rows))


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "scale" in promises(*c[:2])])
def test_scale(family: str, name: str, case: str) -> None:
    """Positive homogeneity: merging 8 d is 8 times merging d (a power of two, so that the bits agree)."""
    rows = HARD[case]
    torch.testing.assert_close(make(family, name)(rows * 8), make(family, name)(rows) * 8)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "order" in promises(*c[:2])])
def test_order(family: str, name: str, case: str) -> None:
    rows = HARD[case]
    turned = rows[torch.arange(len(rows)).flip(0)]
    near = {"rtol": 1e-4, "atol": 1e-6 * float(rows.abs().max())}
    torch.testing.assert_close(make(family, name)(turned), make(family, name)(rows), **near)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "identity" in promises(*c[:2])])
def test_identity(family: str, name: str, case: str) -> None:
    """Equal rows merge to themselves, and so does one."""
    row = HARD[case][:1]
    torch.testing.assert_close(make(family, name)(row.repeat(3, 1)), row[0])
    torch.testing.assert_close(make(family, name)(row), row[0])


@pytest.mark.parametrize(("family", "name"), [m for m in members() if hasattr(module_of(*m), "neutral")])
def test_neutral_settings_keep_one_task_as_it_is(family: str, name: str) -> None:
    row = HARD["one"]
    settings = module_of(family, name).neutral  # type: ignore[attr-defined]
    torch.testing.assert_close(make(family, {name: settings})(row), row[0])


@pytest.mark.parametrize(("family", "name"), members())
def test_promises_are_known_words(family: str, name: str) -> None:
    assert promises(family, name) <= {"identity", "order", "scale"}
    settings = set(getattr(module_of(family, name), "neutral", {}))
    assert settings <= set(inspect.signature(find(f"{family}.{name}")).parameters)


@pytest.mark.parametrize("name", every("merge"))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_the_slot_and_site(name: str, bad: float) -> None:
    f = backbone("bert")
    made = bank(f, "lora", at="attention.value")
    made.tables["own"].data[2, -1] = bad
    with pytest.raises(InputError, match="slot 2 is not finite at encoder.layer.1.attention.self.value"):
        merge(f, [(made, 1), (made, 2)], make("merge", name))
    assert merge(f, [(made, 1), (made, 3)], make("merge", name)).tables["own"].data.isfinite().all()
