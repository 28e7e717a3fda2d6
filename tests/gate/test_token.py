import pytest
import torch
from torch.func import vmap

from anabranch.core.delta import At
from anabranch.gate._token import alike


def rows(dtype: torch.dtype, b: int = 32, length: int = 8, k: int = 12, d: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(b, length, d, generator=rng).to(dtype), torch.nn.functional.normalize(torch.randn(k, d, generator=rng)).to(
        dtype
    )


def asked(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return vmap(lambda x, v: alike(At(x, x, torch.ones(len(x), dtype=torch.bool)), v), (0, None))(x, v)


def test_bf16_in_two_parts_is_far_nearer_than_the_inputs_themselves() -> None:
    """Against the products in fp64; what the rounding of x to bf16 moves is 30 times as much, a product in bf16 alone as well."""
    x, v = rows(torch.float32)
    half, v = x.bfloat16(), v.bfloat16()
    exact = half.double() @ v.double().mT
    with torch.no_grad():
        wrong = (asked(half, v) - exact).abs()
    assert (wrong <= 2**-17 * exact.abs() + 1e-6).all()
    assert (x.double() @ v.double().mT - exact).std() > 30 * wrong.std()
    assert ((half @ v.mT) - exact).std() > 30 * wrong.std()


@pytest.mark.parametrize(("dtype", "grad"), [(torch.float32, False), (torch.bfloat16, True)])
def test_fp32_and_what_learns_are_plain_products(dtype: torch.dtype, grad: bool) -> None:
    x, v = rows(dtype)
    with torch.set_grad_enabled(grad):
        assert torch.equal(asked(x, v), x.float() @ v.float().mT)


def test_a_row_asks_the_same_in_any_company() -> None:
    x, v = rows(torch.bfloat16)
    with torch.no_grad():
        whole = asked(x, v)
        assert all(torch.equal(asked(x[:n], v), whole[:n]) for n in (2, 3, 8, 31))
        assert torch.equal(asked(x[torch.arange(31, -1, -1)], v), whole.flip(0))
