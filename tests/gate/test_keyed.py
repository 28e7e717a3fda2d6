import math

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, run
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find

KEYS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
ON = torch.tensor([True] * 4)


def at(*x: list[float], real: int | None = None) -> At:
    mask = torch.arange(len(x)) < (len(x) if real is None else real)
    return At(torch.tensor(x), torch.zeros(len(x), 3), mask)


def test_by_hand():
    gate = make("gate", {"keyed": {"top": 2, "temperature": 0.5}})
    w = gate.weigh({}, {"key": KEYS}, at([2.0, 0.0]), ON)  # cosines 1, 0, -1, 0.6
    a, b = math.exp(1 / 0.5), math.exp(0.6 / 0.5)
    close(w, torch.tensor([a / (a + b), 0.0, 0.0, b / (a + b)]))


def test_the_mean_of_the_real_tokens_asks():
    gate = make("gate", {"keyed": {"top": 1}})
    assert gate.weigh({}, {"key": KEYS}, at([3.0, 0.0], [0.0, 1.0], [0.0, 1.0]), ON).tolist() == [0, 0, 0, 1]
    assert gate.weigh({}, {"key": KEYS}, at([3.0, 0.0], [0.0, 9.0], [math.nan, 9.0], real=1), ON).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("temperature", [1e-4, 1e-2, 1.0, 1e4])
def test_slots_that_are_off_weigh_nothing_at_any_temperature(temperature):
    gate = make("gate", {"keyed": {"top": 2, "temperature": temperature}})
    w = gate.weigh(
        {}, {"key": torch.zeros_like(KEYS) + KEYS * ON[:, None]}, at([1.0, 0.0]), torch.tensor([False, False, True, False])
    )
    assert w.tolist() == [0, 0, 1, 0]  # it is alone, though nothing resembles it less
    w = gate.weigh({}, {"key": KEYS}, at([1.0, 0.0]), torch.tensor([False, True, True, False]))
    assert w[[0, 3]].tolist() == [0, 0] and w.sum() == pytest.approx(1) and w[1] >= w[2]


def test_keys_are_the_mean_input_or_random_of_length_one():
    gate, site = make("gate", "keyed"), find(nn.Sequential(nn.Linear(2, 3)), "0")[0]
    assert gate.key(site, {}, torch.Generator(), {"mean": torch.tensor([3.0, -4.0])})["key"].tolist() == pytest.approx(
        [0.6, -0.8]
    )
    assert gate.key(site, {}, torch.Generator())["key"].norm() == pytest.approx(1)
    assert gate.key(site, {}, torch.Generator(), {"mean": torch.zeros(2)})["key"].isfinite().all()


def test_rows_find_the_slot_of_their_own_kind_of_input():
    f = nn.Sequential(nn.Linear(4, 4))
    made = bank(f, "offset", {"keyed": {"top": 1}}, at="0", slots=0)
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 4, generator=rng)
    made.add([made.fresh(rng, {"0": {"mean": c}}) for c in centres])
    made.tables["own"].data[1:] = torch.arange(5.0)[:, None]
    x = centres[[3, 0, 4]][:, None] + 0.05 * torch.randn(3, 6, 4, generator=rng)
    got = Adapted(f, [made])({"input": x}, Route.to([[1, 2, 3, 4, 5]] * 3)) - f(x)
    close(got[:, :, 0], torch.tensor([3.0, 0.0, 4.0])[:, None].expand(3, 6), 1e-4)


def test_a_nan_in_a_slot_that_the_keys_leave_out_reaches_no_row():
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 6, 4)
    made = bank(f, "offset", {"keyed": {"top": 1}}, at="0", slots=2)
    made.tables["keys"].data[1:] = torch.stack([x.mean((0, 1)), -x.mean((0, 1))])
    x = x.mean((0, 1)) + 0 * x
    made.tables["own"].data[2] = math.nan
    got = Adapted(f, [made])({"input": x}, Route.to([[1, 2]] * 3))
    close(got, f(x) + made.take(1)["0"]["d"])


def test_the_empty_slot_is_never_trained():
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 6, 4)
    made = bank(f, "offset", {"keyed": {"top": 2}}, at="0")
    adapted = Adapted(f, [made])
    keys = adapted.sources[0]["keys"] = made.tables["keys"].data.clone().requires_grad_()
    (adapted({"input": x}, Route.to([[1, 0, 2], [0, 3, 0], [0, 0, 0]])) ** 2).sum().backward()
    assert keys.grad.isfinite().all() and not keys.grad[0].any() and keys.grad[1].any()


@pytest.mark.parametrize(
    ("name", "delta", "sites"),
    [("gpt2", "prompt", "embedding"), ("llama", "dense", "embedding"), ("bert", "deep_prompt", "block")],
)
def test_it_asks_with_hidden_states_where_the_input_is_ids(name, delta, sites):
    f, inputs = backbone(name), batch(name)
    made = bank(f, delta, {"keyed": {"top": 1}}, at=sites)
    with torch.no_grad():
        got = run(Adapted(f, [made]), inputs, [[1, 2, 3]] * 5)
    assert got.isfinite().all() and not torch.allclose(got, f(**inputs).last_hidden_state, atol=1e-3)
