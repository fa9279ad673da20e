"""Checkpoints that are whole or ignored. In: tensors and documents. Out: folders with the sha256 of every file in COMPLETE.

A folder is written beside its place, synced to the disk, marked and only then renamed. The newest whole one is where a run goes on.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.files import remove, sha256_file

if TYPE_CHECKING:
    import torch

COMPLETE = "COMPLETE"
KEPT = 2
PART = ".part"


def write(folder: Path, tensors: Mapping[str, Mapping[str, "torch.Tensor"]], documents: Mapping[str, Any]) -> None:
    """Writes a folder of safetensors and JSON files, and only whole.

    Args:
        folder: the place; what stood there is replaced.
        tensors: tensors by name, by file name.
        documents: JSON values by file name; floats keep every digit.

    Raises:
        OSError: the folder cannot be written, because the disk is full, say; it names the folder.
    """
    from safetensors.torch import save

    part = folder.with_name(f"{folder.name}{PART}")
    remove(part)
    part.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            # one copy a tensor: safetensors refuses tensors that share memory, as the tables of 8-bit optimisers do
            whole = save({key: value.detach().cpu().clone().contiguous() for key, value in group.items()}, {"format": "pt"})
            (part / name).write_bytes(whole)  # not by save_file: its error for a full disk is no OSError
        for name, value in documents.items():
            (part / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        digests = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        (part / COMPLETE).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in [*part.iterdir(), part]:
            _sync(path)
        remove(folder)
        os.replace(part, folder)
        _sync(folder.parent)
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        remove(part)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fault(folder: Path) -> str | None:
    """What is wrong with a folder that `write` should have written, or None."""
    try:
        digests = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no {COMPLETE} file"
    for name, digest in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def place(root: Path, step: int) -> Path:
    """Where the checkpoint after a step lies."""
    return root / f"step-{step:08d}"


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint; a broken one is passed over with a message, a half-written one removed.

    Args:
        root: the folder of checkpoints.

    Returns:
        Its folder, or None.
    """
    for part in root.glob(f"*{PART}"):
        remove(part)
    for folder in _newest_first(root):
        broken = fault(folder)
        if broken is None:
            return folder
        sys.stderr.write(f"train: the checkpoint {folder} is passed over: {broken}\n")
    return None


def prune(root: Path) -> None:
    """Removes all but the newest checkpoints."""
    for folder in list(_newest_first(root))[KEPT:]:
        remove(folder)


def _newest_first(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("step-????????"), reverse=True)


def read(folder: Path, name: str) -> Any:
    """A JSON document of a checkpoint."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def check_room(folder: Path, needed: int) -> None:
    """Compares the free disk with what a run will write.

    Args:
        folder: where it will be written.
        needed: in bytes.

    Raises:
        UserError: there is too little room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 2**20:,.0f} MiB free, but the checkpoints and the adapter need {needed / 2**20:,.0f} MiB; "
            f"free some space (luthier clean-work) or lower train.rank"
        )
