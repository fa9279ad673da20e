"""The user's files: which of a folder are data, and of what kind each is.

In: data/sources. Out: paths in order, each a regular file of a known type.
"""

import os
from pathlib import Path

from stages.core.errors import UserError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
PACKED = (".gz", ".xz", ".zst")


def kind(path: Path) -> tuple[str, str]:
    """A file's type and its packing, `(".jsonl", ".gz")`, the latter empty for most."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        return (suffixes[0] if len(suffixes) == 2 else "", suffixes[-1])
    return (suffixes[-1] if suffixes else "", "")


def source_files(folder: Path) -> list[Path]:
    """The data files of a folder and the folders in it, sorted; README.md, .dvc files and hidden files are passed over.

    Links are followed, so that linked data is not passed over in silence.

    Args:
        folder: data/sources.

    Returns:
        At least one path.

    Raises:
        UserError: there is none, a link that leads nowhere or in a circle, or a file that is of another type or no file.
    """
    found = sorted(path for path in _walk(folder) if path.name != "README.md" and path.suffix != ".dvc")
    for path in found:
        if not path.exists():
            raise UserError(f"{path} is a link to a file that is not there; get it with dvc checkout {path}, or remove it")
        if not path.is_file():  # to open a pipe would wait for a writer for ever
            raise UserError(f"{path} is a device, pipe or socket, expected a file; move it out of {folder}")
        name, packed = kind(path)
        if name not in SUFFIXES:
            found_kind = f"of type {name}{packed}" if name or packed else "without a type"
            expected = f"{', '.join(SUFFIXES)}, the first three also with {', '.join(PACKED)} behind"
            raise UserError(f"{path} is a file {found_kind}, expected {expected}; convert it, or move it out of {folder}")
        if name == ".parquet" and packed:
            raise UserError(f"{path} is a packed Parquet file, and Parquet is packed within; unpack it")
    if not found:
        raise UserError(
            f"{folder} has no data file, and data.source is files; put {', '.join(SUFFIXES)} files there and run "
            f"dvc add {folder}/YOUR_FILE (a queued experiment sees only files that were added), or set data.source: licences"
        )
    return found


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder that is not hidden, through links; a folder that is linked from within itself is an error."""

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        way = [os.path.realpath(part) for part in (Path(place), *Path(place).parents) if part.is_relative_to(folder)]
        for name in folders:
            target = os.path.realpath(os.path.join(place, name))
            if any(part == target or part.startswith(f"{target}{os.sep}") for part in way):
                raise UserError(f"{place}/{name} is a link to a folder that it lies in; remove it")
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return files
