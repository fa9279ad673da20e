"""`luthier fresh`: whether dvc.lock stands for the data, code and parameters as they are now. In: the repository. Out: one line.

`dvc repro --dry` prints what it would run and exits with 0 all the same, so it cannot hold a gate.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stages.cli.rehash import rehash
from stages.core.errors import UserError

if TYPE_CHECKING:
    from dvc.dependency.base import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage


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
        total = sum(not stage.is_data_source for stage in repo.index.stages)
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
        return [stage.addressing for stage in plan_repro(graph) if _changed(stage, list(graph.successors(stage)), allow_missing)]


def _changed(stage: "Stage", upstream: list["Stage"], allow_missing: bool) -> bool:
    """Whether DVC would run a stage, with the one case mended that it gets wrong in a clone without data.

    A folder in which .dvc files stand for files that are not here counts for DVC as a modified folder, though the .dvc files say what is in
    it. `dvc add` of a file in data/sources makes such a folder.
    """
    if not stage.changed(allow_missing, upstream):
        return False
    deps = stage.deps
    whole = [dep for dep in deps if not (allow_missing and dep.fs_path and _holds_what_was_locked(stage.repo, dep, upstream))]
    if len(whole) == len(deps) or stage.changed_stage():
        return True
    stage.deps = whole
    try:
        return bool(stage.changed_deps(allow_missing, upstream) or stage.changed_outs(allow_missing))
    finally:
        stage.deps = deps


def _holds_what_was_locked(repo: "Repo", dep: "Dependency", upstream: list["Stage"]) -> bool:
    """Whether a folder, with the missing files that .dvc files in it stand for, has the digest of dvc.lock."""
    from dvc_data.hashfile.tree import Tree

    folder = Path(dep.fs_path)
    tracked = [out for stage in upstream for out in stage.outs if stage.is_data_source and folder in Path(out.fs_path).parents]
    missing = [out for out in tracked if not Path(out.fs_path).exists()]
    if not missing or not folder.is_dir():
        return False
    tree = rehash(repo, str(folder))[1]
    assert isinstance(tree, Tree)
    for out in missing:
        tree.add(Path(out.fs_path).relative_to(folder).parts, out.meta, out.hash_info)
    tree.digest()
    return bool(tree.hash_info == dep.hash_info)
