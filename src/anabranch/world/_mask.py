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
_OWN_ONLY = {"transformers": re.compile(r"\b[Tt]ransformers\b")}  # elsewhere an ordinary word
_ROOTS = "datasets|fsspec|networkx|nx|numpy|np|pandas|pd|pyarrow|pa|sklearn|scipy|sympy|torch|transformers"
_PART = "Arrow(?=[A-Z])|HF_DATASETS|(?i:fsspec|networkx|numpy|pandas|pyarrow|sklearn|scipy|sympy|(?:py)?torch)"
_INSIDE = re.compile(rf"(?<=\w)_?(?:{_PART})|(?:{_PART})_?(?=\w)")
_ARTICLE = r"(?:\b(?:[Tt]he|[Aa]n?) )?(?P<mark>\x01)?"
_WORD = re.compile(rf"{_ARTICLE}\b(?P<word>[A-Za-z_]\w*(?:\.\w+)*)(?P<call>\([^()\s]*\))?(?(mark)\x02)")


def masker(summaries: list[str], libraries: Iterable[str] = ()) -> Callable[[Function], Callable[[str], str]]:
    """What masks a function's texts: its own name becomes "it", a library's name "the library".

    A lower-case own name that more than ten of ``summaries`` use as an ordinary word ("sum") is masked where the docs
    mark it as code or call it, and stays elsewhere. Of an identifier that holds a library's name the rest stays
    ("NetworkXError" -> "Error"). ``libraries`` are further names.
    """
    words = Counter(w for text in summaries for w in set(re.findall(r"\b[a-z]+\b", CODE.sub("", text))))
    more = [re.escape(name) for name in libraries if name not in _NAMES]
    path = re.compile(rf"(?<![\w.])(?:{'|'.join([_ROOTS, *more])})\.((?:\w+\.)*)(\w+)")
    bare = re.compile(rf"{_ARTICLE}(?<![\w.])(?:{'|'.join([*_NAMES.values(), *more])})(?!\w)(?(mark)\x02)")

    def mask(function: Function) -> Callable[[str], str]:
        modules = set(re.split(r"[/.]", function.file))
        name = function.own.rpartition(".")[2]

        def own(found: re.Match[str]) -> str:
            sure = found["mark"] or found["call"] or "." in found["word"] or words[name] <= 10
            return "it" if found["word"] in (name, function.own) and sure else found[0]

        def masked(text: str) -> str:
            text = path.sub(lambda found: "the library" if found[2] in modules else found[2], text)
            text = _INSIDE.sub("", bare.sub("the library", _WORD.sub(own, text)))
            if function.library in _OWN_ONLY:
                text = _OWN_ONLY[function.library].sub("the library", text)
            return text[:1].upper() + text[1:]

        return masked

    return mask


_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_TOKEN = re.compile(rf"{_NUMBER}(?![\w-])|\w+(?:[-.']\w+)*|[^\w\s]")
_LITERAL = re.compile(rf"None|True|False|{_NUMBER}|-?inf|nan")


def tagged(text: str, params: tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    """(tokens, labels) of a marked sentence: B-param where the docs mark one of ``params``, B-value where they mark a
    literal or quote a word (True, False and None need no mark), O elsewhere.

    None where the sentence marks no parameter, or has one or a number without a mark: its labels are not certain.
    """
    tokens, labels = list[str](), list[str]()
    for i, piece in enumerate(CODE.split(text)):
        quoted = i % 2 == 1 and piece.startswith("'")
        for token in _TOKEN.findall(piece.removeprefix("'") if quoted else piece):
            if i % 2 == 0 and (token in {*params} - {"a", "A", "I"} or re.fullmatch(_NUMBER, token)):
                return None
            param = i % 2 == 1 and token in params and not quoted
            value = quoted or _LITERAL.fullmatch(token) and (i % 2 == 1 or token in ("None", "True", "False"))
            tokens.append(token)
            labels.append("B-param" if param else "B-value" if value else "O")
    return (tokens, labels) if "B-param" in labels else None
