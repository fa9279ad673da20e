"""The one row every data stage reads and writes, its content id, and its Parquet form.

A labelled row is the text as the only user message and the label as the assistant's answer; core/prompts.py puts the instruction around it.
A preference row has its prompt in `messages` and the two answers in `chosen` and `rejected`. Columns that a row does not use are null.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
ROW_GROUP_ROWS = 20_000
COMPRESSION = "zstd"
BATCH_ROWS = 4_096  # read at a time

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("messages", _MESSAGES, nullable=False),
        pa.field("chosen", _MESSAGES),
        pa.field("rejected", _MESSAGES),
        pa.field("label", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("cluster", pa.string()),
    ]
)
REJECTED_SCHEMA = SCHEMA.append(pa.field("rule", pa.string(), nullable=False)).append(pa.field("evidence", pa.string(), nullable=False))

Message = dict[str, str]
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One training row.

    Attributes:
        id: the first 16 hex digits of the sha256 of the row's content as fetched; `-2`, `-3` … where the same content came again.
        messages: the conversation, `{"role", "content"}` each; for a preference row the prompt alone.
        chosen: the preferred answer's messages, or None.
        rejected: the other answer's messages, or None.
        label: the class of a labelled row, or None.
        source: the file or package it came from.
        origin: the place in the source: a member or line.
        group: rows of one group stay on one side of the split, or None.
        cluster: the near-duplicate cluster that dedupe gave it, or None before.
    """

    id: str
    messages: tuple[Message, ...]
    chosen: tuple[Message, ...] | None
    rejected: tuple[Message, ...] | None
    label: str | None
    source: str
    origin: str
    group: str | None
    cluster: str | None = None

    @property
    def text(self) -> str:
        """What the row says before its last answer: all messages but the last assistant's, joined by newlines."""
        body = self.messages[:-1] if self.messages and self.messages[-1]["role"] == "assistant" else self.messages
        return "\n".join(message["content"] for message in body)

    @property
    def answer(self) -> str:
        """The answer to be learnt: the last assistant message, or the chosen answer of a preference row."""
        if self.chosen is not None:
            return "\n".join(message["content"] for message in self.chosen)
        return self.messages[-1]["content"] if self.messages and self.messages[-1]["role"] == "assistant" else ""

    def mapped(self, change: Any) -> "Row":
        """The row with `change`, a function of text to text, applied to every message's content; id and label stay."""

        def apply(messages: tuple[Message, ...] | None) -> tuple[Message, ...] | None:
            return None if messages is None else tuple({**message, "content": change(message["content"])} for message in messages)

        return replace(self, messages=apply(self.messages) or (), chosen=apply(self.chosen), rejected=apply(self.rejected))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that a stage did not pass on: the rule that rejected it and the evidence, a JSON object."""

    row: Row
    rule: str
    evidence: dict[str, Any]


def content_id(messages: Iterable[Message], chosen: Iterable[Message] | None, rejected: Iterable[Message] | None, label: str | None) -> str:
    """The first 16 hex digits of the sha256 of a row's content in canonical JSON."""
    content = [list(messages), list(chosen) if chosen else None, list(rejected) if rejected else None, label]
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:16]


def with_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """Gives each row its content id, and the second, third … row of equal content the suffix -2, -3 …"""
    ids = Ids()
    return (replace(row, id=ids.of(row)) for row in rows)


class Ids:
    """The ids of rows as they come; a few dozen bytes are held for each."""

    def __init__(self) -> None:
        """No row was seen."""
        self._seen: set[int] = set()
        self._again: dict[int, int] = {}

    def of(self, row: Row) -> str:
        """The row's content id, with the suffix -2, -3 … where rows of the same content came before."""
        base = content_id(row.messages, row.chosen, row.rejected, row.label)
        number = int(base, 16)
        if number not in self._seen:
            self._seen.add(number)
            return base
        count = self._again.get(number, 1) + 1
        self._again[number] = count
        return f"{base}-{count}"


class TableWriter:
    """Writes records to a Parquet file as they come, a row group at a time; equal records give equal bytes, however they come."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Opens the file; call it with a path from `files.outputs`."""
        self._file = pq.ParquetWriter(path, schema, compression=COMPRESSION)
        self._schema = schema
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> "TableWriter":
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what waits, unless something went wrong, and closes the file."""
        try:
            if kind is None:
                self._write()
        finally:
            self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Adds one record."""
        self._waiting.append(record)
        if len(self._waiting) == ROW_GROUP_ROWS:
            self._write()

    def row(self, row: Row) -> None:
        """Adds one row; the file's schema is SCHEMA."""
        self.write(_record(row))

    def rejected(self, row: Row, rule: str, evidence: dict[str, Any]) -> None:
        """Adds one rejected row; the file's schema is REJECTED_SCHEMA."""
        self.write({**_record(row), "rule": rule, "evidence": json.dumps(evidence, sort_keys=True, ensure_ascii=False)})

    def _write(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema), row_group_size=ROW_GROUP_ROWS)
            self._waiting = []


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as Parquet; equal rows give equal bytes. Call it with a path from `files.outputs`."""
    with TableWriter(path, SCHEMA) as file:
        for row in rows:
            file.row(row)


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Writes rejected rows with rule and evidence as Parquet."""
    with TableWriter(path, REJECTED_SCHEMA) as file:
        for item in rejected:
            file.rejected(item.row, item.rule, item.evidence)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes any table with the house's fixed row-group size and compression, so that equal tables have equal bytes."""
    pq.write_table(table, path, compression=COMPRESSION, row_group_size=ROW_GROUP_ROWS)


def read_rows(path: Path) -> list[Row]:
    """Reads what `write_rows` wrote, all at once; `iter_rows` is for what need not be in memory together."""
    return list(iter_rows(path))


def iter_rows(path: Path) -> Iterator[Row]:
    """Reads what `write_rows` wrote, a row group at a time."""
    return map(_row, _records(path, SCHEMA))


def rows_at(path: Path, places: Sequence[int]) -> list[Row]:
    """The rows at ascending places of a table, read with no more than the row groups they lie in."""
    found, begin, file = [], 0, open_table(path)
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        inside = [place - begin for place in places if begin <= place < begin + count]
        if inside:
            found += [_row(record) for record in file.read_row_group(number, columns=SCHEMA.names).take(inside).to_pylist()]
        begin += count
    return found


def count_rows(path: Path) -> int:
    """How many rows a table has, from its footer."""
    rows: int = open_table(path).metadata.num_rows
    return rows


def read_rejected(path: Path) -> list[Rejected]:
    """Reads what `write_rejected` wrote."""
    return [Rejected(_row(record), record["rule"], json.loads(record["evidence"])) for record in _records(path, REJECTED_SCHEMA)]


def _records(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    file = open_table(path, schema.names)
    for batch in file.iter_batches(BATCH_ROWS, columns=schema.names):
        yield from batch.to_pylist()


def open_table(path: Path, columns: Iterable[str] = ()) -> pq.ParquetFile:
    """A table of rows, opened.

    Args:
        path: the file.
        columns: that it must have.

    Returns:
        The file.

    Raises:
        UserError: it is no Parquet file, or lacks a column.
    """
    path.stat()  # names the file where there is none, which pyarrow's error does not
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no table of rows ({error}); remove it and run: dvc repro") from None
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise UserError(f"{path} is no table of rows (it has no column {missing[0]}); remove it and run: dvc repro")
    return file


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a table with the columns of SCHEMA."""
    return list(map(_row, table.to_pylist()))


def _record(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SCHEMA.names}


def _row(record: dict[str, Any]) -> Row:
    values = {name: record[name] for name in SCHEMA.names}
    for name in ("messages", "chosen", "rejected"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Row(**values)


def count_rules(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many rows each rule rejected, by rule name."""
    counts: dict[str, int] = {}
    for item in rejected:
        counts[item.rule] = counts.get(item.rule, 0) + 1
    return dict(sorted(counts.items()))
