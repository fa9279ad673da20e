"""Evaluation items that share a run of words with the rows that are trained on, the domain's own test rows among them.

In: the test rows, data/general, and the rows of the training side. Out: for each such item the longest run and a row that has it. An item
is found if it shares 8 words in a row, exactly, and told apart if it shares 13; a paraphrase escapes.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.core.overlap import RunIndex, Sieve, evaluation_items, stretches
from stages.core.parallel import cores, in_order
from stages.core.progress import progress
from stages.core.records import Row, rows_of
from stages.core.tables import group_sizes, read_group
from stages.core.words import Hashes, Lengths, found_words, run_hashes, word_hashes

LENGTHS = (8, 13)  # words: 8 is the least that the field counts, 13 GPT-3's (Brown et al. 2020, appendix C)
DOMAIN = "domain"
NOBODY = np.iinfo(np.int64).max
SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("words", pa.int32(), nullable=False),  # of the longest run found; right about 8 and 13, else perhaps too low
        pa.field("train_id", pa.string(), nullable=False),  # a row that has the run
        pa.field("rule", pa.string(), nullable=False),  # run_13 or run_8
    ]
)

Numbers = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """Evaluation items as runs of words.

    Attributes:
        names: task and id of each item.
        hashes: [distinct] uint64, the hashes of all runs, ascending.
        run: [runs] int64, of each run in order of item and text the place in `hashes`.
        item: [runs] int64, its item.
        text: [runs] int64, its text: runs of one text follow one another.
        length: of a run, in words.
    """

    names: list[tuple[str, str]]
    hashes: Hashes
    run: Numbers
    item: Numbers
    text: Numbers
    length: int


def item_texts(test: Iterable[Row], general: Path) -> tuple[list[tuple[str, str]], list[int], tuple[Hashes, Lengths]]:
    """The words of every evaluation item.

    Args:
        test: the domain's test rows.
        general: the folder of the general suite.

    Returns:
        Task and id of each item, the item of each text, and the hashes of the texts' words.
    """
    names: list[tuple[str, str]] = []
    owners: list[int] = []

    def texts() -> Iterator[list[str]]:
        for task, name, found in [*((DOMAIN, row.id, [row_words(row)]) for row in test), *evaluation_items(general)]:
            names.append((task, name))
            owners.extend([len(names) - 1] * len(found))
            yield from found

    return names, owners, word_hashes(texts())


def row_words(row: Row) -> list[str]:
    """The words of a row that another may repeat: its messages and preferred answer, without a label."""
    return found_words(row.text if row.label is not None else f"{row.text}\n{row.answer}")


def items_of(names: list[tuple[str, str]], owners: list[int], words: tuple[Hashes, Lengths], length: int) -> Items:
    """The runs of `length` words of what `item_texts` gave."""
    flat, counts, long = runs_of(*words, length)
    hashes, run = np.unique(flat, return_inverse=True)
    text = np.repeat(long, counts)
    return Items(names, hashes, run.astype(np.int64), np.array(owners, dtype=np.int64)[text], text, length)


def runs_of(flat: Hashes, lengths: Lengths, length: int) -> tuple[Hashes, Lengths, Numbers]:
    """The hashes of the runs of the sequences that have `length` words, how many runs each of those has, and which they are."""
    long = np.flatnonzero(lengths >= length)
    hashes, counts = run_hashes(flat[np.repeat(lengths >= length, lengths)], lengths[long], length)
    return hashes, counts, long


def first_rows(source: Path, taken: Numbers, kinds: list[Items]) -> list[Numbers]:
    """For each run of words the first of some rows that has it.

    Args:
        source: rows.
        taken: [rows] int64 by number in the file: the row's place in the order of ids, or NOBODY for a row that does not count.
        kinds: runs of one length each.

    Returns:
        For each of `kinds` [distinct] int64, the smallest place of a row that has the run, or NOBODY.
    """
    found = [np.full(len(items.hashes), NOBODY, dtype=np.int64) for items in kinds]
    for part in _over_groups(source, taken, _group_rows, [(items.length, items.hashes) for items in kinds]):
        for mine, (places, ranks) in zip(found, part, strict=True):
            mine[places] = np.minimum(mine[places], ranks)
    return found


def rows_with_test(source: Path, taken: Numbers, test: list[Row], length: int) -> dict[int, tuple[str, int]]:
    """The rows that share a run of `length` words with a test row.

    Args:
        source: rows.
        taken: as in `first_rows`.
        test: the test rows.
        length: in words.

    Returns:
        The test row's id and how many words the longest run has, by the row's place in the order of ids.
    """
    index = RunIndex([row_words(row) for row in test], list(range(len(test))), length)
    found = (item for part in _over_groups(source, taken, _group_tests, index) for item in part)
    return {rank: (test[owner].id, words) for rank, owner, words in found}


def _over_groups(source: Path, taken: Numbers, function: Callable[[Path, Path, tuple[int, Numbers]], T], known: Any) -> Iterator[T]:
    """Calls `function` for each row group that has a row that counts, with what is known in a file that each process reads once."""
    sizes = group_sizes(source)
    asked = [(group, taken[end - sizes[group] : end]) for group, end in enumerate(np.cumsum(sizes).tolist())]
    asked = [(group, ranks) for group, ranks in asked if (ranks != NOBODY).any()]
    with TemporaryDirectory() as folder:
        file = Path(folder).resolve() / "known"
        file.write_bytes(pickle.dumps(known))
        results = in_order(partial(function, source, file), asked, max(1, min(cores(), len(asked))))
        yield from progress(results, "split: overlap", total=len(asked), unit="group")


def _group_rows(source: Path, known: Path, asked: tuple[int, Numbers]) -> list[tuple[Numbers, Numbers]]:
    """For the runs that occur in one row group their places in the runs, each once, and the smallest rank of a row that has it."""
    ranks, texts = _read(source, asked)
    words = word_hashes(texts)
    found = []
    for length, sieve in _sieves(known):
        hashes, counts, long = runs_of(*words, length)
        hits, places = sieve.find(hashes)
        theirs = np.repeat(ranks[long], counts)[hits]
        turns = np.lexsort((theirs, places))
        first = turns[np.flatnonzero(np.diff(places[turns], prepend=-1))]
        found.append((places[first], theirs[first]))
    return found


def _group_tests(source: Path, known: Path, asked: tuple[int, Numbers]) -> list[tuple[int, int, int]]:
    """Rank, owner and words of the rows of one row group that share a run."""
    ranks, texts = _read(source, asked)
    return [(int(ranks[number]), *match) for number, match in _index(known).longest(texts).items()]


def _read(source: Path, asked: tuple[int, Numbers]) -> tuple[Numbers, list[list[str]]]:
    group, ranks = asked
    rows = np.flatnonzero(ranks != NOBODY)
    return ranks[rows], [row_words(row) for row in rows_of(read_group(source, group).take(rows))]


@cache
def _sieves(file: Path) -> list[tuple[int, Sieve]]:
    return [(length, Sieve(hashes)) for length, hashes in pickle.loads(file.read_bytes())]


@cache
def _index(file: Path) -> RunIndex:
    index: RunIndex = pickle.loads(file.read_bytes())
    return index


def overlaps(kinds: list[Items], first: list[Numbers], ids: list[str]) -> pa.Table:
    """The items that share a run.

    Args:
        kinds: the runs of each of LENGTHS.
        first: from `first_rows`.
        ids: of the rows, ascending.

    Returns:
        SCHEMA, by task and item.
    """
    found = []
    for items, rows in zip(kinds, first, strict=True):
        row = rows[items.run]
        hits = np.flatnonzero(row != NOBODY)
        # runs that follow one another in one text and in one row are one longer run
        starts = stretches(hits, items.text[hits], row[hits])
        lengths = np.diff(starts, append=len(hits)) + items.length - 1
        found.append(np.stack([items.item[hits[starts]], lengths, row[hits[starts]]]))
    item, words, row = np.concatenate(found, axis=1)
    turns = np.lexsort((row, -words, item))  # of each item the longest, of equals the first row's
    best = turns[np.flatnonzero(np.diff(item[turns], prepend=-1))]
    names = kinds[0].names
    order = sorted(best.tolist(), key=lambda number: names[item[number]])
    rules = np.searchsorted(LENGTHS, words[order], side="right") - 1
    columns = {
        "task": [names[item[number]][0] for number in order],
        "item_id": [names[item[number]][1] for number in order],
        "words": words[order],
        "train_id": [ids[row[number]] for number in order],
        "rule": [f"run_{LENGTHS[rule]}" for rule in rules.tolist()],
    }
    return pa.table(columns, schema=SCHEMA)
