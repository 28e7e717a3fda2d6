"""What mergekit and FusionBench make of eight small fine-tuned models, recorded as data for test_parity.py.

    python tests/merge/record.py mergekit        python tests/merge/record.py fusion

Each runs in an environment of its own (torch 2.13.0 first, then mergekit 0.1.5 or fusion-bench 0.2.33), never in the project's,
and rewrites its entries of recorded.safetensors: {"<peer>.<method>": the merged models' change of f, all tensors in a row}.
Random masks are drawn as anabranch draws them and put in the place of the peers' own draws.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

RECORDED = Path(__file__).with_name("recorded.safetensors")
TASKS, D, INNER, WORDS, PLACES, BLOCKS = 8, 12, 24, 30, 12, 2
DENSITY, SCALE, SEED = 0.3, 0.4, 5
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


def grams():
    """Of every linear layer: {name: [t, d_in, d_in]} = mean of x x^T over 40 inputs per task."""
    g = torch.Generator().manual_seed(1)
    x = {n: torch.randn(TASKS, 40, s[1], generator=g) for n, s in shapes() if len(s) == 2 and "embeddings" not in n}
    return {n: v.mT @ v / 40 for n, v in x.items()}


def draw(name, task, shape):
    """The numbers in [0, 1) below the density of which a number stays."""
    seed = [zlib.crc32(f"{SEED} {name}".encode()), task]
    return torch.from_numpy(np.random.Generator(np.random.SFC64(seed)).random(int(np.prod(shape)), dtype=np.float32)).view(shape)


def by_mergekit():
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Arithmetic
    from mergekit.merge_methods.slerp import slerp
    from safetensors.torch import load_file, save_file

    f, models = states()
    at, group_of = [], Arithmetic.merge_group

    def named(self, group, **more):
        at[:] = [group.metadata.name.removeprefix("bert."), 0]
        return group_of(self, group, **more)

    def drawn(share):
        at[1] += 1
        return (draw(at[0], at[1] - 1, share.shape) < DENSITY).to(share)

    Arithmetic.merge_group, torch.bernoulli = named, drawn
    asked = {
        "mean": ("linear", {"weight": 1.0}, {}),
        "task_arithmetic": ("task_arithmetic", {"weight": SCALE}, {}),
        "ties": ("ties", {"weight": 1.0, "density": DENSITY}, {}),
        # mergekit rescales to the L1 norm from before; without that, one factor for all gives the paper's 1 / density
        "dare": ("dare_linear", {"weight": SCALE, "density": DENSITY}, {"rescale": False, "lambda": 1 / DENSITY}),
        "dare_ties": (
            "dare_ties",
            {"weight": 1.0, "density": DENSITY},
            {"rescale": False, "normalize": True, "lambda": 1 / DENSITY},
        ),
        "breadcrumbs": ("breadcrumbs", {"weight": SCALE, "density": DENSITY, "gamma": 0.1}, {}),
        "model_stock": ("model_stock", {}, {}),
    }
    out = {}
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"m{i}" for i in range(TASKS + 1)]
        for folder, state in zip(folders, [f, *models], strict=True):
            folder.mkdir()
            save_file({f"bert.{n}": t for n, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(BERT))
        for name, (method, weights, settings) in asked.items():
            plan = {"merge_method": method, "dtype": "float32", "parameters": settings,
                    "models": [{"model": str(m), "parameters": weights} for m in folders[1:]]}  # fmt: skip
            if method != "linear":
                plan["base_model"] = str(folders[0])
            run_merge(MergeConfiguration.model_validate(plan), str(Path(place) / name), MergeOptions(copy_tokenizer=False))
            merged = load_file(Path(place) / name / "model.safetensors")
            out[name] = torch.cat([(merged[f"bert.{n}"] - t).flatten() for n, t in f.items()])
    first, second = ([m[n] - t for n, t in f.items()] for m in models[:2])
    out["slerp"] = torch.cat([slerp(torch.tensor([0.3]), a[None], b[None]).flatten() for a, b in zip(first, second, strict=True)])
    return out


def by_fusion():
    from fusion_bench.method.dare.utils import param_random_drop_
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
    from fusion_bench.utils.state_dict_arithmetic import state_dict_mul, state_dict_sub, state_dict_sum

    f, models = states()
    vectors = [state_dict_sub(m, f) for m in models]
    flat = torch.stack([row(v) for v in vectors])
    dropped = []
    for j, v in enumerate(vectors):
        dropped.append({})
        for n, t in v.items():
            torch.rand_like = lambda like, n=n, j=j: 1 - draw(n, j, like.shape)
            held = torch.nn.Parameter(t.clone())
            param_random_drop_(held, 1 - DENSITY, rescale=True)
            dropped[-1][n] = held.data
    gram = grams()
    weights = [{n.removesuffix(".weight"): g[j] for n, g in gram.items()} for j in range(TASKS)]
    regmean = merging_with_regmean_weights(
        {n: [v[n] for v in vectors] for n in gram}, weights, reduce_non_diagonal_ratio=0.9, weight_transpose=True
    )
    return {
        "task_arithmetic": row(state_dict_mul(state_dict_sum(vectors), SCALE)),
        "ties": ties_merging(flat, reset_thresh=100 * DENSITY, merge_func="mean"),
        "dare": row(state_dict_mul(state_dict_sum(dropped), SCALE)),
        "tsv": row(compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")),
        "iso_c": row(iso_c(vectors, accelerator="cpu")),
        "regmean": torch.cat([regmean[n].flatten() for n in gram]),
    }


def row(state):
    return torch.cat([state[n].flatten() for n, _ in shapes()])


def sums():
    """A few numbers by which the test knows that its models are those of the record."""
    f, models = states()
    return torch.stack([row(s).double().square().sum() for s in (f, *models)])


if __name__ == "__main__":
    from safetensors.torch import load_file, save_file

    peer = sys.argv[1]
    made = {"mergekit": by_mergekit, "fusion": by_fusion}[peer]()
    kept = {n: t for n, t in load_file(RECORDED).items() if not n.startswith(peer)} if RECORDED.exists() else {}
    save_file(kept | {f"{peer}.{n}": t.float().contiguous() for n, t in made.items()} | {"sums": sums()}, RECORDED)
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes, {', '.join(made)}")
