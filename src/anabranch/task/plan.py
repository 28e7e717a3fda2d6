"""The plan: a backbone and N tasks, from one YAML file, a folder of data, or a dict; checked before anything starts."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from os.path import isdir, isfile  # which say no to a name that is too long, where a Path raises OSError
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from anabranch.core.names import every, find
from anabranch.errors import InputError, nearest
from anabranch.settings import check
from anabranch.task.read import SPLITS, PlacedError, data_files, is_hub_id, is_saved, is_sound, read_text, shown, suffix
from anabranch.types import Count, Fraction, Positive

KINDS = {
    "classify": ("classification", "single-label", "text-classification"),
    "multilabel": ("multi-label", "multilabel-classify", "multi-label-classification"),
    "regress": ("regression",),
    "tag": ("tagging", "ner", "pos", "token-classification", "sequence-labelling"),
    "pair": ("pairs", "pair-classify", "pair-classification", "nli", "pair-regress"),
    "choice": ("choices", "multiple-choice"),
    "retrieve": ("retrieval", "search"),
    "generate": ("generation", "seq2seq", "text-generation"),
}
ALIASES = {alias: kind for kind, aliases in KINDS.items() for alias in (kind, *aliases)}
STAGES = ("look", "features", "probe", "relate", "delta", "share", "choose")
UNFOLDED, DIGITS = 100_000, 1000  # values of a plan, every alias followed; digits of a whole number
FILES = ("data", "train", "valid", "test", "corpus")


def kind_of(word: str) -> str:
    """One of the eight kinds; aliases as in ``multiple-choice``."""
    kind = ALIASES.get(word.strip().lower().replace("_", "-").replace(" ", "-"))
    if kind is None:
        close = nearest(word, ALIASES)
        raise InputError(f"no kind {word!r}{close if 'did you mean' in close else nearest(word, KINDS)}")
    return kind


def label_names(names: list[Any]) -> list[Any]:
    if any(isinstance(name, bool) for name in names):
        raise InputError("labels holds true or false, which is how YAML reads yes, no, on and off: quote the names")
    if twice := [name for name, times in Counter(map(str, names)).items() if times > 1]:
        raise InputError(f"labels names {twice[0]!r} twice")
    return names


def task_name(name: str) -> str:
    if name == "all" or not re.fullmatch(r"\w[\w .+-]*", name):
        fix = "use letters, digits, spaces and . _ + -, but not 'all', which means every task"
        raise InputError(f"{name!r} cannot name a task: {fix}")
    return name


def path_word(word: str) -> str:
    if "\0" in word or not is_sound(word):
        raise InputError(f"{word!r} cannot be a path")
    return word


Words = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v), AfterValidator(path_word)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TaskSpec(Strict):
    """One task of a plan; docs/data.md explains every key. None: taken from task.json, or inferred."""

    data: Words | None = None  # a task folder, a data file, a folder of datasets.save_to_disk, or a hub id
    train: Words | None = None
    valid: Words | None = None
    test: Words | None = None
    text: str | None = None
    text_b: str | None = None
    tokens: str | None = None
    choices: str | list[str] | None = None
    corpus: Words | None = None
    label: str | list[str] | None = None
    labels: Annotated[list[str | int | float | bool], AfterValidator(label_names)] | None = None
    kind: Annotated[str, AfterValidator(kind_of)] | None = None
    metric: str | None = None
    limit: Count | None = None  # training rows at most, the held-out validation rows included
    split: str | dict[str, Fraction] | None = None  # a column of split names, or shares {test: 0.2, valid: 0.1}
    max_length: Count | None = None  # tokens of the backbone
    weight: Positive | None = None
    description: str | None = None

    @field_validator("split")
    @classmethod
    def shares(cls, split: Any) -> Any:
        for key in split if isinstance(split, dict) else ():
            if key not in ("test", "valid"):
                raise InputError(f"split is a column's name or {{test: 0.2, valid: 0.1}}, got the key {key!r}")
        return split

    @model_validator(mode="after")
    def has_data(self) -> Self:
        if not self.data and not self.train:
            raise InputError("expected a source: data: FILE or FOLDER (or train: FILE)")
        return self


class Budget(Strict):
    minutes: Positive | None = None
    kilobytes_per_task: Positive | None = None


def method(family: str, spec: Any) -> None:
    """Raise InputError unless ``spec`` is a name or {name: settings} of the family. A bare name needs no import."""
    if not isinstance(spec, (str, Mapping)) or (isinstance(spec, Mapping) and len(spec) != 1):
        raise InputError(f"a {family} is a name or {{name: {{setting: value}}}}, got {spec!r}")
    name, settings = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    if not isinstance(name, str):
        raise InputError(f"a {family} is a name, got {name!r}")
    if settings or name.replace("-", "_") not in every(family):
        check(find(f"{family}.{name}"), settings or {}, f"{family} {name}")


def delta_entry(spec: Any) -> Any:
    """One entry of ``delta``: at and lr may also stand among the settings; they come out beside the name."""
    if not isinstance(spec, Mapping):
        method("delta", spec)
        return spec
    beside = {key: spec[key] for key in ("at", "lr") if key in spec}
    inner = {name: settings for name, settings in spec.items() if name not in beside}
    for name, settings in inner.items():
        if isinstance(settings, Mapping):
            beside |= {key: settings[key] for key in ("at", "lr") if key in settings}
            inner[name] = {key: value for key, value in settings.items() if key not in ("at", "lr")}
    method("delta", inner)
    at, lr = beside.get("at", ""), beside.get("lr", 1.0)
    if not isinstance(at, str) and not (isinstance(at, list) and all(isinstance(site, str) for site in at)):
        raise InputError(f"delta: at is a site or a list of sites, such as attention.query, got {at!r}")
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise InputError(f"delta: lr is a number above 0, got {lr!r}")
    return inner | beside


class Plan(Strict):
    """``delta`` is a name, {name: settings}, or a list of {name: settings, at: sites, lr: rate}; an entry with at or lr
    is always in a list, and has them beside the name. ``merge`` is one merge or a list, of which the best is offered."""

    backbone: Words = "minilm"  # the embedded default, a Hugging Face id, or a local folder
    seed: int = 0
    tasks: dict[Annotated[str, AfterValidator(task_name)], TaskSpec]
    delta: Any = "lora"
    gate: Any = "by_task"
    merge: Any = None
    balance: Any = None
    stages: list[str] | None = None
    budget: Budget = Field(default_factory=Budget)
    strict: bool = False  # odd data that is only warned about (a label seen only in test) becomes an error

    @model_validator(mode="before")
    @classmethod
    def has_tasks(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not data.get("tasks"):
            raise InputError("no tasks; expected tasks: {NAME: {data: FILE or FOLDER}}")
        return data

    @field_validator("delta")
    @classmethod
    def delta_is_known(cls, delta: Any) -> Any:
        entries = [delta_entry(entry) for entry in (delta if isinstance(delta, list) else [delta])]
        if not entries:
            raise InputError("delta is an empty list; name a delta, such as lora")
        placed = isinstance(entries[0], Mapping) and bool({"at", "lr"} & set(entries[0]))
        return entries if isinstance(delta, list) or placed else entries[0]

    @field_validator("gate", "merge", "balance")
    @classmethod
    def method_is_known(cls, spec: Any, info: Any) -> Any:
        if spec is None:  # a key without a value
            return cls.model_fields[info.field_name].default
        for one in spec if info.field_name == "merge" and isinstance(spec, list) and spec else [spec]:
            method(info.field_name, one)
        return spec

    @field_validator("stages")
    @classmethod
    def stages_are_known(cls, stages: list[str] | None) -> list[str] | None:
        for stage in stages or ():
            if stage not in STAGES:
                raise InputError(f"no stage {stage!r}{nearest(stage, STAGES)}")
        return stages


def read_plan(source: Path | str | dict[str, Any] | Plan) -> Plan:
    """A checked plan whose paths are absolute: from a YAML file, a folder of task folders or data files, one data file,
    or a dict (paths then start at the working folder). Raises PlacedError with file, line and the nearest names."""
    if isinstance(source, Plan):
        return source
    if isinstance(source, Mapping):
        return checked(dict(source), Path.cwd(), None, {})
    path = Path(source)
    if isdir(path) or suffix(path):
        return checked({"tasks": found_tasks(path)}, Path.cwd(), shown(path), {})
    text, file = read_text(path), shown(path)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        bounded(node, file)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise PlacedError(f"broken YAML: {error.problem or error.context}", file, line, column) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a forbidden character, the 31st of February ...
        raise PlacedError(f"broken YAML: {str(error).splitlines()[0]}", file) from None
    return checked(data, path.parent.absolute(), file, dict(key_lines(node, file)))


def bounded(node: yaml.Node | None, file: str) -> None:
    """PlacedError where a few lines of aliases (&a, *a) would unfold to more values than anybody means, or to no end; and for
    a number of endless digits."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None  # while it is counted
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            sizes[id(node)] = 1 + sum(size(c) for child in children for c in (child if isinstance(child, tuple) else (child,)))
            if node.tag.endswith(":int") and len(node.value) > DIGITS:  # which Python would not even print
                raise PlacedError(f"a number of {len(node.value)} digits", file, node.start_mark.line + 1)
        if (found := sizes[id(node)]) is None:
            raise PlacedError("a value holds itself: write it out", file, node.start_mark.line + 1)
        return found

    if node is not None and size(node) > max(UNFOLDED, len(sizes)):
        raise PlacedError(f"its aliases unfold to more than {UNFOLDED:,} values: write out what is meant", file)


def key_lines(node: yaml.Node | None, file: str, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """(path of keys, line) of the top three levels, as deep as a plan goes; a key given twice is an error."""
    if len(path) < 3 and isinstance(node, yaml.MappingNode):
        lines: dict[Any, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if not isinstance(key, yaml.ScalarNode):
                raise PlacedError("a key is a word", file, line)
            if name in lines:
                what = f"task {name!r}" if path == ("tasks",) else f"key {name!r}"
                raise PlacedError(f"{what} is there twice, first on line {lines[name]}: rename one", file, line)
            lines[name] = line
            yield (*path, name), line
            yield from key_lines(value, file, (*path, name))


def checked(data: Any, folder: Path, file: str | None, lines: dict[tuple[Any, ...], int]) -> Plan:
    if not isinstance(data, Mapping):
        raise PlacedError(f"expected lines of key: value such as backbone: and tasks:, got {data!r:.60}", file, 1)
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        raise explain(error, data, Plan, file, lines) from None
    for spec in plan.tasks.values():
        for key in FILES:
            if (word := getattr(spec, key)) and not (key == "data" and is_hub_id(word, folder)):
                setattr(spec, key, str(folder / Path(word).expanduser()))
    if isdir(folder / plan.backbone):
        plan.backbone = str(folder / plan.backbone)
    return plan


def explain(
    error: ValidationError, data: Any, model: type[BaseModel], file: str | None, lines: dict[tuple[Any, ...], int]
) -> PlacedError:
    """pydantic's findings in our words: one line a finding, each with its place, key, value and the nearest name."""
    said: dict[tuple[Any, ...], list[str]] = {}
    got: dict[tuple[Any, ...], str] = {}
    for finding in error.errors():
        path, value = tuple[Any, ...](), data
        for key in finding["loc"]:  # pydantic adds the branches of a union and the like: keep what is in the data
            if isinstance(value, Mapping) and key in value:
                path, value = (*path, key), value[key]
        if finding["type"] == "extra_forbidden":
            fields = {1: model.model_fields, 2: Budget.model_fields}.get(len(path), TaskSpec.model_fields)
            words = f"unknown key{nearest(path[-1], fields)}"
        elif "error" in finding.get("ctx", {}):
            words = str(finding["ctx"]["error"])
        else:
            mapping = finding["type"] in ("model_type", "dict_type")
            words = "expected {key: value}" if mapping else finding["msg"].replace("Input should be", "expected")
            got[path] = f", got {finding['input']!r:.60}"
        said.setdefault(path, []).append(words)
    places = []
    for path, all_words in said.items():
        if not any(other[: len(path)] == path for other in said if other != path):  # a union complains at both depths
            words = " or ".join(dict.fromkeys(all_words)) + got.get(path, "")
            line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
            places.append(PlacedError(f"{'.'.join(map(str, path))}: {words}" if path else words, file, line))
    places[0].args = ("\n".join(map(str, places)),)
    return places[0]


def found_tasks(path: Path) -> dict[str, dict[str, str]]:
    """``{name: {"data": path}}`` for a task folder, a data file, or a folder of these."""

    def is_task(path: Path) -> bool:
        if isdir(path):
            return is_saved(path) or bool(data_files(path, "train"))
        return isfile(path) and bool(suffix(path))

    def name(path: Path) -> str:
        return path.name.split(".")[0] if isfile(path) else path.absolute().name

    if is_task(path) or isfile(path):
        return {name(path): {"data": str(path)}}
    if not isdir(path):
        raise PlacedError("no such file or folder", shown(path))
    found: dict[str, dict[str, str]] = {}
    for child in sorted(path.iterdir()):
        if is_task(child) and not child.name.startswith("."):
            if name(child) in found:
                raise PlacedError(f"two tasks of the name {name(child)!r}: rename {child.name}", shown(path))
            found[name(child)] = {"data": str(child)}
    if not found:
        raise PlacedError("no tasks; expected folders that hold train.jsonl, train.csv ..., or data files", shown(path))
    return found


def write_plan(folder: Path) -> str:
    """The text of ``anabranch init FOLDER``: what was found, what it was taken for, and what may be changed.

    Paths are written as ``folder`` was given, so the plan belongs where it was made."""
    from anabranch.task.data import load_task

    lines = ["# anabranch fit THIS_FILE --out RUN", "# Paths start at this file's folder. Every key: docs/data.md", ""]
    lines.append("backbone: minilm  # embedded, nothing to download; or a Hugging Face id, or a local folder")
    lines += ["seed: 0", "tasks:"]
    for name, spec in found_tasks(Path(folder)).items():
        try:
            task = load_task(name, TaskSpec.model_validate(spec), on_error="skip")
            rows = ", ".join(f"{task.counts[split]} {split}" for split in SPLITS)
            lines.append(f"  # {task.kind}{f' of {len(task.labels)} labels' if task.labels else ''}; rows: {rows}")
            lines += [f"  # note: {warning}" for warning in task.warnings]
        except InputError as error:
            lines += [f"  # TO DO: {line}" for line in str(error).splitlines()]
        entry = yaml.safe_dump({name: spec}, default_flow_style=None, allow_unicode=True, width=10**6)
        lines.append(f"  {entry.strip()}")
    return "\n".join(
        [
            *lines,
            "  # keys of a task: " + ", ".join(TaskSpec.model_fields),
            "# delta: lora  # or {lora: {rank: 16}}, or several: [{lora: {rank: 8}, at: attention.query}, ...]",
            f"# stages: [{', '.join(STAGES)}]",
            "# budget: {minutes: 10, kilobytes_per_task: 200}",
            "# strict: true  # a label that is seen only in test becomes an error",
            "",
        ]
    )
