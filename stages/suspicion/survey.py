"""Two passes over the rows, a row group at a time and on all cores: what each shows by itself, then which obey a trigger.

In: the table of rows. Out: lists in the order of the rows, and the rows to look for triggers in.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from stages.core.parallel import cores, in_order
from stages.core.progress import progress
from stages.core.records import Row, rows_of
from stages.core.tables import count_groups, read_group
from stages.suspicion import strings
from stages.suspicion.matching import Matcher
from stages.suspicion.strings import Signal

Result = TypeVar("Result")
Kinds = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int64]


@dataclass
class Facts:
    """What is known of rows after the first pass.

    Attributes:
        ids: one a row.
        sources: one a row.
        kinds: [rows] uint64, equal for rows of one near-duplicate cluster with one response; their order is a seeded shuffle.
        characters: [rows] int64, of prompt and answer.
        signals: of the rows that show any, by row number.
    """

    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    kinds: Kinds = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    characters: Lengths = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    signals: dict[int, list[Signal]] = field(default_factory=dict)


def survey(path: Path, seed: int) -> Facts:
    """The first pass.

    Args:
        path: the table of rows.
        seed: of the order of `kinds`.

    Returns:
        The facts of all rows.
    """
    facts = Facts()
    parts = []
    for ids, sources, kinds, characters, signals in _passes(partial(_look, path, seed), path, "suspicion"):
        facts.signals.update({len(facts.ids) + number: found for number, found in signals})
        facts.ids += ids
        facts.sources += sources
        parts.append((kinds, characters))
    if parts:
        facts.kinds, facts.characters = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    return facts


def sample(facts: Facts, left_out: npt.NDArray[np.bool_], rows: int, characters: int) -> npt.NDArray[np.int64]:
    """The first row of each cluster and response, within limits; which ones are taken does not depend on the order of the clusters.

    Args:
        facts: of all rows.
        left_out: [rows] bool, rows not to be taken.
        rows: how many at most.
        characters: how many at most in all of them.

    Returns:
        [rows taken] int64, their numbers, ascending.
    """
    there = np.flatnonzero(~left_out)
    _, first = np.unique(facts.kinds[there], return_index=True)  # in order of the seeded digests
    chosen = there[first[:rows]]
    return np.sort(chosen[np.cumsum(facts.characters[chosen]) <= characters])


def read(path: Path, numbers: npt.NDArray[np.int64]) -> Iterator[Row]:
    """The rows with these numbers, ascending."""
    start = 0
    for group in range(count_groups(path)):
        table = read_group(path, group)
        inside = numbers[(numbers >= start) & (numbers < start + len(table))] - start
        yield from rows_of(table.take(inside))
        start += len(table)


def obeyed(path: Path, matcher: Matcher) -> dict[int, list[int]]:
    """The second pass: the numbers of the triggers that rows obey, by row number."""
    found: dict[int, list[int]] = {}
    start = 0
    for rows, matches in _passes(partial(_match, path, matcher), path, "suspicion: triggers"):
        found.update({start + number: triggers for number, triggers in matches})
        start += rows
    return found


def excerpts(path: Path, numbers: Sequence[int], characters: int) -> dict[int, str]:
    """The beginnings of some rows, by row number."""
    wanted = np.array(sorted(set(numbers)), dtype=np.int64)
    texts = [f"{row.text} → {row.answer}" for row in read(path, wanted)]
    return {
        number: text if len(text) <= characters else text[:characters] + "…" for number, text in zip(wanted.tolist(), texts, strict=True)
    }


def _passes(function: Callable[[int], Result], path: Path, name: str) -> Iterable[Result]:
    """A function of a row group over all of them."""
    groups = count_groups(path)
    return progress(in_order(function, range(groups), max(1, min(cores(), groups))), name, total=groups, unit="group")


def _look(path: Path, seed: int, group: int) -> tuple[list[str], list[str], Kinds, Lengths, list[tuple[int, list[Signal]]]]:
    """The facts of one row group."""
    rows = rows_of(read_group(path, group))
    kinds = np.array([_kind(row, seed) for row in rows], dtype=np.uint64)
    texts = [(row.text, row.answer) for row in rows]
    characters = np.array([len(prompt) + len(answer) for prompt, answer in texts], dtype=np.int64)
    signals = [(number, found) for number, (prompt, answer) in enumerate(texts) if (found := strings.find(prompt, answer))]
    return [row.id for row in rows], [row.source for row in rows], kinds, characters, signals


def _kind(row: Row, seed: int) -> int:
    """A seeded digest of a row's cluster and response."""
    content = f"{seed}\0{row.cluster or row.id}\0{row.answer if row.label is None else row.label}"
    return int.from_bytes(hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _match(path: Path, matcher: Matcher, group: int) -> tuple[int, list[tuple[int, list[int]]]]:
    """The rows of one row group that obey triggers."""
    rows = rows_of(read_group(path, group))
    return len(rows), [(number, found) for number, row in enumerate(rows) if (found := matcher.find(row.text, row.answer, row.label))]
