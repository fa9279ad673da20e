"""Looks rows up in the outs of the data stages. In: Parquet files. Out: the records of a few ids, without reading the others' texts."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Wanted = Callable[[pa.ChunkedArray], pa.ChunkedArray]


def with_id(path: Path, *ids: str) -> list[dict[str, Any]]:
    """The rows of a table with one of some ids; none where the table is missing."""
    return among(path, "id", ids)


def among(path: Path, column: str, values: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a table in which a column of texts has one of some values; none where the table is missing."""
    wanted = pa.array(sorted(set(values)), pa.string())
    return where(path, column, lambda found: pc.is_in(found, value_set=wanted))


def beginning(path: Path, prefix: str) -> list[dict[str, Any]]:
    """The rows of a table whose id begins with some digits; none where the table is missing."""
    return where(path, "id", lambda column: pc.starts_with(column, prefix))


def where(path: Path, column: str, wanted: Wanted) -> list[dict[str, Any]]:
    """The rows of a table that one column chooses; of the others only that column is read.

    Args:
        path: a Parquet file; none of its rows where it is missing.
        column: what to choose by.
        wanted: from the column to booleans.

    Returns:
        The rows.
    """
    if not path.is_file():
        return []
    file = pq.ParquetFile(path)
    found: list[dict[str, Any]] = []
    for group in range(file.num_row_groups):
        chosen = wanted(file.read_row_group(group, columns=[column]).column(column))
        if pc.any(chosen).as_py():
            found += file.read_row_group(group).filter(chosen).to_pylist()
    return found
