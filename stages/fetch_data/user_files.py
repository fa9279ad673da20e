"""The user's files as rows: each file's format, the user's column names, and every bad row told with its place.

In: data/sources and the section `data.files`. Out: rows without ids, and what the report says of each file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.params import Files
from stages.core.progress import progress
from stages.core.records import Row
from stages.fetch_data.formats import NEEDED, OPTIONAL, detect, missing_columns, to_row
from stages.fetch_data.readers import BadRow, Record, read_records, source_files

BAD_ROWS_SHOWN = 5


def read_user_files(folder: Path, params: Files) -> tuple[list[Row], list[dict[str, Any]]]:
    """Reads every data file of a folder.

    Args:
        folder: data/sources.
        params: the section `data.files`.

    Returns:
        The rows, file by file in the order of their names, and for each file its `path`, `sha256`, `format`, `rows`, and
        `unused_columns` of its first row.

    Raises:
        UserError: no file, an unreadable file, a missing column, or bad rows: the first five with their places and how many more.
    """
    rows: list[Row] = []
    files: list[dict[str, Any]] = []
    bad: list[str] = []
    bad_count = 0  # over all files, so that one run shows the mistakes of all of them
    for path in source_files(folder):
        before = len(rows) + bad_count
        about: dict[str, Any] = {"path": path.as_posix(), "sha256": sha256_file(path), "format": params.format, "unused_columns": []}
        for place, result in progress(_rows(path, params, about), "fetch_data"):
            if isinstance(result, Row):
                rows.append(result)
            else:
                bad_count += 1
                if len(bad) < BAD_ROWS_SHOWN:
                    bad.append(f"{path}{place} {result}")
        about["rows"] = len(rows) + bad_count - before
        if about["rows"] == 0:
            raise UserError(f"{path} has no rows; fill it or remove it")
        files.append(about)
    if bad:
        more = f"; and {bad_count - len(bad)} more" if bad_count > len(bad) else ""
        raise UserError(f"{'; '.join(bad)}{more}. Mend or remove these rows and run again")
    return rows, files


def _rows(path: Path, params: Files, about: dict[str, Any]) -> Iterator[tuple[str, Row | BadRow]]:
    """Each record of a file as a row; the first record decides the file's format, which goes into `about`."""
    source = path.as_posix()
    format = ""
    for place, record in read_records(path):
        if isinstance(record, BadRow):
            yield place, record
            continue
        named = _standard(record, params)
        if not format:
            problem = missing_columns(named, params.format)
            if problem is not None:
                raise UserError(f"{path} {problem}")
            format = detect(named) or "" if params.format == "auto" else params.format
            about["format"] = format
            about["unused_columns"] = sorted(set(named) - {*NEEDED[format], *OPTIONAL[format]})
            if params.format == "auto":
                sys.stderr.write(f"fetch_data: {path} is read as {format}\n")
        try:
            yield place, to_row(named, format, source, place.replace(":", "line ").strip())
        except BadRow as problem_of_row:
            yield place, problem_of_row


def _standard(record: Record, params: Files) -> Record:
    """A record with the user's column names replaced by the standard ones."""
    own_names = params.columns.values()
    named = {name: value for name, value in record.items() if name not in own_names}
    return {**named, **{standard: record[own] for standard, own in params.columns.items() if own in record}}
