import math

import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.gate.moore import orthonormal

GATE = make("gate", "moore")


def test_by_hand():
    """(3, 4) and (5, 0): the second keeps (3.2, -2.4), of length 4."""
    h = torch.tensor([[[3.0, 4.0]], [[5.0, 0.0]]])
    close(orthonormal(h), torch.tensor([[[0.6, 0.8]], [[0.8, -0.6]]]))
    close(GATE.combine(torch.tensor([10.0, 5.0]), h), torch.tensor([[10.0, 5.0]]))


def test_it_is_gram_schmidt():
    """QR with a positive diagonal is Gram-Schmidt, whatever the sizes of the outputs."""
    torch.manual_seed(0)
    h = torch.randn(4, 7, 12) * torch.tensor([1e-3, 1.0, 100.0, 3.0]).view(4, 1, 1)
    q, r = torch.linalg.qr(h.permute(1, 2, 0).double())
    close(orthonormal(h), (q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None]).permute(2, 0, 1).float(), 1e-4)


def test_what_repeats_or_says_nothing_is_left_out():
    h = torch.randn(5, 3, 8)
    h[1], h[2], h[4] = -2.5 * h[0], 0, h[0] + h[3]
    u = orthonormal(h)
    close(u[[0, 3]].norm(dim=-1), torch.ones(2, 3))
    assert u.isfinite().all() and u[[1, 4]].norm(dim=-1).max() < 0.02 and not u[2].any()
    assert orthonormal(torch.zeros(3, 2, 4)).tolist() == torch.zeros(3, 2, 4).tolist()


def test_a_task_s_answer_is_f_and_its_weights_in_the_orthogonal_directions():
    torch.manual_seed(0)
    f, x = nn.Sequential(nn.Linear(6, 8)), torch.randn(2, 3, 6)
    made = bank(f, {"lora": {"rank": 2}}, "moore", at="0", slots=3, routes=3, spread=0.5)
    made.add_gate({"0": {"w": torch.tensor([2.0, -1.0, 0.5])}})
    dy = Adapted(f, [made])({"input": x}, Route.to([[1, 2, 3]] * 2, who=torch.tensor([1, 1]))) - f(x)
    close(dy.norm(dim=-1), torch.full((2, 3), math.sqrt(5.25)), 1e-3)  # whatever the experts say
    first = made.delta.apply(made.take(1)["0"], type("Row", (), {"x": x}))
    close((dy * nn.functional.normalize(first, dim=-1)).sum(-1), torch.full((2, 3), 2.0), 1e-3)


def test_experts_learn_from_their_start_where_they_say_nothing():
    torch.manual_seed(0)
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(16, 2, 4)
    made = bank(f, {"lora": {"rank": 2}}, "moore", at="0", slots=2, routes=2, spread=0.0)
    made.add_gate(made.gates(torch.Generator().manual_seed(0)))
    route, adapted = Route.to([[1, 2]] * 16, who=torch.ones(16, dtype=torch.long)), Adapted(f, [made])
    assert torch.equal(adapted({"input": x}, route), f(x))
    target = f(x).detach() + 0.5 * nn.functional.normalize(x @ torch.randn(4, 4), dim=-1)
    leaves = adapted.sources[0] = {t: made.tables[t].data.clone().requires_grad_() for t in ("own", "gate")}
    optimiser, losses = torch.optim.Adam(leaves.values(), lr=0.02), []
    for _ in range(150):
        optimiser.zero_grad()
        loss = ((adapted({"input": x}, route) - target) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10
