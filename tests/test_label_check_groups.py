"""label_check as a command on several row groups, which other processes read, gives the rows that one row group gives."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from stages.core import paths
from stages.core.records import read_rows, write_rows
from tests import tiny
from tests.rows import labelled, numbered


def run(folder: Path, group_rows: int) -> list[str]:
    rows = numbered([labelled(record["text"], record["label"], origin=str(number)) for number, record in enumerate(tiny.labelled_rows(90))])
    for path in (paths.DEDUPE_ROWS, paths.LABEL_ROWS, paths.REPORTS / "x"):
        (folder / path).parent.mkdir(parents=True)
    shutil.copy(tiny.ROOT / "params.yaml", folder / "params.yaml")
    shutil.copy(tiny.ROOT / paths.DECISIONS, folder / paths.DECISIONS)
    write_rows(folder / paths.DEDUPE_ROWS, [replace(row, cluster=rows[number // 2 * 2].id) for number, row in enumerate(rows)])
    pq.write_table(pq.read_table(folder / paths.DEDUPE_ROWS), folder / paths.DEDUPE_ROWS, row_group_size=group_rows)
    done = subprocess.run([sys.executable, "-m", "stages.label_check"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [row.id for row in read_rows(folder / paths.LABEL_ROWS)]


def test_rows_in_several_groups_are_judged_as_rows_in_one(tmp_path: Path) -> None:
    assert run(tmp_path / "one", 100) == run(tmp_path / "several", 40)
