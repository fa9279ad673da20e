"""What follows from forgetting rows: what is made anew, what was released, what remains. In: ids, the checkout, git, DVC. Out: text."""

import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.cli import history
from stages.cli.cache import cached
from stages.cli.fresh import stale_stages
from stages.cli.tables import with_id
from stages.cli.trace import STEPS
from stages.core import paths
from stages.core.runs import work_root

ARTIFACT_TAGS = "adapter@*"  # as `luthier release` makes them


def tell(rows: Sequence[str], alike: Sequence[str]) -> None:
    """Prints all that follows.

    Args:
        rows: the ids that are to be forgotten.
        alike: ids of their near-duplicates that stay.
    """
    print("\nwhere they are now")
    for name, place in _places([*rows, *alike]).items():
        print(f"  {name}{', which stays' if name in alike else ''}: {place}")
    _tell_rebuild(rows)
    _tell_releases(rows)
    _tell_remains(rows)


def _places(rows: Sequence[str]) -> dict[str, str]:
    """Where each row's way ends, with the steps that learnt it."""
    places = dict.fromkeys(rows, "no stage has it; the decision holds if it comes")
    for stage, kept, rejected in STEPS:
        if stage == "tokenize":
            break
        for name, path in kept.items():
            here = name if stage == "split" else f"{stage} has it, the stage after it has not run"
            places |= {row["id"]: here for row in with_id(path, *rows)}
        places |= {row["id"]: f"rejected by {stage} ({row['rule']})" for row in with_id(rejected, *rows)}
    steps: dict[str, set[int]] = defaultdict(set)
    for line in _lines(paths.TRAINED_STEPS, rows) if paths.TRAINED_STEPS.is_file() else []:
        steps[line["id"].partition("#")[0]].add(line["step"])
    learnt = {name: f", learnt in step{'s' * (len(found) != 1)} {', '.join(map(str, sorted(found)))}" for name, found in steps.items()}
    return {name: f"{place}{learnt.get(name, '')}" for name, place in places.items()}


def _lines(table: Path, rows: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a table by row id or by part of a row (`id#1`)."""
    read = pq.read_table(table)
    whole = pc.list_element(pc.split_pattern(read["id"], "#", max_splits=1), 0)
    found: list[dict[str, Any]] = read.filter(pc.is_in(whole, value_set=pc.cast(list(rows), whole.type))).to_pylist()
    return found


def _tell_rebuild(rows: Sequence[str]) -> None:
    """The stages that the decision makes stale, and those whose inputs may then have changed."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with Repo() as repo:
        stale = stale_stages(repo, allow_missing=True)
        graph = get_active_graph(repo.index.graph)
        order = [stage for stage in plan_repro(graph) if not stage.is_data_source]
        after = {stage.addressing for stage in order if any(dep.addressing in stale for dep in _upstream(graph, stage))}
        names = [stage.addressing for stage in order]
    later = [name for name in names if name in after and name not in stale]
    kept = [name for name in names if name not in after and name not in stale]
    print("\nmade anew by `dvc repro`")
    print(f"  now: {', '.join(stale) or 'nothing'}")
    print(f"  then, each whose inputs have changed: {', '.join(later) or 'nothing'}")
    print(f"  stays as it is: {', '.join(kept) or 'nothing'}")
    if not with_id(paths.DEDUPE_ROWS, *rows):
        print("  none of the rows comes as far as label_check, which applies decisions: its rows, and the adapter, stay as they are")


def _upstream(graph: Any, stage: Any) -> set[Any]:
    """All stages whose outs a stage depends on, directly or not."""
    import networkx as nx

    found: set[Any] = nx.descendants(graph, stage)
    return found


def _tell_releases(rows: Sequence[str]) -> None:
    """The released adapters, and which of the rows each was trained on."""
    tags = _git("tag", "--list", ARTIFACT_TAGS)
    print("\nreleased adapters")
    if not tags:
        print("  none")
    for tag in tags:
        lock = history.read_lock(history.commit_of(tag))
        record = cached(lock, paths.TRAINED_STEPS) or cached(lock, paths.TOKENIZED_TRAIN)
        if record is None:
            print(f"  {tag}: not known, its record of rows is not in the cache; get it: dvc fetch --all-tags")
            continue
        learnt = sorted({line["id"] for line in _lines(record, rows)})
        print(f"  {tag}: " + (f"learnt {', '.join(learnt)}; withdraw it: git tag --delete {tag}" if learnt else "learnt none of them"))


def _tell_remains(rows: Sequence[str]) -> None:
    """Where the rows' texts remain after the rebuild, with the command that erases each."""
    print("\nwhat remains until you erase it")
    sources = [row for path in (paths.RAW_ROWS, paths.RAW_REJECTED) for row in with_id(path, *rows)]
    for row in sources:
        edit = f"take it out and run: dvc add {row['source']}" if Path(row["source"]).exists() else "it comes with the package"
        print(f"  source: {row['source']} {row['origin']}; {edit}")
    if sources:
        print(
            "  as long as the source has them: data/raw, data/clean, data/dedupe, and data/label_check/rejected.parquet with the decision"
        )
    reports = sorted({file for name in rows for file in _git("grep", "-l", "--fixed-strings", name, "--", str(paths.REPORTS))})
    if reports:
        print(f"  git: {', '.join(reports)} name them; new reports do not, the history does until it is rewritten (git filter-repo)")
    print("  DVC's cache: commit the new dvc.lock, then: dvc gc --workspace (drops what other commits and tags need, too)")
    for remote, settings in _remotes().items():
        print(f"  remote {remote} ({settings['url']}): dvc gc --workspace --cloud --remote {remote}")
    if any(work_root().glob("*/*/")):
        print("  work dirs: checkpoints of earlier trainings; luthier clean-work --days 0")
    print("  copies of adapters, exports and caches elsewhere; what weights have learnt, no command takes back")


def _remotes() -> dict[str, Any]:
    """DVC's remotes by name."""
    from dvc.repo import Repo

    with Repo() as repo:
        found: dict[str, Any] = repo.config["remote"]
    return found


def _git(*arguments: str) -> list[str]:
    """What a git command prints, line by line; nothing where it finds nothing."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.splitlines()
