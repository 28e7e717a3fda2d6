"""BM25 against a worked example: one shared word, and a shorter document that wins."""

import math

from anabranch.engine.lexical import K1, B, bm25


def test_the_shorter_document_with_the_same_words_wins() -> None:
    corpus = {"long": "sort an array and then do many other things with it", "short": "sort an array", "none": "draw a line"}
    assert bm25(["how to sort an array"], corpus)[0] == ["short", "long", "none"]


def test_a_rare_word_weighs_more_than_a_common_one() -> None:
    corpus = {"a": "graph node", "b": "graph edge", "c": "graph edge"}
    assert bm25(["graph node"], corpus, most=1) == [["a"]]
    # by hand: idf(node) = log(1 + 2.5 / 1.5), every length equals the mean, tf 1: factor (k1 + 1) / (1 + k1)
    assert math.isclose(math.log1p(2.5 / 1.5) * (K1 + 1) / (1 + K1 * (1 - B + B)), math.log1p(2.5 / 1.5))
