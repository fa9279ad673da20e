"""fetch_data: the rows to learn from, the embedded licence notices or the user's files, as one table.

In: the licensedcode-data wheel or data/sources. Out: data/raw/rows.parquet; rejected.parquet with the rows outside the sample and the
records that are no rows; reports/fetch_data.json. Rows are written as they are read.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.packages import fetch_wheel
from stages.core.params import Data, Params
from stages.core.records import REJECTED_SCHEMA, SCHEMA, Ids, Rejected, Row, TableWriter, count_rows, iter_rows, rows_at
from stages.core.sampling import seeded_sample
from stages.core.stage import run_stage
from stages.fetch_data.licences import ATTRIBUTION, LICENSE, read_licences
from stages.fetch_data.user_files import read_user_files

SAMPLES = 3
SAMPLE_CHARACTERS = 300


def main(params: Params) -> None:
    """Runs the stage."""
    read, origin = read_source(params.data, paths.SOURCES)
    rules: Counter[str] = Counter()
    with outputs() as place:
        kept = place(paths.RAW_ROWS)
        with TableWriter(place(paths.RAW_REJECTED), REJECTED_SCHEMA) as rejected:
            fetch(read, params.data.max_rows, params.seed, kept, rejected, rules)
        write_report(place(paths.FETCH_DATA_REPORT), {}, {**origin, **summary(kept, rules)})


def read_source(data: Data, sources: Path) -> tuple[Iterable[Row | Rejected], dict[str, Any]]:
    """Opens the source that is set.

    Args:
        data: the section `data`.
        sources: the folder of the user's files.

    Returns:
        The rows without ids as they are read, and what the report says of their origin: `source`, `package`, `license`, `attribution`,
        `files` (complete when the rows were read), and `skipped`, the items of the source that are no rows, by reason.

    Raises:
        UserError: the source cannot be fetched or read, or gives no row.
    """
    if data.source == "files":
        files: list[dict[str, Any]] = []
        rows = read_user_files(sources, data.files, files)
        return rows, {"source": "files", "package": None, "license": None, "attribution": None, "files": files, "skipped": {}}
    package = {"name": data.licences.package, "version": data.licences.version, "sha256": data.licences.sha256}
    notices, skipped = read_licences(fetch_wheel(**package), data.licences)
    if not notices:
        raise UserError(
            f"no licence notice has {data.licences.min_words} to {data.licences.max_words} words; "
            f"widen data.licences.min_words and max_words in params.yaml"
        )
    return notices, {
        "source": "licences",
        "package": package,
        "license": LICENSE,
        "attribution": ATTRIBUTION,
        "files": [],
        "skipped": skipped,
    }


def fetch(read: Iterable[Row | Rejected], max_rows: int | None, seed: int, kept: Path, rejected: TableWriter, rules: Counter[str]) -> None:
    """Gives the rows their ids and writes a seeded sample in the order of the rows; the others are rejected by `over_max_rows`.

    Args:
        read: rows without ids, and records that are none.
        max_rows: the size of the sample, or None.
        seed: of the sample.
        kept: the table to write.
        rejected: the file of rejected rows.
        rules: gets how many rows each rule rejected.
    """
    with TableWriter(kept, SCHEMA) as file:
        ids = _written(read, file, rejected, rules)
        if max_rows is None:
            deque(ids, maxlen=0)  # runs through them and holds none
            return
        taken = seeded_sample(ids, max_rows, seed)
    count = count_rows(kept)
    if count <= max_rows:
        return
    everything = kept.with_name(f".{paths.RAW_ROWS.name}.all.part")
    kept.rename(everything)
    evidence = {"max_rows": max_rows, "rows": count}
    try:
        with TableWriter(kept, SCHEMA) as file:
            for row in iter_rows(everything):
                if row.id in taken:
                    file.row(row)
                else:
                    rejected.rejected(row, "over_max_rows", evidence)
    finally:
        everything.unlink()
    rules["over_max_rows"] = count - max_rows


def _written(read: Iterable[Row | Rejected], file: TableWriter, rejected: TableWriter, rules: Counter[str]) -> Iterator[str]:
    """Writes what is read, and gives the id of each row."""
    ids = Ids()
    for item in read:
        if isinstance(item, Row):
            row = replace(item, id=ids.of(item))
            file.row(row)
            yield row.id
        else:
            rejected.rejected(replace(item.row, id=ids.of(item.row)), item.rule, item.evidence)
            rules[item.rule] += 1


def summary(kept: Path, rules: Counter[str]) -> dict[str, Any]:
    """What the report says of the rows, read from their table a batch at a time."""
    labels: Counter[str] = Counter()
    groups: set[bytes] = set()
    with pq.ParquetFile(kept) as table:
        for batch in table.iter_batches(columns=["label", "group"]):
            labels.update(label for label in batch["label"].to_pylist() if label is not None)
            # digests, as a group may be a whole document
            groups.update(blake2b(group.encode(), digest_size=12).digest() for group in batch["group"].to_pylist() if group is not None)
    rows = count_rows(kept)
    step = max(1, rows // SAMPLES)
    return {
        "rows_read": rows + rules.total(),
        "rows_kept": rows,
        "rejected": dict(sorted(rules.items())),
        "labels": dict(sorted(labels.items())),
        "groups": len(groups),
        "samples": [
            {"id": row.id, "origin": f"{row.source} {row.origin}", "text": _short(row.text), "answer": _short(row.answer)}
            for row in rows_at(kept, range(0, rows, step)[:SAMPLES])
        ],
    }


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"


if __name__ == "__main__":
    run_stage("fetch_data", main)
