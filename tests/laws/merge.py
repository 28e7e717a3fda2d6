"""What every merge promises (``promises``, ``neutral`` in its file), on hard inputs. Balancers that aggregate share it."""

import inspect

import pytest
import torch
from torch import Tensor

from anabranch.core.names import every, find, make


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


CASES = [(f, n, case) for f, n in members() for case in hard()]


@pytest.mark.parametrize(("family", "name", "case"), CASES)
def test_it_is_finite_shaped_and_pure(family: str, name: str, case: str) -> None:
    rows = hard()[case]
    before = rows.clone()
    first, again = make(family, name)(rows), make(family, name)(rows)
    assert first.shape == rows.shape[1:] and torch.isfinite(first).all()
    assert torch.equal(rows, before) and torch.equal(first, again)


@pytest.mark.parametrize(("family", "name", "case"), CASES)
def test_shape_is_kept(family: str, name: str, case: str) -> None:
    """[t, 6, 10] merges to what the flat rows do, for merges of entries."""
    if family == "balance":
        pytest.skip("balancers see flat gradients")
    rows = hard()[case]
    torch.testing.assert_close(make(family, name)(rows.view(-1, 6, 10)).flatten(), make(family, name)(rows))


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "scale" in promises(*c[:2])])
def test_scale(family: str, name: str, case: str) -> None:
    """Positive homogeneity: merging 8 d is 8 times merging d (a power of two, so that the bits agree)."""
    rows = hard()[case]
    torch.testing.assert_close(make(family, name)(rows * 8), make(family, name)(rows) * 8)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "order" in promises(*c[:2])])
def test_order(family: str, name: str, case: str) -> None:
    rows = hard()[case]
    turned = rows[torch.arange(len(rows)).flip(0)]
    near = {"rtol": 1e-4, "atol": 1e-6 * float(rows.abs().max())}
    torch.testing.assert_close(make(family, name)(turned), make(family, name)(rows), **near)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in CASES if "identity" in promises(*c[:2])])
def test_identity(family: str, name: str, case: str) -> None:
    """Equal rows merge to themselves, and so does one."""
    row = hard()[case][:1]
    torch.testing.assert_close(make(family, name)(row.repeat(3, 1)), row[0])
    torch.testing.assert_close(make(family, name)(row), row[0])


@pytest.mark.parametrize(("family", "name"), [m for m in members() if hasattr(module_of(*m), "neutral")])
def test_neutral_settings_keep_one_task_as_it_is(family: str, name: str) -> None:
    row = hard()["one"]
    settings = module_of(family, name).neutral  # type: ignore[attr-defined]
    torch.testing.assert_close(make(family, {name: settings})(row), row[0])


@pytest.mark.parametrize(("family", "name"), members())
def test_promises_are_known_words(family: str, name: str) -> None:
    assert promises(family, name) <= {"identity", "order", "scale"}
    settings = set(getattr(module_of(family, name), "neutral", {}))
    assert settings <= set(inspect.signature(find(f"{family}.{name}")).parameters)
