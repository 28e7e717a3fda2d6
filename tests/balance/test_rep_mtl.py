import math

import pytest
import torch
from laws._nasty import close

from anabranch.balance.rep_mtl import TAU, contrast, entropy, term
from anabranch.core.balance import Point
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.errors import InputError


def seen(z):
    return {"": At(z, z, torch.ones(len(z), dtype=torch.bool))}


def test_entropy_is_least_where_one_task_leads():
    even = torch.ones(4, 3, 2)
    close(entropy(even), torch.tensor(math.log(4)))
    alone = torch.zeros(4, 3, 2)
    alone[1] = 5
    close(entropy(alone), torch.tensor(0.0))
    p = 0.75  # means 3 and 1
    half = torch.tensor([[[2.0, 4.0]], [[-1.0, -1.0]]])
    close(entropy(half), torch.tensor(-(p * math.log(p) + (1 - p) * math.log(1 - p))))


def test_contrast_equals_the_definition_with_whole_matrices():
    s = torch.randn(3, 4, 5)
    maps = torch.einsum("tbd,tbe->tbde", s, s).flatten(2)
    anchors = maps.sum(0)
    cos = torch.nn.functional.cosine_similarity
    total = 0.0
    for b in range(4):
        far = sum(math.exp(cos(anchors[b], anchors[k], dim=0) / TAU) for k in range(4) if k != b)
        total += sum(-float(cos(anchors[b], maps[t, b], dim=0)) / TAU + math.log(far) for t in range(3))
    close(contrast(s), torch.tensor(total / 12), 1e-4)
    close(contrast(1e-12 * s), contrast(s), 1e-4)


def test_the_term_reaches_what_made_the_vectors():
    """Z = x theta, L_t = mean over its rows of (Z a_t)^2: the saliency is 2 (Z a_t) a_t / rows."""
    x, theta = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    a, who = torch.randn(2, 5), torch.tensor([0, 1, 0, 1, 0, 1])
    z = x.repeat_interleave(2, 0) @ theta
    losses = torch.stack([(z[who == t] @ a[t]).square().mean() for t in range(2)])
    found = term(seen(z), who, losses)
    s = torch.stack([2 / 3 * (x @ theta @ a[t])[:, None] * a[t] for t in range(2)])
    close(found["tsr"], entropy(s))
    close(found["csa"], contrast(s), 1e-4)
    grads = torch.autograd.grad(found["tsr"] + found["csa"], theta)[0]
    wanted = torch.autograd.grad(entropy(s) + contrast(s), theta)[0]
    close(grads, wanted, 1e-4)
    assert grads.abs().sum() > 0


def test_tasks_that_share_no_texts_are_refused():
    z = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(InputError, match=r"same texts, row for row; got rows \[3, 2\]"):
        term(seen(z), torch.tensor([0, 0, 0, 1, 1]), torch.stack([z[:3].sum(), z[3:].sum()]))


def test_terms_are_added_with_their_weights_to_what_balances_the_tasks():
    rows = torch.randn(4, 6)
    at = Point(torch.zeros(6), lambda _: torch.ones(4), lambda _: rows, ["a", "term:tsr", "b", "term:csa"])
    found, _ = make("balance", {"rep_mtl": {"tsr": 0.5, "csa": 2.0}})(None, at)
    close(found, rows[0] + rows[2] + 0.5 * rows[1] + 2 * rows[3])
    found, _ = make("balance", {"rep_mtl": {"inner": "imtl_g", "tsr": 0.0, "csa": 0.0}})(None, at)
    close(found, make("balance", "imtl_g")(None, at._replace(grads=lambda _: rows[[0, 2]], names=["a", "b"]))[0])
