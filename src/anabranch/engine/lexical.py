"""BM25, the lexical baseline that stands beside every retrieval score (Robertson et al. 1994, TREC-3; no paper of ours)."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

K1, B = 1.2, 0.75


def bm25(queries: Sequence[str], corpus: Mapping[str, str], most: int = 100) -> list[list[str]]:
    """The ``most`` best documents of each query, by id, best first; words of two and more letters, lower case."""
    count = CountVectorizer(token_pattern=r"(?u)\b\w\w+\b")
    terms = csr_matrix(count.fit_transform(corpus.values()), dtype=float)
    lengths = np.asarray(terms.sum(1)).ravel()
    n, holders = terms.shape[0], np.asarray((terms > 0).sum(0)).ravel()
    idf = np.log1p((n - holders + 0.5) / (holders + 0.5))
    rows = np.repeat(np.arange(n), np.diff(terms.indptr))
    norm = K1 * (1 - B + B * lengths[rows] / lengths.mean())
    terms.data = idf[terms.indices] * terms.data * (K1 + 1) / (terms.data + norm)
    scores = csr_matrix(count.transform(queries) > 0, dtype=float) @ terms.T
    ids = list(corpus)
    return [[ids[i] for i in np.argsort(-row.toarray().ravel(), kind="stable")[:most]] for row in scores]
