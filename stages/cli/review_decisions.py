"""data/decisions.csv as the review page writes it: whole or not at all, whatever happens, and every other decision as it was.

In: one decision at a time. Out: the file, always as `read_decisions` reads it. Two reviewers at once wait for each other.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from stages.core.errors import UserError
from stages.label_check.decisions import ACTIONS, COLUMNS, Decision, read_decisions

MAX_CHARACTERS = 1000  # of a reason or a name
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would run (OWASP, CSV injection)


class DecisionFile:
    """The decisions of a file, and how to take the last ones back."""

    def __init__(self, path: Path) -> None:
        """Remembers where the file lies; it is made with the first decision."""
        self.path = path
        self._undo: list[tuple[str, str]] = []  # the row, and its line before

    def all(self) -> dict[str, Decision]:
        """The decisions by row id; a UserError tells what is wrong with the file."""
        return {decision.id: decision for decision in read_decisions(self.path)} if self.path.is_file() else {}

    def decide(self, row_id: str, action: str, label: str, who: str, why: str) -> Decision:
        """Writes a decision, in place of an earlier one about the row.

        Args:
            row_id: of the row.
            action: keep, drop or relabel.
            label: the new label; empty but for relabel.
            who: decides.
            why: in words, may be empty.

        Returns:
            The decision, as it can be read now.

        Raises:
            UserError: it is no decision that `read_decisions` would accept, or the file is not as it should be.
        """
        who, why = cell(who), cell(why)
        if action not in ACTIONS:
            raise UserError(f"the action is '{action}', expected one of {', '.join(ACTIONS)}")
        if not who:
            raise UserError("nobody decides; write your name")
        if (action == "relabel") != bool(label):
            raise UserError("a relabelling needs a label, and nothing else has one")
        if label != " ".join(label.split()):
            raise UserError(f"the label {label!r} has spaces or line breaks that the file cannot hold; change it in data/sources")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._changing() as lines:
            before = lines.pop(row_id, "")
            lines[row_id] = _line([row_id, action, who, now, why, label])
        self._undo.append((row_id, before))
        return self.all()[row_id]

    def undo(self) -> str | None:
        """Takes back the last decision of this page, and brings back the one before it about the same row.

        Returns:
            The row's id, or None where nothing is left to undo.
        """
        if not self._undo:
            return None
        row_id, before = self._undo[-1]
        with self._changing() as lines:
            lines.pop(row_id, None)
            if before:
                lines[row_id] = before
        self._undo.pop()
        return row_id

    @contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """The lines of the file by row id, to be changed, and written afterwards by an atomic rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of the folder: the file itself is another one after each change
            self.all()  # a file with a mistake in it is not touched
            lines = _lines(self.path)
            yield lines
            part = self.path.with_name(f".{self.path.name}.part")
            with part.open("w", encoding="utf-8", newline="") as file:
                file.write(_line(COLUMNS) + "".join(lines.values()))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
            os.fsync(folder)
        finally:
            os.close(folder)


def cell(text: str) -> str:
    """A text that is one line of a CSV file and no formula in a spreadsheet."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_CHARACTERS].strip()
    return f"'{plain}" if plain.startswith(FORMULA) else plain


def _line(fields: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()


def _lines(path: Path) -> dict[str, str]:
    """The records of the file, each as it is written there, by row id, in order."""
    if not path.is_file():
        return {}
    raw = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    reader = csv.reader(raw, strict=True)
    found: dict[str, str] = {}
    start = 0
    for number, fields in enumerate(reader):
        text = "".join(raw[start : reader.line_num])
        start = reader.line_num
        if number and any(field.strip() for field in fields):
            found[fields[0].strip()] = text if text.endswith("\n") else text + "\n"
    return found
