"""The one row every data stage reads and writes, its content id, and its Parquet form.

A labelled row is the text as the only user message and the label as the assistant's answer; core/prompts.py puts the instruction around it.
A preference row has its prompt in `messages` and the two answers in `chosen` and `rejected`. Columns that a row does not use are null.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
ROW_GROUP_ROWS = 20_000

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
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def with_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """Gives each row its content id, and the second, third … row of equal content the suffix -2, -3 …"""
    seen: dict[str, int] = {}
    for row in rows:
        base = content_id(row.messages, row.chosen, row.rejected, row.label)
        seen[base] = seen.get(base, 0) + 1
        yield replace(row, id=base if seen[base] == 1 else f"{base}-{seen[base]}")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as Parquet; equal rows give equal bytes. Call it with a path from `files.outputs`."""
    write_table(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA))


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Writes rejected rows with rule and evidence as Parquet."""
    dicts = [{**asdict(r.row), "rule": r.rule, "evidence": json.dumps(r.evidence, sort_keys=True, ensure_ascii=False)} for r in rejected]
    write_table(path, pa.Table.from_pylist(dicts, schema=REJECTED_SCHEMA))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes any table with the house's fixed row-group size and compression, so that equal tables have equal bytes."""
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def read_rows(path: Path) -> list[Row]:
    """Reads what `write_rows` wrote."""
    return [_row(record) for record in _records(path, SCHEMA)]


def read_rejected(path: Path) -> list[Rejected]:
    """Reads what `write_rejected` wrote."""
    return [Rejected(_row(record), record["rule"], json.loads(record["evidence"])) for record in _records(path, REJECTED_SCHEMA)]


def _records(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = pq.read_table(path, schema=schema).to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no table of rows ({error}); remove it and run: dvc repro") from None
    return records


def _row(record: dict[str, Any]) -> Row:
    values = {field.name: record[field.name] for field in fields(Row)}
    for name in ("messages", "chosen", "rejected"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Row(**values)


def count_rules(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many rows each rule rejected, by rule name."""
    counts: dict[str, int] = {}
    for item in rejected:
        counts[item.rule] = counts.get(item.rule, 0) + 1
    return dict(sorted(counts.items()))
