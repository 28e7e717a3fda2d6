"""mergekit's YAML files (Goddard et al. 2024, arXiv:2403.13257), for the methods that both have: weights and densities per
model, normalize, rescale, lambda, t. What a file asks beyond that is an InputError with its line.

    t_j = cut(m_j - base)      cut: nothing, the largest, without outliers, at random (DARE), at random by rank (DELLA)
    out = base + lambda * sum_j w_j t_j e_j / (sum_j w_j e_j if normalize else 1)

e_j: 1, or, where signs are elected, whether the sign of w_j t_j is that of the sum. What was dropped at random is made up for
by dividing by the probability, as in the papers, where mergekit matches the L1 norm of each tensor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import yaml
from annotated_types import Interval
from torch import Tensor

from anabranch.core.names import make
from anabranch.engine.checkpoint import CUT, DTYPES, stream
from anabranch.engine.run import Told
from anabranch.errors import nearest
from anabranch.merge._parts import Draws, draws, drop, keep, ranked, sweep, thin, trim
from anabranch.task.read import PlacedError, read_text, shown
from anabranch.types import Fraction, Share, within

Values = Mapping[str, Any]  # settings by name; those of models as [t]
Made = Callable[[Tensor, Tensor], Tensor]  # a piece [t, m] of the rows, and memory for what it returns: t_j
Cut = Callable[[Tensor, Values, Any], Made]  # rows [t, *shape] ->
Lines = Mapping[tuple[Any, ...], int]
NEEDED = object()
HINTS: dict[str, Any] = {
    "weight": float, "density": Share, "gamma": Fraction, "epsilon": Fraction, "t": Annotated[float, Interval(ge=0, le=1)],
    "lambda": float, "normalize": bool, "rescale": bool, "int8_mask": bool, "filter_wise": bool, "seed": int,
}  # fmt: skip
KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
OTHER = ("slices", "modules", "tokenizer", "chat_template")  # mergekit has them, this does not


class Kind(NamedTuple):
    """A method of mergekit: settings with their defaults, what is cut (None: nothing, or another form), if signs are elected."""

    settings: Values
    cut: Cut | None = None
    elects: bool = False


def largest(rows: Tensor, p: Values, site: Any) -> Made:
    edge = ranked(rows, [keep(s, rows.shape[1:].numel()) for s in p["density"]])[0]
    return lambda d, out: trim(d, edge, out)


def middle(rows: Tensor, p: Values, site: Any) -> Made:
    n = rows.shape[1:].numel()
    kept = [keep(s, n) for s in p["density"]]
    above = [min(int(gamma * n), n - k) for gamma, k in zip(p["gamma"], kept, strict=True)]
    low, high = ranked(rows, [a + k for a, k in zip(above, kept, strict=True)], [a + 1 for a in above])
    return lambda d, out: trim(d, low, out).mul_(d.abs().le_(high))


def random(rows: Tensor, p: Values, site: Any) -> Made:
    drawn, share = draws(len(rows), site, p["seed"]), torch.tensor(p["density"])[:, None]
    return lambda d, out: dropped(d, share, drawn, p)


def graded(rows: Tensor, p: Values, site: Any) -> Made:
    """Neurons are ranked whole, so they are worked on in place, a few at a time."""
    m = rows.shape[-1]
    drawn = draws(len(rows), site, p["seed"]).streams
    for r, density, epsilon, one in zip(rows, p["density"], p["epsilon"], drawn, strict=True):
        spread = epsilon if density < 1 and m > 1 else 0.0
        for block in r.view(-1, m).split(max(1, CUT // m)):
            place = block.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
            share = (2 * spread / max(1, m - 1) * place).add_(density - spread)
            block.copy_(dropped(block.view(1, -1), share.view(1, -1), Draws([one]), p).view_as(block))
    return lambda d, out: out.copy_(d)


def dropped(d: Tensor, share: Tensor, drawn: Draws, p: Values) -> Tensor:
    return drop(d, share, drawn) if p["rescale"] else thin(d, share, drawn)


BASIC = {"weight": NEEDED, "lambda": 1.0, "normalize": False, "rescale": False, "int8_mask": False}
RANDOM = {**BASIC, "density": 1.0, "rescale": True, "seed": 0}
KINDS = {
    "linear": Kind({"weight": NEEDED, "normalize": True}),
    "slerp": Kind({"t": NEEDED}),
    "model_stock": Kind({"filter_wise": False}),
    "task_arithmetic": Kind(BASIC),
    "ties": Kind({**BASIC, "density": 1.0, "normalize": True}, largest, True),
    "breadcrumbs": Kind({**BASIC, "density": 1.0, "gamma": 0.01}, middle),
    "breadcrumbs_ties": Kind({**BASIC, "density": 1.0, "gamma": 0.01}, middle, True),
    "dare_linear": Kind(RANDOM, random),
    "dare_ties": Kind(RANDOM, random, True),
    "della_linear": Kind({**RANDOM, "epsilon": 0.15}, graded),
    "della": Kind({**RANDOM, "epsilon": 0.15, "normalize": True}, graded, True),
}
EACH = ("weight", "density", "gamma", "epsilon")  # settings of a model; the others are of the whole merge


def merge_yaml(path: str | Path, out: str | Path, *, dtype: str | None = None, told: Told | None = None) -> dict[str, Any]:
    """Runs a mergekit file. Folders of models are found from the file's folder, else from the working folder.

    PlacedError (an InputError with file and line): YAML that is broken, an unknown method or key (the nearest is named), one
    that is not supported, a setting out of its range, a model that is not there; and what ``merge_folders`` raises.
    """
    file = Request(Path(path))
    kind, word, entries = KINDS[file.name], file.data.get("base_model"), file.models()
    base = None if word is None else file.folder(word, ("base_model",))
    if file.name != "linear" and base is None:
        raise file.wrong(f"{file.name} needs base_model: the folder of the model that it works from", "merge_method")
    if file.name == "linear" and base is not None and base not in [m for m, _ in entries]:
        raise file.wrong("linear averages the models: list base_model among them with its weight, or leave it out", "base_model")
    others = entries if file.name == "linear" else [(m, at) for m, at in entries if m != base]
    folders = [m for m, _ in others]
    least, most = {"model_stock": (2, None), "slerp": (1, 1)}.get(file.name, (1, None))
    if len(folders) < least or len(folders) > (most or len(folders)):
        count = (
            f"{'' if most else 'at least '}{least} model{'s' if least > 1 else ''}{'' if base is None else ' beside the base'}"
        )
        raise file.wrong(f"{file.name} takes {count}, got {len(folders)}", "models")
    p = {key: file.values(key, default, [at for _, at in others]) for key, default in kind.settings.items()}
    told_dtype = dtype or file.dtype()
    run = partial(stream, out=out, dtype=told_dtype, told=told)
    if file.name == "slerp":
        found = run(None, [base or "", *folders], make("merge", {"slerp": {"weight": p["t"]}}))
    elif file.name == "model_stock":
        found = run(base, folders, make("merge", file.name))
    elif kind.cut is None:
        w = torch.tensor(p["weight"])
        if file.name == "linear" and p["normalize"] and not w.sum():
            raise file.wrong("the weights of linear add up to 0; set normalize: false, or other weights", "models")
        w = w / divisor(w.sum()) if p["normalize"] else w
        w = w * p.get("lambda", 1.0)
        found = run(base if kind.settings is BASIC else None, folders, lambda rows, *_: torch.mv(rows.mT, w), entries=True)
    else:
        found = run(base, folders, partial(weighted, cut=kind.cut, elects=kind.elects, p=p), pieces=kind.cut is random)
    return found | {"method": file.name, "settings": p}


def weighted(rows: Tensor, site: Any, whole: Any, *, cut: Cut, elects: bool, p: Values) -> Tensor:
    """rows [t, *shape] -> [*shape]; rows are used up."""
    w = torch.tensor(p["weight"])

    def per(kept: Tensor) -> Tensor:
        if not elects:
            out = torch.mv(kept.mT, w)
            return out.div_(divisor(w.sum())) if p["normalize"] else out
        kept.mul_(w[:, None])
        sign = kept.sum(0).ge_(0).mul_(2).sub_(1)  # of a sum of 0 it is positive, as in mergekit
        kept.mul_(sign).clamp_(min=0)
        out = kept.sum(0).mul_(sign)
        return out.div_(divisor(torch.mv(kept.sign_().mT, w))) if p["normalize"] else out

    return sweep(rows, per, cut(rows, p, site)).mul_(p["lambda"])


def divisor(total: Tensor) -> Tensor:
    """1 for what is all but 0."""
    return total.abs().lt_(1e-8).add_(total)  # where 1 is added, nothing else is left in fp32


class Request:
    """A checked file: known keys, a known method, models that exist."""

    def __init__(self, path: Path) -> None:
        text, self.file, self.path = read_text(path), shown(path), path
        try:
            node, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
            raise PlacedError(f"broken YAML: {error.problem or error.context}", self.file, line, column) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise PlacedError(f"broken YAML: {str(error).splitlines()[0]}", self.file) from None
        if not isinstance(data, dict):
            raise PlacedError(f"expected lines such as merge_method: ties and models:, got {data!r:.60}", self.file, 1)
        self.data, self.lines = data, dict(placed(node))
        for key in data:
            if key in OTHER:
                raise self.wrong(f"{key} is not supported: merges here are of whole models, with the base's tokenizer", key)
            if key not in KEYS:
                raise self.wrong(f"unknown key {key!r}{nearest(key, KEYS)}", key)
        if data.get("merge_method") is None:
            raise self.wrong(f"the line merge_method: is missing: it names one of {', '.join(KINDS)}", "merge_method")
        self.name = str(data["merge_method"])
        if self.name not in KINDS:
            raise self.wrong(f"no merge_method {self.name!r}{nearest(self.name, KINDS)}", "merge_method")
        if data.get("tokenizer_source", "base") not in ("base", data.get("base_model")):
            raise self.wrong("tokenizer_source: only base is supported, whose tokenizer is taken over", "tokenizer_source")
        self.known(("parameters",), self.mapping(data.get("parameters"), ("parameters",)))

    def wrong(self, words: str, *at: Any) -> PlacedError:
        line = next((self.lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self.lines), 1)
        return PlacedError(words, self.file, line)

    def mapping(self, value: Any, at: tuple[Any, ...]) -> Values:
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"{at[-1]} is a mapping of key: value, got {value!r:.60}", *at)
        return value or {}

    def known(self, at: tuple[Any, ...], settings: Values) -> None:
        for key in settings:
            if key not in KINDS[self.name].settings:
                raise self.wrong(f"{self.name} has no parameter {key!r}{nearest(key, KINDS[self.name].settings)}", *at, key)

    def models(self) -> list[tuple[Path, tuple[Any, ...]]]:
        """(folder, where the file names it)"""
        listed = self.data.get("models")
        if not isinstance(listed, list) or not listed:
            raise self.wrong("expected models: a list of {model: FOLDER, parameters: {...}}", "models")
        found = []
        for i, entry in enumerate(listed):
            at = ("models", i)
            odd = [k for k in self.mapping(entry, at) if k not in ("model", "parameters")]
            if odd or not entry:
                raise self.wrong(f"a model has the keys model and parameters, got {odd[0] if odd else entry!r}", *at, *odd[:1])
            self.known((*at, "parameters"), self.mapping(entry.get("parameters"), (*at, "parameters")))
            found.append((self.folder(entry.get("model"), (*at, "model")), at))
        return found

    def folder(self, word: Any, at: tuple[Any, ...]) -> Path:
        if not isinstance(word, str):
            raise self.wrong(f"a model is a folder, got {word!r:.60}", *at)
        for place in (self.path.absolute().parent / Path(word).expanduser(), Path(word).expanduser()):
            if place.is_dir():
                return place.resolve()
        raise self.wrong(f"no folder {word}; a model of the hub is downloaded first and then named by its folder", *at)

    def values(self, key: str, default: Any, models: Sequence[tuple[Any, ...]]) -> Any:
        """A setting of the merge, or for those of models a list with each one's own, else the merge's."""
        if key not in EACH:
            return self.value(("parameters", key), default)
        common = self.value(("parameters", key), default, False)
        found = [self.value((*at, "parameters", key), common) for at in models]
        if key == "epsilon":
            for at, share, spread in zip(models, self.values("density", 1.0, models), found, strict=True):
                if share < 1 and not 0 < share - spread <= share + spread <= 1:
                    raise self.wrong(
                        f"density - epsilon to density + epsilon lies in (0, 1], got {share:g} and {spread:g}: "
                        f"for this density take an epsilon below {min(share, 1 - share):g}",
                        *(*at, "parameters", key),
                    )
        return found

    def value(self, at: tuple[Any, ...], default: Any, must: bool = True) -> Any:
        value: Any = self.data
        key = at[-1]
        for part in at:
            value = value[part] if isinstance(part, int) else (value or {}).get(part)
        if value is None:
            if must and default is NEEDED:
                raise self.wrong(f"{self.name} needs {key}, here or in parameters of the whole merge", *at[:-1])
            return default
        if isinstance(value, (list, dict)):
            raise self.wrong(f"{key}: gradients and filters are not supported, only one value for all tensors", *at)
        try:
            value = within(value, HINTS[key], key)
        except ValueError as error:
            raise self.wrong(str(error), *at) from None
        if isinstance(value, float) and not isfinite(value):
            raise self.wrong(f"{key} is a finite number, got {value}", *at)
        if value and (key == "filter_wise" or (key == "rescale" and "seed" not in KINDS[self.name].settings)):
            raise self.wrong(f"{key}: true is not supported for {self.name}", *at)
        return value

    def dtype(self) -> str | None:
        for key in ("out_dtype", "dtype"):
            word = self.data.get(key)
            if word is not None:
                if word not in DTYPES:
                    raise self.wrong(f"{key} is one of {', '.join(DTYPES)}, got {word!r}{nearest(str(word), DTYPES)}", key)
                return str(word)
        return None


def placed(node: yaml.Node | None, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """(path of keys and places, line from 1) of everything in a file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from placed(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*at, i), value.start_mark.line + 1
            yield from placed(value, (*at, i))
