"""The data stages on many rows: seconds, rows a second and resident memory of each, as processes of their own in a scratch workspace.

In: rows made by benchmarks/data_rows.py. Out: benchmarks/results/data.json, and with --table the tables of docs/scale.md.
Run: python -m benchmarks.data --rows 100000 [--stages fetch_data,clean]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.data_rows import ROOT, write_files
from stages.core.files import write_json
from stages.core.provenance import git_commit, machine

RESULTS = ROOT / "benchmarks/results/data.json"
DOCS = ROOT / "docs/scale.md"
STAGES = ("fetch_data", "clean", "dedupe", "label_check", "suspicion", "split")
SEED = 17
SECONDS_BETWEEN_SAMPLES = 0.25
GIB = 2**30


def make_workspace(folder: Path, rows: int) -> None:
    """A folder in which the data stages run: the repository's params with the made rows as source and no caps.

    Args:
        folder: where; rows that are there are kept.
        rows: how many rows data/sources is to have.
    """
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"].update(source="files", max_rows=None)
    params["split"].update(max_train=None, max_validation=None, max_test=None)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    (folder / "data/decisions.csv").write_bytes((ROOT / "data/decisions.csv").read_bytes())
    if not (folder / "planted.json").exists():
        planted = write_files(folder / "data/sources", rows, SEED)
        run("fetch_general", folder)
        write_json(folder / "planted.json", planted)


def run(stage: str, folder: Path) -> dict[str, float]:
    """One stage in a process of its own.

    Memory is the largest sum, over samples of all processes of the stage, of their proportional set size (resident pages, a page that
    several share counted once), or the largest resident set of a single one as the kernel counted it, whichever is larger.

    Args:
        stage: its name.
        folder: the workspace.

    Returns:
        `seconds` and `peak_bytes`.

    Raises:
        SystemExit: the stage failed; its words are on stderr.
    """
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)
    peak = 0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _proportional_bytes(child.pid))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    if status:
        raise SystemExit(f"benchmarks.data: {stage} failed in {folder}")
    return {"seconds": round(time.monotonic() - start, 1), "peak_bytes": max(peak, usage.ru_maxrss * 1024)}


def _proportional_bytes(pid: int) -> int:
    """The proportional set size of a process and its children, 0 for those that are gone."""
    try:
        pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for each in pids:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def rows_in(stage: str, folder: Path, rows: int) -> int:
    """How many rows the stage is given."""
    place = {"clean": "raw", "dedupe": "clean", "label_check": "dedupe", "suspicion": "label_check", "split": "label_check"}.get(stage)
    return rows if place is None else int(pq.read_metadata(folder / f"data/{place}/rows.parquet").num_rows)


def measure(rows: int, stages: list[str], scratch: Path) -> None:
    """Runs stages in order and writes each result into RESULTS with commit and machine."""
    folder = scratch / str(rows)
    make_workspace(folder, rows)
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    mine = results.setdefault(str(rows), {"planted": json.loads((folder / "planted.json").read_text(encoding="utf-8")), "stages": {}})
    commit = git_commit(ROOT, ["benchmarks/results", "docs"])
    for stage in stages:
        given = rows_in(stage, folder, rows)
        measured = run(stage, folder)
        mine["stages"][stage] = {**measured, "rows": given, **commit, "machine": machine()}
        print(f"{rows:>9,} {stage:<12} {_cells(mine['stages'][stage])}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, results)


def _cells(result: dict[str, Any]) -> str:
    rate = result["rows"] / result["seconds"]
    return f"{result['seconds']:.0f} s | {rate:,.0f} rows/s | {result['peak_bytes'] / GIB:.2f} GiB"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    there = [stage for stage in STAGES if (ROOT / f"stages/{stage}").is_dir() or (ROOT / f"stages/{stage}.py").is_file()]
    parser.add_argument("--stages", type=lambda text: text.split(","), default=there, help=",".join(there))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "luthier-bench-data", help="workspaces, kept")
    args = parser.parse_args()
    measure(args.rows, args.stages, args.scratch)


if __name__ == "__main__":
    main()
