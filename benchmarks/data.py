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
from benchmarks.data_tokenize import beside_the_library
from stages.core.files import write_json
from stages.core.provenance import git_commit, machine

RESULTS = ROOT / "benchmarks/results/data.json"
DOCS = ROOT / "docs/scale.md"
STAGES = ("fetch_data", "clean", "local_models", "dedupe", "label_check", "suspicion", "split")
SEED = 17
SECONDS_BETWEEN_SAMPLES = 0.25
GIB = 2**30
MARKS = ("<!-- python -m benchmarks.data --table -->", "<!-- end of the tables -->")


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
    several share counted once), or the kernel's mark of the largest resident set of one of them, whichever is larger.

    Args:
        stage: its name.
        folder: the workspace.

    Returns:
        `seconds` as a clock shows them, `processor_seconds` of all its processes, and `peak_bytes`.

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
        peak = max(peak, _resident_bytes(child.pid))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    child.returncode = status  # so that Popen does not wait for what was waited for
    if status:
        raise SystemExit(f"benchmarks.data: {stage} failed in {folder}")
    seconds = {"seconds": time.monotonic() - start, "processor_seconds": usage.ru_utime + usage.ru_stime}
    return {**{name: round(value, 1) for name, value in seconds.items()}, "peak_bytes": peak}


def _resident_bytes(pid: int) -> int:
    """What a process and its children hold now, or the most that one of them ever held; 0 for those that are gone."""
    try:
        pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    total = most = 0
    for each in pids:
        try:
            text = "".join(Path(f"/proc/{each}/{name}").read_text(encoding="utf-8") for name in ("smaps_rollup", "status"))
        except OSError:
            continue
        kibibytes = {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss:", "VmHWM:"))}
        total += kibibytes.get("Pss:", 0) * 1024
        most = max(most, kibibytes.get("VmHWM:", 0) * 1024)
    return max(total, most)


def rows_in(stage: str, folder: Path, rows: int) -> int:
    """How many rows the stage is given."""
    place = {
        "clean": "raw",
        "local_models": "clean",
        "dedupe": "local_models",
        "label_check": "dedupe",
        "suspicion": "label_check",
        "split": "suspicion",
    }.get(stage)
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


def measure_tokenisation(rows: int, scratch: Path) -> None:
    """Tokenises the fetched rows of a workspace and writes the result into RESULTS."""
    folder = scratch / str(rows)
    run("fetch_model", folder)
    found = {**beside_the_library(folder, rows), **git_commit(ROOT, ["benchmarks/results", "docs"]), "machine": machine()}
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results[str(rows)]["tokenisation"] = found
    write_json(RESULTS, results)
    print(_tokenisation(found))


def _tokenisation(found: dict[str, Any]) -> str:
    """The result in a sentence."""
    ours, theirs = (found["seconds"][name] for name in ("stage", "library"))
    return (
        f"{found['rows']:,} rows of {found['tokens'] / found['rows']:.0f} tokens: {ours:.1f} s, rendering and masks included; "
        f"`tokenizers.encode_batch` alone {theirs:.1f} s; ratio {found['ratio']:.2f} "
        f"(of processor seconds {found['processor_seconds']['stage'] / found['processor_seconds']['library']:.2f}); "
        f"commit {str(found['commit'])[:7]}"
    )


def _cells(result: dict[str, Any]) -> str:
    rate = result["rows"] / result["seconds"]
    return f"{result['seconds']:.0f} s ({result['processor_seconds']:.0f}) | {rate:,.0f} rows/s | {result['peak_bytes'] / GIB:.2f} GiB"


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a line a stage for each number of rows, their sum, and the growth from the fewest rows to the most."""
    lines = []
    sizes = sorted(results, key=int)
    for size in sizes:
        stages = {name: results[size]["stages"][name] for name in STAGES if name in results[size]["stages"]}
        lines += [f"### {int(size):,} rows", "", "| stage | rows in | seconds | processor seconds | rows/s | peak memory | commit |"]
        lines.append("|---|---|---|---|---|---|---|")
        for name, result in stages.items():
            lines.append(
                f"| {name} | {result['rows']:,} | {result['seconds']:.0f} | {result['processor_seconds']:.0f} | "
                f"{result['rows'] / result['seconds']:,.0f} | {result['peak_bytes'] / GIB:.2f} GiB | {str(result['commit'])[:7]} |"
            )
        seconds, busy = (sum(result[name] for result in stages.values()) for name in ("seconds", "processor_seconds"))
        peak = max(result["peak_bytes"] for result in stages.values()) / GIB
        lines += [f"| together | {int(size):,} | {seconds:.0f} | {busy:.0f} | {int(size) / seconds:,.0f} | {peak:.2f} GiB | |", ""]
    if len(sizes) > 1:
        few, many = (results[size]["stages"] for size in (sizes[0], sizes[-1]))
        lines += [f"### Growth from {int(sizes[0]):,} to {int(sizes[-1]):,} rows", "", "| stage | time | memory |", "|---|---|---|"]
        for name in (name for name in STAGES if name in few and name in many):
            time_growth, memory_growth = (many[name][key] / few[name][key] for key in ("processor_seconds", "peak_bytes"))
            lines.append(f"| {name} | {time_growth:.1f} x | {memory_growth:.1f} x |")
        if few.keys() == many.keys():
            time_growth = _busy(many) / _busy(few)
            memory_growth = max(result["peak_bytes"] for result in many.values()) / max(result["peak_bytes"] for result in few.values())
            lines.append(f"| together | {time_growth:.1f} x | {memory_growth:.1f} x |")
    told = [_tokenisation(results[size]["tokenisation"]) for size in sizes if "tokenisation" in results[size]]
    lines += ["", "### Tokenisation", "", *told] if told else []
    return "\n".join(lines).strip() + "\n"


def _busy(stages: dict[str, Any]) -> float:
    """Processor seconds of some stages together."""
    return float(sum(result["processor_seconds"] for result in stages.values()))


def write_table() -> None:
    """Puts the tables into DOCS, between its marks."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    tables = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    DOCS.write_text(f"{before}{MARKS[0]}\n{tables}{MARKS[1]}{after}", encoding="utf-8")
    print(tables)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    there = [stage for stage in STAGES if (ROOT / f"stages/{stage}").is_dir() or (ROOT / f"stages/{stage}.py").is_file()]
    parser.add_argument("--stages", type=lambda text: text.split(","), default=there, help=",".join(there))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "luthier-bench-data", help="workspaces, kept")
    parser.add_argument("--table", action="store_true", help="write the tables of docs/scale.md and measure nothing")
    parser.add_argument("--tokenize", action="store_true", help="tokenisation beside the tokenizers library alone, on the fetched rows")
    args = parser.parse_args()
    if args.table:
        write_table()
        return
    if args.tokenize:
        measure_tokenisation(args.rows, args.scratch)
        return
    measure(args.rows, args.stages, args.scratch)


if __name__ == "__main__":
    main()
