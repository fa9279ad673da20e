"""Files that are broken, huge, packed or made to harm: each gives a named rejection or one sentence, and nothing is lost or hangs."""

import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import load_params
from stages.core.records import Rejected, Row, read_rejected, read_rows
from stages.fetch_data import streams
from stages.fetch_data.__main__ import main
from stages.fetch_data.bad_row import RAW_CHARACTERS
from stages.fetch_data.user_files import FORMULA, read_user_files
from tests import tiny
from tests.test_readers import GOOD, files, read

RECORDS = [{"text": f"text {number} ü", "label": "l"} for number in range(3000)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def outcome(folder: Path, bad_rows: str = "reject") -> tuple[list[Row], list[Rejected], dict[str, Any]]:
    """The rows of a folder with one file, those rejected, and what is said of the file."""
    about: list[dict[str, Any]] = []
    found = list(read_user_files(folder, files(bad_rows=bad_rows), about))
    rows, rejected = [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, Rejected)]
    assert (about[0]["rows"], about[0]["rejected"]) == (len(found), len(rejected))
    return rows, rejected, about[0]


BAD_LINES = [
    (b"{oops}", "not_json"),
    (b'{"text": "a\x00b", "label": "l"}', "nul_byte"),
    (b"\x00" * 5000, "nul_byte"),
    (b'{"text": "caf\xe9", "label": "l"}', "not_utf8"),
    (b'{"text": "' + b"x" * (50 << 20) + b'", "label": "l"}', "too_long"),
    (b'{"text": "t", "label": "l", "text": "u"}', "duplicate_key"),
    (b'{"text": "t", "label": "l", "more": {"a": 1, "a": 2}}', "duplicate_key"),
    (b'{"text": "t", "label": ' + b"9" * 5000 + b"}", "huge_number"),
    (b'{"text": "t", "label": ' + b"9" * 30 + b"}", "huge_number"),
    (b'{"text": "t", "label": 1e999}', "wrong_value"),
    (b"[" * 100_000, "not_json"),
    (b'{"text": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001, "not_json"),
    (b"7", "not_an_object"),
    (b'{"messages": [{"role": "user", "content": "q"}]}', "wrong_columns"),
    (b'{"text": null, "label": "l"}', "wrong_value"),
    (b'{"text": "\\ud800", "label": "l"}', "wrong_value"),
]


@pytest.mark.parametrize(("line", "rule"), BAD_LINES, ids=[f"{number}-{rule}" for number, (_, rule) in enumerate(BAD_LINES)])
def test_a_bad_line_stops_the_stage_or_is_rejected_by_name_with_its_text(line: bytes, rule: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(f"{GOOD}\n".encode() + line + f"\n{GOOD}".encode())
    rows, [bad], _ = outcome(tmp_path)
    assert [row.origin for row in rows] == ["line 1", "line 3"]
    assert (bad.rule, bad.row.origin, bad.row.source) == (rule, "line 2", f"{tmp_path}/a.jsonl")
    kept = bad.row.messages[0]["content"]
    assert kept[:8] == line[:8].decode()
    assert len(kept) <= RAW_CHARACTERS * 4  # bytes that are no text are kept as escapes
    assert len(json.dumps(bad.evidence)) < 500
    with pytest.raises(UserError) as error:
        outcome(tmp_path, "stop")
    assert f"a.jsonl:2 {bad.evidence['found']}" in str(error.value)
    assert len(str(error.value)) < 500


def test_a_secret_in_a_bad_row_is_in_no_evidence(tmp_path: Path) -> None:
    tiny.write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": "l"}, {"text": ["hunter2"], "label": "l"}, {"messages": "hunter2"}])
    _, rejected, _ = outcome(tmp_path)
    assert len(rejected) == 2
    assert all("hunter2" in item.row.text and "hunter2" not in json.dumps(item.evidence) for item in rejected)


def test_the_stage_keeps_bad_rows_beside_those_outside_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / paths.SOURCES).mkdir(parents=True)
    (tmp_path / paths.SOURCES / "a.jsonl").write_text(f"{GOOD}\n{{\n{{\n" + f"{GOOD}\n" * 3, encoding="utf-8")
    params = load_params(tiny.ROOT / "params.yaml")
    data = params.data.model_copy(update={"source": "files", "files": files(bad_rows="reject"), "max_rows": 3})
    main(params.model_copy(update={"data": data}))
    rows, rejected, report = read_rows(paths.RAW_ROWS), read_rejected(paths.RAW_REJECTED), read_details(paths.FETCH_DATA_REPORT)
    ids = [row.id for row in rows] + [item.row.id for item in rejected]
    assert len(ids) == len(set(ids)) == report["rows_read"] == 6
    assert report["rejected"] == {"not_json": 2, "over_max_rows": 1}
    assert [item.rule for item in rejected] == ["not_json", "not_json", "over_max_rows"]


def test_a_file_with_no_good_row_stops_the_stage_either_way(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:1 is not JSON"):
        outcome(tmp_path)


def packed(name: str, content: bytes) -> bytes:
    if name == "gz":
        return gzip.compress(content[:1000]) + gzip.compress(content[1000:])  # two members, as `cat a.gz b.gz` makes them
    if name == "xz":
        return lzma.compress(content[:1000]) + bytes(8) + lzma.compress(content[1000:])
    return pa.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize("name", ["gz", "xz", "zst"])
@pytest.mark.parametrize("inner", ["jsonl", "json", "csv"])
def test_packed_files_give_the_rows_of_the_plain_one(name: str, inner: str, tmp_path: Path) -> None:
    csv = "text,label\n" + "".join(f"{record['text']},l\n" for record in RECORDS)
    content = {"jsonl": LINES, "json": json.dumps(RECORDS).encode(), "csv": csv.encode()}[inner]
    (tmp_path / f"a.b.{inner}.{name.upper() if name == 'gz' else name}").write_bytes(packed(name, content))
    assert [row.text for row in read(tmp_path)] == [record["text"] for record in RECORDS]


@pytest.mark.parametrize("name", ["gz", "xz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_packed_file_is_told(name: str, damage: str, tmp_path: Path) -> None:
    content = packed(name, LINES)
    (tmp_path / f"a.jsonl.{name}").write_bytes({"cut": content[:-20], "garbage": b"no such thing" + content, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"cannot be unpacked \(|has no rows"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["gz", "xz", "zst"])
def test_a_zip_bomb_is_refused_before_it_fills_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SMALL_BYTES", 4 << 20)
    line = f"{GOOD}\n".encode()
    for content in (line * 400_000, b"x" * (12 << 20)):
        (tmp_path / f"a.jsonl.{name}").write_bytes(packed(name, content))
        with pytest.raises(UserError, match=r"unpacks to more than \d+ MiB from"):
            read(tmp_path)


def test_an_xz_header_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES, filters=filters))
    with pytest.raises(UserError, match=r"cannot be unpacked \(Memory usage limit"):
        read(tmp_path)


def test_links_are_followed_and_circles_pipes_and_packed_parquet_are_told(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    tiny.write_jsonl(tmp_path / "elsewhere/a.jsonl", [{"text": "t", "label": "l"}])
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(read(folder)) == 1
    for name, make, words in (
        ("loop", lambda path: path.symlink_to(folder), "is a link to a folder that it lies in"),
        ("self.jsonl", lambda path: path.symlink_to(path), "is a link to a file that is not there"),
        ("pipe.jsonl", os.mkfifo, "is a device, pipe or socket, expected a file"),
        ("a.parquet.gz", lambda path: path.write_bytes(b""), "is a packed Parquet file"),
        ("rows.gz", lambda path: path.write_bytes(b""), r"is a file of type \.gz, expected"),
    ):
        make(folder / name)
        with pytest.raises(UserError, match=words):
            read(folder)
        (folder / name).unlink()


def test_two_folders_that_link_to_each_other_are_told(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "to").symlink_to(tmp_path / other)
    with pytest.raises(UserError, match="is a link to a folder"):
        read(tmp_path)


def test_a_folder_that_vanishes_or_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    for change, words in (
        (lambda path: path.unlink(), "could not be read to its end"),
        (lambda path: path.write_bytes(LINES), "was changed while it was read"),
    ):
        path = tmp_path / "sources/a.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(LINES * 2)
        rows = read_user_files(path.parent, files(), [])
        next(rows)
        change(path)
        with pytest.raises(UserError, match=words):
            list(rows)
    tiny.write_jsonl(path.parent / "b.jsonl", [{"text": "t", "label": "l"}])
    rows = read_user_files(path.parent, files(), [])
    next(rows)
    (path.parent / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.jsonl could not be read to its end"):
        list(rows)


def test_formula_cells_stay_text_and_are_counted(tmp_path: Path) -> None:
    cells = ["=cmd|' /C calc'!A0", "+1+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3+cmd|x", " =1+1"]
    plain = ["-1.5", "- a list", "+49", "a = b", "--help"]
    text = "text,label\n" + "".join(f'"{cell}",l\n' for cell in cells + plain)
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    rows, _, about = outcome(tmp_path)
    assert [row.text for row in rows] == cells + plain
    assert about["formula_cells"] == len(cells) == sum(FORMULA.match(cell) is not None for cell in cells)


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b'"a\x00",l', "nul_byte"), (b'"two\ncaf\xe9",l', "not_utf8"), (b"a,b,c", "wrong_columns"), (b"a,", "wrong_value")],
)
def test_a_bad_row_of_a_table_is_rejected_and_its_neighbours_stay(content: bytes, rule: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nt,l\n" + content + b"\nu,l\n")
    rows, [bad], _ = outcome(tmp_path)
    assert ([row.text for row in rows], bad.rule, bad.row.origin) == (["t", "u"], rule, "line 3")


def test_a_quote_that_is_never_closed_does_not_take_the_file_into_memory(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,label\nt,l\n"u,l\n' + (b"v" * 100 + b",l\n") * 100_000)
    with pytest.raises(UserError, match=r"a\.csv:3 begins a row of more than 8 MiB; is a double quote not closed\?"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty, expected a list"),
        (b"[", "a.json:1 is not JSON"),
        (b"[1,]", "is not JSON"),
        (b"[7\n {}]", "a.json:2 is not JSON (expected a comma or the end of the list after row 1"),
        (b"[7] {}", "text after the end of the list"),
        (b'[{"text": "caf\xe9"}]', "is not UTF-8 (byte 0xe9"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "is JSON that cannot be read"),
        ("[]".encode("utf-16"), "is not UTF-8"),
        (b'["' + b"x" * (20 << 20), "is not JSON (Unterminated string"),
    ],
)
def test_a_broken_json_list_is_told_with_its_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert words in str(error.value)


def test_a_json_list_is_read_in_pieces_whatever_is_cut_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": "ü" * number, "label": number, "more": [{"deep": "\n"}]} for number in range(1, 60)]
    content = json.dumps(records, ensure_ascii=False, indent=1)
    (tmp_path / "a.json").write_text(f'\ufeff {content[:-1]}, 7, {{"text": 1, "text": 2}} ]\n', encoding="utf-8")
    for size in (1, 7, 100):
        monkeypatch.setattr(streams, "CHUNK_BYTES", size)
        rows, rejected, _ = outcome(tmp_path)
        assert [(row.text, row.label) for row in rows] == [(record["text"], str(record["label"])) for record in records]
        assert [(item.rule, item.row.origin, item.row.text) for item in rejected] == [
            ("not_an_object", "row 60", "7"),
            ("duplicate_key", "row 61", '{"text": 1, "text": 2}'),
        ]


def test_parquet_of_strange_types_is_told_and_strange_columns_that_nobody_wants_are_left_alone(tmp_path: Path) -> None:
    stamps = pa.array([1, 2], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b"], "label": pa.array(["x", "y"]).dictionary_encode(), "when": stamps, "raw": [b"\xff", b""]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _, about = outcome(tmp_path)
    assert [(row.text, row.label) for row in rows] == [("a", "x"), ("b", "y")]
    assert about["unused_columns"] == ["raw", "when"]
    for kind, column in (("binary", pa.array([b"a", b"b"])), ("timestamp[ns]", stamps)):
        pq.write_table(table.set_column(0, "text", column), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=rf"has the type {kind.replace('[', '.')[:9]}.* in its column text, expected texts"):
            read(tmp_path)
    nested = pa.array([[{"role": "user", "content": "q", "at": 1}, {"role": "assistant", "content": "a", "at": None}]])
    pq.write_table(pa.table({"messages": nested}), tmp_path / "a.parquet")
    [row] = read(tmp_path)
    assert (row.text, row.answer) == ("q", "a")


def test_bytes_that_are_no_text_reject_one_row_of_a_parquet_file(tmp_path: Path) -> None:
    text = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": text, "label": ["l"] * 3}), tmp_path / "a.parquet")
    rows, [bad], _ = outcome(tmp_path)
    assert ([row.text for row in rows], bad.rule, bad.row.origin) == (["a", "c"], "not_utf8", "row 2")
