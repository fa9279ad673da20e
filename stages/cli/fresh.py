"""`luthier fresh`: whether dvc.lock stands for the data, code and parameters as they are now. In: the repository. Out: one line.

`dvc repro --dry` prints what it would run and exits with 0 all the same, so it cannot hold a gate.
"""

import argparse
from typing import TYPE_CHECKING

from stages.core.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --allow-missing."""
    parser.add_argument("--allow-missing", action="store_true", help="outs that are not on this machine count as they are locked (for CI)")


def run(args: argparse.Namespace) -> None:
    """Says that nothing is to be done, or what is.

    Args:
        args: `allow_missing`.

    Raises:
        UserError: stages are stale.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        stale = stale_stages(repo, args.allow_missing)
        total = len(repo.index.stages)
    if stale:
        raise UserError(f"{', '.join(stale)} would run: not every result stands for the inputs as they are now; run: dvc repro")
    print(f"nothing to do: all {total} stages are up to date")


def stale_stages(repo: "Repo", allow_missing: bool) -> list[str]:
    """The stages whose command, deps, params or outs differ from dvc.lock, in the order of the pipeline.

    A stage after a stale one counts only if its own inputs differ already: whether it runs depends on what the first brings.

    Args:
        repo: the DVC repository.
        allow_missing: take deps and outs that are not on disk as dvc.lock has them.

    Returns:
        Their names; every stage where dvc.lock is missing.
    """
    from dvc.repo.reproduce import get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    with repo.lock:
        # what Repo.reproduce asks of each stage, without running or printing anything
        return [stage.addressing for stage in plan_repro(graph) if stage.changed(allow_missing, list(graph.successors(stage)))]
