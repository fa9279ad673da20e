"""Finds an out of a commit in DVC's local cache. In: a commit and a path of dvc.yaml. Out: the file, if it is on this machine."""

from functools import cache
from pathlib import Path

from stages.cli.history import Lock


@cache
def _root() -> Path:
    from dvc.repo import Repo

    with Repo() as repo:
        return Path(repo.cache.local.path)


def cached(lock: Lock, path: Path) -> Path | None:
    """An out as a commit, or the checkout, has it.

    Args:
        lock: of the commit; of the checkout the file itself is given.
        path: the out, a single file.

    Returns:
        The file in the cache, or None where the commit has no such out or the cache no such file.
    """
    if lock.rev is None:
        return path if path.is_file() else None
    for stage in lock.stages.values():
        for out in stage.get("outs", []):
            if out["path"] == path.as_posix():
                file = _root() / out["md5"][:2] / out["md5"][2:]
                return file if file.is_file() else None
    return None
