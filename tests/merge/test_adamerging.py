from types import SimpleNamespace

import torch
from laws._nasty import close

from anabranch.core.names import make

# the tree's numbers are the weights themselves: task j alone has a 1 at place j of every tensor
TREES = [{site: {"W": torch.eye(2)[j]} for site in ("low", "high")} for j in range(2)]
WANT = {"low": torch.tensor([0.5, 0.9]), "high": torch.tensor([0.1, 1.7])}


def look():
    """Entropies that are lowest where the weights are WANT."""
    return SimpleNamespace(
        entropies=lambda tree: torch.stack([sum((tree[s]["W"] - w)[j] ** 2 for s, w in WANT.items()) for j in (0, 1)])
    )


def test_every_tensor_finds_the_weights_of_lowest_entropy_in_0_to_1():
    got = make("merge", {"adamerging": {"steps": 300, "lr": 0.02}})(TREES, look())
    close(got["low"]["W"], WANT["low"], 1e-3)
    close(got["high"]["W"], torch.tensor([0.1, 1.0]), 1e-3)


def test_by_task_one_weight_serves_all_tensors():
    got = make("merge", {"adamerging": {"steps": 300, "lr": 0.02, "by": "task"}})(TREES, look())
    close(got["low"]["W"], torch.tensor([0.3, 1.0]), 1e-3)
    close(got["high"]["W"], got["low"]["W"])


def test_the_first_step_of_adam_moves_every_weight_by_lr():
    got = make("merge", {"adamerging": {"steps": 1, "lr": 0.05}})(TREES, look())
    close(got["low"]["W"], torch.tensor([0.35, 0.35]))
    close(got["high"]["W"], torch.tensor([0.25, 0.35]))
