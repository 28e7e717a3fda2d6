import torch
from laws._nasty import close
from laws.balance import point

from anabranch.balance.sam_gs import equalised, similarity
from anabranch.core.names import make


def test_similarity_is_the_mean_over_pairs():
    close(similarity(torch.tensor([1.0, 2.0])), torch.tensor(0.8))
    close(similarity(torch.tensor([1.0, 2.0, 2.0])), torch.tensor((0.8 + 0.8 + 1) / 3))
    close(similarity(1e-30 * torch.tensor([1.0, 2.0])), torch.tensor(0.8))
    close(similarity(torch.tensor([1.0])), torch.tensor(1.0))
    close(similarity(torch.zeros(3)), torch.tensor(1.0))


def test_unlike_magnitudes_are_made_alike():
    rows = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    found, _ = make("balance", "sam_gs")(None, point(rows))
    close(found, torch.tensor([50.5, 50.5]))
    close(equalised(torch.tensor([[2.0, 0.0], [0.0, 0.0]])), torch.tensor([1.0, 0.0]))


def test_a_loss_scaled_by_a_hundred_does_not_lead():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 50, generator=rng)
    found, _ = make("balance", "sam_gs")(None, point(rows * torch.tensor([1.0, 100.0])[:, None]))
    assert abs(found @ rows[0] / rows[0].norm() - found @ rows[1] / rows[1].norm()) < 1e-3 * found.norm()


def test_like_magnitudes_are_modulated_by_what_gradients_were():
    """First step: |m| is |g|, sqrt(v) is 1e-3 where all norms agree."""
    rows = torch.tensor([[1.0, -2.0], [2.0, 1.0]])
    found, _ = make("balance", "sam_gs")(None, point(rows))
    close(found * 1e-3, (rows * rows.abs()).sum(0), 1e-2)
