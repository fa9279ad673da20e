"""What the data stages find on planted sets, and their speed beside bare libraries: the benchmarks of RUNS, one after another.

In: the benchmarks of RUNS. Out: benchmarks/results/data_figures.json, the tables that each printed with command, commit and machine, and
with --table the page docs/data-figures.md. Run: python -m benchmarks.data_figures [NAME ...]
"""

import argparse
import json
import subprocess
import sys
import time

from benchmarks.data_rows import ROOT
from stages.core.files import write_json
from stages.core.provenance import git_commit, machine

RESULTS = ROOT / "benchmarks/results/data_figures.json"
DOCS = ROOT / "docs/data-figures.md"
RUNS = {  # name: title, module and arguments; the exit code says whether the targets were reached
    "personal_data": ("Secrets and personal data: planted values, and speed", ["benchmarks.clean_speed"]),
    "duplicates": ("Near-duplicates: planted pairs", ["benchmarks.data_dedupe", "quality"]),
    "near_dedupe_speed": ("Near-dedupe beside rensa, from the same signatures", ["benchmarks.data_dedupe", "speed"]),
    "labels": ("Wrong labels: flipped in the default data", ["benchmarks.data_labels"]),
    "poison": ("Poisoning: planted backdoors", ["benchmarks.data_poison"]),
}
MARKS = ("<!-- python -m benchmarks.data_figures --table -->", "<!-- end of the tables -->")


def measure(names: list[str]) -> None:
    """Runs benchmarks and writes each result into RESULTS as it comes.

    Args:
        names: keys of RUNS.
    """
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    commit = git_commit(ROOT, ["benchmarks/results", "docs"])
    for name in names:
        _, command = RUNS[name]
        print(f"python -m {' '.join(command)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if not done.stdout.strip():
            raise SystemExit(f"benchmarks.data_figures: {name} printed nothing (exit code {done.returncode})")
        results[name] = {
            "command": f"python -m {' '.join(command)}",
            "lines": done.stdout.strip().splitlines(),
            "reached": done.returncode == 0,
            "seconds": round(time.monotonic() - start),
            **commit,
            "machine": machine(),
        }
        write_json(RESULTS, results)


def table() -> str:
    """The results as Markdown: a section for each benchmark that was run."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    sections = []
    for name, (title, _) in RUNS.items():
        if name in results:
            found = results[name]
            said = "targets reached" if found["reached"] else "**targets missed**"
            about = f"`{found['command']}`, commit {str(found['commit'])[:7]}, {found['seconds']} s: {said}."
            sections.append("\n".join([f"### {title}", "", about, "", *found["lines"], ""]))
    return "\n".join(sections)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_figures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all of them if left out")
    parser.add_argument("--table", action="store_true", help="write the page and measure nothing")
    args = parser.parse_args()
    if unknown := sorted({*args.names} - {*RUNS}):
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(RUNS)}")
    if not args.table:
        measure(args.names or list(RUNS))
        return
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCS.write_text(f"{before}{MARKS[0]}\n{table()}{MARKS[1]}{after}", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
