"""Writes people's decisions about rows into data/decisions.csv. In: decisions. Out: the file with them, replaced in one go."""

import csv
import fcntl
import io
import os
from collections.abc import Mapping

from stages.core import paths
from stages.core.files import outputs
from stages.label_check.decisions import COLUMNS, read_decisions


def decide(decisions: Mapping[str, Mapping[str, str]]) -> None:
    """Adds decisions at the end of the file; a row's earlier one makes room for its new one, other lines stay.

    Nothing is written where the file as it is cannot be read. Texts are written on one line each, as a line of the file is one decision.

    Args:
        decisions: by row id: `action`, `who`, `when`, `why` and, of a relabelling, `label`.
    """
    folder = os.open(paths.DECISIONS.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the file itself is replaced, so a lock on it would not hold
        read_decisions(paths.DECISIONS)
        _, *lines = csv.reader(io.StringIO(paths.DECISIONS.read_text(encoding="utf-8-sig"), newline=""))
        kept = [fields for fields in lines if fields and fields[0].strip() not in decisions]
        added = [[name, *(" ".join(decision.get(column, "").split()) for column in COLUMNS[1:])] for name, decision in decisions.items()]
        with outputs() as place, open(place(paths.DECISIONS), "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept, *added])
    finally:
        os.close(folder)
