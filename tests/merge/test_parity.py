"""Merges of eight small models, made up ones and crops of real fine-tunes, are those of mergekit and FusionBench, recorded by
record.py, to 1e-5."""

import pytest
import torch
from merge import record
from safetensors.torch import load_file

from anabranch.core.names import make
from anabranch.core.site import Site
from anabranch.merge._parts import keep

RECORDED = load_file(record.RECORDED)
MODELS = {source: models() for source, models in record.SOURCES.items()}
SOURCES = pytest.mark.parametrize("source", MODELS, ids=["synthetic", "real"])


def vectors(source: str, name: str, t: int = record.TASKS) -> torch.Tensor:
    f, models = MODELS[source]
    return torch.stack([m[name] - f[name] for m in models[:t]])


def merged(source, spec, t=record.TASKS, names=None, **whole):
    """All tensors' merges in a row; the random masks take the tensor's name."""
    method, names = make("merge", spec), MODELS[source][0] if names is None else names
    return torch.cat([method(vectors(source, n, t), Site(n, "", 0, "linear", 1, 1), whole).flatten() for n in names])


def tensors(source, row):
    """{name: that part of a row of all tensors}"""
    f = MODELS[source][0]
    parts = row.split([t.numel() for t in f.values()])
    return {n: part.view(t.shape) for (n, t), part in zip(f.items(), parts, strict=True)}


def far(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max())


def same(a, b):
    assert far(a, b) < 1e-5 and far(a, b) < 1e-3 * float(b.abs().max()), (far(a, b), float(b.abs().max()))  # 1e-5 may be much


@SOURCES
def test_the_models_are_those_of_the_record(source):
    assert torch.allclose(record.sums(*MODELS[source]), RECORDED[f"{source}sums"], rtol=1e-6)


def test_real_models_are_crops_of_a_bert_that_changed_everywhere():
    f, models = MODELS["real."]
    assert len(models) == record.TASKS and f["encoder.layer.0.output.dense.weight"].shape == (16, 24)
    still = [n for n in f if not any((m[n] != f[n]).any() for m in models)]
    assert not still


def cosine(rows):
    """The mean over pairs of tasks."""
    rows = torch.nn.functional.normalize(rows.flatten(1).double(), dim=1)
    return float((rows @ rows.T).triu(1).sum() / (len(rows) * (len(rows) - 1) / 2))


def other(source, case):
    """Tensors where the peer does something else, which the two tests below are about."""
    f = MODELS[source][0]
    if case == "mergekit.model_stock":
        return {n for n in f if cosine(vectors(source, n)) < 0}
    if case == "fusion.iso_c":
        sums = {n: vectors(source, n).sum(0) for n, t in f.items() if t.ndim == 2}
        return {n for n, t in sums.items() if torch.linalg.matrix_rank(t) < min(t.shape)}
    return set()


@SOURCES
@pytest.mark.parametrize("case", record.CASES)
def test_parity(source, case):
    got, want = (tensors(source, row) for row in (merged(source, record.CASES[case]), RECORDED[source + case]))
    names = [n for n in got if n not in other(source, case)]
    assert 2 * len(names) > len(got)
    same(*(torch.cat([row[n].flatten() for n in names]) for row in (got, want)))


def test_where_tasks_point_apart_model_stock_stays_at_f():
    """mergekit goes against the mean there, by the negative cosine of the real models in some tensors."""
    case = "mergekit.model_stock"
    got, want = (tensors("real.", row) for row in (merged("real.", record.CASES[case]), RECORDED[f"real.{case}"]))
    apart = other("real.", case)
    assert apart and not other("", case)
    for name in apart:
        assert not got[name].any() and float((want[name] * vectors("real.", name).mean(0)).sum()) < 0


def test_iso_c_takes_the_mean_of_the_directions_that_there_are():
    """The second sort of token is in no text of the real tasks: FusionBench counts a direction for it and fills it at random."""
    case, (name,) = "fusion.iso_c", other("real.", "fusion.iso_c")
    got, want = (tensors("real.", row)[name] for row in (merged("real.", record.CASES[case]), RECORDED[f"real.{case}"]))
    assert name == "embeddings.token_type_embeddings.weight" and not vectors("real.", name)[:, 1].any()
    assert not got[1].any() and want[1].any()
    same(got[0] / 2, want[0])


@SOURCES
def test_ties_with_one_threshold_for_the_whole_model(source):
    """FusionBench trims over all tensors at once, as the paper's code does."""
    sizes = torch.cat([vectors(source, n).flatten(1) for n in MODELS[source][0]], 1).abs()
    edge = sizes.kthvalue(sizes.shape[1] - int(record.DENSITY * sizes.shape[1]), dim=1).values
    same(merged(source, {"ties": {}}, threshold=edge), RECORDED[f"{source}fusion.ties"])


@SOURCES
def test_breadcrumbs(source):
    """In tensors of fewer than 1 / outliers numbers mergekit keeps nothing; here they are no such. Of equal numbers at an edge
    it keeps some, and ours all: AdamW's first step moves many numbers by just its rate."""
    outliers, spec = 0.1, {"breadcrumbs": {"density": record.DENSITY, "outliers": 0.1, "scale": record.SCALE}}
    got, want = (tensors(source, row) for row in (merged(source, spec), RECORDED[f"{source}mergekit.breadcrumbs"]))
    apart = 0
    for name in got:
        rows, edges = vectors(source, name).flatten(1).abs(), torch.zeros(got[name].numel(), dtype=torch.bool)
        n = rows.shape[1]
        for row, ordered in zip(rows, rows.sort(descending=True).values, strict=True):
            for place in (int(outliers * n), int(outliers * n) + keep(record.DENSITY, n) - 1):
                equal = row == ordered[place]
                edges |= equal & (equal.sum() > 1)
        mine, theirs = (t[name].flatten() for t in (got, want))
        assert far(mine[~edges], theirs[~edges]) < 1e-6
        apart += int(((mine - theirs).abs() > 1e-6).sum())
    assert apart == {"": 0, "real.": 4}[source]


@SOURCES
def test_slerp(source):
    same(merged(source, {"slerp": {"weight": 0.3}}, 2), RECORDED[f"{source}mergekit.slerp"])


@SOURCES
def test_tsv(source):
    """A matrix with fewer rows or columns than there are tasks becomes zero in FusionBench; here each task brings one direction."""
    f, got, want = MODELS[source][0], merged(source, {"tsv": {}}), RECORDED[f"{source}fusion.tsv"]
    sizes = [t.numel() for t in f.values()]
    for name, mine, theirs in zip(f, got.split(sizes), want.split(sizes), strict=True):
        if f[name].ndim == 2 and min(f[name].shape) < record.TASKS:
            assert mine.any() and not theirs.any() and name == "embeddings.token_type_embeddings.weight"
        else:
            same(mine, theirs)


@SOURCES
def test_regmean(source):
    grams = record.grams(MODELS[source][0])
    same(merged(source, {"regmean": {"keep": 0.9}}, names=tuple(grams), gram=grams), RECORDED[f"{source}fusion.regmean"])
