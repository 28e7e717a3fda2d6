"""Names, settings and errors of what falls through to TorchJD; its numbers are in test_recorded.py."""

import pytest
import torch
import torchjd.aggregation as jd
from balance.test_recorded import CASES
from laws.balance import HARD, point, stored

import anabranch
from anabranch.core.names import every, find, make
from anabranch.errors import InputError, WorkError
from anabranch.settings import settings_of

ROWS = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])


def direction(spec, rows=ROWS):
    return make("balance", spec)(None, point(rows))[0]


def test_a_class_is_found_by_its_name_or_its_files():
    for name in ("imtlg", "imtl_g", "IMTL-G".lower()):
        assert torch.equal(direction(name), direction("imtlg"))
    assert torch.equal(anabranch.balance.pcgrad(None, point(ROWS))[0], direction("pcgrad"))
    assert set(settings_of(find("balance.mgda"))) == {"epsilon", "max_iters"}
    with pytest.raises(InputError, match="did you mean pcgrad"):
        find("balance.pcgard")
    with pytest.raises(InputError, match="no balance 'aggregator'"):  # TorchJD's base classes are no methods
        find("balance.aggregator")
    with pytest.raises(AttributeError, match="nothing_like_it"):
        anabranch.balance.nothing_like_it  # noqa: B018


def test_the_folder_comes_first_and_other_families_have_nothing_beyond():
    assert find("balance.mean").__module__ == "anabranch.balance.mean"
    with pytest.raises(InputError, match="no merge 'mgda'"):
        find("merge.mgda")


def test_settings_are_checked_as_ours_are():
    with pytest.raises(InputError, match="balance fair_grad needs alpha"):
        make("balance", "fair_grad")
    with pytest.raises(InputError, match="alpha is a number, got 'much'"):
        make("balance", {"fair_grad": {"alpha": "much"}})
    with pytest.raises(InputError, match="no setting 'epsilom'; did you mean epsilon"):
        make("balance", {"mgda": {"epsilom": 1}})
    with pytest.raises(InputError, match="balance mgda: epsilon must be positive"):
        direction({"mgda": {"epsilon": -1.0}})
    with pytest.raises(InputError, match="balance krum: .*at least 3 rows"):
        direction({"krum": {"n_byzantine": 0}})


def test_a_list_is_a_tensor():
    torch.testing.assert_close(direction({"constant": {"weights": [0.5, 2]}}), torch.tensor([0.5, 2.0]) @ ROWS)
    with pytest.raises(InputError, match="balance constant"):
        direction({"constant": {"weights": [0.5, 2, 1]}})
    for name, setting in (("constant", "weights"), ("aligned_mtl", "pref_vector")):
        for wrong in ("x", 3, ["a", 1], [[1, 2], [3]], {"a": 1}):
            with pytest.raises(InputError, match=rf"balance {name}: {setting} is a list of numbers such as \[0.5, 0.5\], got "):
                direction({name: {setting: wrong}})


def test_an_extra_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"torchjd\[cagrad\]\""):
        make("balance", {"cagrad": {"c": 0.5}})
    with pytest.raises(InputError, match=r"upgrad needs an extra.*torchjd\[quadprog_projector\]"):
        find("balance.upgrad")
    find("balance.mgda")


def test_random_numbers_come_from_the_step():
    balancer, rows = make("balance", "random"), point(torch.eye(6))
    first, state = balancer(None, rows)
    second, _ = balancer(state, rows)
    assert torch.equal(first, balancer(None, rows)[0]) and not torch.allclose(first, second)


def test_no_finite_direction_is_an_error_of_the_work():
    with pytest.raises(WorkError, match="task 1 is not finite"):
        direction("sum", torch.tensor([[1.0], [torch.nan]]))


def smoothed(spec, case="five"):
    balancer, state, out = make("balance", spec), None, []
    for grads in torch.tensor(CASES[case]["grads"]):
        direction, state = balancer(state, point(grads))
        out.append(direction)
    return torch.stack(out), state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("settings", "wrapped"),
    [
        ({}, lambda jd: jd.MGDAWeighting()),
        ({"weighting": "imtl-g", "alpha": 0.5}, lambda jd: jd.IMTLGWeighting()),
        ({"weighting": {"krum": {"n_byzantine": 0}}, "alpha": 0.0}, lambda jd: jd.KrumWeighting(0)),
        (
            {"weighting": {"aligned_mtl": {"scale_mode": "rmse"}}, "alpha": 1},
            lambda jd: jd.AlignedMTLWeighting(scale_mode="rmse"),
        ),
        ({"weighting": "pcd"}, lambda jd: jd.PCDWeighting()),
    ],
)
def test_crmogm_is_torchjds_around_another_weighting(settings, wrapped, case):
    """The Gramian's weightings, of which pcd remembers something itself."""
    theirs = jd.GramianWeightedAggregator(jd.CRMOGMWeighting(wrapped(jd), float(settings.get("alpha", 0.9))))
    expected = torch.stack([theirs(grads) for grads in torch.tensor(CASES[case]["grads"])])
    found, state = smoothed({"crmogm": settings}, case)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert state["calls"] == 4 and any(k.endswith("._lambda") for k in state)
    if settings.get("alpha", 0.9) != 0:
        alone = make("balance", settings.get("weighting", "mgda"))(None, point(torch.tensor(CASES[case]["grads"])[-1]))[0]
        assert not torch.allclose(found[-1], alone, rtol=1e-3)


def test_crmogm_of_the_matrixs_weightings_and_its_start():
    rows = torch.tensor(CASES["three"]["grads"])
    theirs = jd.WeightedAggregator(jd.CRMOGMWeighting(jd.ExcessMTLWeighting(), 0.5, torch.tensor([0.5, 0.25, 0.25])))
    found, _ = smoothed({"cr_mogm": {"weighting": "excess_mtl", "alpha": 0.5, "initial_weights": [0.5, 0.25, 0.25]}}, "three")
    torch.testing.assert_close(found, torch.stack([theirs(grads) for grads in rows]))
    with pytest.raises(InputError, match="balance crmogm.*initial_weights"):
        smoothed({"crmogm": {"initial_weights": [0.5, 0.5]}}, "three")


@pytest.mark.parametrize("spec", [{}, {"weighting": "pcd"}, {"weighting": "pcgrad"}, {"weighting": "excess_mtl"}])
def test_crmogm_goes_on_as_it_would_have(spec):
    balancer, whole, killed = make("balance", {"crmogm": spec}), None, None
    rng = torch.Generator().manual_seed(3)
    for _ in range(6):
        at = point(torch.randn(4, 9, generator=rng))
        kept, whole = balancer(whole, at)
        found, killed = balancer(stored(killed), at)
        assert torch.equal(kept, found)


@pytest.mark.parametrize("case", HARD)
def test_crmogm_on_hard_inputs(case):
    balancer, before = make("balance", "crmogm"), HARD[case].clone()
    first, state = balancer(None, point(HARD[case]))
    again, _ = balancer(state, point(HARD[case]))
    assert first.isfinite().all() and again.isfinite().all() and torch.equal(before, HARD[case])


def test_what_crmogm_cannot_smooth_is_refused():
    with pytest.raises(InputError, match="weights of one of .*mgda.*got 'grad_drop'"):  # its direction is no weighted sum
        direction({"crmogm": {"weighting": "grad_drop"}})
    with pytest.raises(InputError, match="got 'famo'"):
        direction({"crmogm": {"weighting": "famo"}})
    with pytest.raises(InputError, match="balance crmogm: weighting: no balance 'mgdb'; did you mean mgda"):
        make("balance", {"crmogm": {"weighting": "mgdb"}})
    with pytest.raises(InputError, match="balance crmogm: .*alpha"):
        direction({"crmogm": {"alpha": 1.5}})


def test_everything_of_torchjd_has_a_name():
    """Aggregators, and weightings without one."""
    kinds = {n: k for n, k in vars(jd).items() if isinstance(k, type) and n in jd.__all__}
    bases = {"Aggregator", "GramianWeightedAggregator", "WeightedAggregator", "Weighting"}
    beyond = {n.replace("_", "") for n in [*anabranch.balance.beyond(), *every("balance")]}
    missing = [n for n in kinds.keys() - bases if n.removesuffix("Weighting").lower() not in beyond]
    assert not missing
