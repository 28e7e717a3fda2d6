"""Few bits a number: codes by hand, packing without gaps, training through the rounding."""

import pytest
import torch
from laws._nasty import backbone, bank, close, frozen

from anabranch.core.names import make
from anabranch.delta._bits import pack, unpack
from anabranch.delta.quantised import coded, restore
from anabranch.errors import InputError


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_without_gaps_and_loses_nothing(bits):
    codes = torch.randint(0, 2**bits, (37,), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype is torch.uint8 and len(packed) == -(-37 * bits // 8)
    assert unpack(packed, bits, 37).tolist() == codes.tolist() == unpack(packed.float(), bits, 37).tolist()


def test_the_first_number_lies_lowest():
    assert pack(torch.tensor([1, 2, 3, 0, 5]), 3).tolist() == [0b11_010_001, 0b0_101_000_0]


def test_codes_by_hand():
    D = torch.tensor([[-2.0, 0.0], [0.9, 4.0]])  # 2 bits: step 2, zero at code 1
    codes, scale, zero = coded(D, 2, 0)
    assert codes.tolist() == [[0, 1, 1, 3]] and scale.item() == 2 and zero.item() == 1
    assert restore(codes, scale, zero, D.shape, D.dtype).tolist() == [[-2, 0], [0, 4]]
    D = torch.tensor([-2.0, 0.0, 1.0, 4.0])
    codes, scale, zero = coded(D, 2, 3)  # groups of three, the last is padded: step 1 over [-2, 1], 4/3 over [0, 4]
    assert codes.tolist() == [[0, 2, 3], [3, 0, 0]] and zero[:, 0].tolist() == [2, 0]
    close(restore(codes, scale, zero, D.shape, D.dtype), D, 1e-2)
    assert restore(*coded(torch.zeros(5), 4, 0), torch.Size([5]), torch.float32).tolist() == [0] * 5
    assert (
        restore(*coded(torch.full((3,), 6.0), 2, 0), torch.Size([3]), torch.float32).tolist() == [6] * 3
    )  # zero is in the range


def test_training_and_serving_agree_to_the_bit_and_the_gradient_passes():
    delta, W = make("delta", {"quantised": {"bits": 3}}), torch.randn(4, 5)
    D = torch.randn(4, 5, requires_grad=True)
    out, db = delta.weight({"W@x": D}, W, None)
    (out * W).sum().backward()
    close(D.grad, W)
    served, _ = delta.weight(delta.freeze({"W@x": D.detach()}), W, None)
    assert torch.equal(served, out.detach()) and db is None


def test_a_slot_is_as_small_as_it_says():
    made = bank(backbone("bert"), {"quantised": {"bits": 3}})
    numbers = made.tables["own"].n
    served = frozen(made)
    assert served.tables["fixed.uint8"].n + 2 * served.tables["own"].n <= numbers * 3 / 8 + 4 * 2 * len(made.sites)
    with pytest.raises(InputError, match="bits"):
        make("delta", {"quantised": {"bits": 9}})
