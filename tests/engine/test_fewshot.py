"""Few-shot training: when, its loss, what it keeps, and how it is chosen."""

from dataclasses import replace

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine import fewshot, linear
from anabranch.engine.cache import read_json
from anabranch.engine.job import Part, spelled
from anabranch.engine.model import load


def test_loss_by_hand():
    """Three texts, two of one class at 60 degrees, the third opposite: (1 - 0.5)^2, and the mean of 1^2 and 0.5^2."""
    x = torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2], [-1.0, 0.0]])
    trainer = object.__new__(fewshot.Contrast)
    trainer.features = type("F", (), {"backbone": type("B", (), {"d": 2})})
    found = trainer.loss(None, {}, torch.cat([2 * x, torch.randn(3, 2)], 1), torch.tensor([0, 0, 1]), ())
    assert float(found) == pytest.approx(0.25 + (1 + 0.25) / 2)


def test_halves_share_out_every_class():
    part = Part([[i] for i in range(7)], torch.tensor([0, 0, 0, 0, 1, 1, 1]), [0, 0, 0, 0, 1, 1, 1])
    (a, b), (c, d) = fewshot.halves(part)
    assert a == d and b == c and sorted(a + b) == list(range(7))
    assert {part.labels[i] for i in a} == {0, 1} == {part.labels[i] for i in b}


def test_head_around_names_is_the_names_where_rows_say_nothing():
    """Without a row that tells classes apart, the penalty leaves W where the names put it."""
    from anabranch.task.kind.classify import Classify

    around = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    start = {"W": around, "b": torch.zeros(2), "mean": torch.zeros(2), "scale": torch.ones(2)}
    found = linear.solve(Classify(["a", "b"], False), torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), [1] * 4, 1.0, start, around)
    assert torch.allclose(found["W"], around)


def test_labels_are_spelled_as_words():
    assert spelled(["AddToPlaylist", "add_to_playlist", "science/technology", "joy"]) == [
        "add to playlist", "add to playlist", "science technology", "joy"]  # fmt: skip


@pytest.mark.parametrize("probe", [True, False])
def test_a_task_of_few_rows_answers_by_what_halves_chose(tmp_path, monkeypatch, probe):
    judged = []
    monkeypatch.setattr(fewshot, "better", lambda job, new, old, seed, errors: judged.append((job, new, old)) or probe)
    place, plan = tmp_path / "data" / "few", tiny.plan(tiny.home() / "bert", tmp_path / "data", ["few"])
    tiny.folder(place, "classify", {"train": 30, "valid": 3, "test": 12})
    results = tiny.fit(plan, tmp_path / "run")
    task = results["tasks"]["few"]
    assert any("few-shot" in note for note in results["notes"]) and task["chosen"] == ("probe" if probe else "delta")
    (job, new, old), *_ = judged
    assert len(job.parts["valid"]) == 33 == len(new.losses) == len(old.losses) and (new.name, old.name) == ("probe", "delta")
    assert task["valid"] == (new if probe else old).valid
    assert load(tmp_path / "run").evaluate(tmp_path / "data")["few"]["score"] == task["test"]
    again = tiny.fit(plan, tmp_path / "run", resume=True)
    assert again["tasks"]["few"]["test"] == task["test"] == read_json(tmp_path / "run" / "results.json")["tasks"]["few"]["test"]


@pytest.mark.parametrize(("each", "few"), [(1, False), (2, True), (16, True), (17, False)])
def test_when_a_task_is_few(each, few):
    """Two rows of every class at least, 16 a class at most; and no other kind."""
    from anabranch.task.kind.classify import Classify

    labels = [0] * each + [1] * each
    part, none = Part([[0]] * len(labels), torch.tensor(labels), labels), Part([], [], [])
    task = type("T", (), {"kind": "classify"})
    job = fewshot.Job("t", Classify(["a", "b"], False), "accuracy", {"train": part, "valid": none}, {}, 1.0, task)
    assert fewshot.few(job) is few
    assert not fewshot.few(replace(job, task=type("T", (), {"kind": "pair"})))
