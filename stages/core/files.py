"""Files written whole or not at all, in canonical bytes, their digests, and the user-level cache they are shared in."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def cache_root() -> Path:
    """The user-level cache: $LUTHIER_CACHE, else $XDG_CACHE_HOME/luthier, else ~/.cache/luthier."""
    if root := os.environ.get("LUTHIER_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """The sha256 of a folder: of the sorted list of its files' relative paths and sha256s."""
    lines = sorted(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_path(path: Path) -> str:
    """The sha256 of a file or of a folder."""
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats of a nested structure rounded, so that equal results have equal bytes.

    Args:
        value: dicts, lists and scalars.
        digits: significant digits.

    Returns:
        The same structure, tuples as lists.

    Raises:
        ValueError: a float is NaN or infinite, which JSON has no word for.
    """
    if isinstance(value, dict):
        return {str(key): rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be written to a report")
        return float(f"{value:.{digits}g}")
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, rounded floats, two spaces of indentation and a final newline."""
    return json.dumps(rounded(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes canonical JSON; call it with a path from `outputs`."""
    path.write_text(canonical_json(value), encoding="utf-8")


def write_report(path: Path, headline: dict[str, Any], details: dict[str, Any]) -> None:
    """Writes a stage's report: `headline` at the top, `details` in a list of one.

    DVC shows every number of a report's objects in `dvc metrics diff` and `dvc exp show` and passes over lists, so the
    headline is what a reviewer sees there and the details stay readable in git.
    """
    write_json(path, {**headline, "details": [details]})


def read_details(path: Path) -> dict[str, Any]:
    """A report as `write_report` wrote it, headline and details in one dict."""
    report = json.loads(path.read_text(encoding="utf-8"))
    details = report.pop("details")[0]
    return {**details, **report}


@contextmanager
def outputs() -> Iterator[Callable[[Path], Path]]:
    """A stage's outs, all or none: yields a function from an out's path to the place where it is to be written.

    The places are siblings of the outs, so that the rename at the end is atomic; after an exception they are removed and
    the outs are as they were.
    """
    parts: dict[Path, Path] = {}

    def place(path: Path) -> Path:
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)
        parts[path] = part
        return part

    try:
        yield place
        for path, part in parts.items():
            if path.is_dir():
                remove(path)
            os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None and parts:
            error.filename = str(list(parts)[-1])  # pyarrow does not say which file it was writing
        raise
    finally:
        for part in parts.values():
            remove(part)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
