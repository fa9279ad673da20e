"""`luthier seeds`: runs that differ in nothing but the seed, taken together: the spread over seeds beside the interval over items.

In: params.yaml and reports/compare.json of commits or DVC experiments. Out: a table and three lines.
"""

import argparse
import subprocess
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages.cli import history
from stages.core import paths
from stages.core.errors import UserError

PARAMS = Path("params.yaml")
FIGURES = {"tuned": ("domain", "tuned"), "against the base": ("domain", "difference"), "general suite": ("general", "difference")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("revisions", nargs="*", help="commits, tags or experiments; without any HEAD and all of DVC's experiments")


def run(args: argparse.Namespace) -> None:
    """Prints each run and what they say together.

    Args:
        args: revisions.

    Raises:
        UserError: fewer than two seeds were run.
    """
    asked = [history.commit_of(name) for name in args.revisions] or [history.commit_of("HEAD"), *experiments()]
    wanted = shape(asked[0])
    runs = {}
    for commit in asked:
        if shape(commit) == wanted:
            runs[int(history.read_yaml(PARAMS, commit)["seed"])] = history.read_report(paths.COMPARE_REPORT, commit)
    if len(runs) < 2:
        raise UserError(
            f"one seed was run with these parameters ({', '.join(map(str, runs))}); run others: dvc exp run --queue -S seed=1,2,3, then "
            "dvc queue start"
        )
    print("\n".join(table(runs)))


def experiments() -> list[str]:
    """The commits of DVC's experiments, in order of their names."""
    done = subprocess.run(
        ["git", "for-each-ref", "--sort=refname", "--format=%(objectname)", "refs/exps"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def shape(commit: str) -> dict[str, Any]:
    """A commit's parameters that a repeat shares: all but the seed, and but `runtime`, which changes no result."""
    return {name: value for name, value in history.read_yaml(PARAMS, commit).items() if name not in ("seed", "runtime")}


def table(runs: dict[int, dict[str, Any]]) -> list[str]:
    """The lines to print.

    Args:
        runs: reports/compare.json by seed; at least two.

    Returns:
        A line a seed, and for each figure its mean, its standard deviation over the seeds and the interval over the items, both ends'
        mean.
    """
    lines = [f"{'seed':>10}  {'  '.join(f'{name:>16}' for name in FIGURES)}  verdict, forgetting"]
    for seed, report in sorted(runs.items()):
        shown = "  ".join(f"{_said(report[part][key]):>16}" for part, key in FIGURES.values())
        lines.append(f"{seed:>10}  {shown}  {report['verdict']}, {report['forgetting']}")
    for name, (part, key) in FIGURES.items():
        values = [report[part][key] for report in runs.values() if report[part][key] is not None]
        if len(values) < 2:
            continue
        said = f"{name}: mean {fmean(values):.3f}, standard deviation {stdev(values):.3f} over {len(values)} seeds"
        if key == "difference":
            ends = [fmean(report[part]["ci95"][end] for report in runs.values() if report[part]["ci95"]) for end in (0, 1)]
            said += f"; 95 % interval over the items of one run {ends[0]:+.3f} to {ends[1]:+.3f} on average"
        lines.append(said)
    return lines


def _said(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
