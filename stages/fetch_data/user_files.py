"""The user's files as rows: each file's format, the user's column names, and every bad row told with its place.

In: data/sources and the section `data.files`. Out: rows without ids and the records that are none, and what the report says of each file.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.params import Files
from stages.core.progress import progress
from stages.core.records import Rejected, Row
from stages.fetch_data.bad_row import RAW_CHARACTERS, BadRow, printable
from stages.fetch_data.formats import NEEDED, OPTIONAL, detect, missing_columns, to_row
from stages.fetch_data.readers import MAX_ROW, Record, read_records
from stages.fetch_data.sources import kind, source_files
from stages.fetch_data.streams import MAX_ROW_BYTES

BAD_ROWS_SHOWN = 5
# A cell that a spreadsheet runs when somebody opens the table there (OWASP, CSV injection); plain numbers and list dashes are none.
FORMULA = re.compile(r"[\t\r ]*(?:[=@]|[+-](?![\d.,]*\s*$|\s|[+-]))")


def read_user_files(folder: Path, params: Files, files: list[dict[str, Any]]) -> Iterator[Row | Rejected]:
    """Reads every data file of a folder, row by row.

    Args:
        folder: data/sources.
        params: the section `data.files`.
        files: gets for each file, when it was read, its `path`, `sha256`, `format`, `license`, `rows`, how many of them were `rejected`,
            the `unused_columns` of its first row, and the number of its `formula_cells`.

    Yields:
        The rows, file by file in the order of their names; with `bad_rows: reject` each record that is no row as a rejected one, whose
        only message is its raw text, up to RAW_CHARACTERS.

    Raises:
        UserError: no file, an unreadable file, a missing column, no good row, or, with `bad_rows: stop`, bad rows: the first five with
            their places and how many more.
    """
    bad: list[str] = []
    bad_count = good_count = 0  # over all files, so that one run shows the mistakes of all of them
    for path in source_files(folder):
        about: dict[str, Any] = {"path": path.as_posix(), "sha256": "", "format": params.format}
        about["license"] = licence_of(path.relative_to(folder).as_posix(), params.licenses)
        about |= {"rows": 0, "rejected": 0, "unused_columns": [], "formula_cells": 0}
        for place, result, raw in progress(_guarded(path, params, about), "fetch_data"):
            about["rows"] += 1
            if isinstance(result, Row):
                good_count += 1
                if not bad or params.bad_rows == "reject":
                    yield result
                continue
            about["rejected"] += 1
            bad_count += 1
            if len(bad) < BAD_ROWS_SHOWN:
                bad.append(f"{path}{place} {result}")
            if params.bad_rows == "reject":
                yield _rejected(path, place, result, raw)
        if about["rows"] == 0:
            raise UserError(f"{path} has no rows; fill it or remove it")
        files.append(about)
    names = [Path(file["path"]).relative_to(folder).as_posix() for file in files]
    for pattern in params.licenses:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"data.files.licenses names {pattern}, which no file below {folder} fits ({', '.join(names[:5])}); correct it")
    if bad and (params.bad_rows == "stop" or not good_count):
        more = f"; and {bad_count - len(bad)} more" if bad_count > len(bad) else ""
        raise UserError(f"{'; '.join(bad)}{more}. Mend or remove these rows and run again")


def licence_of(name: str, licences: Mapping[str, str]) -> str | None:
    """The licence of a file below data/sources: of the first pattern that it fits, None where none does."""
    return next((licence for pattern, licence in licences.items() if fnmatchcase(name, pattern)), None)


def _guarded(path: Path, params: Files, about: dict[str, Any]) -> Iterator[tuple[str, Row | BadRow, str]]:
    """A file's rows; a file that goes away or changes while it is read is an error."""
    try:
        about["sha256"] = sha256_file(path)
        before = path.stat()
        yield from _rows(path, params, about)
        after = path.stat()
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} could not be read to its end ({error.strerror}); put it back and run again") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{path} was changed while it was read; run again when it is whole")


def _rows(path: Path, params: Files, about: dict[str, Any]) -> Iterator[tuple[str, Row | BadRow, str]]:
    """Each record of a file as a row, with its raw text; the first record decides the file's format, which goes into `about`."""
    source = path.as_posix()
    format = ""
    table = kind(path)[0] == ".csv"
    for place, record, raw in read_records(path, _wanted(params)):
        if isinstance(record, BadRow):
            yield place, record, raw or ""
            continue
        if table:
            about["formula_cells"] += sum(FORMULA.match(cell) is not None for cell in record.values())
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
            row = to_row(named, format, source, place.replace(":", "line ").strip())
            said = (*row.messages, *(row.chosen or ()), *(row.rejected or ()))
            if sum(len(message["content"]) for message in said) > MAX_ROW_BYTES:
                raise BadRow(f"has more than {MAX_ROW} of text, expected at most that a row", "too_long")
            yield place, row, ""
        except BadRow as problem_of_row:
            yield place, problem_of_row, json.dumps(record, ensure_ascii=False, default=repr) if raw is None else raw


def _wanted(params: Files) -> frozenset[str]:
    """The columns that any format or the user names."""
    return frozenset({name for names in (*NEEDED.values(), *OPTIONAL.values()) for name in names} | set(params.columns.values()))


def _standard(record: Record, params: Files) -> Record:
    """A record with the user's column names replaced by the standard ones."""
    if not params.columns:
        return record
    own_names = params.columns.values()
    named = {name: value for name, value in record.items() if name not in own_names}
    return {**named, **{standard: record[own] for standard, own in params.columns.items() if own in record}}


def _rejected(path: Path, place: str, found: BadRow, raw: str) -> Rejected:
    """A record that is no row, so that it can be found and told from others."""
    message = {"role": "user", "content": printable(raw)}
    origin = place.replace(":", "line ").strip()
    row = Row("", (message,), chosen=None, rejected=None, label=None, source=path.as_posix(), origin=origin, group=None)
    evidence = {"found": printable(str(found)), "raw_characters": len(raw), "kept_characters": min(len(raw), RAW_CHARACTERS)}
    return Rejected(row, found.rule, evidence)
