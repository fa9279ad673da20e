"""A table of rows as label_check works on it: names and labels of all rows at once, texts a row group at a time.

In: data/dedupe/rows.parquet. Out: columns in memory (about 300 bytes a row), and blocks of rows, also for processes of their own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from stages.core.components import Union
from stages.core.parallel import cores, in_order
from stages.core.records import SCHEMA, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MESSAGE_COLUMNS = ("messages", "chosen", "rejected")


@dataclass
class Table:
    """All rows of a file, without their texts.

    Attributes:
        path: the file.
        starts: the number of the first row of each row group, and the number of rows at the end.
        ids: one a row.
        labels: one a row, None where a row has none.
        parts: the component of each row, by cluster and group; equal names must share a fold.
        clusters: one a row, the row's id where it has none.
    """

    path: Path
    starts: list[int]
    ids: list[str]
    labels: list[str | None]
    parts: list[str]
    clusters: list[str]

    def blocks(self) -> Iterator[list[Row]]:
        """All rows, a row group at a time."""
        return map(partial(read_block, self.path), range(len(self.starts) - 1))

    def over(self, function: Any, per_row: Iterable[Any] = ()) -> Iterator[Any]:
        """Applies a function to each row group, in processes of their own where there is more than one row group.

        Args:
            function: a module's function, or a partial of one, of (rows, the slice of each of `per_row`).
            per_row: arrays or lists of one value a row.

        Yields:
            Each row group's result, in order.
        """
        columns = list(per_row)
        spans = list(zip(self.starts[:-1], self.starts[1:], strict=True))
        items = ((number, *(column[start:end] for column in columns)) for number, (start, end) in enumerate(spans))
        yield from in_order(partial(_on_block, function, self.path), items, min(cores(), len(spans)) or 1)


def read_table(path: Path) -> Table:
    """Reads the columns that are needed of all rows at once."""
    file = pq.ParquetFile(path)
    columns = file.read(["id", "label", "cluster", "group"])
    ids, labels, clusters, groups = (columns[name].to_pylist() for name in ("id", "label", "cluster", "group"))
    clusters = [cluster or name for cluster, name in zip(clusters, ids, strict=True)]
    starts = [0]
    for number in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(number).num_rows)
    return Table(path, starts, ids, labels, _parts(clusters, groups), clusters)


def read_block(path: Path, number: int) -> list[Row]:
    """The rows of one row group."""
    records = pq.ParquetFile(path).read_row_group(number, columns=SCHEMA.names).to_pylist()
    for record in records:
        for name in MESSAGE_COLUMNS:
            record[name] = None if record[name] is None else tuple(record[name])
    return [Row(**record) for record in records]


def chosen_rows(rows: list[Row], chosen: list[bool]) -> list[Row]:
    """The chosen ones of a row group's rows; here and not in __main__, whose functions another process cannot import."""
    return [row for row, wanted in zip(rows, chosen, strict=True) if wanted]


def codes(values: list[Any]) -> "npt.NDArray[np.int64]":
    """Numbers for names, equal for equal names, in the order of their first row: [rows] int64."""
    import numpy as np

    seen: dict[Any, int] = {}
    return np.fromiter((seen.setdefault(value, len(seen)) for value in values), dtype=np.int64, count=len(values))


def _parts(clusters: list[str], groups: list[str | None]) -> list[str]:
    """What `core.components.components` says of rows, from their columns."""
    union: Union[tuple[str, str]] = Union()
    for cluster, group in zip(clusters, groups, strict=True):
        if group is not None:
            union.join(("cluster", cluster), ("group", group))
    return [union.find(("cluster", cluster))[1] for cluster in clusters]


def _on_block(function: Any, path: Path, item: tuple[Any, ...]) -> Any:
    number, *slices = item
    return function(read_block(path, number), *slices)
