"""The kinds by hand: losses, answers, and what is settled on validation."""

import math

import pytest
import torch

from anabranch.errors import InputError
from anabranch.task import kind as kinds
from anabranch.task.kind._base import pairwise, temperature

AB = ["a", "b", "c"]


def test_there_are_eight_and_a_wrong_name_is_answered() -> None:
    assert kinds.kinds() == ["choice", "classify", "generate", "multilabel", "pair", "regress", "retrieve", "tag"]
    with pytest.raises(InputError, match="no kind 'clasify'.*classify"):
        kinds.find("clasify")


def test_classify_by_hand() -> None:
    kind, out = kinds.find("classify")(AB), torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2.0), 0.0]])
    y = torch.tensor([0, 1])
    torch.testing.assert_close(kind.loss(out, y, [1, 1]), torch.tensor([math.log(3), math.log(2)]))
    pred, scores = kind.answer(out, [1, 1], {})
    assert pred[1] == 1 and scores[1] == pytest.approx([0.25, 0.5, 0.25])
    assert kind.named(1, scores[1])["prediction"] == "b"
    assert kind.answer(out, [1, 1], {"shift": torch.tensor([0.0, 0.0, 9.0])})[0] == [2, 2]


def test_temperature_calms_what_is_too_sure() -> None:
    y = torch.tensor([0, 1] * 50)
    right = torch.nn.functional.one_hot(y, 2).float() * 20
    right[:20] = right[:20].flip(1)  # a fifth is wrong, at full confidence
    assert 5 < temperature(right, y) <= 10 and temperature(right / 20, y) < 1


def test_abstain_is_the_confidence_from_which_answers_are_sure() -> None:
    kind = kinds.find("classify")(["a", "b"])
    out = torch.tensor([[4.0, 0.0]] * 30 + [[0.2, 0.0]] * 10)
    y = torch.tensor([0] * 30 + [1] * 10)
    post = kind.settle(out, y, [1] * 40, "accuracy")
    scores = torch.tensor(kind.answer(out, [1] * 40, post)[1]).amax(1)
    assert scores[30] < post["abstain"] <= scores[0]
    assert kind.settle(out[:30], y[:30], [1] * 30, "accuracy")["abstain"] == 0


def test_the_shift_for_macro_f1_never_lowers_it_on_validation() -> None:
    from anabranch.task.metrics import score

    kind, g = kinds.find("classify")(["a", "b"]), torch.Generator().manual_seed(0)
    y = (torch.rand(300, generator=g) < 0.1).long()
    out = torch.randn(300, 2, generator=g) + torch.stack([torch.full((300,), 2.0), 1.5 * y], 1)
    post = kind.settle(out, y, [1] * 300, "macro_f1")
    plain, shifted = (score("macro_f1", y.tolist(), kind.answer(out, [1] * 300, p)[0]) for p in ({}, post))
    assert shifted > plain


def test_multilabel_by_hand() -> None:
    kind = kinds.find("multilabel")(AB)
    assert kind.target([0, 2]).tolist() == [1, 0, 1] and kind.target([]).tolist() == [0, 0, 0]
    torch.testing.assert_close(kind.loss(torch.zeros(1, 3), kind.target([1])[None], [1]), torch.tensor([3 * math.log(2)]))
    assert kind.answer(torch.tensor([[1.0, -1.0, 0.1]]), [1], {})[0] == [[0, 2]]
    assert kind.answer(torch.tensor([[1.0, -1.0, 0.1]]), [1], {"thresholds": torch.tensor([0.9, 0.1, 0.5])})[0] == [[1, 2]]


def test_numbers_are_standardised_and_come_back() -> None:
    kind = kinds.find("regress")([], False, [10.0, 0.0], [2.0, 1.0])
    assert kind.target([14.0, -1.0]).tolist() == [2.0, -1.0]
    assert kind.answer(kind.target([14.0, -1.0])[None], [1], {})[0] == [[14.0, -1.0]]
    assert kind.named([14.0], None)["prediction"] == 14.0 and kind.loss(torch.zeros(1, 2), torch.ones(1, 2), [1]).tolist() == [
        2.0
    ]


def test_pairs_join_two_texts() -> None:
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert pairwise(u, v).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
    kind = kinds.find("pair")(AB, True)
    torch.testing.assert_close(kind.join(torch.cat([u, v]), [2]), pairwise(u, v))
    number = kinds.find("pair")([], True, [0.0], [1.0])
    assert kind.width(2) == (3, 8) and number.width(2) == (1, 8) and number.named([0.5], None)["prediction"] == 0.5


def test_choices_of_different_numbers() -> None:
    kind, z = kinds.find("choice")(), torch.arange(14.0).view(7, 2)  # rows of 2 and 3 choices
    joined = kind.join(z, [3, 4])
    torch.testing.assert_close(joined, pairwise(z[[0, 0, 3, 3, 3]], z[[1, 2, 4, 5, 6]]))
    out = torch.tensor([[0.0], [1.0], [0.0], [0.0], [2.0]])
    want = torch.tensor([math.log1p(math.exp(-1.0)), math.log(2 + math.exp(2.0)) - 2])
    torch.testing.assert_close(kind.loss(out, torch.tensor([1, 2]), [3, 4]), want)
    pred, scores = kind.answer(out, [3, 4], {})
    assert pred == [1, 2] and [len(s) for s in scores] == [2, 3]


def test_the_entropy_of_an_answer_is_that_of_its_own_distribution() -> None:
    """By hand: log of the number of equal choices; of labels the mean of yes or no; none for numbers and vectors."""
    a, quarter = math.log(2), -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    torch.testing.assert_close(kinds.find("classify")(AB).entropy(three, [1]), torch.tensor([math.log(3)]))
    torch.testing.assert_close(kinds.find("tag")(AB[:2]).entropy(two.repeat(3, 1), [2, 1]), torch.full((3,), a))
    torch.testing.assert_close(kinds.find("pair")(AB, True).entropy(three, [2]), torch.tensor([math.log(3)]))
    out = torch.tensor([[0.0, -math.log(3), 90.0]])  # 1/2, 1/4 and sure
    torch.testing.assert_close(kinds.find("multilabel")(AB).entropy(out, [1]), torch.tensor([(a + quarter) / 3]))
    scores = torch.zeros(5, 1, requires_grad=True)  # of a row of two choices and one of three
    found = kinds.find("choice")().entropy(scores, [3, 4])
    torch.testing.assert_close(found.detach(), torch.tensor([a, math.log(3)]))
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    numbers = [], True, [0.0], [1.0]
    assert kinds.find("pair")(*numbers).entropy(torch.zeros(1, 1), [2]) is None
    assert kinds.find("regress")(*numbers).entropy(torch.zeros(1, 1), [1]) is None
    assert kinds.find("retrieve")().entropy(two, [1]) is None


def test_tags_are_cut_where_f_stops_reading() -> None:
    kind = kinds.find("tag")(AB)
    out = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]])
    assert kind.answer(out, [2, 1], {})[0] == [[0, 1], [2]]
    loss = kind.loss(out, [torch.tensor([0, 1, 2]), torch.tensor([2])], [2, 1])  # the first row has a word that f did not read
    assert loss.shape == (2,) and loss.max() < 1e-3


def test_queries_learn_against_the_documents_of_the_batch() -> None:
    kind, z = kinds.find("retrieve")(), torch.eye(4)
    good = kind.loss(z[[0, 0, 1, 1]], [], ())
    bad = kind.loss(z[[0, 1, 1, 0]], [], ())
    assert good.max() < 1e-6 and bad.min() > 19
    assert kind.loss(z[[0, 0, 1, 0]], [], ())[0] == 0  # a document that two rows share is not its own negative


def test_only_the_answers_tokens_count_in_generation() -> None:
    kind, out = kinds.find("generate")(), torch.zeros(1, 4, 5)
    truth = torch.tensor([[-100, -100, 3, 1]])
    torch.testing.assert_close(kind.loss(out, truth, ()), torch.tensor([math.log(5)]))
