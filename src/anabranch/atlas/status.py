"""What became of a row, computed from what exists and from stored verdicts, never typed by hand. Imports no method.

A row *runs* when a method file of a family folder names it in its ``rows = ("id", ...)`` and its claim is in
``claims/``; a stored verdict (``claims/verdicts/<id>.json``) says more than that; everything else is *missing*.
"""

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anabranch.core.names import FAMILIES
from anabranch.errors import WorkError

HOME = Path(__file__).parent.parent  # the package
VERDICTS = ("held", "not held", "inconclusive")
STATUSES = (*VERDICTS, "runs", "missing")


def cited() -> dict[str, list[Path]]:
    """Row id -> the method files that implement it, ``family/name.py`` under :data:`HOME`, sorted."""
    found: dict[str, list[Path]] = {}
    for family in FAMILIES:
        for path in sorted((HOME / family).glob("[!_]*.py")):
            for id in rows_of(path):
                found.setdefault(id, []).append(path)
    return found


def rows_of(path: Path) -> tuple[str, ...]:
    """The row ids that a method file names; () without a module-level ``rows``."""
    text = path.read_text(encoding="utf-8")
    start = re.search(r"^rows(\s*:[^=\n]*)?\s*=(?!=)\s*", text, re.MULTILINE)
    if start is None:
        return ()
    # only this statement is parsed: whole files cost some 3 ms each, and a listing of 400 has less than a second
    value = re.match(r"\([^()]*\)", text[start.end() :])
    try:
        ids = ast.literal_eval(value[0]) if value else None
    except (ValueError, SyntaxError):
        ids = None
    if not isinstance(ids, tuple) or not all(isinstance(i, str) for i in ids):
        where = f"{path.parent.name}/{path.name}"
        raise WorkError(f'{where}: rows is a literal tuple of row ids, such as rows = ("ties",) with its comma')
    return ids


def claim_of(id: str) -> Path | None:
    """The claim of a row, ``claims/<id with _>.py``, if there is one."""
    path = HOME / "claims" / f"{id.replace('-', '_')}.py"
    return path if path.is_file() else None


def verdict(id: str) -> dict[str, Any] | None:
    """The stored verdict of a row, ``{"verdict": "held" | "not held" | "inconclusive", ...}``, or None.

    Raises WorkError naming the file when it is not such JSON.
    """
    path = HOME / "claims" / "verdicts" / f"{id}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise WorkError(f"the verdict {path} cannot be read ({cause}): make it anew, anabranch claim {id}") from cause
    if not isinstance(found, dict) or found.get("verdict") not in VERDICTS:
        came = found.get("verdict") if isinstance(found, dict) else found
        wanted = ", ".join(VERDICTS)
        raise WorkError(f"{path}: the verdict is one of {wanted}, got {came!r}: make it anew, anabranch claim {id}")
    return found


def statuses(ids: Iterable[str]) -> dict[str, str]:
    """The status of each row: its verdict if one is stored, else runs or missing."""
    methods = cited()
    return {id: status_of(id, id in methods) for id in ids}


def status(id: str) -> str:
    return statuses([id])[id]


def status_of(id: str, has_method: bool) -> str:
    """:func:`status` where the methods are known already."""
    found = verdict(id)
    return found["verdict"] if found else "runs" if has_method and claim_of(id) else "missing"
