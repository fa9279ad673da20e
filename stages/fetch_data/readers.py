"""The user's files as plain records: JSONL, JSON and CSV, packed or not, and Parquet.

In: files. Out: for each record its place in the file, a dict of its columns or what is wrong with it, and its raw text.
"""

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.fetch_data.bad_row import BadRow
from stages.fetch_data.parquet import read_parquet
from stages.fetch_data.sources import kind
from stages.fetch_data.streams import MAX_ROW_BYTES, chunks, lines

Record = dict[str, Any]
Read = tuple[str, Record | BadRow, str | None]
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_ROW = f"{MAX_ROW_BYTES >> 20} MiB"
_GAP = re.compile(r"[ \t\r\n]*")


def read_records(path: Path, columns: frozenset[str]) -> Iterator[Read]:
    """Reads one file row by row; blank lines are no rows, and a file that cannot be read as a whole raises UserError.

    Args:
        path: a file of sources.SUFFIXES.
        columns: those that are wanted; only Parquet can leave the others unread.

    Yields:
        The row's place as `:LINE` or ` row N` to be put after the path, its columns or what is wrong with it, and its text where the
        file has one.
    """
    name = kind(path)[0]
    if name == ".jsonl":
        yield from _jsonl(path)
    elif name == ".json":
        yield from _json(path)
    elif name == ".csv":
        yield from _csv(path)
    else:
        yield from ((place, record, None) for place, record in read_parquet(path, columns))


def _jsonl(path: Path) -> Iterator[Read]:
    parse = _Parser()
    for number, (line, length) in enumerate(lines(path), 1):
        place = f":{number}"
        if number == 1:
            if line.startswith(UTF16):
                raise UserError(f"{path} is UTF-16; save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        if length > MAX_ROW_BYTES:
            found = BadRow(f"has {length:,} bytes, expected at most {MAX_ROW} a row", "too_long")
            yield place, found, line.decode("utf-8", "backslashreplace")
            continue
        if b"\0" in line:
            yield place, BadRow("holds a NUL byte, expected text; was the file cut off by a crash?", "nul_byte"), line.decode("latin-1")
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield place, BadRow(f"{_not_utf8(error)}; save the file as UTF-8", "not_utf8"), line.decode("utf-8", "backslashreplace")
            continue
        if not text.strip():
            continue
        try:
            yield place, parse.line(text), text
        except BadRow as bad:
            yield place, bad, text


class _Parser:
    """JSON as Python reads it, but a key that comes twice in an object is an error and not the loss of the first."""

    def __init__(self) -> None:
        """Nothing was parsed."""
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> Record:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            self._twice.append(next(name for name in names if names.count(name) > 1))
        return record

    def line(self, text: str) -> Record:
        """The object that a text is; raises BadRow."""
        try:
            value, end = self._decoder.raw_decode(text, _skip(text, 0))
            if _skip(text, end) < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except json.JSONDecodeError as error:
            self._twice.clear()
            raise BadRow(f"is not JSON ({error.msg} at character {error.colno}), expected one object on the line", "not_json") from None
        except (RecursionError, ValueError) as error:
            self._twice.clear()
            raise _unreadable(error) from None
        return self._checked(value)

    def item(self, text: str, at: int) -> tuple[Record | BadRow, int]:
        """The item of a list that begins at a place, and its length; raises JSONDecodeError where none can be read."""
        self._twice.clear()
        value, end = self._decoder.raw_decode(text, at)
        try:
            return self._checked(value), end - at
        except BadRow as bad:
            return bad, end - at

    def _checked(self, value: Any) -> Record:
        if self._twice:
            name = self._twice[0]
            self._twice.clear()
            raise BadRow(f"has the key {name[:40]!r} twice in one object; remove one of the two", "duplicate_key")
        if not isinstance(value, dict):
            raise BadRow(f"is {_kind(value)}, expected an object with named columns", "not_an_object")
        return value


def _json(path: Path) -> Iterator[Read]:
    """The items of a list, read as they come: what is held is the row at hand."""
    parse = _Parser()
    text, number = _Window(path), 0
    opening = text.next()
    if opening == "{":
        raise UserError(f"{path} holds an object, expected a list of objects; put the rows in a list, or rename the file to .jsonl")
    if opening != "[":
        found = f"begins with {opening!r}" if opening else "is empty"
        raise UserError(f"{path} {found}, expected a list of objects")
    text.at += 1
    sign = "]" if text.next() == "]" else ","
    while sign == ",":
        number += 1
        record, raw = _item(parse, text, number)
        yield f" row {number}", record, raw
        sign = text.next()
        text.at += 1
        text.next()
    if sign != "]":
        raise text.error(f"expected a comma or the end of the list after row {number}", text.at - 1)
    if text.next():
        raise text.error("text after the end of the list", text.at)


def _item(parse: _Parser, text: "_Window", number: int) -> tuple[Record | BadRow, str]:
    """The item at hand and its text; the window grows until it holds it."""
    while True:
        try:
            record, length = parse.item(text.held, text.at)
            if text.at + length < len(text.held) or not text.more():  # what ends where the window ends may go on
                break
        except json.JSONDecodeError as error:
            place = error.pos - text.at
            if len(text.held) - text.at > MAX_ROW_BYTES or not text.more():
                raise text.error(f"{error.msg} in row {number}", text.at + place) from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"{text.path} row {number} {_unreadable(error)}") from None
    raw = text.held[text.at : text.at + length]
    text.at += length
    return record, raw


class _Window:
    """The part of a JSON file that is held: `held`, and `at`, the place in it up to which it was read."""

    def __init__(self, path: Path) -> None:
        """Opens the file; nothing is held."""
        self.path, self.held, self.at = path, "", 0
        self._chunks = chunks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._lines = 1  # up to where `held` begins

    def more(self) -> bool:
        """Lets go of what was read and holds as much again, at least a chunk; False at the end of the file."""
        self._lines += self.held.count("\n", 0, self.at)
        held, wanted, got = [self.held[self.at :]], len(self.held) - self.at, 0
        self.at = 0
        for chunk in self._chunks:
            try:
                held.append(self._decoder.decode(chunk))
            except UnicodeDecodeError as error:
                remedy = "save it as UTF-8"
                raise UserError(f"{self.path} {_not_utf8(error)} of a part of it after line {self._lines}; {remedy}") from None
            got += len(held[-1])
            if got > wanted:
                break
        self.held = "".join(held)
        return got > 0

    def next(self) -> str:
        """The next character that is no white space, at `at`; empty at the end of the file."""
        while True:
            self.at = _skip(self.held, self.at)
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def error(self, found: str, at: int) -> UserError:
        """The file cannot be read on."""
        line = self._lines + self.held.count("\n", 0, at)
        return UserError(f"{self.path}:{line} is not JSON ({found}, no row may have more than {MAX_ROW}); mend the file")


def _csv(path: Path) -> Iterator[Read]:
    csv.field_size_limit(sys.maxsize)  # the default ends a field at 131072 characters
    since = 0  # bytes since the last row ended
    line = 1

    def text() -> Iterator[str]:
        nonlocal since
        for number, (content, length) in enumerate(lines(path), 1):
            if number == 1 and content.startswith(UTF16):
                raise UserError(f"{path} is UTF-16; save it as UTF-8")
            since += length
            if since > MAX_ROW_BYTES:
                raise UserError(f"{path}:{line} begins a row of more than {MAX_ROW}; is a double quote not closed?")
            yield content.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape") + "\n"

    reader = csv.reader(text(), strict=True)
    header: list[str] | None = None
    try:
        for values in reader:
            place, line, since = f":{line}", reader.line_num + 1, 0
            if not values:
                continue
            damage = _damage(values)
            if header is None:
                header = [name.strip() for name in values]
                twice = sorted({name for name in header if header.count(name) > 1})
                if damage or twice:
                    found = f"names the column {twice[0][:40]!r} twice; rename one of the two" if twice else str(damage)
                    raise UserError(f"{path}{place} {found}")
            elif damage:
                yield place, damage, ",".join(values)
            elif len(values) != len(header):
                found = f"has {len(values)} values where the header has {len(header)}"
                remedy = "put values with commas or line breaks in double quotes"
                yield place, BadRow(f"{found}; {remedy}", "wrong_columns"), ",".join(values)
            else:
                yield place, dict(zip(header, values, strict=True)), None
    except csv.Error as error:
        raise UserError(f"{path}:{line} is not CSV ({error}); put values with commas, quotes or line breaks in double quotes") from None


def _damage(values: list[str]) -> BadRow | None:
    """What is no text among a CSV row's values."""
    for value in values:
        if "\0" in value:
            return BadRow("holds a NUL byte, expected text; was the file cut off by a crash?", "nul_byte")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return BadRow(f"is not UTF-8 (byte 0x{ord(value[error.start]) - 0xDC00:02x}); save the file as UTF-8", "not_utf8")
    return None


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no white space of JSON."""
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def _unreadable(error: Exception) -> BadRow:
    """JSON that Python's limits stop: numbers of more than 4300 digits, nesting of more than a thousand levels."""
    if isinstance(error, RecursionError):
        return BadRow("is JSON that cannot be read (it is nested too deep), expected one object with text columns", "not_json")
    return BadRow(f"is JSON that cannot be read ({str(error).split(';')[0]}), expected one object with text columns", "huge_number")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start + 1})"


def _kind(value: Any) -> str:
    """A JSON value's type in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)
