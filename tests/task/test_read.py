"""Files to rows: every format gives the same rows; every error names file, line, column and what to type."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from anabranch.errors import InputError
from anabranch.task.read import PlacedError, is_hub_id, read_hub, read_saved, read_table, suffix

ROWS = [{"text": "one, two", "label": "a"}, {"text": 'a "quoted"\nline', "label": "b"}, {"text": "größe", "label": "a"}]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def fails(path: Path, *words: str, line: int | None = None, column: str | int | None = None) -> PlacedError:
    """Reading fails with all of ``words`` in the message, which begins with the file, at the line and column."""
    with pytest.raises(PlacedError) as caught:
        read_table(path)
    error = caught.value
    assert str(error).startswith(str(path)), str(error)
    assert (error.line, error.column) == (line, column), str(error)
    for word in (*words, *([f"line {line}"] if line else [])):
        assert word in str(error), str(error)
    return error


@pytest.mark.parametrize(
    "name, content, lines",
    [
        ("a.csv", as_csv(ROWS), [2, 3, 5]),
        ("a.tsv", as_csv(ROWS, "\t"), [2, 3, 5]),
        ("a.jsonl", as_jsonl(ROWS), [1, 2, 3]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6, 10]),
        ("a.json", json.dumps(ROWS), [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_text_format_gives_the_rows_and_their_lines(tmp_path, name, content, lines, packed, mark):
    data = mark + content.encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    table = read_table(path)
    assert (table.rows, table.lines, table.columns) == (ROWS, lines, ["text", "label"])


def test_parquet_and_saved_folders_give_the_rows_and_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    want = [{"text": "x", "label": 1}, {"text": "y", "label": 0}, {"text": "z", "label": None}]
    data.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": data, "validation": data.select([0])}).save_to_disk(tmp_path / "saved")
    saved = read_saved(tmp_path / "saved")
    for table in (read_table(tmp_path / "a.parquet"), saved["train"]):
        assert table.rows == want and table.labels == {"label": ["no", "yes"]}
        assert "row 2" in str(table.error(1, "odd"))
    assert saved.keys() == {"train", "valid"} and saved["valid"].rows == want[:1]


def test_plain_parquet_needs_no_datasets_metadata(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["x", "y"], "label": [0.5, None]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").rows == [{"text": "x", "label": 0.5}, {"text": "y", "label": None}]


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "tickets.csv").write_text("text,label\n")
    fails(tmp_path / "ticket.csv", "no such file", "did you mean tickets.csv?")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.tsv.gz"])
@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_empty_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    fails(path, "is empty; expected rows", line=1)


@pytest.mark.parametrize("name, content", [("a.csv", "text,label\n"), ("a.json", "[]"), ("a.json", " [ \n ] ")])
def test_no_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    fails(tmp_path / name, "has no rows")


def test_a_folder_or_an_unknown_ending_is_no_data_file(tmp_path):
    fails(tmp_path, "is a folder; expected a data file", ".jsonl.gz")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    fails(tmp_path / "a.xlsx", "expected a data file that ends in .csv")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_name_the_byte_the_line_and_the_command(tmp_path, mark):
    data = mark + b"text,label\nfine,a\ncaf" + b"\xe9,b\n"
    (tmp_path / "a.csv").write_bytes(data)
    offset = data.index(b"\xe9")
    fails(tmp_path / "a.csv", f"byte 0xe9 at offset {offset}", "iconv -f LATIN1 -t UTF-8 a.csv > utf8-a.csv", line=3)


def test_utf16_and_unnamed_gzip_are_recognised(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nx,a\n".encode("utf-16"))
    fails(tmp_path / "a.csv", "iconv -f UTF-16", line=1)
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(as_jsonl(ROWS).encode()))
    fails(tmp_path / "b.jsonl", "it is compressed: name it b.jsonl.gz", line=1)


def test_broken_gzip(tmp_path):
    packed = gzip.compress("".join(f'{{"text": "row {i}", "label": {i * i}}}\n' for i in range(200_000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(PlacedError, match="broken gzip: copy or compress it again") as caught:
        read_table(tmp_path / "cut.jsonl.gz")
    assert 10_000 < caught.value.line <= 200_000  # the line where what can be read ends
    (tmp_path / "plain.jsonl.gz").write_text(as_jsonl(ROWS))
    fails(tmp_path / "plain.jsonl.gz", "drop .gz from its name if it is not compressed", line=1)
    flipped = bytearray(gzip.compress(as_jsonl(ROWS).encode()))
    flipped[-6] ^= 1  # the checksum
    (tmp_path / "flipped.jsonl.gz").write_bytes(flipped)
    fails(tmp_path / "flipped.jsonl.gz", "broken gzip", "CRC", line=4)  # all is read before it is known


def test_ragged_csv(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",a\nno, it is not quoted,b\n')
    fails(tmp_path / "a.csv", "3 fields, the header has 2", "quote a field that holds ','", '"a,b"', line=4)


def test_broken_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nfine,a\n"never closed,b\nx,a\n')
    fails(tmp_path / "a.csv", "broken quotes", "close the quote", line=3)
    (tmp_path / "b.csv").write_text('text,label\n"he said "no" twice",a\n')
    fails(tmp_path / "b.csv", "write a quote inside quotes twice", line=2)


def test_header_with_another_separator_or_a_column_twice(tmp_path):
    (tmp_path / "a.csv").write_text("text;label\nx;a\n")
    fails(tmp_path / "a.csv", "expected fields separated by ','", "has ';'", "tabs as .tsv", line=1)
    (tmp_path / "b.csv").write_text("text,label,text\nx,a,y\n")
    fails(tmp_path / "b.csv", "twice", line=1, column="text")


def test_a_field_may_be_longer_than_the_csv_module_allows(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},a\n")
    assert len(read_table(tmp_path / "a.csv").rows[0]["text"]) == 200_000


def test_broken_json_names_line_and_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y" "label": 2}\n')
    fails(tmp_path / "a.jsonl", "broken JSON: Expecting ',' delimiter", line=2, column=14)
    (tmp_path / "a.json").write_text('[{"text": "x"},\n {"text": }]\n')
    fails(tmp_path / "a.json", "broken JSON: Expecting value", line=2, column=11)
    (tmp_path / "b.json").write_text('[{"text": "x"}\n {"text": "y"}]\n')
    fails(tmp_path / "b.json", "broken JSON: Expecting ',' or ']'", line=2, column=2)
    (tmp_path / "c.json").write_text('{"text": "x"}\n{"text": "y"}\n')
    fails(tmp_path / "c.json", "expected a list", "one object a line is called .jsonl", line=1)
    for number, name in (("[" * 100_000, "d.jsonl"), ("1" * 5_000, "e.jsonl"), ("1" * 5_000, "e.json")):
        (tmp_path / name).write_text(f"[{number}]" if name == "e.json" else number)
        fails(tmp_path / name, "broken JSON", line=1)
    (tmp_path / "f.jsonl").write_text('{"text": "x"}\n["x", 1]\n')
    fails(tmp_path / "f.jsonl", "expected an object such as", 'got ["x", 1]', line=2)


def test_json_lines_end_at_line_feeds_only(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\r\n\n{"text": "c"}', encoding="utf-8", newline="")
    table = read_table(tmp_path / "a.jsonl")
    assert [row["text"] for row in table.rows] == ["a\u2028b", "c"] and table.lines == [1, 3]


def test_broken_parquet_and_saved_folder(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    fails(tmp_path / "a.parquet", "broken Parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(PlacedError, match="broken folder of datasets.save_to_disk"):
        read_saved(tmp_path / "saved")


def test_wrong_rows_go_to_the_report(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,a\ny\nz,b\n,,,\n")
    wrong: list[PlacedError] = []
    assert [row["text"] for row in read_table(tmp_path / "a.csv", wrong.append).rows] == ["x", "z"]
    assert [error.line for error in wrong] == [3, 5]


def test_hub_ids(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    assert is_hub_id("imdb", tmp_path) and is_hub_id("owner/name", tmp_path) and is_hub_id("glue:sst2", tmp_path)
    for word in ("data", "data/nothere", "nothere.csv", "owner/name.jsonl.gz", "../x/y", "a/b/c", str(tmp_path)):
        assert not is_hub_id(word, tmp_path), word
    datasets = pytest.importorskip("datasets")

    def offline(repository, configuration):
        assert (repository, configuration) == ("owner/name", "part")
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match="owner/name:part: neither a file or folder here nor .* check the path") as caught:
        read_hub("owner/name:part")
    assert "and more" not in str(caught.value)
    part = datasets.Dataset.from_dict({"text": ["x"], "label": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": part, "dev": part}))
    assert read_hub("owner/name:part").keys() == {"train", "valid"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"left": part}))
    with pytest.raises(InputError, match="expected a split named train, got left"):
        read_hub("owner/name:part")


def test_suffix():
    assert [suffix(Path(name)) for name in ("A.CSV", "a.jsonl.gz", "a.txt", "csv")] == [".csv", ".jsonl", "", ""]
