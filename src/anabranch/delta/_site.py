"""What several deltas ask of a site: that it is a place of theirs, that a rank fits, that f's weight came along."""

from collections.abc import Mapping

from torch import Tensor

from anabranch.core.site import ROLES, Site, matching
from anabranch.errors import InputError

PLACES = {  # what a site may be: as a place where a delta sits, and as what came instead
    "linear": ("linear layers", "a linear layer"),
    "heads": ("the layer that reads attention's heads", "that layer"),
    "norm": ("norms", "a norm"),
    "table": ("embedding tables", "an embedding table"),
    "region": ("regions read->write", "a region"),
    "embedding": ("the whole embedding", "the embedding"),
    "front": ("modules before the blocks", "a module before the blocks"),
    "block": ("whole blocks", "a block"),
    "attention": ("the modules that attend", "a module that attends"),
    "output": ("all of f", "all of f"),
    "whole": ("whole modules", "a whole module"),
}
ANYWHERE = ("linear", "norm", "table", "region", "whole")  # of a delta that reads and writes hidden states alone
QUERIES = ("query", "q_proj", "q_lin", "q")  # under one of these names ROLES know what a module that attends holds


def sits(site: Site, method: str, *places: str, use: str = "attention.value") -> None:
    """InputError unless the site is one of ``places``; ``use`` is what to type instead."""
    found = kinds(site)
    if not set(places) & set(found):
        *most, last = (PLACES[place][0] for place in places)
        where = f"{', '.join(most)} or {last}" if most else last
        raise InputError(f"{method} sits at {where}, got {site.key or 'output'} ({PLACES[found[0]][1]}); use at: {use}")


def kinds(site: Site) -> list[str]:
    """The words of PLACES that fit a site, the most telling first: by its kind and role or, where it is a path, by its name."""
    if site.read:
        return ["region"]
    if site.kind in ("linear", "transposed"):
        known = any(matching([site.name], role, "") for role in ROLES if role != "attention.out")
        return ["linear"] if known else ["linear", "heads"]
    if site.kind == "norm":
        return ["norm"]
    if site.kind == "embedding":
        return ["table", "embedding"] if site.role == "embedding" else ["table"]
    attends = matching([f"{site.name}.{query}" for query in QUERIES], "attention.query", "")
    path = "block" if site.name.rpartition(".")[2] == str(site.depth) else "attention" if attends else ""
    found = [role for role in (site.role or path,) if role in PLACES] + ["front"] * (site.depth < 0)
    other = site.role == "attention" and site.d_in != site.d_out  # d_out is then the width of keys, not of what it gives
    return found if other else [*found, "whole"]


def linear(site: Site, method: str) -> None:
    """InputError unless the site is a linear layer, whose weight is [d_out, d_in]."""
    sits(site, method, "linear")


def fits(rank: int, most: int, site: Site, name: str = "rank") -> None:
    """InputError for a rank, the setting ``name``, that is larger than the change at the site can have."""
    if rank > most:
        raise InputError(f"{name} is at most {most} at {site.key or 'output'}, got {rank}; use {name}: {most}")


def seen_at(seen: Mapping[str, Tensor], name: str, site: Site, method: str) -> Tensor:
    """One of the statistics that a delta ``needs``, in double precision: decompositions lose half their digits."""
    if name not in seen:
        raise InputError(f'{method} starts from f at {site.key}: expected seen["{name}"], got {sorted(seen)}')
    return seen[name].double()
