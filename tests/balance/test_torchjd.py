"""Names, settings and errors of what falls through to TorchJD; its numbers are in test_recorded.py."""

import pytest
import torch
from laws.balance import point

import anabranch
from anabranch.core.names import find, make
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
