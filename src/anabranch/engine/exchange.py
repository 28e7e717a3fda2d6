"""LoRA to and from PEFT's files with equal outputs, and f with deltas folded in as a plain Hugging Face checkpoint.

PEFT holds one pair per module, y += s * B (A x) with A [r, d_in], B [d_out, r]. Two things do not map one to one:

* Several slices of one module (query and value inside GPT-2's c_attn) become one LoRA of the summed rank, exactly: each
  slice's a^T is a block of rows of A, its b^T fills these columns of B in the slice's rows, and all else of B is zero.
* A bank has one rank and one scale. An adapter with rank_pattern, alpha_pattern or rslora comes in at its largest rank:
  smaller modules are padded with zeros, and s is folded into b, so that alpha = rank. Outgoing modules are padded too.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from sys import modules as loaded
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from anabranch.core.bank import Bank
from anabranch.core.fold import fold
from anabranch.core.names import every, find
from anabranch.core.site import blocks, clone, site
from anabranch.delta.lora import Lora
from anabranch.engine.backbone import Backbone
from anabranch.engine.cache import write, write_json, write_tensors
from anabranch.errors import InputError, nearest
from anabranch.gate.by_task import ByTask
from anabranch.types import within

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LINEAR = ("linear", "transposed")
# What these settings must be, lest a module computes more than s * B (A x); None stands for false and empty too.
PLAIN: dict[str, str | None] = {"peft_type": "LORA", "bias": "none"} | dict.fromkeys(
    ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
     "monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices")
)  # fmt: skip
STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga")  # init_lora_weights that change f's own weights
FACTS = ("kind", "labels", "two", "mean", "std", "max_length")  # of a task's record: what its head needs
MERGE = "fold the adapter with PEFT (merge_and_unload) and use the folded model"


def to_peft(f: nn.Module, bank: Bank, slot: int, folder: str | Path, base_id: str) -> Path:
    """Writes one slot, at weight 1 and in the bank's dtype, for ``PeftModel.from_pretrained(f, folder)``.

    ``base_id``: where PEFT's users find f. InputError: the delta is not LoRA, or sits where PEFT has no LoRA.
    """
    folder, delta, own = _folder(folder), bank.delta, bank.take(slot)
    odd = "".join([f" at {s.key}" for s in bank.sites if s.read or s.kind not in LINEAR][:1])
    if odd or not isinstance(delta, Lora):
        got = type(delta).__name__ + odd
        raise InputError(f"PEFT files hold LoRA at linear layers, got {got}; export it merged, or serve the bundle")
    modules = {n: [s for s in bank.sites if s.name == n] for n in dict.fromkeys(s.name for s in bank.sites)}
    parts, tensors = max(map(len, modules.values())), dict[str, Tensor]()
    for name, sites in modules.items():
        module, like = site(f, name, "", "", 0), own[sites[0].key]["a"]
        A, B = like.new_zeros(parts * delta.rank, module.d_in), like.new_zeros(module.d_out, parts * delta.rank)
        for i, s in enumerate(sites):
            block = slice(i * delta.rank, (i + 1) * delta.rank)
            A[block], B[s.columns, block] = own[s.key]["a"].mT, own[s.key]["b"].mT
        tensors |= {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B}
    endings, alpha = tuple(f".{m}" for m in modules), delta.alpha * parts
    loose = any(n.endswith(endings) for n, _ in f.named_modules() if n not in modules)  # PEFT's lists match endings
    write(folder / WEIGHTS, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_id, "inference_mode": True,
        "r": parts * delta.rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "lora_dropout": 0.0,
        "target_modules": "|".join(map(re.escape, modules)) if loose else list(modules),
        "fan_in_fan_out": any(s.kind == "transposed" for s in bank.sites), "bias": "none",
    })  # fmt: skip
    return folder


def from_peft(f: nn.Module, folder: str | Path, names: Sequence[str] = ()) -> Bank:
    """A PEFT LoRA as a bank of one slot (fp32) that answers like the adapter on f.

    ``names``: what f is called (:func:`names_of`); InputError for an adapter that was trained on what is called otherwise.

    The adapter may have been trained on f under a task head (``bert.encoder...``); the head itself is left out, with a
    warning. InputError names whatever else would make the answers differ: other methods, trained biases, other shapes.
    """
    folder = Path(folder)
    config, heads, pairs = _config(folder), set[str](), dict[str, dict[str, Tensor]]()
    _same(folder, config.get("base_model_name_or_path"), names)
    own, prefix = [n for n, _ in f.named_modules() if n], f"{getattr(f, 'base_model_prefix', '')}."
    # an adapter's names for f's modules: the same, those of f under a head, or those of the model inside f
    modules = {prefix + n: n for n in own} | {n.removeprefix(prefix): n for n in own} | {n: n for n in own}
    for key, t in _read(folder, WEIGHTS, load_file).items():
        path = key.removeprefix("base_model.model.")
        module, _, factor = path.removesuffix(".weight").rpartition(".")
        head = [m for m in config.get("modules_to_save") or () if f".{m}." in f".{path}."]
        if head and path.rpartition(".")[0] not in modules:
            heads.update(head)
        elif factor not in ("lora_A", "lora_B") or t.ndim != 2 or not (t.numel() and t.isfinite().all()):
            raise InputError(f"{folder}: {key} {list(t.shape)} is not part of a plain, finite LoRA; {MERGE}")
        elif module not in modules:
            raise InputError(f"{folder} adapts {module}, no module of {type(f).__name__}{nearest(module, modules)}")
        else:
            scale = _scale(config, module, t.shape[1]) if factor == "lora_B" else 1.0
            pairs.setdefault(modules[module], {})[factor[-1]] = t.float().mT * scale
    if not pairs:
        raise InputError(f"{folder / WEIGHTS} holds no LoRA")
    if heads:
        warnings.warn(f"{folder}: the head {', '.join(sorted(heads))} is not part of f and left out", stacklevel=2)
    root, stack = blocks(f)
    sites = [site(f, n, "", root, len(stack)) for n in own if n in pairs]
    rank, tree = max(t.shape[n == "A"] for pair in pairs.values() for n, t in pair.items()), {}
    for s in sites:
        got = {n: list(t.mT.shape) for n, t in sorted(pairs[s.name].items())}
        r = got.get("A", [0])[0]
        if s.kind not in LINEAR or got != {"A": [r, s.d_in], "B": [s.d_out, r]}:
            want = f"A [r, {s.d_in}] and B [{s.d_out}, r] for a linear layer"
            raise InputError(f"{folder}: expected {want} at {s.name}, got {got} for a {s.kind} one; for another f?")
        a, b = pairs[s.name]["A"], pairs[s.name]["B"]
        tree[s.key] = {"a": nn.functional.pad(a, (0, rank - r)), "b": nn.functional.pad(b, (0, 0, 0, rank - r))}
    bank = Bank(Lora(rank, float(rank)), ByTask(), sites)
    bank.adopt(tree, {}, {})
    bank.add([tree])
    return bank


def names_of(backbone: Backbone) -> list[str]:
    """What a backbone is called: its id, its folder, and on the hub, for one of ``backbone/``, as its file begins."""
    made = backbone.id.replace("-", "_")
    text = loaded[find(f"backbone.{made}").__module__].__doc__ or "" if made in every("backbone") else ""
    return [n for n in (backbone.id, backbone.folder, text.partition(",")[0].strip()) if n]


def to_hf(backbone: Backbone, parts: Sequence[tuple[Bank, int, float]], folder: str | Path,
          head: Mapping[str, Tensor] | None = None, record: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
    """f + ``sum w * Delta`` over (bank, slot, w) for ``AutoModel``: config, weights in f's dtype, tokenizer, pooling.

    A task's ``head`` (W, b) goes beside them as ``head.safetensors``, and what its ``record`` in a bundle says of kind,
    labels and scales as ``head.json``, with how token features are pooled. ``folder`` must be new or empty.
    """
    f, folder, model = backbone.f, _folder(folder, empty=True), clone(backbone.f)
    if not isinstance(f, PreTrainedModel) or not isinstance(model, PreTrainedModel):
        raise InputError(f"a Hugging Face checkpoint needs a model of transformers, got {type(f).__name__}")
    model.config, state = deepcopy(f.config), fold(f, parts)  # saving writes into the config
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as near:  # so that it appears whole
        part = Path(near) / folder.name
        model.save_pretrained(part, state_dict=state)
        backbone.tokenizer.save_pretrained(part)
        pools = {f"pooling_mode_{n}": n.startswith(backbone.pool) for n in ("cls_token", "mean_tokens", "lasttoken")}
        write_json(part / "1_Pooling" / "config.json", {"word_embedding_dimension": backbone.d, **pools})
        if head:
            facts = {name: value for name, value in (record or {}).items() if name in FACTS}
            write_tensors(part / "head.safetensors", head)
            write_json(part / "head.json", facts | {"pool": backbone.pool, "unit": backbone.unit})
        return part.replace(folder)


def _same(folder: Path, base: Any, names: Sequence[str]) -> None:
    """InputError where an adapter says that it was trained on another model than the one that has these names."""

    def last(name: str) -> str:  # of "org/model", or of a folder, which the hub's cache calls by the commit
        parts = re.split(r"[/\\]+", re.sub(r"[/\\]snapshots[/\\][^/\\]+[/\\]*$", "", name).rstrip("/\\"))
        return parts[-1].rpartition("--")[2].casefold() if parts[-1].startswith("models--") else parts[-1].casefold()

    if not base or not names or any(last(str(base)) == last(n) or Path(base).resolve() == Path(n).resolve() for n in names):
        return
    raise InputError(
        f"{folder} was trained on {base}, and this is {names[0]}: pass that backbone, or if these are the same weights under two"
        f" names, write {names[0]!r} as base_model_name_or_path into {folder / CONFIG}"
    )


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA; InputError names the first setting that is more than that."""
    config = _read(folder, CONFIG, lambda path: dict(json.loads(path.read_text(encoding="utf-8"))))
    for name, plain in PLAIN.items():
        if (config.get(name) or plain) != plain:
            raise InputError(f"{folder}: {name} {config[name]!r} is not supported, only {plain or False!r}; {MERGE}")
    if str(config.get("init_lora_weights")).lower().startswith(STARTS):
        convert = "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        raise InputError(f"{folder}: init_lora_weights {config['init_lora_weights']!r} changed f itself; {convert}")
    return config


def _read(folder: Path, name: str, parse: Callable[[Path], Any]) -> Any:
    """A file of the folder, never one that a link brings in from elsewhere; the hub's cache keeps its own as links."""
    path, home = folder / name, folder.resolve()
    if name == WEIGHTS and not path.exists() and (folder / PICKLE).exists():
        convert = "load it with PEFT where that is safe and call save_pretrained, which writes safetensors"
        raise InputError(f"{folder / PICKLE} is a pickle, which can run code when it is read; {convert}")
    if not path.is_file():
        raise InputError(f"expected a folder with {CONFIG} and {WEIGHTS}, but {path} is not there")
    places = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(place) for place in places):
        raise InputError(f"{path} is a link to {path.resolve()}, outside the folder; copy the file into it")
    try:
        return parse(path)
    except (ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path} is damaged or no {path.suffix[1:]} ({error})") from None


def _folder(folder: str | Path, empty: bool = False) -> Path:
    """Where to write; InputError before any work if it cannot be that."""
    path = Path(folder).absolute()
    if path.exists() and (not path.is_dir() or empty and any(path.iterdir())):
        raise InputError(f"{path} is {'not empty' if path.is_dir() else 'a file'}; name a new folder")
    return path


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """s of a module: alpha / r, with rslora (Kalajdzievski 2023, arXiv:2312.03732) alpha / sqrt(r)."""
    try:
        alphas = dict(config.get("alpha_pattern") or {})
        found = next((alphas[k] for k in alphas if re.match(rf"(.*\.)?({k})$", name)), config.get("lora_alpha", 8))
    except (re.error, ValueError, TypeError) as error:
        raise InputError(f"{CONFIG}: alpha_pattern is {{regular expression: number}} ({error})") from None
    alpha: float = within(found, float, f"{CONFIG}: lora_alpha")
    return alpha / rank ** (0.5 if config.get("use_rslora") else 1.0)
