"""Merges of eight small models are those of mergekit and FusionBench, recorded by record.py, to 1e-5."""

import pytest
import torch
from merge import record
from safetensors.torch import load_file

from anabranch.core.names import make
from anabranch.core.site import Site

RECORDED = load_file(record.RECORDED)
F, MODELS = record.states()
DROP = {"density": record.DENSITY, "seed": record.SEED}
CASES = {
    "mergekit.mean": {"mean": {}},
    "mergekit.task_arithmetic": {"task_arithmetic": {"scale": record.SCALE}},
    "mergekit.ties": {"ties": {"density": record.DENSITY}},
    "mergekit.dare": {"dare": DROP | {"scale": record.SCALE}},
    "mergekit.dare_ties": {"dare_ties": DROP | {"scale": 1.0}},
    "mergekit.model_stock": {"model_stock": {}},
    "fusion.task_arithmetic": {"task_arithmetic": {"scale": record.SCALE}},
    "fusion.dare": {"dare": DROP | {"scale": record.SCALE}},
    "fusion.iso_c": {"iso_c": {"scale": 1.0}},
}


def vectors(name: str, t: int = record.TASKS) -> torch.Tensor:
    return torch.stack([m[name] - F[name] for m in MODELS[:t]])


def merged(spec, t=record.TASKS, names=tuple(F), **whole):
    """All tensors' merges in a row; the random masks take the tensor's name."""
    method = make("merge", spec)
    return torch.cat([method(vectors(n, t), Site(n, "", 0, "linear", 1, 1), whole).flatten() for n in names])


def same(a, b):
    assert a.shape == b.shape and float((a - b).abs().max()) < 1e-5, float((a - b).abs().max())
    assert float(b.abs().max()) > 0.01  # so that 1e-5 is small


def test_the_models_are_those_of_the_record():
    assert torch.allclose(record.sums(), RECORDED["sums"], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_parity(case):
    same(merged(CASES[case]), RECORDED[case])


def test_ties_with_one_threshold_for_the_whole_model():
    """FusionBench trims over all tensors at once, as the paper's code does."""
    sizes = torch.cat([vectors(n).flatten(1) for n in F], 1).abs()
    edge = sizes.kthvalue(sizes.shape[1] - int(record.DENSITY * sizes.shape[1]), dim=1).values
    same(merged({"ties": {}}, threshold=edge), RECORDED["fusion.ties"])


def test_breadcrumbs():
    """In tensors of fewer than 1 / outliers numbers mergekit keeps nothing; here they are no such."""
    same(
        merged({"breadcrumbs": {"density": record.DENSITY, "outliers": 0.1, "scale": record.SCALE}}),
        RECORDED["mergekit.breadcrumbs"],
    )


def test_slerp():
    same(merged({"slerp": {"weight": 0.3}}, 2), RECORDED["mergekit.slerp"])


def test_tsv():
    """A matrix with fewer rows or columns than there are tasks becomes zero in FusionBench; here each task brings one direction."""
    sizes, got, want = [t.numel() for t in F.values()], merged({"tsv": {}}), RECORDED["fusion.tsv"]
    for name, mine, theirs in zip(F, got.split(sizes), want.split(sizes), strict=True):
        if F[name].ndim == 2 and min(F[name].shape) < record.TASKS:
            assert mine.any() and not theirs.any() and name == "embeddings.token_type_embeddings.weight"
        else:
            same(mine, theirs)


def test_regmean():
    grams = record.grams()
    same(merged({"regmean": {"keep": 0.9}}, names=tuple(grams), gram=grams), RECORDED["fusion.regmean"])
