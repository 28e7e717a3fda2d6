"""What mergekit and FusionBench make of eight small fine-tuned models, recorded as data for test_parity.py.

    python tests/merge/record.py mergekit        python tests/merge/record.py fusion

Each runs in an environment of its own (torch 2.13.0 first, then mergekit 0.1.5 or fusion-bench 0.2.33), never in the project's,
and rewrites its entries of recorded.safetensors: {"<peer>.<method>": the merged models' change of f, all tensors in a row}, of
models that are made here, and {"real.<peer>.<method>": ...}, of recorded_crops.safetensors: rows and columns of what eight text
tasks changed in MiniLM, as changes of an f of zeros, cut by ``python speed/parity.py --crops``. Random masks are drawn as
anabranch draws them and put in the place of the peers' own draws.

    python tests/merge/record.py PEER FOLDER METHODS

merges FOLDER/base and FOLDER/m0, m1 ... instead, and writes FOLDER/PEER.METHOD.safetensors: each tensor's change of the base.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

RECORDED = Path(__file__).with_name("recorded.safetensors")
CROPS = Path(__file__).with_name("recorded_crops.safetensors")  # {name: [TASKS, *shape]}
TASKS, D, INNER, WORDS, PLACES, BLOCKS = 8, 12, 24, 30, 12, 2
DENSITY, SCALE, SEED = 0.3, 0.4, 5
KEPT = round(DENSITY * 65536) / 65536  # what DARE's masks of 16 bits keep
DROP = {"density": DENSITY, "seed": SEED}
CASES = {  # what peers and anabranch define alike -> anabranch's settings
    "mergekit.mean": {"mean": {}},
    "mergekit.task_arithmetic": {"task_arithmetic": {"scale": SCALE}},
    "mergekit.ties": {"ties": {"density": DENSITY}},
    "mergekit.dare": {"dare": DROP | {"scale": SCALE}},
    "mergekit.dare_ties": {"dare_ties": DROP | {"scale": 1.0}},
    "mergekit.model_stock": {"model_stock": {}},
    "fusion.task_arithmetic": {"task_arithmetic": {"scale": SCALE}},
    "fusion.dare": {"dare": DROP | {"scale": SCALE}},
    "fusion.iso_c": {"iso_c": {"scale": 1.0}},
}
BERT = {
    "architectures": ["TinyBert"], "model_type": "bert", "hidden_size": D, "num_hidden_layers": BLOCKS, "num_attention_heads": 2,
    "intermediate_size": INNER, "vocab_size": WORDS, "max_position_embeddings": PLACES, "type_vocab_size": 2, "dtype": "float32",
}  # fmt: skip


def shapes():
    for name, rows in (("word", WORDS), ("position", PLACES), ("token_type", 2)):
        yield f"embeddings.{name}_embeddings.weight", (rows, D)
    yield from norm("embeddings.LayerNorm")
    for i in range(BLOCKS):
        block = f"encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from linear(f"{block}.{name}", D, D)
        yield from norm(f"{block}.attention.output.LayerNorm")
        yield from linear(f"{block}.intermediate.dense", INNER, D)
        yield from linear(f"{block}.output.dense", D, INNER)
        yield from norm(f"{block}.output.LayerNorm")


def linear(name, out, into):
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name):
    yield f"{name}.weight", (D,)
    yield f"{name}.bias", (D,)


def states():
    """f and eight models fine-tuned from it: changes of few strong directions, common to tasks in part, and a heavy-tailed rest."""
    g = torch.Generator().manual_seed(0)

    def change(shape, common):
        own = torch.randn(shape, generator=g) ** 3 / 4
        strong = torch.outer(torch.randn(shape[0], generator=g), torch.randn(shape[-1], generator=g)) if len(shape) > 1 else own
        return 0.01 * (common + strong + 0.3 * own)

    f = {n: 0.1 * torch.randn(s, generator=g) + float("LayerNorm.weight" in n) for n, s in shapes()}
    common = {n: torch.randn(s, generator=g) for n, s in shapes()}
    return f, [{n: t + change(t.shape, common[n]) for n, t in f.items()} for _ in range(TASKS)]


def crops():
    """An f of zeros, and what eight real tasks changed in a real backbone: f itself is in no merge."""
    from safetensors.torch import load_file

    held = sorted(load_file(CROPS).items())
    return {n: torch.zeros_like(t[0]) for n, t in held}, [{n: t[j].contiguous() for n, t in held} for j in range(TASKS)]


SOURCES = {"": states, "real.": crops}


def grams(f):
    """Of every linear layer: {name: [t, d_in, d_in]} = mean of x x^T over 40 inputs per task."""
    g = torch.Generator().manual_seed(1)
    x = {n: torch.randn(TASKS, 40, t.shape[1], generator=g) for n, t in f.items() if t.ndim == 2 and "embeddings" not in n}
    return {n: v.mT @ v / 40 for n, v in x.items()}


def draw(name, task, shape):
    """The numbers in [0, 1) below KEPT of which a number stays: the 16-bit parts of the generator's words."""
    n, seed = int(np.prod(shape)), [zlib.crc32(f"{SEED} {name}".encode()), task]
    parts = np.random.SFC64(seed).random_raw(-(-n // 4)).view(np.int16)[:n]
    return torch.from_numpy((parts.astype(np.float32) + 32768) / 65536).view(shape)


def config(f):
    """That of a BERT of these shapes."""
    sizes = {"hidden_size": ("word", 1), "vocab_size": ("word", 0), "max_position_embeddings": ("position", 0)}
    found = {key: f[f"embeddings.{n}_embeddings.weight"].shape[at] for key, (n, at) in sizes.items()}
    return BERT | found | {"intermediate_size": len(f["encoder.layer.0.intermediate.dense.bias"])}


def folders_of(where, f, models):
    """Hugging Face folders base, m0, m1 ..."""
    from safetensors.torch import save_file

    for name, state in {"base": f, **{f"m{j}": m for j, m in enumerate(models)}}.items():
        (where / name).mkdir()
        save_file({f"bert.{n}": t for n, t in state.items()}, where / name / "model.safetensors", metadata={"format": "pt"})
        (where / name / "config.json").write_text(json.dumps(config(f)))


def models_in(where):
    return sorted(p for p in where.iterdir() if p.name[0] == "m" and p.name[1:].isdecimal())


def state_of(folder):
    """The floating-point tensors of a folder, by name."""
    from safetensors.torch import load_file

    return {n: t for n, t in load_file(folder / "model.safetensors").items() if t.is_floating_point()}


ASKED = {  # of mergekit: its method, settings of a model, settings of the merge
    "mean": ("linear", {"weight": 1.0}, {}),
    "task_arithmetic": ("task_arithmetic", {"weight": SCALE}, {}),
    "ties": ("ties", {"weight": 1.0, "density": DENSITY}, {}),
    # mergekit rescales to the L1 norm from before; without that, one factor for all gives the paper's 1 / density
    "dare": ("dare_linear", {"weight": SCALE, "density": DENSITY}, {"rescale": False, "lambda": 1 / KEPT}),
    "dare_ties": ("dare_ties", {"weight": 1.0, "density": DENSITY}, {"rescale": False, "normalize": True, "lambda": 1 / KEPT}),
    "breadcrumbs": ("breadcrumbs", {"weight": SCALE, "density": DENSITY, "gamma": 0.1}, {}),
    "model_stock": ("model_stock", {}, {}),
}


def by_mergekit(where, methods=tuple(ASKED), prefix="bert."):
    """{method: each tensor's change of the base}, of the folders in ``where``, by their names without the prefix."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Arithmetic

    at, group_of = [], Arithmetic.merge_group

    def named(self, group, **more):
        at[:] = [group.metadata.name.removeprefix(prefix), 0]
        return group_of(self, group, **more)

    def drawn(share):
        at[1] += 1
        return (draw(at[0], at[1] - 1, share.shape) < KEPT).to(share)

    Arithmetic.merge_group, torch.bernoulli = named, drawn
    f, out = state_of(where / "base"), {}
    models = models_in(where)
    for name in methods:
        method, weights, settings = ASKED[name]
        plan = {"merge_method": method, "dtype": "float32", "parameters": settings,
                "models": [{"model": str(m), "parameters": weights} for m in models]}  # fmt: skip
        if method != "linear":
            plan["base_model"] = str(where / "base")
        run_merge(MergeConfiguration.model_validate(plan), str(where / name), MergeOptions(copy_tokenizer=False))
        merged = state_of(where / name)
        out[name] = {n.removeprefix(prefix): merged[n] - t for n, t in f.items()}
    Arithmetic.merge_group = group_of
    return out


def small_by_mergekit(f, models):
    """What is recorded of mergekit."""
    from mergekit.merge_methods.slerp import slerp

    with tempfile.TemporaryDirectory() as place:
        folders_of(Path(place), f, models)
        out = by_mergekit(Path(place))
    angle = torch.tensor([0.3])
    return out | {"slerp": {n: slerp(angle, (models[0][n] - t)[None], (models[1][n] - t)[None])[0] for n, t in f.items()}}


def by_fusion(f, models, methods=("task_arithmetic", "ties", "dare")):
    """{method: each tensor's change of f}"""
    from fusion_bench.method.dare.utils import param_random_drop_
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
    from fusion_bench.utils.state_dict_arithmetic import state_dict_mul, state_dict_sub, state_dict_sum

    vectors = [state_dict_sub(m, f) for m in models]

    def dare():
        dropped = []
        for j, v in enumerate(vectors):
            dropped.append({})
            for n, t in v.items():
                torch.rand_like = lambda like, n=n, j=j: 1 - draw(n, j, like.shape)
                held = torch.nn.Parameter(t.clone())
                param_random_drop_(held, 1 - KEPT, rescale=True)
                dropped[-1][n] = held.data
        return state_dict_mul(state_dict_sum(dropped), SCALE)

    def ties():
        flat = ties_merging(torch.stack([row(v) for v in vectors]), reset_thresh=100 * DENSITY, merge_func="mean")
        return {n: t.view(f[n].shape) for n, t in zip(f, flat.split([t.numel() for t in f.values()]), strict=True)}

    made = {"task_arithmetic": lambda: state_dict_mul(state_dict_sum(vectors), SCALE), "ties": ties, "dare": dare}
    return {name: made[name]() for name in methods}


def small_by_fusion(f, models):
    """What is recorded of FusionBench."""
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
    from fusion_bench.utils.state_dict_arithmetic import state_dict_sub

    vectors, gram = [state_dict_sub(m, f) for m in models], grams(f)
    weights = [{n.removesuffix(".weight"): g[j] for n, g in gram.items()} for j in range(TASKS)]
    regmean = merging_with_regmean_weights(
        {n: [v[n] for v in vectors] for n in gram}, weights, reduce_non_diagonal_ratio=0.9, weight_transpose=True
    )
    return by_fusion(f, models) | {
        "tsv": compute_and_sum_svd_mem_reduction([{n: t.clone() for n, t in v.items()} for v in vectors], accelerator="cpu"),
        "iso_c": iso_c([{n: t.clone() for n, t in v.items()} for v in vectors], accelerator="cpu"),
        "regmean": {n: regmean[n] for n in gram},
    }


def row(state):
    """All tensors of a state in a row."""
    return torch.cat([t.flatten() for t in state.values()])


def sums(f, models):
    """A few numbers by which the test knows that its models are those of the record."""
    return torch.stack([row(s).double().square().sum() for s in (f, *models)])


def record(peer):
    """Rewrites the peer's entries."""
    from safetensors.torch import load_file, save_file

    entries = {f"{source}{peer}." for source in SOURCES}
    kept = {n: t for n, t in load_file(RECORDED).items() if not n.startswith(tuple(entries))} if RECORDED.exists() else {}
    for source, models_of in SOURCES.items():
        f, models = models_of()
        made = {"mergekit": small_by_mergekit, "fusion": small_by_fusion}[peer](f, models)
        kept |= {f"{source}{peer}.{n}": row({k: change[k] for k in f if k in change}).float() for n, change in made.items()}
        kept[f"{source}sums"] = sums(f, models)
    save_file(kept, RECORDED)
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes, {', '.join(n for n in kept if n.startswith(tuple(entries)))}")


def merge(peer, where, methods):
    """The folders in ``where`` by a peer's methods."""
    from safetensors.torch import save_file

    if peer == "mergekit":
        made = by_mergekit(where, methods, "")
    else:
        made = by_fusion(state_of(where / "base"), [state_of(m) for m in models_in(where)], methods)
    for name, change in made.items():
        save_file({n: t.contiguous() for n, t in change.items()}, where / f"{peer}.{name}.safetensors")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        merge(sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(","))
    else:
        record(sys.argv[1])
