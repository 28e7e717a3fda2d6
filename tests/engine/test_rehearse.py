"""A balance that cannot be of a plan's tasks is refused before any work; one that does nothing is told."""

import pytest
from engine import _tiny as tiny
from engine.test_recipe import twins
from engine.test_train import trainer

from anabranch.core.names import every
from anabranch.engine.rehearse import rehearsed
from anabranch.errors import InputError
from anabranch.task.plan import read_plan


def plan(names, **more):
    return tiny.plan(tiny.home() / "bert", tiny.home() / "data", names, **more)


@pytest.mark.parametrize("name", [*every("balance"), "mgda", "aligned_mtl"])
def test_every_balance_is_of_two_tasks_that_share_texts(tmp_path, name):
    made, jobs = twins(tmp_path)
    spec = {"stg_mtl": {"clusters": 2}} if name == "stg_mtl" else name
    notes = rehearsed(spec, [job for job, _ in jobs], [], lambda: made)
    assert all("have the same texts" in note and name in note for note in notes) and len(notes) < 2


@pytest.mark.parametrize(("names", "balance", "said"), [
    (["classify", "pair"], {"flat_mtl": {"inner": "stg_mtl"}}, "'stg_mtl' trains several times"),
    (["classify", "pair", "regress"], {"krum": {"n_byzantine": 1}}, "krum.*cannot be of these tasks: .*or take another"),
    (["classify", "pair"], "rep_mtl", "share 0 in training"),
    (["classify", "tag"], "rep_mtl", "tag is of kind tag"),
    (["classify", "pair"], "stg_mtl", "as many tasks as clusters.*got 2 for 3"),
    (["retrieve", "pair"], {"stg_mtl": {"clusters": 2}}, "retrieve is of kind retrieve"),
    (["retrieve", "pair"], "covalign_mtl", "no classes and no numbers"),
    (["classify"], "covalign_mtl", "needs two tasks or more"),
    (["classify"], "stg_mtl", "and two or more; got 1"),
    (["classify"], "rep_mtl", "needs two tasks or more that share texts"),
])  # fmt: skip
@pytest.mark.parametrize("dry", [True, False])
def test_a_balance_is_refused_before_the_work(tmp_path, names, balance, said, dry):
    with pytest.raises(InputError, match=said):
        tiny.fit(plan(names, balance=balance), tmp_path / "run", dry=dry)
    assert not (tmp_path / "run" / "work").exists()


def test_tasks_that_run_out_of_rows_leave_fewer_in_a_step(tmp_path):
    for name, n in {"a": 40, "b": 40, "c": 40, "d": 20}.items():
        tiny.folder(tmp_path / "data" / name, "classify", {"train": n, "valid": 4, "test": 4}, len(name) + n)
    asked = tiny.plan(tiny.home() / "bert", tmp_path / "data", "abcd", balance={"krum": {"n_byzantine": 1}})
    with pytest.raises(InputError, match="when 3 of the 4 tasks meet in a step"):
        tiny.fit(asked, tmp_path / "run", dry=True)


@pytest.mark.parametrize(("more", "said"), [
    ({"balance": {"flat_mtl": {"inner": "pcgrat"}}}, "balance: balance flat_mtl: inner: no balance 'pcgrat'; did you mean pcgrad"),
    ({"balance": {"flat_mtl": {"inner": {"samo": {"inner": "men"}}}}}, "flat_mtl: inner: balance samo: inner: no balance 'men'"),
    ({"balance": {"samo": {"inner": {"rlw": {"sed": 1}}}}}, "inner: balance rlw has no setting 'sed'"),
    ({"balance": {"rep_mtl": {"inner": 3}}}, "inner is the name of a balance or .*, got 3"),
    ({"merge": {"twin": {"merge": "tis"}}}, "merge twin: merge: no merge 'tis'; did you mean ties"),
    ({"merge": {"atm": {"delta": {"lora": {"rank": 0}}}}}, "merge atm: delta: delta lora: rank is a whole number"),
])  # fmt: skip
def test_a_method_among_settings_is_checked_with_the_plan(more, said):
    with pytest.raises(InputError, match=said):
        read_plan({"tasks": {"a": {"data": "a.csv"}}} | more)


@pytest.mark.parametrize("balance", ["pcgrad", "mgda", "samo", {"flat_mtl": {"rho": 0.1}}, "famo"])
def test_what_does_nothing_with_one_task_is_told(tmp_path, balance):
    name = balance if isinstance(balance, str) else "flat_mtl"
    made, [(job, _)] = trainer(tmp_path, "classify")
    told = [f"balance {name} does nothing with one task"]
    assert rehearsed(balance, [job], [], lambda: made, shares=False) == told
    # where a lone task trains what slots share, a look around it is more than its own gradient
    assert (rehearsed(balance, [job], [], lambda: made) == told) is (name not in ("samo", "flat_mtl"))


def test_the_note_is_in_the_results(tmp_path):
    results = tiny.fit(plan(["classify"], balance="pcgrad", stages=["features", "probe", "share"]), tmp_path / "run", steps=2)
    assert "balance pcgrad does nothing with one task" in results["notes"]
