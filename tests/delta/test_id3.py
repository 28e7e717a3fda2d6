"""ID3: the importance, which weights are unmasked when, and what is stored."""

import pytest
import torch
from laws._nasty import backbone, bank, close, frozen
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route

W = torch.tensor([[4.0, -1.0], [0.25, 9.0]])


def u8(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


def test_by_hand():
    id3, D = make("delta", {"id3": {"share": 0.25, "room": 2.0}}), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    p = {"D": D, "m": u8([0, 2], [1, 0])}
    served = id3.freeze(p)
    assert served["ids"].tolist() == [1, 2] and served["values"].tolist() == [2.0, 3.0] and served["ids"].dtype == torch.int32
    for q in (p, served):
        assert id3.weight(q, W, None)[0].tolist() == [[0.0, 2.0], [3.0, 0.0]]


def test_outside_the_mask_the_gradient_is_the_importance_and_inside_it_is_itself():
    eps, exponent = 1e-3, 0.5
    f = nn.Sequential(nn.Linear(3, 2))
    made, x, g = bank(f, {"id3": {"share": 0.5}}, at="0", slots=1), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    adapted = Adapted(f, [made])
    source = adapted.sources[0]["own"] = made.tables["own"].data.clone().requires_grad_()
    (adapted({"input": x}, Route.to([1])) * g).sum().backward()
    plain, inside = g[0].T @ x[0], made.take(1)["0"]["m"] > 0
    assert inside.sum() == 3
    want = torch.where(inside, plain, plain / (f[0].weight.detach().abs() + eps) ** exponent)
    close(source.grad[1].view(2, 3), want)


def steps(id3, own, grads):
    sizes = []
    for i, grad in enumerate(grads, 1):
        own, g = id3.refine(own, grad, i / len(grads))
        own = {s: p | {"D": p["D"] - 0.1 * g[s]["D"]} for s, p in own.items()}
        sizes.append(sum(int((p["m"] == 2).sum()) for p in own.values()))
    return own, sizes


def test_each_step_unmasks_the_most_important_of_all_sites():
    id3 = make("delta", {"id3": {"share": 0.5, "room": 2.0}})
    own = {s: {"D": torch.zeros(1, 4), "m": u8([1, 1, 0, 0])} for s in "ab"}
    grad = {"a": {"D": torch.tensor([[1.0, -8.0, 7.0, 2.0]])}, "b": {"D": torch.tensor([[-5.0, 0.0, 0.5, 0.1]])}}
    own, sizes = steps(id3, own, [grad] * 4)
    assert sizes == [1, 2, 3, 4]
    assert own["a"]["m"].tolist() == [[0, 2, 2, 2]] and own["b"]["m"].tolist() == [[2, 0, 0, 0]]
    close(own["a"]["D"], torch.tensor([[0.0, 2.4, -1.4, 0.0]]))  # -8: steps 2 to 4; 7: 3 and 4; 2 is unmasked at the last
    close(own["b"]["D"], torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    assert [id3.freeze(p)["ids"].tolist() for p in own.values()] == [[0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(("mask", "sizes"), [("steps", [0, 1, 2, 2]), ("first", [2, 2, 2, 2]), ("random", [0, 0, 0, 0])])
def test_the_masks_of_the_comparison(mask, sizes):
    id3 = make("delta", {"id3": {"share": 0.5, "mask": mask}})
    own = {"a": {"D": torch.zeros(4), "m": u8(1, 0, 0, 1)[:]}}
    grads = [{"a": {"D": torch.roll(torch.tensor([3.0, 0.0, 1.0, 0.0]), i)}} for i in range(4)]
    own, found = steps(id3, own, grads)
    assert found == sizes
    if mask == "random":
        close(own["a"]["D"], torch.tensor([-0.4, 0.0, 0.0, -0.4]))
    if mask == "first":
        assert own["a"]["m"].tolist() == [2, 0, 2, 0]


def test_a_site_holds_no_more_than_its_room():
    id3 = make("delta", {"id3": {"share": 0.25, "room": 1.0}})
    own = {s: {"D": torch.zeros(8), "m": u8(*[0] * 8)} for s in "ab"}
    grad = {"a": {"D": torch.arange(10.0, 18.0)}, "b": {"D": torch.arange(8.0)}}
    own, sizes = steps(id3, own, [grad] * 2)
    assert sizes == [2, 4] and [int((p["m"] == 2).sum()) for p in own.values()] == [2, 2]
    assert own["a"]["m"].tolist()[6:] == [2, 2] and own["b"]["m"].tolist()[6:] == [2, 2]


def test_a_slot_is_stored_as_ids_and_values():
    made = frozen(bank(backbone("bert"), {"id3": {"share": 0.02}}), torch.bfloat16)
    each = 2 * round(0.02 * 32 * 32)
    assert made.tables["own"].n == made.tables["fixed.int32"].n == 4 * each
