import torch
from laws._nasty import close

from anabranch.core.names import make


def test_by_hand():
    """Of ten numbers the largest is dropped, then three stay."""
    rows = torch.tensor([[0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 9.0, -10.0], [5.0, 4, 3, 2, 1, 0, -6, -7, -8, -9]])
    got = make("merge", {"breadcrumbs": {"density": 0.3, "outliers": 0.1, "scale": 2.0}})(rows)
    close(got, 2 * torch.tensor([0, 0, 0, 0, 0, 0, 0.7 - 6, -0.8 - 7, 9.0 - 8, 0]))


def test_without_outliers_it_is_a_trimmed_sum_and_with_everything_kept_task_arithmetic():
    rows = torch.randn(3, 8, 5)
    edge = rows.flatten(1).abs().sort(dim=1, descending=True).values[:, 9]  # the tenth of forty
    want = torch.where(rows.abs() >= edge[:, None, None], rows, 0).sum(0)
    close(make("merge", {"breadcrumbs": {"density": 0.25, "outliers": 0.0, "scale": 1.0}})(rows), want)
    close(make("merge", {"breadcrumbs": {"density": 1.0, "outliers": 0.5}})(rows), make("merge", "task_arithmetic")(rows))
