"""`luthier clean-work`: gives the disk of .work back. In: .work/STAGE/KEY, dvc.lock. Out: a line for each work dir removed.

Only what nobody will want goes: a run whose result is published and up to date, or one that nobody touched for days. A run in progress and
one that was stopped lately, which `dvc repro` would resume, stay.
"""

import argparse
import fcntl
import shutil
import time
from pathlib import Path

from stages.core.errors import UserError
from stages.core.runs import digest, stage_inputs, work_root

SECONDS_A_DAY = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --days."""
    parser.add_argument("--days", type=float, default=7, help="a stopped run may be resumed for so long (default: 7)")


def run(args: argparse.Namespace) -> None:
    """Removes work dirs.

    Args:
        args: `days`.
    """
    from dvc.repo import Repo

    from stages.cli.fresh import stale_stages

    freed = 0
    with Repo() as repo:
        made = {stage.addressing for stage in repo.index.stages} - set(stale_stages(repo, allow_missing=False))
    for folder in sorted(work_root().glob("*/*/")):
        stage, key = folder.parts[-2:]
        files = [path for path in folder.rglob("*") if path.is_file()]
        idle = time.time() - max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        why = "finished" if stage in made and _key(stage) == key else f"idle for {idle / SECONDS_A_DAY:.0f} days"
        size = sum(path.stat().st_size for path in files)
        if (why == "finished" or idle > args.days * SECONDS_A_DAY) and _remove(folder):
            freed += size
            print(f"removed {stage}/{key}: {why}, {size / 2**20:.0f} MiB")
    print(f"{freed / 2**20:.0f} MiB freed")


def _key(stage: str) -> str | None:
    """The key that the stage has now, or None where an input is missing."""
    try:
        return digest(stage_inputs(stage))
    except UserError:
        return None


def _remove(folder: Path) -> bool:
    """Removes a work dir unless a process holds it."""
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
        return True
