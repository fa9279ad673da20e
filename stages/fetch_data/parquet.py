"""Parquet files as plain records, a few rows at a time, with the types that a row can be made of.

In: a file and the columns that are wanted. Out: for each row its place and its columns, or what is wrong with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError
from stages.fetch_data.bad_row import BadRow

BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20  # of the rows that are in memory together, so that a file of 50 MB rows fits as well
_UNSEEN = "not read"  # stands for a column that no format has


def read_parquet(path: Path, columns: frozenset[str]) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Reads a Parquet file row by row.

    Args:
        path: the file.
        columns: those that are wanted; the others are named in each record and not read.

    Yields:
        The row's place as ` row N` and its columns, or what is wrong with it. A file that is not readable, names a column twice, or has a
        wanted one of a type that cannot be read raises UserError.
    """
    number = 0
    with _told(path):
        with pq.ParquetFile(path) as file:
            wanted, others = _columns(path, file.schema_arrow, columns)
            # a text that many rows share is stored once, and stays so until its row is at hand
            shared = [name for name in wanted if pa.types.is_string(file.schema_arrow.field(name).type)]
            largest = _bytes_per_row(file.metadata)
        if not wanted and file.metadata.num_rows:
            yield " row 1", dict(others)  # enough to tell which columns there are
            return
        with pq.ParquetFile(path, read_dictionary=shared) as file:
            for batch in file.iter_batches(batch_size=max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest))), columns=wanted):
                for record in _records(batch):
                    number += 1
                    yield f" row {number}", {**record, **others} if isinstance(record, dict) else record


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises into a sentence, and leaves errors of the disk alone."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not readable as Parquet ({reason[:200]}); write it again, or fetch it again if the copy was cut off"
        ) from None


def _columns(path: Path, schema: pa.Schema, columns: frozenset[str]) -> tuple[list[str], dict[str, str]]:
    """The columns to read and a stand-in for each of the others; raises UserError for a name or type that cannot be."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"{path} names the column {twice[0][:40]!r} twice; rename one of the two")
    wanted = [name for name in schema.names if name in columns]
    for name in wanted:
        if strange := _strange(schema.field(name).type):
            expected = "texts, numbers, or lists of structs of them"
            raise UserError(f"{path} has the type {strange} in its column {name}, expected {expected}; convert the column")
    return wanted, {name: _UNSEEN for name in schema.names if name not in columns}


def _strange(kind: pa.DataType) -> str | None:
    """The first type within a column's type that is neither text nor number, or None."""
    types = pa.types
    if types.is_dictionary(kind):
        return _strange(kind.value_type)
    if types.is_struct(kind):
        return next((found for field in kind if (found := _strange(field.type))), None)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _strange(kind.value_type)
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean, types.is_integer, types.is_floating)
    return None if types.is_null(kind) or any(check(kind) for check in plain) else str(kind)


def _bytes_per_row(file: Any) -> int:
    """The largest mean size of a row in a row group."""
    groups = [file.row_group(number) for number in range(file.num_row_groups)]
    if any(group.num_rows < 0 for group in groups):  # to read such a one without a column would end the process
        raise ValueError("a row group has less than no rows")
    return max((int(group.total_byte_size // max(1, group.num_rows)) for group in groups), default=0)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """A batch's rows; where one holds bytes that are no text, row by row."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield BadRow(f"is not UTF-8 (byte 0x{error.object[error.start]:02x}); write its texts as UTF-8", "not_utf8")
