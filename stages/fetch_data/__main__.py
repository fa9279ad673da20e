"""fetch_data: the rows to learn from, the embedded licence notices or the user's files, as one table.

In: the licensedcode-data wheel or data/sources. Out: data/raw/rows.parquet, the rows outside the sample in rejected.parquet, and
reports/fetch_data.json.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.packages import fetch_wheel
from stages.core.params import Data, Params
from stages.core.records import Rejected, Row, count_rules, with_ids, write_rejected, write_rows
from stages.core.sampling import seeded_sample
from stages.core.stage import run_stage
from stages.fetch_data.licences import ATTRIBUTION, LICENSE, read_licences
from stages.fetch_data.user_files import read_user_files

SAMPLES = 3
SAMPLE_CHARACTERS = 300


def main(params: Params) -> None:
    """Runs the stage."""
    with outputs() as place:
        read, origin = read_source(params.data, paths.SOURCES)
        rows, rejected = sample(list(with_ids(read)), params.data.max_rows, params.seed)
        write_rows(place(paths.RAW_ROWS), rows)
        write_rejected(place(paths.RAW_REJECTED), rejected)
        write_report(place(paths.FETCH_DATA_REPORT), {}, {**origin, **summary(rows, rejected)})


def read_source(data: Data, sources: Path) -> tuple[list[Row], dict[str, Any]]:
    """Reads the rows of the source that is set.

    Args:
        data: the section `data`.
        sources: the folder of the user's files.

    Returns:
        The rows without ids, and what the report says of their origin: `source`, `package`, `license`, `attribution`, `files`, and
        `skipped`, the items of the source that are no rows, by reason.

    Raises:
        UserError: the source cannot be fetched or read, or gives no row.
    """
    if data.source == "files":
        rows, files = read_user_files(sources, data.files)
        return rows, {"source": "files", "package": None, "license": None, "attribution": None, "files": files, "skipped": {}}
    package = {"name": data.licences.package, "version": data.licences.version, "sha256": data.licences.sha256}
    rows, skipped = read_licences(fetch_wheel(**package), data.licences)
    if not rows:
        raise UserError(
            f"no licence notice has {data.licences.min_words} to {data.licences.max_words} words; "
            f"widen data.licences.min_words and max_words in params.yaml"
        )
    return rows, {
        "source": "licences",
        "package": package,
        "license": LICENSE,
        "attribution": ATTRIBUTION,
        "files": [],
        "skipped": skipped,
    }


def sample(rows: list[Row], max_rows: int | None, seed: int) -> tuple[list[Row], list[Rejected]]:
    """Keeps a seeded sample in the order of the rows; the others are rejected by `over_max_rows`."""
    taken = seeded_sample((row.id for row in rows), max_rows, seed)
    evidence = {"max_rows": max_rows, "rows": len(rows)}
    return [row for row in rows if row.id in taken], [Rejected(row, "over_max_rows", evidence) for row in rows if row.id not in taken]


def summary(rows: list[Row], rejected: list[Rejected]) -> dict[str, Any]:
    """What the report says of the rows."""
    return {
        "rows_read": len(rows) + len(rejected),
        "rows_kept": len(rows),
        "rejected": count_rules(rejected),
        "labels": dict(sorted(Counter(row.label for row in rows if row.label is not None).items())),
        "groups": len({row.group for row in rows if row.group is not None}),
        "samples": [
            {"id": row.id, "origin": f"{row.source} {row.origin}", "text": _short(row.text), "answer": _short(row.answer)}
            for row in rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]
        ],
    }


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"


if __name__ == "__main__":
    run_stage("fetch_data", main)
