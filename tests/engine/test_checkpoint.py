"""Merging folders: equal to merging in memory and to mergekit's recorded numbers, in little memory, whole or not at all."""

import gc
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from merge import record
from safetensors.torch import load_file, save_file

from anabranch.cli import main
from anabranch.core.names import every, find, make
from anabranch.engine import checkpoint
from anabranch.engine.checkpoint import Place, merge_folders, stream, works
from anabranch.engine.mergekit import merge_yaml
from anabranch.errors import InputError, WorkError

RECORDED = load_file(record.RECORDED)
F, MODELS = record.states()
SIZES = [t.numel() for t in F.values()]
SHAPES = {"embed": (40, 6), "block.weight": (6, 6), "block.bias": (6,), "tiny": (), "none": (0, 3)}


def folder(path: Path, state, config=None, name="model.safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), path / name, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config or record.BERT))
    return path


def state(seed: int, dtype=torch.float32, start=None, shapes=SHAPES, size=0.1):
    g = torch.Generator().manual_seed(seed)
    made = {n: size * torch.randn(s, generator=g) for n, s in shapes.items()}
    return {n: (t + (start[n].float() if start else 0)).to(dtype) for n, t in made.items()} | {"ids": torch.arange(5)}


@pytest.fixture
def toy(tmp_path):
    base = state(0, size=1.0)
    models = [state(j, start=base) for j in (1, 2, 3)]
    return folder(tmp_path / "base", base), [folder(tmp_path / f"m{j}", m) for j, m in enumerate(models)], base, models


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The models of the record."""
    at = tmp_path_factory.mktemp("eight")
    return folder(at / "base", F), [folder(at / f"m{j}", m) for j, m in enumerate(MODELS)]


def read(out: Path):
    return {n: t for path in sorted(out.glob("*.safetensors")) for n, t in load_file(path).items()}


def change(out: Path):
    merged = read(out)
    return torch.cat([(merged[n] - t).flatten() for n, t in F.items()])


def same(a, b, size=1e-5):
    assert a.shape == b.shape and float((a - b).abs().max()) < size, float((a - b).abs().max())
    assert float(b.abs().max()) > 0.01  # so that the size is small


def fitting():
    return [n for n in every("merge") if works(find(f"merge.{n}"))]


@pytest.mark.parametrize("method", fitting())
@pytest.mark.parametrize("cut", [7, 1 << 15])
def test_folders_merge_as_in_memory(toy, tmp_path, monkeypatch, method: str, cut: int):
    """Whatever the pieces are."""
    monkeypatch.setattr(checkpoint, "CUT", cut)
    monkeypatch.setattr(checkpoint, "STRETCH", 2 * cut)
    home, folders, base, models = toy
    t = 2 if method == "slerp" else 3
    found = merge_folders(home, folders[:t], method, tmp_path / "out")
    merged, combine = read(tmp_path / "out"), make("merge", method)
    real = {n: torch.stack([m[n] - b for m in models[:t]]) for n, b in base.items() if b.is_floating_point() and b.numel()}
    whole = {"norm": torch.stack([torch.cat([r[j].flatten() for r in real.values()]).norm() for j in range(t)])}
    for name, rows in real.items():
        want = combine(rows.view(t, *(base[name].shape or (1,))), Place(name, name), whole).view(base[name].shape)
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=2e-6)
    assert list(merged) == sorted(base) and torch.equal(merged["ids"], base["ids"]) and merged["none"].shape == (0, 3)
    assert found["method"] == method and found["models"] == t and found["files"] == ["config.json", "model.safetensors"]
    assert found["parameters"] == sum(x.numel() for x in base.values()) and found["settings"] == combine.settings


PARITY = {
    "mergekit.task_arithmetic": {"task_arithmetic": {"scale": record.SCALE}},
    "mergekit.ties": {"ties": {"density": record.DENSITY}},
    "mergekit.dare": {"dare": {"density": record.DENSITY, "seed": record.SEED, "scale": record.SCALE}},
    "mergekit.dare_ties": {"dare_ties": {"density": record.DENSITY, "seed": record.SEED, "scale": 1.0}},
    "mergekit.breadcrumbs": {"breadcrumbs": {"density": record.DENSITY, "outliers": 0.1, "scale": record.SCALE}},
    "mergekit.mean": "mean",
    "mergekit.model_stock": "model_stock",
    "fusion.task_arithmetic": {"task_arithmetic": {"scale": record.SCALE}},
    "fusion.dare": {"dare": {"density": record.DENSITY, "seed": record.SEED, "scale": record.SCALE}},
    "fusion.iso_c": {"iso_c": {"scale": 1.0}},
}


@pytest.mark.parametrize("case", PARITY)
def test_folders_merge_as_mergekit_and_fusion_bench(eight, tmp_path, case: str):
    merge_folders(*eight, PARITY[case], tmp_path / "out")
    same(change(tmp_path / "out"), RECORDED[case])


def test_masks_are_the_same_whatever_the_pieces(tmp_path):
    """Of tensors much larger than a piece: each model's stream is drawn in one go here."""
    base = {"w": torch.randn(301, 333), "v": torch.randn(7)}
    models = [{n: t + torch.randn(t.shape) for n, t in base.items()} for _ in range(3)]
    folders = folder(tmp_path / "f", base), [folder(tmp_path / f"m{j}", m) for j, m in enumerate(models)]
    merge_folders(*folders, {"dare": {"density": 0.3, "seed": record.SEED, "scale": 0.4}}, tmp_path / "out")
    for name, t in base.items():
        masks = torch.stack([record.draw(name, j, t.shape) < record.KEPT for j in range(3)])
        kept = torch.stack([m[name] - t for m in models]) * masks
        torch.testing.assert_close(read(tmp_path / "out")[name], t + 0.4 / record.KEPT * kept.sum(0), rtol=0, atol=1e-5)


def test_what_merges_runs_on_its_own_thread(toy, tmp_path, monkeypatch):
    """Threads that torch would wake within each of ours wait for each other."""
    home, folders, *_ = toy
    base = {"w": torch.randn(400, 333)}
    folder(home, base), [folder(f, {"w": base["w"] + 1}) for f in folders]
    told = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(
        torch, "set_num_threads", lambda n: told.append((n, threading.current_thread() is threading.main_thread()))
    )
    stream(home, folders, lambda rows, *_: rows.sum(0), tmp_path / "out", entries=True)
    assert told[0] == (1, False) and told[-1] == (2, True)


def test_without_a_base_the_models_are_averaged(eight, tmp_path):
    merge_folders(None, eight[1], "mean", tmp_path / "out")
    same(change(tmp_path / "out"), RECORDED["mergekit.mean"])
    with pytest.raises(InputError, match="ties merges changes of a base model: name the model"):
        merge_folders(None, eight[1], "ties", tmp_path / "more")


YAML = {
    "mergekit.mean": ("linear", "weight: 1.0", "", False),
    "mergekit.task_arithmetic": ("task_arithmetic", f"weight: {record.SCALE}", "", True),
    "mergekit.ties": ("ties", f"{{weight: 1.0, density: {record.DENSITY}}}", "int8_mask: true", True),
    # the record took mergekit's rescaling off and put the paper's factor into lambda
    "mergekit.dare": ("dare_linear", f"{{weight: {record.SCALE}, density: {record.DENSITY}}}", f"seed: {record.SEED}", True),
    "mergekit.dare_ties": ("dare_ties", f"{{weight: 1.0, density: {record.DENSITY}}}",
                           f"{{seed: {record.SEED}, normalize: true, rescale: false, lambda: {1 / record.DENSITY}}}", True),
    "mergekit.breadcrumbs": ("breadcrumbs", f"{{weight: {record.SCALE}, density: {record.DENSITY}, gamma: 0.1}}", "", True),
    "mergekit.model_stock": ("model_stock", "", "", True),
}  # fmt: skip


def written(path: Path, method: str, models, base=None, each="", more="", **keys) -> Path:
    def flow(words: str) -> str:
        return words if words.startswith("{") or not words else f"{{{words}}}"

    lines = [f"merge_method: {method}", "models:"]
    for j, m in enumerate(models):
        own = each[j] if isinstance(each, list) else each
        lines += [f"  - model: {m}", *([f"    parameters: {flow(own)}"] if own else [])]
    lines += [f"base_model: {base}"] if base else []
    lines += [f"parameters: {flow(more)}"] if more else []
    path.write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in keys.items())]) + "\n")
    return path


@pytest.mark.parametrize("case", YAML)
def test_mergekits_files_give_mergekits_numbers(eight, tmp_path, case: str):
    method, each, more, based = YAML[case]
    file = written(tmp_path / "a.yml", method, eight[1], eight[0] if based else None, each, more, dtype="float32")
    found = merge_yaml(file, tmp_path / "out")
    same(change(tmp_path / "out"), RECORDED[case])
    assert found["method"] == method and found["models"] == len(MODELS)


def test_a_file_whose_models_are_weighed_apart(toy, tmp_path):
    """TIES by hand: trimmed, weighed, the sign of the sum elected, divided by the weights of those that agree."""
    base, folders, f, models = toy
    weights, densities = [0.5, 0.3, -0.2], [0.5, 1.0, 0.2]
    each = [f"{{weight: {w}, density: {p}}}" for w, p in zip(weights, densities, strict=True)]
    merge_yaml(written(tmp_path / "a.yaml", "ties", [base, *folders], base, ["", *each], "lambda: 0.7"), tmp_path / "out")
    for name in ("embed", "block.weight", "block.bias"):
        kept = []
        for m, p in zip(models, densities, strict=True):
            d = (m[name] - f[name]).flatten()
            edge = d.abs().sort(descending=True).values[max(1, int(p * len(d))) - 1]
            kept.append(d * (d.abs() >= edge))
        w = torch.tensor(weights)[:, None]
        t = torch.stack(kept) * w
        agrees = (t.sign() == t.sum(0).sign()).float()
        under = (w * agrees).sum(0)
        want = 0.7 * (t * agrees).sum(0) / torch.where(under == 0, 1.0, under)
        torch.testing.assert_close(read(tmp_path / "out")[name].flatten() - f[name].flatten(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs_ties"])
def test_with_density_1_nothing_is_dropped(toy, tmp_path, method: str):
    base, folders, f, models = toy
    plain = "ties" if "ties" in method or method == "della" else "task_arithmetic"
    for name in (method, plain):
        file = written(tmp_path / f"{name}.yml", name, folders, base, "weight: 0.4", "normalize: false")
        merge_yaml(file, tmp_path / name)
    for n, t in read(tmp_path / plain).items():
        torch.testing.assert_close(read(tmp_path / method)[n], t, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rescale", "mean"), [("true", 1.0), ("false", 0.5)])
@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_what_was_dropped_is_made_up_for(tmp_path, method: str, rescale: str, mean: float):
    base = {"w": torch.zeros(300, 100)}
    places = folder(tmp_path / "f", base), [folder(tmp_path / "m", {"w": torch.ones(300, 100)})]
    file = written(tmp_path / "a.yml", method, places[1], places[0], "{weight: 1.0, density: 0.5}", f"rescale: {rescale}")
    merge_yaml(file, tmp_path / "out")
    w = read(tmp_path / "out")["w"]
    assert abs(float(w.mean()) - mean) < 0.03 and 0.47 < float((w == 0).float().mean()) < 0.53


def test_slerp_of_a_file_lies_between_the_weights(toy, tmp_path):
    base, folders, f, models = toy
    for t in (0, 0.3, 1):
        merge_yaml(written(tmp_path / "a.yml", "slerp", [folders[0], base], base, "", f"t: {t}"), tmp_path / f"{t}")
    merged = [read(tmp_path / str(t))["embed"] for t in (0, 0.3, 1)]
    a, b = f["embed"].flatten(), models[0]["embed"].flatten()
    angle = torch.acos(a @ b / a.norm() / b.norm())
    middle = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
    for got, want in zip(merged, (a, middle, b), strict=True):
        torch.testing.assert_close(got.flatten(), want, rtol=0, atol=2e-6)


def test_linear_weights(toy, tmp_path):
    _, folders, _, models = toy
    for more, total in (("", 4.0), ("normalize: false", 1.0)):
        file = written(tmp_path / "a.yml", "linear", folders, None, ["weight: 1", "weight: 2e0", ""], f"{{weight: 1, {more}}}")
        merge_yaml(file, tmp_path / str(total))
        want = (models[0]["embed"] + 2 * models[1]["embed"] + models[2]["embed"]) / total
        torch.testing.assert_close(read(tmp_path / str(total))["embed"], want, rtol=0, atol=2e-6)


def test_shards_in_and_out(toy, tmp_path, monkeypatch):
    base, folders, f, models = toy
    sharded = tmp_path / "sharded"
    names = sorted(models[0])
    for i, part in enumerate((names[:2], names[2:])):
        folder(sharded, {n: models[0][n] for n in part}, name=f"part-{i}.safetensors")
    where = {n: f"part-{int(n in names[2:])}.safetensors" for n in names}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    merge_folders(base, [folders[0]], "mean", tmp_path / "one")
    monkeypatch.setattr(checkpoint, "SHARD", 1100)
    found = merge_folders(base, [sharded], "mean", tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {p.name for p in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files and len(files) == 2 and set(index["weight_map"]) == set(f)
    assert files == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= set(found["files"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in f.values())
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[n], many[n]) for n in one)
    again = merge_folders(tmp_path / "many", [sharded], "mean", tmp_path / "again")  # what was written can be read
    assert again["tensors"] == len(f)
    (sharded / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match="part-1.safetensors is missing"):
        merge_folders(base, [sharded], "mean", tmp_path / "lost")


def test_the_base_gives_dtype_config_and_tokenizer(tmp_path):
    base = state(0, torch.bfloat16, size=1.0)
    home, model = folder(tmp_path / "f", base, {"a": 1, "dtype": "bfloat16"}), folder(tmp_path / "m", state(1, start=base))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model"):
        (home / name).write_text("{}")
    for name in ("README.md", "run.py", "pytorch_model.bin", "optimizer.pt"):
        (home / name).write_text("no")
    (home / "1_Pooling").mkdir()
    (home / "1_Pooling" / "config.json").write_text("{}")
    merge_folders(home, [model], {"task_arithmetic": {"scale": 1}}, tmp_path / "out")
    merged = read(tmp_path / "out")
    want = {n: t.to(torch.bfloat16) for n, t in state(1, start=base).items() if t.is_floating_point()}
    assert all(torch.equal(merged[n], t) for n, t in want.items()) and merged["ids"].dtype == torch.int64
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert names == ["1_Pooling/config.json", "config.json", "model.safetensors", "special_tokens_map.json", "spiece.model",
                     "tokenizer.json", "tokenizer_config.json", "vocab.txt"]  # fmt: skip
    merge_folders(home, [model], "mean", tmp_path / "wide", dtype="float32")
    assert read(tmp_path / "wide")["embed"].dtype == torch.float32
    assert json.loads((tmp_path / "wide" / "config.json").read_text()) == {"a": 1, "dtype": "float32"}
    with pytest.raises(InputError, match="dtype is one of .* did you mean float32"):
        merge_folders(home, [model], "mean", tmp_path / "x", dtype="float23")


def test_transformers_loads_what_comes_out(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11)
    for i, name in enumerate("fab"):
        torch.manual_seed(i)
        BertModel(config).save_pretrained(tmp_path / name)
    merge_folders(tmp_path / "f", [tmp_path / "a", tmp_path / "b"], "mean", tmp_path / "out")
    merged, info = BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    a, b = (BertModel.from_pretrained(tmp_path / n).pooler.dense.weight for n in "ab")
    torch.testing.assert_close(merged.pooler.dense.weight, (a + b) / 2, rtol=0, atol=1e-6)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# ---- memory, interrupts, progress -----------------------------------------------------------------------------------


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@contextmanager
def peak():
    before, over = anonymous(), threading.Event()
    most = [0]

    def watch():
        while not over.wait(0.001):
            most[0] = max(most[0], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "method",
    ["mean", "task_arithmetic", "ties", "dare", "dare_ties", "breadcrumbs", "model_stock", "metagpt", "della", "consensus"],
)
def test_memory_is_that_of_the_largest_tensor(tmp_path_factory, monkeypatch, method: str, threads: int):
    """At most (models + 2) times the largest tensor, in fp32; the models together are more than that."""
    at, n, t = tmp_path_factory.getbasetemp() / "big", 1 << 21, 3
    shapes = (
        {"big": (2048, n // 2048)} | {f"half.{i}": (1024, n // 2048) for i in range(12)} | {f"b.{i}": (99,) for i in range(9)}
    )
    if not at.exists():
        base = state(0, torch.bfloat16, shapes=shapes)
        folder(at / "f", base)
        for j in range(t):
            folder(at / f"m{j}", state(j + 1, torch.bfloat16, base, shapes))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    models = [at / f"m{j}" for j in range(t)]
    merge_folders(at / "f", models[:1], "mean", at / f"warm-{method}-{threads}")
    slack, bound, seen = 6e6, (t + 2) * 4 * n, list[int]()  # slack: the pieces that are written, and Python's own
    while len(seen) < 4 and not (seen and min(seen) < bound + slack):  # what freed memory leaves behind differs by chance
        out = at / f"{method}-{threads}-{len(seen)}"
        gc.collect()
        with peak() as most:
            merge_folders(at / "f", models, method, out)
        seen.append(most[0])
    assert min(seen) < bound + slack, ([m / (4 * n) for m in seen], slack / (4 * n))
    assert 4 * sum(x.numel() for x in load_file(out / "model.safetensors").values()) * t > 2 * bound


def test_an_interrupt_leaves_nothing(toy, tmp_path):
    base, folders, *_ = toy

    def told(stage, done, of, text):
        if done == 3:
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge_folders(base, folders, "mean", tmp_path / "out", told=told)
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupt_does_not_wait_for_a_large_tensor(tmp_path, monkeypatch):
    """What runs in other threads ends at its next piece."""
    base = {"a": torch.zeros(1000, 100), "b": torch.zeros(2)}
    home, model = folder(tmp_path / "f", base), folder(tmp_path / "m", base)
    monkeypatch.setattr(checkpoint, "CUT", 10)
    at = []

    def slow(rows, site, whole):
        at.append(time.perf_counter())
        time.sleep(0.01)
        if len(at) == 3:
            os.kill(os.getpid(), 2)
        return rows.sum(0)

    with pytest.raises(KeyboardInterrupt):
        stream(home, [model], slow, tmp_path / "out", entries=True)
    assert len(at) < 500 and not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2


def test_progress(toy, tmp_path):
    base, folders, f, _ = toy
    seen = []
    merge_folders(base, folders, "mean", tmp_path / "out", told=lambda *at: seen.append(at))
    assert [at[:3] for at in seen] == [("merge", i + 1, len(f)) for i in range(len(f))] and {at[3] for at in seen} == set(f)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_other_keys_and_shapes_are_said(toy, tmp_path):
    base, folders, f, models = toy
    less = {n: t for n, t in models[0].items() if n not in ("embed", "tiny")}
    cases = [
        (less, "m lacks embed, tiny, which .*base has"),
        (models[0] | {"head": torch.ones(2)}, "base lacks head, which .*m has"),
        (models[0] | {"embed": torch.ones(40, 7)}, r"embed is \[40, 7\] float32 in .*m and \[40, 6\] float32 in .*base"),
        (models[0] | {"embed": torch.ones(40, 6).long()}, r"embed is \[40, 6\] int64 in"),
        (models[0] | {"ids": torch.arange(5) + 1}, "m: ids holds whole numbers other than the base's"),
        (models[0] | {"block.bias": torch.tensor([0, 1, 2, torch.nan, 0, 1])}, "m: block.bias holds NaN or infinity"),
        (models[0] | {"tiny": torch.tensor(-torch.inf)}, "m: tiny holds NaN or infinity"),
    ]
    for made, said in cases:
        folder(tmp_path / "m", made)
        for method in ("mean", "ties"):
            with pytest.raises(InputError, match=said):
                merge_folders(base, [folders[0], tmp_path / "m"], method, tmp_path / "out")
    folder(base, f | {"embed": f["embed"] * torch.nan})
    with pytest.raises(InputError, match="base: embed holds NaN"):
        merge_folders(base, folders, "task_arithmetic", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "count", "said"),
    [
        ("slerp", 1, "slerp merges 2 models, got 1"),
        ("slerp", 3, "slerp merges 2 models, got 3"),
        ("model_stock", 1, "model_stock merges at least 2 models, got 1"),
        ("ties", 0, "ties merges at least 1 models, got 0"),
        ("consensus", 1, "consensus merges at least 2 models, got 1"),
        ({"consensus": {"least": 5}}, 2, "consensus with least: 5 merges at least 5 tasks, got 2"),
        ("tiess", 2, "no merge 'tiess'; did you mean ties"),
        ({"ties": {"density": 20}}, 2, "for 20 per cent pass 0.2"),
        ({"task_arithmetic": {"scale": -1}}, 2, "scale is a number in"),
        ({"task_arithmetic": {"scale": 1e39}}, 2, "the merge leaves the range of float32"),
        ("fisher", 2, "fisher needs the tasks' data or deltas, not weights alone; choose from breadcrumbs, .*ties"),
        ("regmean", 2, "regmean needs"),
        ("adamerging", 2, "adamerging needs"),
        ("tall_masks", 2, "tall_masks needs"),
        ("atm", 2, "atm needs"),
    ],
)
def test_wrong_methods(toy, tmp_path, method, count: int, said: str):
    base, folders, *_ = toy
    with pytest.raises(InputError, match=said):
        merge_folders(base, folders[:count], method, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_folders(toy, tmp_path):
    base, folders, *_ = toy

    def fails(said, error=InputError, home=base, models=folders, out=tmp_path / "out"):
        with pytest.raises(error, match=said):
            merge_folders(home, models, "mean", out)

    fails("no folder .*nowhere", models=[tmp_path / "nowhere"])
    fails("base exists and is not empty", out=base)
    (tmp_path / "file").write_text("x")
    fails("file exists", out=tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("neither model.safetensors nor model.safetensors.index.json", models=[empty])
    (empty / "pytorch_model.bin").write_bytes(b"x")
    fails("pytorch_model.bin is a pickle", models=[empty])
    (empty / "model.safetensors").write_bytes(b"x" * 100)
    fails("model.safetensors is damaged", models=[empty])
    (empty / "model.safetensors").unlink()
    for text in ("{", "[]", '{"weight_map": 3}'):
        (empty / "model.safetensors.index.json").write_text(text)
        fails("index.json is damaged", models=[empty])
    (base / "config.json").write_text("{")
    fails("config.json is damaged")
    (base / "config.json").unlink()
    fails("base has no config.json")


def test_a_full_disk_is_said_before_the_work(toy, tmp_path, monkeypatch):
    base, folders, *_ = toy
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 5}))
    with pytest.raises(WorkError, match="GB free"):
        merge_folders(base, folders, "mean", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_that_overflows_is_said(tmp_path):
    base = {"w": torch.full((4,), 60000.0).half()}
    model = {"w": torch.full((4,), 65000.0).half()}
    places = folder(tmp_path / "f", base), [folder(tmp_path / "m", model)]
    with pytest.raises(InputError, match="w: the merge leaves the range of float16; take a smaller scale, or float32"):
        merge_folders(*places, {"task_arithmetic": {"scale": 2}}, tmp_path / "out")
    merge_folders(*places, {"task_arithmetic": {"scale": 2}}, tmp_path / "out", dtype="float32")
    assert read(tmp_path / "out")["w"].tolist() == [70016.0] * 4 or read(tmp_path / "out")["w"].tolist() == [69984.0] * 4


GOOD = """merge_method: ties
base_model: base
models:
  - model: m0
    parameters: {weight: 1, density: 0.5}
  - model: m1
    parameters:
      weight: 1
      density: 0.5
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("ties", "tiess", 1, "no merge_method 'tiess'; did you mean ties"),
        ("ties", "karcher", 1, "no merge_method 'karcher'"),
        ("base_model: base\n", "", 1, "ties needs base_model"),
        ("merge_method: ties\n", "", 1, "the line merge_method: is missing: it names one of linear, slerp, .*ties"),
        ("merge_method: ties\n", "merge_method:\n", 1, "the line merge_method: is missing"),
        ("base_model: base", "base_model: bass", 2, "no folder bass"),
        ("model: m1", "model: org/m1", 6, "no folder org/m1; a model of the hub is downloaded first"),
        ("model: m1", "model: 3", 6, "a model is a folder, got 3"),
        ("      density: 0.5", "      density: 50", 9, "density is a number in .* for 50 per cent pass 0.5"),
        ("      density: 0.5", "      density: [0.1, 0.5]", 9, "density: gradients and filters are not supported"),
        ("      density: 0.5", "      density: {value: 1}", 9, "density: gradients and filters"),
        ("      density: 0.5", "      dense: 0.5", 9, "ties has no parameter 'dense'; did you mean density"),
        ("      weight: 1\n", "      weight: .nan\n", 8, "weight is a finite number"),
        ("      weight: 1\n", "", 7, "ties needs weight"),
        ("    parameters:\n", "    parameter:\n", 7, "a model has the keys model and parameters, got 'parameter'"),
        ("base_model: base", "base_model: base\nslices: []", 3, "slices is not supported"),
        ("base_model: base", "base_model: base\nmodules: {}", 3, "modules is not supported"),
        ("base_model: base", "base_model: base\ntokenizer_source: union", 3, "tokenizer_source: only base"),
        ("base_model: base", "base_model: base\nbase_modl: x", 3, "unknown key 'base_modl'; did you mean base_model"),
        ("base_model: base", "base_model: base\ndtype: bfloat61", 3, "dtype is one of .* did you mean bfloat16"),
        ("base_model: base", "base_model: base\nparameters: {rescale: true}", 3, "rescale: true is not supported for ties"),
        ("base_model: base", "base_model: base\nparameters: {t: 0.5}", 3, "ties has no parameter 't'"),
        ("base_model: base", "base_model: base\nparameters: 3", 3, "parameters is a mapping"),
        ("base_model: base", "base_model: {", 4, "broken YAML"),
        ("merge_method: ties", "- a", 2, "broken YAML"),
        (GOOD, "[]", 1, "expected lines such as merge_method"),
        (GOOD, "merge_method: ties\nbase_model: base\n", 1, "expected models: a list"),
        (GOOD, "merge_method: ties\nbase_model: base\nmodels: [base]\n", 3, "0 is a mapping"),
        (GOOD, "merge_method: ties\nbase_model: base\nmodels: [{model: base}]\n", 3, "ties takes at least 1 model beside the base, got 0"),
        (GOOD, "merge_method: model_stock\nbase_model: base\nmodels: [{model: m0}]\n", 3, "model_stock takes at least 2 models beside"),
        (GOOD, "merge_method: slerp\nbase_model: base\nmodels: [{model: m0}]\n", 1, "slerp needs t"),
        (GOOD, "merge_method: slerp\nbase_model: base\nmodels: [{model: m0}]\nparameters: {t: 2}", 4, r"t is a number in \[0, 1\]"),
        (GOOD, "merge_method: slerp\nbase_model: base\nmodels: [{model: m0}, {model: m1}]\nparameters: {t: 0}", 3, "slerp takes 1 model beside the base, got 2"),
        (GOOD, "merge_method: linear\nbase_model: base\nmodels: [{model: m0}]\nparameters: {weight: 1}", 2, "list base_model among them"),
        (GOOD, "merge_method: linear\nmodels: [{model: m0}]\nparameters: {weight: 0}", 2, "weights of linear add up to 0"),
        (GOOD, "merge_method: della\nbase_model: base\nmodels: [{model: m0}]\nparameters: {weight: 1, density: 0.9}", 3, "epsilon below 0.1"),
    ],
)  # fmt: skip
def test_wrong_files(toy, tmp_path, old: str, new: str, line: int, said: str):
    assert old in GOOD
    (tmp_path / "a.yml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError, match=said) as caught:
        merge_yaml(tmp_path / "a.yml", tmp_path / "out")
    assert f"a.yml, line {line}" in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_good_file(toy, tmp_path, monkeypatch):
    """Folders are found from the file's folder, and from the working folder."""
    (tmp_path / "a.yml").write_text(GOOD)
    merge_yaml(tmp_path / "a.yml", tmp_path / "one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    merge_yaml(Path("sub/a.yml"), Path("two"))
    merge_folders("base", ["m0", "m1"], {"ties": {"density": 0.5}}, "three")
    one, two, three = (read(tmp_path / n) for n in ("one", "two", "three"))
    for n, t in one.items():
        assert torch.equal(t, two[n])
        torch.testing.assert_close(t, three[n], rtol=0, atol=1e-6)


# ---- the command line -----------------------------------------------------------------------------------------------


def run(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["merge", *map(str, words)])
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


def test_the_command_merges_folders_and_files(toy, tmp_path, capsys):
    base, folders, *_ = toy
    several = ",".join(map(str, folders))
    code, out, err = run(capsys, base, "--models", several, "--merge", "ties: {density: 0.5}", "--out", tmp_path / "a", "--json")
    assert (code, err) == (0, "") and json.loads(out)["settings"] == {"density": 0.5, "scale": 1.0}
    merge_folders(base, folders, {"ties": {"density": 0.5}}, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    (tmp_path / "a.yml").write_text(GOOD)
    code, out, err = run(capsys, tmp_path / "a.yml", "--out", tmp_path / "c", "--dtype", "float16")
    assert (code, err) == (0, "") and "model.safetensors" in out and read(tmp_path / "c")["embed"].dtype == torch.float16


def test_the_command_says_what_is_missing_or_too_much(toy, tmp_path, capsys):
    base, folders, *_ = toy
    (tmp_path / "a.yml").write_text(GOOD)
    cases = [
        ([base], "Give --models A,B"),
        ([base, "--models", folders[0]], "give --out"),
        ([base, "--models", folders[0], "--out", tmp_path / "o"], "no --merge given"),
        ([base, "--models", folders[0], "--out", base, "--merge", "ties"], "exists and is not empty"),
        ([base, "--models", folders[0], "--out", tmp_path / "o", "--merge", "tise"], "did you mean ties"),
        (
            [base, "--models", folders[0], "--out", tmp_path / "o", "--merge", "ties", "--tasks", "a"],
            "--tasks and --name are of a RUN",
        ),
        ([base, "--models", f"{folders[0]},x", "--out", tmp_path / "o", "--merge", "ties"], "no folder x"),
        ([tmp_path / "a.yml"], "give --out"),
        ([tmp_path / "a.yml", "--out", tmp_path / "o", "--merge", "ties"], "leave out --merge"),
        ([tmp_path / "no.yml", "--out", tmp_path / "o"], "no.yml"),
        ([tmp_path / "run"], "no --merge given"),
        ([tmp_path / "run", "--merge", "ties", "--out", tmp_path / "o"], "--out is of merges of whole models"),
    ]
    for words, said in cases:
        code, out, err = run(capsys, *words)
        assert code == 2 and said in err and not out and err.count("\n") == 1, (words, err)
    assert not (tmp_path / "o").exists()
