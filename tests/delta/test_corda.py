"""CorDA by hand, by what it promises about the data, and against peft: the same decomposition, the same answers."""

import copy

import pytest
import torch
from laws._nasty import WORDS, backbone, batch, close, real, run
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import find


def start(W, C, **settings):
    site = find(torch.nn.Sequential(torch.nn.Linear(*W.T.shape)), "0")[0]
    return make("delta", {"corda": settings}).init(site, torch.Generator(), {"W": W, "cov": C})


def product(p):
    return (p["a0"] @ p["b0"]).mT


def test_the_data_choose_the_direction():
    W, C = torch.diag(torch.tensor([3.0, 2.0])), torch.diag(torch.tensor([0.5, 1.5]))  # x moves along the second input
    # W (C + I) = diag(4.5, 5): the second direction is the largest here, though W's first is larger
    first, last = (start(W, C, rank=1, ridge=1.0, mode=mode) for mode in ("ipm", "kpm"))
    close(product(first), torch.diag(torch.tensor([0.0, 2.0])))
    close(product(last), torch.diag(torch.tensor([3.0, 0.0])))
    close(first["b0"].abs(), torch.tensor([[0.0, 5**0.5]]))  # sqrt(S) U^T
    close(first["a0"].abs(), torch.tensor([[0.0], [5**0.5 / 2.5]]))  # C^-1 V sqrt(S)
    assert torch.equal(first["a"], first["a0"]) and torch.equal(first["b"], first["b0"])


def test_both_modes_together_are_the_whole_weight_and_the_scale_of_x_is_free():
    rng = torch.Generator().manual_seed(0)
    W, x = torch.randn(5, 8, generator=rng), torch.randn(40, 8, generator=rng)
    C = x.T @ x / 40
    close(product(start(W, C, rank=2)) + product(start(W, C, rank=3, mode="kpm")), W)
    close(product(start(W, C, rank=5)), W)
    small, large = (start(W, scale * C, rank=2) for scale in (1e-4, 1e4))
    close(small["a0"], large["a0"])
    close(small["b0"], large["b0"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_against_peft(mode):
    f, inputs, rng = backbone("bert"), batch("bert"), torch.Generator().manual_seed(1)
    g = copy.deepcopy(f)
    corda = CordaConfig(corda_method=mode, prune_temporary_fields=False)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["query", "value"], init_lora_weights="corda", corda_config=corda)

    def look():
        for ids in torch.randint(1, WORDS, (40, 1, 9), generator=torch.Generator().manual_seed(3)):
            g(ids)

    preprocess_corda(g, config, look)
    sites = find(f, ("attention.query", "attention.value"))
    seen = {s.key: {"W": s.weight(f)[0].detach(), "cov": s.module(g).covariance_matrix} for s in sites}
    theirs = get_peft_model(g, config).eval()
    ours = Bank.make(make("delta", {"corda": {"rank": 4, "mode": mode}}), make("gate", "by_task"), sites, rng, seen)
    layers = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    tree = ours.fresh(rng, seen)
    for site in sites:
        A, B = (getattr(layers[site.name], n)["default"].weight.data for n in ("lora_A", "lora_B"))
        p, root = tree[site.key], seen[site.key]["cov"].diagonal().mean().sqrt()
        close(product(p), B @ A, 1e-4)
        close(p["a0"].norm(dim=0), A.norm(dim=1) * root, 1e-3)  # theirs carry the scale of x
        close(p["b0"].norm(dim=1), B.norm(dim=0) / root, 1e-3)
        A += 0.1 * torch.randn(A.shape, generator=rng)
        B += 0.1 * torch.randn(B.shape, generator=rng)
        p["a"], p["b"] = A.T.clone(), B.T.clone()
    ours.add([tree])
    with torch.no_grad():
        close(
            real(inputs, run(Adapted(f, [ours]), inputs, [1] * 5)),
            real(inputs, theirs(**inputs).last_hidden_state),
            1e-3,
        )
