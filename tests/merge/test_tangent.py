import copy
from types import SimpleNamespace

import pytest
import torch
from laws._nasty import IDS, backbone, batch, close, real
from laws._nasty import bank as nasty_bank
from merge._toy import bank, body, trees
from torch.func import functional_call, jvp

from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.merge.tangent import Linearised, disentanglement, linearised

F = body(4, 5, 3)
TREES = trees(F, 2, size=0.5)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def by_hand(x, tree):
    """f(x) + J (D): the chain rule of linear, tanh, linear."""
    h, a = F[0](x), tree["0"]
    dh = x @ a["W"].T + a["b"]
    dy = (dh * (1 - torch.tanh(h) ** 2)) @ F[2].weight.T + torch.tanh(h) @ tree["2"]["W"].T + tree["2"]["b"]
    return F(x) + dy


def run(made, ids, w=None):
    return linearised(Adapted(F, [made]), {"input": X[:, None]}, torch.tensor(ids), w)[:, 0]


def test_it_is_the_first_order_model_for_rows_of_many_tasks():
    got = run(bank(F, TREES), [[1], [2], [0], [2], [1], [1]])
    for i, slot in enumerate((1, 2, 0, 2, 1, 1)):
        close(got[i], by_hand(X[i], TREES[slot - 1]) if slot else F(X[i]))


def test_it_is_linear_in_the_task_vectors():
    made, w = bank(F, TREES), torch.tensor([[0.3, -2.0]]).expand(6, 2)
    both, base = run(made, [[1, 2]] * 6, w), F(X)
    close(both - base, 0.3 * (run(made, [[1]] * 6) - base) - 2 * (run(made, [[2]] * 6) - base))


def test_weights_of_one_change_nothing_and_the_slots_stay_where_they_were():
    made, ids = bank(F, TREES), [[1, 2], [2, 0], [2, 2], [1, 1], [0, 0], [2, 1]]
    close(run(made, ids), run(made, ids, torch.ones(6, 2)))
    adapted, source = Adapted(F, [made]), 2 * made.tables["own"].data
    adapted.sources[0]["own"] = source
    twice = linearised(adapted, {"input": X[:, None]}, torch.tensor(ids))[:, 0]
    close(twice, run(made, ids, torch.full((6, 2), 2.0)))
    assert adapted.sources[0]["own"] is source


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_against_the_jacobian_of_all_weights(name):
    f, inputs = backbone(name), batch(name) | ({} if name == "bert" else {"use_cache": False})
    made = nasty_bank(f, "dense")
    got = linearised(Adapted(f, [made]), inputs, torch.tensor(IDS)[:, None]).last_hidden_state
    plain = {n: t.detach() for n, t in f.state_dict().items()}
    slow = copy.deepcopy(f)
    slow.set_attn_implementation("eager")
    for slot in (1, 2):
        moved = fold(f, [(made, slot, 1.0)])
        y, dy = jvp(
            lambda p: functional_call(slow, p, (), inputs).last_hidden_state, (plain,), ({n: moved[n] - plain[n] for n in plain},)
        )
        for i in (i for i, s in enumerate(IDS) if s == slot):
            row = {"attention_mask": inputs["attention_mask"][i : i + 1]}
            close(real(row, got[i : i + 1]), real(row, (y + dy)[i : i + 1]), 1e-4)


class Exact:
    """f in float64 with three dense slots, run by Linearised, and the same f with its weights moved by hand.

    Of makes that do not turn to float32 inside, as llama's norms do.
    """

    def __init__(self, name: str) -> None:
        self.f = copy.deepcopy(F if name == "layers" else backbone(name)).double()
        made = bank(self.f, trees(self.f, 3, size=0.5)) if name == "layers" else nasty_bank(self.f, "dense")
        self.inputs = {"input": X[:, None].double()}
        if name != "layers":
            self.f.set_attn_implementation("eager")
            self.inputs = batch(name)
        self.theta, self.adapted, self.bank = made.tables["own"].data.double(), Adapted(self.f, [made]), made
        self.adapted.sources[0]["own"] = self.theta
        self.run = Linearised(self.adapted)

    def linear(self, *ids: int, w=None, theta=None):
        """What Linearised answers to all rows, each with these slots."""
        if theta is not None:
            self.adapted.sources[0]["own"] = theta
        rows = len(next(iter(self.inputs.values())))
        weights = w and torch.tensor([w] * rows, dtype=torch.float64)
        return self.read(self.run(self.inputs, [Route.to(torch.tensor([ids] * rows), weights)]))

    def moved(self, slot: int, e: float):
        """f whose own weights are e of the slot's change away: no hook, no route, no forward mode."""
        other = copy.deepcopy(self.f)
        for site in self.bank.sites:
            module, p = other.get_submodule(site.name), self.bank.tables["own"].split(self.theta[slot])[site.key]
            module.weight.data += e * p["W"]
            if "b" in p:
                module.bias.data += e * p["b"]
        return self.read(other(**self.inputs))

    @staticmethod
    def read(out):
        return getattr(out, "last_hidden_state", out).detach()


@pytest.mark.parametrize("name", ["layers", "bert"])
def test_linearised_is_f_and_its_slope_toward_the_slot_by_finite_differences(name):
    exact, e = Exact(name), 1e-4
    base = exact.moved(1, 0.0)
    for slot in (1, 3):
        slope = (8 * (exact.moved(slot, e) - exact.moved(slot, -e)) - (exact.moved(slot, 2 * e) - exact.moved(slot, -2 * e))) / (
            12 * e
        )
        got = exact.linear(slot)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, base + slope, rtol=1e-8, atol=1e-8)
        assert (exact.moved(slot, 1.0) - got).abs().max() > 0.01  # f itself is not linear there


@pytest.mark.parametrize("name", ["layers", "bert"])
def test_linearised_is_linear_in_the_slots_and_f_without_one(name):
    exact = Exact(name)
    base, one, two = exact.linear(0), exact.linear(1), exact.linear(2)
    tight = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(base, exact.moved(1, 0.0), **tight)
    torch.testing.assert_close(exact.read(exact.run(exact.inputs, None)), base, **tight)
    torch.testing.assert_close(exact.linear(1, 2) - base, (one - base) + (two - base), **tight)
    torch.testing.assert_close(exact.linear(1, 2, w=[0.3, -20.0]) - base, 0.3 * (one - base) - 20 * (two - base), **tight)
    mixed = torch.stack([0 * exact.theta[1], 7 * exact.theta[1] - 0.5 * exact.theta[2], exact.theta[2], exact.theta[3]])
    torch.testing.assert_close(exact.linear(1, theta=mixed) - base, 7 * (one - base) - 0.5 * (two - base), **tight)


def test_it_trains():
    made = bank(F, [{k: {n: 0 * t for n, t in p.items()} for k, p in tree.items()} for tree in TREES])
    adapted, source = Adapted(F, [made]), made.tables["own"].data.clone().requires_grad_()
    adapted.sources[0]["own"] = source
    target = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    losses, adam = [], torch.optim.Adam([source], 0.05)
    for _ in range(60):
        losses.append(
            (linearised(adapted, {"input": X[:, None]}, torch.tensor([[1], [1], [1], [2], [2], [0]]))[:, 0] - target)
            .square()
            .sum(1)
        )
        adam.zero_grad()
        losses[-1].sum().backward()
        adam.step()
    assert (losses[-1][:5] < 0.1 * losses[0][:5]).all() and losses[-1][5] == losses[0][5] and source.grad[0].abs().max() == 0


def test_the_merge_is_the_scaled_sum():
    calls = []

    def train(delta, base, share, tangent):
        calls.append((delta, base, share, tangent))
        return bank(F, TREES)

    made = make("merge", {"tangent": {"scale": 0.5}})(train, SimpleNamespace(f=F), ["a", "b"])
    close(made.take(1)["0"]["W"], 0.5 * (TREES[0]["0"]["W"] + TREES[1]["0"]["W"]))
    assert calls == [("dense", {}, 1.0, True)] and len(made) == 1


def test_disentanglement_is_zero_where_tasks_do_not_touch_and_counts_where_they_do():
    x = torch.eye(2)

    def answer(t, w):  # logits of two classes; task 0 turns the answer of row 0, task 1 that of row 1
        return torch.stack([1 - 2 * w[0] * x[t, 0], 1 - 2 * w[1] * x[t, 1]]).prod() * torch.tensor([[1.0, 0.0]])

    assert disentanglement(answer, [0.0, 1.0], [0.0, 0.5, 1.0]).abs().max() == 0

    def clash(t, w):
        return torch.tensor([[1.0, 0.0]]) + w.sum() * torch.tensor([[-1.0, 0.6]])

    # alone at 1 and .5: t 0 answers 0 > .6 no -> class 1; t 1 (.5: .5 > .3 class 0); together 1.5: class 1: one of two differs
    assert disentanglement(clash, [1.0], [0.5]).tolist() == [[1.0]]
    gap = disentanglement(clash, [1.0], [0.5], lambda a, b: (a - b).abs().sum())
    close(gap, torch.tensor([[1.6 * 0.5 + 1.6 * 1.0]]))
