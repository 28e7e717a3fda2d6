import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site

HERE = Site("here", "", 0, "linear", 50, 40)


def test_it_is_ties_of_what_dare_leaves():
    """DARE of one task among zeros shows what that task keeps under the same seed."""
    rows = torch.randn(3, 40, 50)
    alone = rows[None] * torch.eye(3)[:, :, None, None]
    dropped = torch.stack([make("merge", {"dare": {"density": 0.3, "scale": 1.0, "seed": 4}})(one, HERE) for one in alone])
    assert 0.2 < (dropped != 0).float().mean() < 0.4
    got = make("merge", {"dare_ties": {"density": 0.3, "scale": 0.7, "seed": 4}})(rows, HERE)
    close(got, make("merge", {"ties": {"density": 1.0, "scale": 0.7}})(dropped))


def test_with_everything_kept_it_is_ties():
    rows = torch.randn(4, 6, 7)
    close(make("merge", {"dare_ties": {"density": 1.0, "scale": 1.0}})(rows), make("merge", {"ties": {"density": 1.0}})(rows))
