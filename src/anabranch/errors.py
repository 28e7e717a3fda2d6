"""The two ways in which a call can go wrong, and the words for both."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The request or an input is wrong: says what was expected, what came, what to type instead. Exit code 2."""


class WorkError(RuntimeError):
    """The work failed (disk, permission, corrupt bundle) although the request was good. Exit code 1."""


def nearest(word: str, options: Iterable[str]) -> str:
    """A hint that ends an error message: the closest options, or all of a short list, or nothing. Names of 99 letters at most."""
    names = [name if len(name) < 100 else f"{name[:96]}..." for name in sorted(map(str, options))]
    close = difflib.get_close_matches(str(word), names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not names:
        return ""
    return f"; choose from {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
