"""`luthier verdict`: the line that ends `make repro`. In: reports/compare.json. Out: one line, and where card and report lie."""

import argparse
from typing import Any

from stages.card.words import PROMPTS
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments."""


def run(args: argparse.Namespace) -> None:
    """Prints the verdict.

    Args:
        args: none is read.

    Raises:
        UserError: there is no comparison yet.
    """
    if not paths.COMPARE_REPORT.is_file():
        raise UserError(f"{paths.COMPARE_REPORT} is missing; run the pipeline first: make repro")
    report = read_details(paths.COMPARE_REPORT)
    print(line(report))
    if note := report.get("clean_note"):  # a report of an earlier commit has none
        print(note)
    print(f"card:   {paths.CARD}")
    print(f"report: {paths.HTML_REPORT}")


def line(report: dict[str, Any]) -> str:
    """The verdict on the domain and on forgetting in one line.

    Args:
        report: reports/compare.json.

    Returns:
        For instance `improved: accuracy 0.64 against the base's best 0.31, with examples (+0.33, 95 % interval 0.27 to 0.39, p < 0.001,
        300 items); forgetting: none`.
    """
    domain = report["domain"]
    low, high = domain["ci95"]
    p_value = "p < 0.001" if domain["p_value"] < 0.001 else f"p = {domain['p_value']:.3f}"
    evidence = f"{domain['difference']:+.2f}, 95 % interval {low:.2f} to {high:.2f}, {p_value}, {domain['items']} items"
    best = f"{domain['base']:.2f}, {PROMPTS[report['base_prompt']]}"
    scores = f"{domain['metric']} {domain['tuned']:.2f} against the base's best {best} ({evidence})"
    return f"{report['verdict']}: {scores}; forgetting: {report['forgetting']}"
