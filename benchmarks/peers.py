"""Luthier beside transformers + PEFT, Liger and Unsloth: speed and memory of an optimizer step on one card. Out: JSON and a table.

Usage: python -m benchmarks.peers [--rows 8b-bs2,8b-bs4] [--engines luthier,unsloth] [--results FOLDER] [--unsloth-site FOLDER]
       python -m benchmarks.peers --table
Each engine and model is a process of its own (benchmarks.engines). Unsloth wants versions of its own: --unsloth-site names a folder of
them, made by `pip install --target` (benchmarks/README.md). Results of a row replace earlier ones of the same row and engine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Cell, Rows
from stages.core.provenance import git_commit
from stages.train.batches import pack

RESULTS = Path(__file__).resolve().parent / "results"
GIB = 2**30
CAP = 24.0
ENGINES = ("plain", "liger", "unsloth", "luthier")
PEERS = ("plain", "liger", "unsloth")
SECONDS = 420  # for one engine's process
STEP_ROWS = 16  # of a planned step
PACKED = 4096  # tokens of Unsloth's packed micro-batches
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "UNSLOTH_DISABLE_STATISTICS": "1",
}
# tokens of the licence notices of the default run's training side: percentiles
LICENCE = {0: 33, 5: 37, 10: 38, 20: 40, 30: 42, 40: 45, 50: 48, 60: 52, 70: 58, 80: 66, 90: 81, 95: 95, 100: 135}


def licence_lengths(count: int = 512) -> list[int]:
    """Lengths as of the licence notices, in a fixed random order."""
    drawn = np.interp((np.arange(count) + 0.5) * 100 / count, list(LICENCE), list(LICENCE.values())).round().astype(int)
    return np.random.default_rng(0).permutation(drawn).tolist()


def chat_lengths(count: int = 128) -> list[int]:
    """A long-tailed mix as of conversations: log-normal with median 400 and sigma 1, between 16 and 4,096 tokens."""
    return np.random.default_rng(0).lognormal(np.log(400), 1.0, count).round().clip(16, 4096).astype(int).tolist()


def dealt(lengths: Sequence[int], rows: int) -> Rows:
    """Micro-batches of so many rows each, in the order in which they come, as a shuffling sampler gives them."""
    return [list(lengths[start : start + rows]) for start in range(0, len(lengths), rows)]


def cells(row: str) -> list[tuple[str, str, str, Cell]]:
    """The cells of a row of the table: engine, shape, quantization, cell."""
    return [(engine, shape, quantization, cell) for engine, shape, quantization, cell in ALL if cell.work == row]


def _all() -> list[tuple[str, str, str, Cell]]:
    found: list[tuple[str, str, str, Cell]] = []
    for work, shape, passes, recompute in (
        ("8b-bs2", "8b", [[2048] * 2], "all"),
        ("8b-bs4", "8b", [[2048] * 4], "all"),
        ("8b-keep", "8b", [[2048] * 2], "none"),
        ("13b-bs1", "13b", [[2048]], "all"),
    ):
        found += [(engine, shape, "nf4", Cell(work, passes, recompute)) for engine in PEERS]
        # the row is about memory too, where all is computed again
        found.append(("luthier", shape, "nf4", Cell(work, passes, recompute, pack=True, mlp_tokens=2048 if recompute == "all" else None)))
    for shape in ("8b", "13b"):
        plan = Cell(f"{shape}-plan24", [[2048] * STEP_ROWS], pack=True, cap_gib=CAP, planned=True, warm=1, steps=3)
        found.append(("luthier", shape, "nf4", plan))
    smallest = Cell("32b-least", [[2048]], pack=True, offload=True, mlp_tokens=1024, optimizer="paged_adamw_8bit", warm=2, steps=3)
    found.append(("luthier", "32b", "nf4", smallest))
    found.append(("luthier", "8b", "nf4", Cell("8b-context", [], pack=True, cap_gib=CAP, longest_from=98304, mlp_tokens=8192)))
    for work, lengths, rows in (("8b-licence", licence_lengths(), 8), ("8b-chat", chat_lengths(), 4)):
        for engine in PEERS:
            found.append((engine, "8b", "nf4", Cell(work, dealt(lengths, rows), warm=1, steps=1)))
        full = [[lengths[row] for row in rows] for rows in pack(range(len(lengths)), lengths, PACKED)]
        found.append(("unsloth", "8b", "nf4", Cell(f"{work}-packed", full, pack=True, warm=1, steps=1)))
        packed = Cell(work, [lengths], pack=True, cap_gib=CAP, planned=True, warm=1, steps=2)
        found.append(("luthier", "8b", "nf4", packed))
    found.append(("liger", "8b", "none", Cell("8b-bf16", [[4096]], "none")))
    found.append(("luthier", "8b", "none", Cell("8b-bf16", [[4096] * 4], pack=True, planned=True, warm=1, steps=3)))
    return found


ALL = _all()
TITLES = {
    "8b-bs2": "8B, batch 2, full recomputation",
    "8b-bs4": "8B, batch 4, full recomputation",
    "8b-keep": "8B, batch 2, no recomputation",
    "8b-plan24": "8B, best plan under 24 GiB (Unsloth: batch 2)",
    "13b-bs1": "13B, batch 1, full recomputation",
    "13b-plan24": "13B, best plan under 24 GiB (Unsloth: batch 1)",
    "32b-least": "32B Qwen2.5, least memory",
    "8b-context": "8B, longest row under 24 GiB",
    "8b-licence": "8B, licence notices, real tokens (peers: padded batches of 8)",
    "8b-licence-packed": "the same (Unsloth: packed)",
    "8b-chat": "8B, long-tailed chat mix, real tokens (peers: padded batches of 4)",
    "8b-chat-packed": "the same (Unsloth: packed)",
    "8b-bf16": "8B, bf16 LoRA, rows of 4,096",
}
# figures that a row shares with another
SHARED = {
    ("8b-plan24", "unsloth"): "8b-bs2",
    ("13b-plan24", "unsloth"): "13b-bs1",
    ("8b-licence-packed", "luthier"): "8b-licence",
    ("8b-chat-packed", "luthier"): "8b-chat",
}


def measure(rows: Sequence[str], engines: Sequence[str], results: Path, site: str | None) -> None:
    """Runs the cells of some rows, processes that share a model together, and writes each result as it comes."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for row in rows:
        for engine, shape, quantization, cell in cells(row):
            if engine in engines:
                own = cell.recompute if engine == "unsloth" else ""  # it is fixed when Unsloth loads the model
                groups.setdefault((engine, shape, quantization, own), []).append(cell)
    for (engine, shape, quantization, _), group in groups.items():
        environment = {**os.environ, **OFFLINE}
        if engine == "unsloth":
            subprocess.run([sys.executable, "-m", "benchmarks.engines", "make", shape, quantization], check=True, env=environment)
            found = [site, os.environ.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(part for part in found if part)
        results.mkdir(parents=True, exist_ok=True)
        for record in _process(engine, shape, quantization, group, environment):
            print(json.dumps({key: record.get(key) for key in SHOWN} | {"work": record["cell"]["work"]}), flush=True)
            path = results / f"{record['cell']['work']}.{engine}.json"
            path.write_text(json.dumps({**record, **git_commit()}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _process(engine: str, shape: str, quantization: str, group: Sequence[Cell], environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Runs one process over its cells: each result as it comes, and a failed one for each cell that it did not come to."""
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.engines", engine, shape, quantization]
    done = 0
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as asked:
        asked.write("".join(json.dumps(asdict(cell)) + "\n" for cell in group))
        asked.seek(0)
        process = subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("RESULT "):
                done += 1
                yield json.loads(line.removeprefix("RESULT "))
        status = process.wait()
        timer.cancel()
        said.seek(0)
        words = said.read().strip()
    for cell in group[done:]:
        print(f"{engine} {shape} {cell.work}: exit status {status}\n{words[-3000:]}", file=sys.stderr)
        yield {"engine": engine, "cell": asdict(cell), "failed": (words.splitlines() or ["no result"])[-1]}
    print(f"{engine} {shape} {quantization}: {time.monotonic() - start:.0f} s", flush=True)


SHOWN = ("engine", "tokens_per_second", "step_seconds", "peak_allocated_bytes", "peak_reserved_bytes", "loss", "longest_tokens", "failed")


def table(results: Path) -> str:
    """The results as Markdown: tokens/s and peak GiB of each engine, and Luthier's ratio to Unsloth where both ran on the same card."""
    found = {}
    for path in results.glob("*.*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["cell"]["work"], record["engine"]] = record
    lines = ["| work | transformers + PEFT | + Liger | Unsloth | Luthier | to Unsloth | memory |", "|---|---|---|---|---|---|---|"]
    for row, title in TITLES.items():
        measured = [found.get((SHARED.get((row, engine), row), engine)) for engine in ENGINES]
        ratio = [_ratio(measured[3], measured[2], key) for key in ("tokens_per_second", "peak_reserved_bytes")]
        lines.append(f"| {title} | " + " | ".join([*map(_shown, measured), *ratio]) + " |")
    return "\n".join(lines)


def _shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    if "failed" in record:
        return "out of memory" if "out of memory" in record["failed"] else "failed"
    words = f"{record['tokens_per_second']:,.0f} tokens/s, {record['peak_reserved_bytes'] / GIB:.2f} GiB"
    return f"{record['longest_tokens']:,} tokens, {words}" if "longest_tokens" in record else words


def _ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, key: str) -> str:
    if ours is None or theirs is None or key not in ours or key not in theirs:
        return ""
    return f"{ours[key] / theirs[key]:.2f}" if ours["card_id"] == theirs["card_id"] else "other card"


def main() -> None:
    """Measures, and prints the table of all results there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(TITLES), help=f"of {', '.join(TITLES)}")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--unsloth-site", metavar="FOLDER", help="packages that only Unsloth's process sees")
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    args = parser.parse_args()
    rows, engines = args.rows.split(","), args.engines.split(",")
    for name, known in [*((row, tuple(TITLES)) for row in rows), *((engine, ENGINES) for engine in engines)]:
        if name not in known:
            parser.error(f"{name} is none of {', '.join(known)}")
    if not args.table:
        measure(rows, engines, args.results, args.unsloth_site)
    print(table(args.results))


if __name__ == "__main__":
    main()
