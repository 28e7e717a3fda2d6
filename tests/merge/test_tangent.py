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
from anabranch.merge.tangent import disentanglement, linearised

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
