"""Tables of rows a row group at a time, as Arrow holds them: for what need not look into a row, ten times as fast as rows are.

In: a file that core/records.py wrote. Out: its row groups; files with another column or fewer rows, in the bytes that records would write.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.records import COMPRESSION, REJECTED_SCHEMA, ROW_GROUP_ROWS, SCHEMA, open_table


def count_groups(path: Path) -> int:
    """How many row groups a table has."""
    return len(group_sizes(path))


def group_sizes(path: Path) -> list[int]:
    """How many rows each row group of a table has, from its footer."""
    metadata = open_table(path).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_group(path: Path, group: int, columns: Iterable[str] = SCHEMA.names) -> pa.Table:
    """One row group's columns."""
    names = list(columns)
    return open_table(path, names).read_row_group(group, columns=names, use_threads=False)


def read_groups(path: Path, columns: Iterable[str] = SCHEMA.names) -> Iterator[pa.Table]:
    """Every row group's columns in order, one in memory at a time."""
    names = list(columns)
    file = open_table(path, names)
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=names)


class GroupWriter:
    """Writes tables to one Parquet file in groups of ROW_GROUP_ROWS, however many rows they come in."""

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA) -> None:
        """Opens the file; call it with a path from `files.outputs`."""
        self._file = pq.ParquetWriter(path, schema, compression=COMPRESSION)
        self._schema = schema
        self._waiting = schema.empty_table()

    def __enter__(self) -> "GroupWriter":
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what waits, unless something went wrong, and closes the file."""
        try:
            if kind is None and len(self._waiting):
                self._write(self._waiting)
        finally:
            self._file.close()

    def write(self, table: pa.Table) -> None:
        """Adds a table that has the schema's columns."""
        waiting = pa.concat_tables([self._waiting, table.select(self._schema.names).cast(self._schema)])
        while len(waiting) >= ROW_GROUP_ROWS:
            self._write(waiting.slice(0, ROW_GROUP_ROWS))
            waiting = waiting.slice(ROW_GROUP_ROWS)
        self._waiting = waiting.combine_chunks()  # a copy, so that what was written can be freed

    def _write(self, table: pa.Table) -> None:
        self._file.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)


def rejected_table(rows: pa.Table, rules: list[str], evidence: list[dict[str, Any]]) -> pa.Table:
    """Rows with the rule that rejected each and its evidence, in REJECTED_SCHEMA."""
    told = [json.dumps(one, sort_keys=True, ensure_ascii=False) for one in evidence]
    return (
        rows.append_column("rule", pa.array(rules, pa.string()))
        .append_column("evidence", pa.array(told, pa.string()))
        .cast(REJECTED_SCHEMA)
    )


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with a column of SCHEMA replaced."""
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), values)
