"""The folders are the registry, settings are checked against their declared ranges, and errors say what to type."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le
from hypothesis import given
from hypothesis import strategies as st

import anabranch
from anabranch.core.names import FAMILIES, every, find, make
from anabranch.errors import InputError, WorkError, nearest
from anabranch.settings import card, check, defaults
from anabranch.types import Count, Fraction, NonNegative, Positive, Share, within, words

TRIM = '''
"""A merge for these tests."""
from typing import Literal
from anabranch.types import Count, Share
rows = ("trim-row",)
def trim(rows, site=None, *, density: Share = 0.2, times: Count | None = None, elect: Literal["sum", "count"] = "sum"):
    return rows, density, times, elect
'''
LOW_RANK = """
from dataclasses import dataclass, field
from anabranch.types import Count
@dataclass(frozen=True)
class LowRank:
    rank: Count = 8
    alpha: float = 16.0
@dataclass(frozen=True)
class Other: ...
"""
FIXED = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Fixed:
    weights: dict
    floor: float = 0.0
"""


Put = Callable[[str, str, str], None]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Puts a method file on a family's shelf, in place of all that is there, for the length of a test."""
    placed = []

    def put(family: str, name: str, text: str) -> None:
        package, module = getattr(anabranch, family), f"anabranch.{family}.{name}"
        folder = tmp_path / family
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [str(folder)])
        monkeypatch.delitem(sys.modules, module, raising=False)
        if name in vars(package):
            monkeypatch.delattr(package, name)
        placed.append((package, name, module))

    yield put
    for package, name, module in placed:
        vars(package).pop(name, None)
        sys.modules.pop(module, None)


# the folders


def test_the_families_are_the_packages() -> None:
    assert "merge" in FAMILIES and all(getattr(anabranch, f).__name__ == f"anabranch.{f}" for f in FAMILIES)


def test_a_file_is_a_method_under_three_names(shelf: Put) -> None:
    shelf("merge", "trim_fast", TRIM.replace("def trim", "def trim_fast"))
    method = find("merge.trim_fast")
    assert method is find("merge.trim-fast") is anabranch.merge.trim_fast
    from anabranch.merge import trim_fast

    assert trim_fast is method and method([1]) == ([1], 0.2, None, "sum")
    assert every("merge") == dir(anabranch.merge) == ["trim_fast"]


def test_importing_the_file_first_shows_the_method_too(shelf: Put) -> None:
    shelf("merge", "trim", TRIM)
    import anabranch.merge.trim  # type: ignore[import-not-found]

    assert anabranch.merge.trim is find("merge.trim") and callable(anabranch.merge.trim)


def test_a_class_is_found_by_the_name_of_its_file(shelf: Put) -> None:
    shelf("delta", "low_rank", LOW_RANK)
    assert find("delta.low_rank").__name__ == "LowRank"


def test_private_files_are_no_methods_and_stay_modules(shelf: Put) -> None:
    shelf("merge", "trim", "from anabranch.merge import _parts\ntrim = _parts._parts")
    shelf("merge", "_parts", "def _parts(rows): return rows")
    assert every("merge") == ["trim"] and find("merge.trim")([3]) == [3]
    with pytest.raises(InputError):
        find("merge._parts")


def test_unknown_names_are_answered_with_the_nearest(shelf: Put) -> None:
    shelf("merge", "trim", TRIM)
    with pytest.raises(InputError, match="no merge 'trimm'; did you mean trim"):
        find("merge.trimm")
    with pytest.raises(InputError, match="no family 'merg'; did you mean merge"):
        every("merg")
    with pytest.raises(InputError, match="no merge ''; choose from trim"):
        find("merge")
    with pytest.raises(AttributeError, match="anabranch.merge has no 'trimm'; did you mean trim"):
        _ = anabranch.merge.trimm
    with pytest.raises(AttributeError, match="anabranch has no 'mergers'"):
        _ = anabranch.mergers


# a plan's words


def test_make_binds_the_settings_of_a_function(shelf: Put) -> None:
    shelf("merge", "trim", TRIM)
    assert make("merge", "trim")([1]) == ([1], 0.2, None, "sum")
    assert make("merge", {"trim": {"density": 1, "times": 3.0}})([1]) == ([1], 1.0, 3, "sum")
    assert make("merge", {"trim": None})([1]) == make("merge", {"trim": {}})([1])
    assert make("merge", "trim", density=0.5).settings == {"density": 0.5, "times": None, "elect": "sum"}


def test_make_instantiates_a_class(shelf: Put) -> None:
    shelf("delta", "low_rank", LOW_RANK)
    LowRank = find("delta.low_rank")
    assert make("delta", {"low-rank": {"rank": 16}}) == LowRank(rank=16)
    ready = LowRank(rank=2)
    assert make("delta", ready) is ready
    assert defaults(LowRank) == {"rank": 8, "alpha": 16.0}


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ({"trim": {"densty": 0.1}}, "merge trim has no setting 'densty'; did you mean density"),
        ({"trim": {"density": 20}}, "density is a number in (0, 1], got 20: for 20 per cent pass 0.2"),
        ({"trim": {"density": "much"}}, "merge trim: density is a number in (0, 1], got 'much'"),
        ({"trim": {"density": True}}, "merge trim: density is a number in (0, 1], got True"),
        ({"trim": {"times": 0}}, "merge trim: times is a whole number in [1, inf) or null, got 0"),
        ({"trim": {"elect": "summ"}}, "elect is one of sum, count, got 'summ'; did you mean sum"),
        ({"trim": 0}, "merge trim: settings are {name: value}, got 0"),
        ({"trim": {}, "mean": {}}, "a merge is a name or {name: {setting: value}}, got {'trim': {}, 'mean': {}}"),
        ({}, "a merge is a name or {name: {setting: value}}, got {}"),
        ({"tirm": {}}, "no merge 'tirm'; did you mean trim"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_to_type(shelf: Put, spec: Any, answer: str) -> None:
    shelf("merge", "trim", TRIM)
    with pytest.raises(InputError) as caught:
        make("merge", spec)
    assert answer in str(caught.value)


def test_what_a_class_needs_is_named(shelf: Put) -> None:
    shelf("gate", "fixed", FIXED)
    with pytest.raises(InputError, match=r"gate fixed needs weights: \{fixed: \{weights: \.\.\.\}\}"):
        make("gate", "fixed")
    assert make("gate", "fixed", weights={"a": 1}).weights == {"a": 1}


# ranges


@given(st.one_of(st.floats(), st.integers(-3, 3)))
def test_a_share_is_what_its_words_say(value: float) -> None:
    inside = 0 < value <= 1
    try:
        assert within(value, Share, "share") == value and inside
    except InputError as answer:
        assert not inside and "(0, 1]" in str(answer)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
def test_a_count_is_a_whole_number_or_refused(value: Any) -> None:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value % 1 == 0
    try:
        got = within(value, Count, "count")
        assert whole and type(got) is int and got == value >= 1
    except InputError as answer:
        assert not (whole and value >= 1) and "a whole number in [1, inf)" in str(answer)


@pytest.mark.parametrize(
    ("value", "hint", "got"),
    [
        (3, float, 3.0),
        ("1e-3", Positive, 0.001),  # what YAML makes of 1e-3
        (2.0, int, 2),
        (True, bool, True),
        (0, NonNegative, 0.0),
        (0, Fraction, 0.0),
        (None, Share | None, None),
        (0.5, Share | None, 0.5),
        ("sum", Literal["sum", "count"] | None, "sum"),
        ([1, 2], list[int], [1, 2]),  # other types are the method's own matter
        (5, Annotated[int, "rows", Ge(2), Le(9)], 5),
    ],
)
def test_good_values_come_back_as_declared(value: Any, hint: Any, got: Any) -> None:
    found = within(value, hint, "x")
    assert found == got and type(found) is type(got)


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (1, Fraction, "x is a number in [0, 1), got 1: for 1 per cent pass 0.01"),
        (100, Fraction, "x is a number in [0, 1), got 100"),
        (50, Annotated[float, Gt(200)], "x is a number in (200, inf), got 50"),
        (math.nan, Share, "x is a number in (0, 1], got nan"),
        (math.nan, int, "x is a whole number, got nan"),
        (math.inf, int, "x is a whole number, got inf"),
        (2.5, int, "x is a whole number, got 2.5"),
        (True, int, "x is a whole number, got True"),
        (1, bool, "x is true or false, got 1"),
        (1, str, "x is a name, got 1"),
        (None, float, "x is a number, got None"),
        (10, Annotated[int, Ge(2), Le(9)], "x is a whole number in [2, 9], got 10"),
        ("maybe", Share | None, "x is a number in (0, 1] or null, got 'maybe'"),
    ],
)
def test_bad_values_are_answered_with_the_range(value: Any, hint: Any, answer: str) -> None:
    with pytest.raises(InputError) as caught:
        within(value, hint, "x")
    assert str(caught.value) == answer


@given(st.floats(1, 100, exclude_min=True))
def test_the_hint_for_per_cent_is_itself_in_range(value: float) -> None:
    with pytest.raises(InputError) as caught:
        within(value, Share, "density")
    typed = float(str(caught.value).rpartition(" pass ")[2])
    assert within(typed, Share, "density") == pytest.approx(value / 100, rel=1e-4)


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Share, "a number in (0, 1]"),
        (Fraction, "a number in [0, 1)"),
        (Count, "a whole number in [1, inf)"),
        (Annotated[float, Interval(ge=-1, le=1)], "a number in [-1, 1]"),
        (Annotated[str, "words"], "a name"),
        (Share | None, "a number in (0, 1] or null"),
        (Literal["sum", "count"], "one of sum, count"),
    ],
)
def test_ranges_in_words(hint: Any, said: str) -> None:
    assert words(hint) == said


def test_check_takes_only_a_mapping_of_known_settings() -> None:
    def method(rows: Any, *, density: Share = 0.2) -> None: ...

    assert check(method, {"density": 1}, "method") == {"density": 1.0}
    with pytest.raises(InputError, match="has no setting 'rows'; choose from density"):
        check(method, {"rows": 1}, "method")


# cards


def test_a_card_is_the_method_as_data(shelf: Put) -> None:
    shelf("merge", "trim", TRIM)
    shelf("delta", "low_rank", LOW_RANK)
    shelf("gate", "fixed", FIXED)
    plain = {"density": 0.2, "times": None, "elect": "sum"}
    assert card(find("merge.trim")) == {"method": "merge.trim", "settings": plain, "rows": ["trim-row"]}
    assert card(make("merge", {"trim": {"density": 0.5}}))["settings"] == plain | {"density": 0.5}
    assert card(make("delta", {"low_rank": {"rank": 4}})) == {
        "method": "delta.low_rank", "settings": {"rank": 4, "alpha": 16.0}, "rows": [],
    }  # fmt: skip
    assert card(find("delta.low_rank"))["settings"] == {"rank": 8, "alpha": 16.0}
    assert card(make("gate", {"fixed": {"weights": {"a": 1}}}))["settings"] == {"weights": {"a": 1}, "floor": 0.0}
    assert card(find("gate.fixed"))["settings"] == {"floor": 0.0}
    assert json.loads(json.dumps(card(make("merge", "trim")))) == card(make("merge", "trim"))


# errors


def test_the_two_errors_are_told_apart() -> None:
    assert issubclass(InputError, ValueError) and issubclass(WorkError, RuntimeError)
    assert not issubclass(InputError, WorkError) and not issubclass(WorkError, InputError)


@pytest.mark.parametrize(
    ("word", "options", "hint"),
    [
        ("tise", ["ties", "dare", "mean"], "; did you mean ties?"),
        ("xyz", ["ties", "dare"], "; choose from dare, ties"),
        ("xyz", [], ""),
        ("xyz", map(str, range(10, 30)), f"; choose from {', '.join(map(str, range(10, 22)))}, ..."),
        (7, ["ties"], "; choose from ties"),
    ],
)
def test_nearest_ends_an_error_message(word: Any, options: Any, hint: str) -> None:
    assert nearest(word, options) == hint
