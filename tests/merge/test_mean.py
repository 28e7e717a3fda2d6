import torch
from laws._nasty import close

from anabranch.core.names import make


def test_it_is_the_model_soup():
    """Weights that are averaged are f plus the averaged task vectors."""
    f, models = torch.randn(3, 4), torch.randn(5, 3, 4)
    close(f + make("merge", "mean")(models - f), models.mean(0))
    assert make("merge", "mean")(torch.tensor([[1.0, 2.0], [3.0, -2.0]])).tolist() == [2, 0]
