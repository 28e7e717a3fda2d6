"""Files to rows: CSV, TSV, JSON, JSON lines (each also as .gz), Parquet, folders saved by `datasets`, hub ids.

An error names the file, the line (from 1) and the column. What is wrong with one row goes to ``report``, which raises
(:func:`stop`) or collects; what is wrong with a whole file is always raised.
"""

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os.path import exists, isdir, isfile  # which say no to a name that is too long, where a Path raises OSError
from pathlib import Path
from typing import Any, NoReturn

from anabranch.errors import InputError, WorkError, nearest

SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")  # owner/name:configuration
SPACE = re.compile(r"[ \t\r\n]*")


class PlacedError(InputError):
    """An InputError that knows its place: file, line (from 1; a row number if the format has no lines) and column
    (a column's name, or a character from 1)."""

    def __init__(
        self,
        message: str,
        file: str | None = None,
        line: int | None = None,
        column: str | int | None = None,
        unit: str = "line",
    ):
        place = [file, line and f"{unit} {line}", column is not None and f"column {column!r}"]
        super().__init__(": ".join(filter(None, [", ".join(str(p) for p in place if p), message])))
        self.message, self.file, self.line, self.column = message, file, line, column


Report = Callable[[PlacedError], None]


def stop(error: PlacedError) -> NoReturn:
    raise error


@dataclass(frozen=True)
class Table:
    """Rows of one file as ``{column: value}``; ``lines`` holds the line (or row, see ``unit``) where each starts."""

    source: str
    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[int]
    unit: str = "line"
    labels: dict[str, list[str]] = field(default_factory=dict)  # column -> class names that the format itself declares

    def error(self, row: int, message: str, column: str | None = None) -> PlacedError:
        return PlacedError(message, self.source, self.lines[row], column, self.unit)

    def place(self, row: int) -> str:
        return f"{self.source}, {self.unit} {self.lines[row]}"

    def head(self, message: str, column: str | None = None) -> PlacedError:
        """What is wrong with the columns, said at the first line."""
        return PlacedError(message, self.source, 1 if self.unit == "line" else None, column)

    def take(self, ids: list[int]) -> "Table":
        rows, lines = [self.rows[i] for i in ids], [self.lines[i] for i in ids]
        return Table(self.source, self.columns, rows, lines, self.unit, self.labels)


def shown(path: Path) -> str:
    """A path as messages show it: relative where that does not climb out of the working folder."""
    relative = os.path.relpath(path) if path.is_absolute() and path.drive == Path.cwd().drive else str(path)
    return str(path) if relative.startswith("..") else relative


def suffix(path: Path) -> str:
    """``.jsonl`` of ``train.jsonl.gz``; empty where it is no data file."""
    name = path.name.lower()
    return next((s.removesuffix(".gz") for s in SUFFIXES if name.endswith(s)), "")


def is_saved(path: Path) -> bool:
    """A folder written by ``datasets.save_to_disk``."""
    return isfile(path / "dataset_dict.json") or isfile(path / "state.json")


def data_files(folder: Path, split: str) -> list[Path]:
    """The files of one split (or of the corpus) in a task folder."""
    names = {f"{alias}{ending}" for alias in SPLITS.get(split, (split,)) for ending in SUFFIXES}
    return sorted(path for path in folder.iterdir() if path.name in names)


def is_hub_id(word: str, folder: Path) -> bool:
    """Could be a data set on the hub: no data file's name, nothing here of that name, not in a folder that is here."""
    path = folder / word
    here = exists(path) or suffix(path) or ("/" in word and isdir(folder / word.split("/")[0]))
    return bool(HUB_ID.fullmatch(word)) and not here


def read_table(path: Path, report: Report = stop) -> Table:
    """All rows of one data file. Raises PlacedError (missing, empty, broken) or WorkError (not readable)."""
    source, kind = shown(path), suffix(path)
    if isdir(path):
        raise PlacedError(f"is a folder; expected a data file ({', '.join(SUFFIXES)})", source)
    if exists(path) and not kind:
        raise PlacedError(f"expected a data file that ends in {', '.join(SUFFIXES)}", source)
    table = read_parquet(path) if kind == ".parquet" else READERS[kind or ".csv"](read_text(path), source, report)
    if not table.rows:
        raise PlacedError("has no rows", source)
    return table


def read_bytes(path: Path) -> bytes:
    source, parts = shown(path), []
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            while part := file.read1(1 << 20):  # in parts: an error then knows its line
                parts.append(part)
            return b"".join(parts)
    except FileNotFoundError:
        others = [p.name for p in path.parent.iterdir()] if isdir(path.parent) else []
        raise PlacedError(f"no such file{nearest(path.name, others)}", source) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        line = sum(part.count(b"\n") for part in parts) + 1
        hint = f"copy or compress it again, or drop .gz from its name if it is not compressed ({error})"
        raise PlacedError(f"broken gzip: {hint}", source, line) from None
    except OSError as error:
        raise WorkError(f"{source}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark; other encodings are named by byte and line, with what to type."""
    data, source = read_bytes(path), shown(path)
    if not data.strip():
        raise PlacedError("is empty; expected rows", source, 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)  # utf-8-sig counts after the mark
        line = data.count(b"\n", 0, offset) + 1
        encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        fix = f"convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        if data.startswith(b"\x1f\x8b"):
            fix = f"it is compressed: name it {path.name}.gz"
        raise PlacedError(f"expected UTF-8, got byte 0x{data[offset]:02x} at offset {offset}; {fix}", source, line) from None


def read_csv(text: str, source: str, report: Report, delimiter: str = ",") -> Table:
    csv.field_size_limit(2**31 - 1)  # the default refuses 131,072 characters; long texts are only warned about
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, rows, lines = list[str](), list[dict[str, Any]](), list[int]()
    while True:
        line = reader.line_num + 1  # a quoted field may span lines: this is where the row starts
        try:
            fields = next(reader)
        except StopIteration:
            return Table(source, header, rows, lines)
        except csv.Error as error:
            fix = "close the quote, and write a quote inside quotes twice"
            raise PlacedError(f"broken quotes ({error}): {fix}", source, line) from None
        if not fields:
            continue
        if not header:
            header = [name.strip() for name in fields]
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise PlacedError("the header names this column twice: rename one", source, line, twice[0])
            if len(header) == 1 and (other := next((c for c in "\t;,|" if c in header[0]), None)):
                fix = f"expected fields separated by {delimiter!r}, the header has {other!r}"
                raise PlacedError(f"{fix}: save it with commas as .csv, or with tabs as .tsv", source, line)
        elif len(fields) != len(header):
            fix = f'quote a field that holds {delimiter!r} or a line break, as "a{delimiter}b"'
            report(PlacedError(f"{len(fields)} fields, the header has {len(header)}: {fix}", source, line))
        else:
            rows.append(dict(zip(header, fields, strict=True)))
            lines.append(line)


def read_tsv(text: str, source: str, report: Report) -> Table:
    return read_csv(text, source, report, "\t")


def read_jsonl(text: str, source: str, report: Report) -> Table:
    def objects() -> Iterator[tuple[int, Any]]:
        for line, chunk in enumerate(text.split("\n"), 1):  # not splitlines: a JSON string may hold U+2028
            if chunk.strip():
                try:
                    row = json.loads(chunk)
                except (ValueError, RecursionError) as error:
                    column = getattr(error, "colno", None)
                    report(PlacedError(f"broken JSON: {getattr(error, 'msg', error)}", source, line, column))
                else:
                    yield line, row

    return table_of(objects(), text, source, report)


def read_json(text: str, source: str, report: Report) -> Table:
    """A list of objects; read element by element, because json.loads forgets the lines."""

    def objects() -> Iterator[tuple[int, Any]]:
        decoder, at = json.JSONDecoder(), SPACE.match(text).end()  # type: ignore[union-attr]
        if text[at] != "[":
            raise PlacedError("expected a list [{...}, ...]; a file of one object a line is called .jsonl", source, 1)
        line, counted, sign = 1, 0, "["
        while sign != "]":
            at = SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
            if sign == "[" and text[at : at + 1] == "]":
                return
            line, counted = line + text.count("\n", counted, at), at
            try:
                row, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                raise
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists in lists in lists
                raise PlacedError(f"broken JSON: {error}", source, line) from None
            yield line, row
            at = SPACE.match(text, at).end()  # type: ignore[union-attr]
            sign = text[at : at + 1]
            if sign not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)

    try:
        return table_of(objects(), text, source, report)
    except json.JSONDecodeError as error:
        raise PlacedError(f"broken JSON: {error.msg}", source, error.lineno, error.colno) from None


def table_of(objects: Iterator[tuple[int, Any]], text: str, source: str, report: Report) -> Table:
    rows, lines = [], []
    escapes = "\\ud" in text or "\\uD" in text
    for line, row in objects:
        if escapes and not is_sound(row):
            report(PlacedError("half of a character: \\ud800 to \\udfff come in pairs", source, line))
            continue
        if not isinstance(row, dict):
            got = json.dumps(row)[:60]
            report(PlacedError(f'expected an object such as {{"text": ..., "label": ...}}, got {got}', source, line))
        else:
            rows.append(row)
            lines.append(line)
    return Table(source, list(dict.fromkeys(key for row in rows for key in row)), rows, lines)


READERS = {".csv": read_csv, ".tsv": read_tsv, ".json": read_json, ".jsonl": read_jsonl}


def is_sound(value: Any) -> bool:
    """False if a string in it holds half of a character, as JSON may: no tokenizer and no file would take it."""
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def read_parquet(path: Path) -> Table:
    import pyarrow as pa  # type: ignore[import-untyped]  # here: slow to import, and most runs read no Parquet
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    source = shown(path)
    try:
        table = pq.ParquetFile(io.BytesIO(read_bytes(path))).read()
    except (pa.ArrowException, OSError) as error:
        raise PlacedError(f"broken Parquet: {str(error).splitlines()[0]}", source) from None
    if table.schema.metadata and b"huggingface" in table.schema.metadata:
        from datasets import Dataset

        return table_of_dataset(Dataset(table), source)
    return Table(source, table.column_names, table.to_pylist(), list(range(1, len(table) + 1)), "row")


def read_saved(path: Path) -> dict[str, Table]:
    """``{split: Table}`` of a folder written by ``datasets.save_to_disk``."""
    from datasets import load_from_disk

    try:
        return tables_of_dataset(load_from_disk(str(path)), shown(path))
    except Exception as error:  # `datasets` documents no closed set; whatever it was, this folder is at fault
        raise PlacedError(f"broken folder of datasets.save_to_disk: {first_line(error)}", shown(path)) from None


def read_hub(name: str) -> dict[str, Table]:
    """``{split: Table}`` of a hub id, ``owner/name`` or ``owner/name:configuration``. No code of the hub is run."""
    from datasets import load_dataset

    repository, _, configuration = name.partition(":")
    try:
        found = load_dataset(repository, configuration or None)
    except Exception as error:  # from "no such set" to "no route to host": one answer for the user
        raise PlacedError(
            f"neither a file or folder here nor a data set that the hub gave ({first_line(error)}); check the path, or "
            "connect once so that `datasets` keeps a copy",
            name,
        ) from None
    return tables_of_dataset(found, name)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def tables_of_dataset(data: Any, source: str) -> dict[str, Table]:
    if not isinstance(data, dict):
        return {"train": table_of_dataset(data, source)}
    names = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    known = {names[split]: part for split, part in data.items() if split in names}
    if "train" not in known:
        raise PlacedError(f"expected a split named train, got {', '.join(data)}", source)
    return {split: table_of_dataset(part, f"{source} ({split})") for split, part in known.items()}


def table_of_dataset(data: Any, source: str) -> Table:
    """Class names become ``labels``; -1, the mark of `datasets` for an unlabelled row, becomes None."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in data.features.items()}
    labels = {column: list(feature.names) for column, feature in inner.items() if hasattr(feature, "names")}
    rows = data.with_format(None).to_list()
    for row in rows:
        row.update({column: None for column in labels if row[column] == -1})
    return Table(source, list(data.column_names), rows, list(range(1, len(rows) + 1)), "row", labels)
