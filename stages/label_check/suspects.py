"""The suspects: rows that a person should look at, of several kinds, and how they are written.

In: what the searches found, by row number. Out: suspects.parquet, one row for each suspicion, the worst of each kind first.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.core.records import Row
from stages.label_check.table import Table

KINDS = ("label", "mismatch", "conflict", "outlier")  # in the order a person should look at them
SUSPECTS_SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),  # within the kind
        ("kind", pa.string()),
        ("id", pa.string()),
        ("label", pa.string()),
        ("suggested", pa.string()),
        ("confidence", pa.float64()),
        ("evidence", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("neighbours", pa.list_(pa.string())),
    ]
)
MAX_MEMBERS = 20  # rows of a cluster that are compared with each other
ALIKE = 0.8  # Jaccard similarity of word sets from which two prompts ask the same, and two answers say the same


@dataclass(frozen=True)
class Suspect:
    """A row that is probably wrong.

    Attributes:
        number: of the row in the table.
        kind: one of KINDS.
        suggested: the label that the other rows speak for; None where the kind has none.
        confidence: in what the row says, 0 to 1; the lower, the worse.
        evidence: one sentence.
        neighbours: ids of rows to compare it with.
    """

    number: int
    kind: str
    suggested: str | None
    confidence: float
    evidence: str
    neighbours: tuple[str, ...] = ()


def ranked(suspects: Iterable[Suspect], table: Table) -> list[Suspect]:
    """The suspects by kind, the least confident first."""
    return sorted(suspects, key=lambda item: (KINDS.index(item.kind), item.confidence, table.ids[item.number]))


def records(suspects: list[Suspect], rows: dict[int, Row]) -> list[dict[str, Any]]:
    """The suspects as suspects.parquet holds them.

    Args:
        suspects: in order.
        rows: the suspects' rows by number.

    Returns:
        One record each, ranked within its kind.
    """
    seen: dict[str, int] = defaultdict(int)
    found = []
    for item in suspects:
        row = rows[item.number]
        seen[item.kind] += 1
        found.append(
            {
                "rank": seen[item.kind],
                "kind": item.kind,
                "id": row.id,
                "label": row.label,
                "suggested": item.suggested,
                "confidence": item.confidence,
                "evidence": item.evidence,
                "text": row.text,
                "answer": None if row.label is not None else row.answer,
                "neighbours": list(item.neighbours),
            }
        )
    return found


def conflicts(members: dict[str, list[tuple[int, Row]]]) -> tuple[list[Suspect], list[list[Row]]]:
    """Rows of one cluster that answer the same differently: other labels, or other answers to a prompt alike.

    Args:
        members: the rows of each cluster that has several, with their numbers.

    Returns:
        One suspect for each row that contradicts another, and the contradicting rows of each cluster, the largest cluster first.
    """
    suspects: list[Suspect] = []
    groups: list[tuple[str, list[Row]]] = []
    for cluster, rows in sorted(members.items()):
        against: dict[int, list[Row]] = defaultdict(list)
        compared = sorted(rows, key=lambda item: item[1].id)[:MAX_MEMBERS]
        said = [(number, row, _words(row.text), _words(row.answer)) for number, row in compared]
        for place, (number, row, prompt, answer) in enumerate(said):
            for other_number, other, other_prompt, other_answer in said[:place]:
                if row.label is not None or other.label is not None:
                    disagree = row.label is not None and other.label is not None and row.label != other.label
                else:
                    disagree = _alike(prompt, other_prompt) and not _alike(answer, other_answer)
                if disagree:
                    against[number].append(other)
                    against[other_number].append(row)
        for number, row, _, _ in said:
            if others := against.get(number):
                # the share of its cluster that agrees with it, so that the odd one out comes first
                confidence = round(1.0 - len(others) / len(said), 6)
                what = "have another label" if row.label is not None else "answer the same prompt differently"
                evidence = f"{len(others)} of {len(said) - 1} near-duplicates {what}"
                names = tuple(sorted(other.id for other in others)[:5])
                suspects.append(Suspect(number, "conflict", _commonest(others), confidence, evidence, names))
        if against:
            groups.append((cluster, [row for number, row, _, _ in said if number in against]))
    return suspects, [group for _, group in sorted(groups, key=lambda item: (-len(item[1]), item[0]))]


def _commonest(rows: list[Row]) -> str | None:
    """The label that most of the rows have."""
    labels = [row.label for row in rows if row.label is not None]
    return min(set(labels), key=lambda label: (-labels.count(label), label)) if labels else None


def _words(text: str) -> set[str]:
    return set(text.casefold().split())


def _alike(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)
