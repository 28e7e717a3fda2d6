"""The English in a docstring: its sections, and its sentences without code, roles, quotes and defaults."""

import re
from collections.abc import Iterator
from typing import NamedTuple

SECTIONS = {  # headings as libraries write them: the section that they open
    "parameters": "parameters", "args": "parameters", "arguments": "parameters", "keyword args": "parameters",
    "keyword arguments": "parameters", "other parameters": "parameters", "param": "parameters", "inputs": "parameters",
    "returns": "returns", "return": "returns", "rtype": "returns", "yields": "returns", "outputs": "returns",
    "raises": "raises", "raise": "raises", "throws": "raises", "warns": "raises",
    "examples": "examples", "example": "examples", "usage": "examples", "doctest": "examples",
    "notes": "notes", "note": "notes", "remarks": "notes", "explanation": "notes", "description": "notes",
    "warning": "warnings", "warnings": "warnings", "caution": "warnings",
    "see also": "see also", "seealso": "see also", "references": "references", "attributes": "attributes",
    "shape": "other", "methods": "other", "variables": "other",
}  # fmt: skip
# what stood in code marks or a role is kept as "\x01code\x02", what stood in quotes as "\x01'text\x02"
CODE = re.compile("\x01([^\x01\x02]*)\x02")
QUERY = {"", "notes"}  # the sections whose sentences describe the function as a whole


class Doc(NamedTuple):
    """A docstring's parts. Sentences still carry the marks above; ``plain`` takes them off."""

    later: tuple[str, ...]  # sentences of the paragraphs after the first and of the notes
    about: tuple[str, ...]  # sentences about the parameters and what comes back, where the docs mark something as code
    sections: frozenset[str]


def summary(doc: str) -> str:
    """As many sentences of the first paragraph as fit into 60 words; "" if they do not read as English.

    ``doc`` is a cleaned docstring (as ``inspect.cleandoc`` leaves it).
    """
    first = next((text for name, text in _blocks(doc) if not name), "")
    kept = ""
    for sentence in sentences(first) if _is_prose(first) else ():
        if sentence is None or len(f"{kept} {sentence}".split()) > 60:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def parse(doc: str) -> Doc:
    blocks = list(_blocks(doc))
    sections = frozenset(name for name, _ in blocks if name) | ({"examples"} if ">>>" in doc else frozenset())
    first = next((i for i, (name, _) in enumerate(blocks) if not name), -1)
    prose = [text for i, (name, text) in enumerate(blocks) if name in QUERY and i != first and _is_prose(text)][:8]
    items = [item for name, text in blocks if name in ("parameters", "returns") for item in _described(text)]
    items = [item for item in items if re.search("[`*]", item)]  # the others mark nothing
    whole = [re.sub(r"[^.!?]*\Z", "", text) if text.count(".") else "" for text in prose]  # a formula ends the rest
    later, about = (tuple(s for text in texts for s in sentences(text) if s) for texts in (whole, items))
    return Doc(later, about, sections - {"other"})


def stands_alone(sentence: str) -> bool:
    """Whether a sentence says something without the one before it."""
    words = plain(sentence).split()
    return 7 <= len(words) <= 60 and not _LEANS.search(plain(sentence))


def plain(text: str) -> str:
    return re.sub("\x01'?|\x02", "", text)


def _blocks(doc: str) -> Iterator[tuple[str, str]]:
    """(section, paragraph); the section is "" before the first heading. Indented code and directives are left out."""
    section, skip, aside, paragraph = "", -1, None, list[str]()
    lines = _without_signature(doc).expandtabs().split("\n")
    for i, line in enumerate([*lines, ""]):
        words = line.strip()
        indent = len(line) - len(line.lstrip())
        rule = i + 1 < len(lines) and re.fullmatch(r"\s*([-=~^*])\1{2,}\s*", lines[i + 1])
        field = re.match(r":(param|type|returns?|rtype|raises?)\b[^:]*:\s*", words)
        title = re.fullmatch(r"(?:\.\. )?\**([A-Za-z ]+?)\**\s*:{0,2}\**", words)
        heading = title and title[1].lower() in SECTIONS and (rule or words.endswith((":", ":*", "**")) or field)
        bullet = re.match(r"([-*+•]|\d+[.)]) ", words)
        if skip >= 0 and words and indent <= skip:
            skip = -1
        if aside and words and indent <= aside[0]:
            section, aside = aside[1], None
        if not words or heading or field or rule or bullet or words.startswith((">>>", ".. ")):
            if paragraph and skip < 0:
                yield section, "\n".join(paragraph)
            paragraph = []
        if heading and title:
            aside = (indent, section) if words.startswith(".. ") else None
            section = SECTIONS[title[1].lower()]
        elif rule and indent == 0:
            section = "other"
        elif field:
            section = SECTIONS.get(field[1], "parameters" if field[1] == "type" else SECTIONS["returns"])
            paragraph = [f"{field[1]} (): {words[field.end() :]}"] if field[1] not in ("type", "rtype") else []
        elif words.startswith(".. ") and "::" in words and not re.match(r"\.\. (note|warning|seealso)::", words):
            skip = indent
        elif words.startswith(">>>"):
            skip = max(indent - 1, 0)
        elif re.fullmatch(r"[-=~^*+| ]{3,}", words):
            continue
        elif words and skip < 0:
            paragraph.append(line)


def _without_signature(doc: str) -> str:
    """Without the lines ``name(a, b) -> c`` with which C functions begin."""
    doc = re.sub(r"\A\w+\([^)]*\)\n--\n", "", doc)  # the head that gives a C function its __text_signature__
    return re.sub(r"\A\s*(?:[\w.]+\([^\n]*\)\s*(?:->[^\n]*)?\n\s*)+", "", doc + "\n").strip("\n")


def _is_prose(text: str) -> bool:
    first = text.split("\n")[0]
    return not re.match(r"\s{2,}|\s*[-*+|•>#]|\d+[.)]|\(?[a-z0-9]\)|\.\.|[@:]", first) and "\n    " not in text


def _described(text: str) -> Iterator[str]:
    """The descriptions of ``name : type`` with indented lines below, or of ``name (type): description``."""
    lines = text.split("\n")
    depth = [len(line) - len(line.lstrip()) for line in lines]
    starts = [i for i, d in enumerate(depth) if d == min(depth)]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        deep = [line.strip() for line in lines[start + 1 : stop]]
        inline = re.match(r"\s*\**`*\w+`*\**\s*(\([^:]*\))?:\s+(.*)", lines[start])
        typed = not inline or (deep and not inline[1] and len(inline[2].split()) < 7)
        yield " ".join(deep if typed or not inline else [inline[2], *deep])


_STEPS = [(re.compile(pattern, flags), new) for pattern, new, flags in (
    (r"\s+", " ", 0),
    (r"\\\\", r"\\", 0),
    (r"\\([*_|`])", r"\1", 0),
    (r"🤗\s*", "", 0),
    (r"\s*\[#?\w{1,12}\]_|\s+\[\d+\]", "", 0),  # footnotes
    (r":math:`([\w+*/=<>() .,-]{1,24})`", r"\1", 0),
    (r"\$([\w+*/=<>() .,-]{1,24})\$", r"\1", 0),
    (r":[\w:]+:`+([^`<]+?)\s*<[^`>]*>`+", "\x01\\1\x02", 0),  # roles with a title
    (r":[\w:]+:`+[~!]?(?:[\w.]*\.)?([^`.]+?)`+", "\x01\\1\x02", 0),
    (r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", 0),  # links
    (r"\[`+([^`]+)`+\](?:\([^)\s]*\))?", "\x01\\1\x02", 0),
    (r"\[([^\]]+)\]\([^)\s]*\)", r"\1", 0),
    (r"<?https?://[^\s>]+>?", "", 0),
    (r"`{1,3}[~!]?([^`]+?)`{1,3}_?_?", "\x01\\1\x02", 0),
    (r"(?<!\w)\*\*(\w[^*]*)\*\*(?!\w)", r"\1", 0),
    (r"(?<!\w)\*([A-Za-z_][\w.]*)\*(?!\w)", "\x01\\1\x02", 0),
    (r"(?<!\w)\*([^*\s][^*]{0,60})\*(?!\w)", r"\1", 0),
    (r"(?<![\w'])'([\w.+-]{1,24})'(?!\w)", "\x01'\\1\x02", 0),
    (r"[“”\"]", "", 0),
    (r"\x01['\"]([^\x01\x02'\"]*)['\"]\x02", "\x01'\\1\x02", 0),
    (r"\x01\s*\x01('?[^\x01\x02]*)\x02\s*\x02", "\x01\\1\x02", 0),
    (r"\s*[(\[][^()\[\]]*\bdefaults?\b[^()\[\]]*[)\]]", "", re.I),
    (r",?\s*(?:and |which |by )*defaults? (?:to|is|value is|=|:)\s*[\x01\w'-][^\s]*\.?$", ".", re.I),
    (r"\s+([,;:!?)]|\.(?!\w))", r"\1", 0),
    (r"\(\s*\)", "", 0),
    (r"(?<!\.)\.\.$", ".", 0),
)]  # fmt: skip
_STOP = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][)\x02]))\s+(?=[A-Z(\x01])")
_ABBREVIATED = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|resp|approx|Fig|Eq|Ref|Sec|No|Dr|Prof|St|[A-Z])\.)$")
_ODD = re.compile(  # what is left of code, formulas, templates and tables
    r"[#^_=~]{2}|[`{}\\|$@\[\]]|%\(|::|>>|<-|->|\.\.\.\.|^default|\b(?:deprecated|TODO|FIXME)\b", re.I
)
_CUT = re.compile(  # a footnote, a formula or a list stood there
    r"(?:\b(?:in|see|by|from|of|the|like|and|or|with|using|as)|[-–—(:,]) ?\.?$|\bsee, |\b(?:in|by|from|of) ,", re.I
)
_CODE_WORDS = re.compile(r"[\w.+/'-]{1,40}(?: [\w.'-]{1,20}){0,2}|\w+\(\)|\w{1,16} ?=[=<>]? ?[\w.'-]{1,12}")
_LEANS = re.compile(
    r"^(?:otherwise|however|therefore|thus|also|hence|but|and|so|then|or|for (?:example|instance|more)|in this case|"
    r"if not|new in|added in|changed in|version|instead|alternatively|similarly|likewise|as (?:above|before)|here|"
    r"where|note:|the (?:above|former|latter)|please|use)\b|\b(?:see|refer)\b",
    re.I,
)


def sentences(paragraph: str) -> Iterator[str | None]:
    """The sentences of a paragraph that read as English; None in the place of one that does not."""
    text = paragraph
    for pattern, new in _STEPS:
        text = pattern.sub(new, text)
    parts: list[str] = []
    for part in _STOP.split(text.strip()):
        if parts and _ABBREVIATED.search(plain(parts[-1])):
            parts[-1] += " " + part
        else:
            parts.append(part)
    for part in parts:
        yield _sentence(part.strip())


def _sentence(text: str) -> str | None:
    bare = plain(text)
    even = all(text.count(a) == text.count(b) for a, b in ("\x01\x02", "()"))
    simple = all(map(_CODE_WORDS.fullmatch, CODE.findall(text)))
    letters = sum(c.isalpha() or c == " " for c in bare) >= 0.85 * len(bare)
    if not (even and simple and letters) or not re.search(r"[a-z]", bare) or _ODD.search(bare) or _CUT.search(bare):
        return None
    return text if text.endswith((".", "!", "?")) else text.rstrip(";") + "."
