"""Where a result comes from: git commit, package versions, machine."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def git_commit(folder: Path = Path("."), aside: Sequence[str] = ()) -> dict[str, Any]:
    """The checked-out commit and whether tracked files differ from it; both None outside a repository with commits.

    Args:
        folder: any folder of the repository.
        aside: paths from its root whose differences do not count, such as results.

    Returns:
        `commit` (40 hex digits or None) and `dirty` (bool or None).
    """
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        return {"commit": None, "dirty": None}
    rest = [":/", *(f":(top,exclude){path}" for path in aside)]
    return {"commit": head, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", *rest))}


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, or None where it fails or git is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(packages: list[str]) -> dict[str, str | None]:
    """The installed version of each package, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """The machine without its name: processor, cores this process may use, memory in bytes, Python, operating system."""
    import psutil

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's model name as /proc/cpuinfo gives it, or the platform's word."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
