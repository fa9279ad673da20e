"""The user's files as plain records: JSONL, JSON, CSV and Parquet under data/sources.

In: files. Out: for each row its place in the file and a dict of its columns, or what is wrong with the row.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import UserError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
BATCH_ROWS = 1000

Record = dict[str, Any]


class BadRow(Exception):
    """What was found in a row and what was expected; its place is told by whoever catches it."""


def source_files(folder: Path) -> list[Path]:
    """The data files of a folder and the folders in it, sorted; README.md, .dvc files and hidden files are passed over.

    Args:
        folder: data/sources.

    Returns:
        At least one path.

    Raises:
        UserError: there is none, or a file of another type.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.is_dir() or path.name == "README.md" or path.suffix == ".dvc":
            continue
        if not path.exists():
            raise UserError(f"{path} is a link to a file that is not there; get it with dvc checkout {path}, or remove it")
        if path.suffix.lower() not in SUFFIXES:
            kind = f"of type {path.suffix}" if path.suffix else "without a type"
            raise UserError(f"{path} is a file {kind}, expected {', '.join(SUFFIXES)}; convert it, or move it out of {folder}")
        found.append(path)
    if not found:
        raise UserError(
            f"{folder} has no data file, and data.source is files; put {', '.join(SUFFIXES)} files there and run "
            f"dvc add {folder}/YOUR_FILE (a queued experiment sees only files that were added), or set data.source: licences"
        )
    return found


def read_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    """Reads one file row by row; blank lines are no rows, and a file that cannot be read as a whole raises UserError.

    Args:
        path: a file of one of SUFFIXES.

    Yields:
        The row's place as `:LINE` or ` row N` to be put after the path, and its columns or what is wrong with it.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _jsonl(path)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix == ".csv":
        yield from _csv(path)
    else:
        yield from _parquet(path)


def _lines(path: Path) -> Iterator[str]:
    """A text file's lines with their ends, without a byte order mark."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                raise UserError(f"{path}:{number} is not UTF-8 ({found}); save the file as UTF-8") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield f":{number}", _record(json.loads(line))
        except json.JSONDecodeError as error:
            yield f":{number}", BadRow(f"is not JSON ({error.msg} at character {error.colno}), expected one object on the line")
        except (RecursionError, ValueError) as error:
            yield f":{number}", BadRow(f"is JSON that cannot be read ({error}), expected one object with text columns")


def _json(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    try:
        content = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        remedy = "rename the file to .jsonl if it has one object a line" if error.msg == "Extra data" else "mend the file"
        raise UserError(f"{path}:{error.lineno} is not JSON ({error.msg} at character {error.colno}); {remedy}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is JSON that cannot be read ({error}); expected a list of objects with text columns") from None
    if not isinstance(content, list):
        raise UserError(f"{path} holds {_kind(content)}, expected a list of objects; put the rows in a list, or use .jsonl")
    for number, item in enumerate(content, 1):
        yield f" row {number}", _record(item)


def _csv(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    csv.field_size_limit(sys.maxsize)  # the default ends a field at 131072 characters
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            place, line = f":{line}", reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = [name.strip() for name in values]
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise UserError(f"{path}{place} names the column {twice[0]!r} twice; rename one of the two")
            elif len(values) != len(header):
                found = f"has {len(values)} values where the header has {len(header)}"
                yield place, BadRow(f"{found}; put values with commas or line breaks in double quotes")
            else:
                yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{line} is not CSV ({error}); put values with commas, quotes or line breaks in double quotes") from None


def _parquet(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f" row {number}", record
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not readable as Parquet ({reason}); write it again, or fetch it again if the copy was cut off"
        ) from None


def _record(value: Any) -> Record | BadRow:
    return value if isinstance(value, dict) else BadRow(f"is {_kind(value)}, expected an object with named columns")


def _kind(value: Any) -> str:
    """A JSON value's type in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)
