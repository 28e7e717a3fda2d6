"""What a sentence must not give away, and which of its tokens are parameters and values."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from anabranch.world._prose import CODE
from anabranch.world._scan import Function

_NAMES = {  # how the docs call a library; without words that mean other things too ("datasets", "arrow")
    "datasets": "HF [Dd]atasets", "fsspec": "fsspec", "networkx": "[Nn]etwork[Xx]|nx", "numpy": "[Nn]um[Pp]y|NUMPY|np",
    "pandas": "[Pp]andas|pd", "pyarrow": "[Pp]y[Aa]rrow|(?:Apache )?Arrow", "python": "C?Python|python",
    "scikit-learn": "[Ss]cikit-learn|[Ss]klearn", "scipy": "[Ss]ci[Pp]y", "sympy": "[Ss]ym[Pp]y",
    "torch": "[Pp]y[Tt]orch|[Tt]orch", "transformers": "Hugging ?Face|huggingface|HF [Tt]ransformers",
}  # fmt: skip
_ROOTS = "datasets|fsspec|networkx|nx|numpy|np|pandas|pd|pyarrow|pa|sklearn|scipy|sympy|torch|transformers"


def masker(summaries: list[str], libraries: Iterable[str] = ()) -> Callable[[Function], Callable[[str], str]]:
    """What masks a function's texts: its own name becomes "it", a library's name "the library".

    A lower-case own name that more than ten of ``summaries`` use as an ordinary word ("sum") is masked where the docs
    mark it as code or call it, and stays elsewhere. ``libraries`` are further names, as they are imported.
    """
    words = Counter(w for text in summaries for w in set(re.findall(r"\b[a-z]+\b", CODE.sub("", text))))
    more = [re.escape(name) for name in libraries if name not in _NAMES]
    path = re.compile(rf"(?<![\w.])(?:{'|'.join([_ROOTS, *more])})\.((?:\w+\.)*)(\w+)")
    bare = re.compile(rf"(?:\b(?:[Tt]he|[Aa]n?) )?(?<![\w.])(?:{'|'.join([*_NAMES.values(), *more])})(?!\w)")

    def mask(function: Function) -> Callable[[str], str]:
        modules = set(re.split(r"[/.]", function.file))
        name = function.own.rpartition(".")[2]
        own = rf"(?:{re.escape(function.own)}|{re.escape(name)})"
        own = rf"(?<=\x01){own}(?=\x02)|\b{own}(?=\()" if words[name] > 10 else rf"(?<![\w.]){own}(?!\w)"
        own = re.compile(rf"(?:\b(?:[Tt]he|[Aa]n?) (?=\x01?{re.escape(name)}))?\x01?(?:{own})\x02?(?:\([^()\s]*\))?")

        def masked(text: str) -> str:
            text = path.sub(lambda found: "the library" if found[2] in modules else found[2], text)
            text = own.sub("it", bare.sub("the library", text))
            return text[:1].upper() + text[1:]

        return masked

    return mask


_TOKEN = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)|\w+(?:[-.']\w+)*|[^\w\s]")
_LITERAL = re.compile(r"'.+|None|True|False|-?\d+(?:\.\d+)?(?:e-?\d+)?|-?inf|nan", re.S)


def tagged(text: str, params: tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    """(tokens, labels) of a marked sentence: B-param where the docs mark one of ``params``, B-value where they mark a
    literal or quote a word (True, False and None need no mark), O elsewhere.

    None where the sentence marks no parameter, or names one without a mark: such a sentence has no certain labels.
    """
    tokens, labels = list[str](), list[str]()
    for i, piece in enumerate(CODE.split(text)):
        quoted = i % 2 == 1 and piece.startswith("'")
        for token in _TOKEN.findall(piece.removeprefix("'") if quoted else piece):
            if i % 2 == 0 and token in params and token not in ("a", "A", "I"):
                return None
            param = i % 2 == 1 and token in params and not quoted
            value = quoted or (_LITERAL.fullmatch(token) if i % 2 else token in ("None", "True", "False"))
            tokens.append(token)
            labels.append("B-param" if param else "B-value" if value else "O")
    return (tokens, labels) if "B-param" in labels else None
