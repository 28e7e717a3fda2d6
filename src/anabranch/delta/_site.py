"""What several deltas ask of a site: that it is a linear layer, that a rank fits, that f's weight came along."""

from collections.abc import Mapping

from torch import Tensor

from anabranch.core.site import Site
from anabranch.errors import InputError


def linear(site: Site, method: str) -> None:
    """InputError unless the site is a linear layer, whose weight is [d_out, d_in]."""
    if site.kind not in ("linear", "transposed"):
        raise InputError(f"{method} sits at linear layers, {site.key} is none (kind {site.kind}); use at: attention.value")


def fits(rank: int, most: int, site: Site) -> None:
    if rank > most:
        raise InputError(f"rank is at most {most} at {site.key}, got {rank}")


def seen_at(seen: Mapping[str, Tensor], name: str, site: Site, method: str) -> Tensor:
    """One of the statistics that a delta ``needs``, in double precision: decompositions lose half their digits."""
    if name not in seen:
        raise InputError(f'{method} starts from f at {site.key}: expected seen["{name}"], got {sorted(seen)}')
    return seen[name].double()
