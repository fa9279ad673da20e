"""Runs of words that texts share: which of many named texts a run occurs in, and the items of the general suite.

In: word sequences, data/general. Out: an index of their runs, looked up for many sequences at once.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.errors import UserError
from stages.core.words import Hashes, run_hashes, word_hashes, words

LEAST_BITS, MOST_BITS = 16, 26  # of a table's index: 64 KiB to 64 MiB, eight times as many entries as there are hashes and more


class RunIndex:
    """The runs of `length` words of named sequences; a run that several have belongs to the first."""

    def __init__(self, sequences: list[list[str]], owners: list[int], length: int) -> None:
        """Indexes the sequences; those shorter than a run are left out.

        Args:
            sequences: words.
            owners: a number for each sequence, that a match is told with.
            length: of a run, in words.
        """
        long = [number for number, sequence in enumerate(sequences) if len(sequence) >= length]
        self.length = length
        hashes, counts = run_hashes(*word_hashes(sequences[number] for number in long), length)
        self.hashes, first = np.unique(hashes, return_index=True)
        self.owners = np.repeat(np.array([owners[number] for number in long], dtype=np.int64), counts)[first]
        self._sieve = Sieve(self.hashes)

    def longest(self, sequences: list[list[str]]) -> dict[int, tuple[int, int]]:
        """The longest run of each sequence that is known.

        Runs that follow one another are one longer run, told with the owner of its first.

        Args:
            sequences: words.

        Returns:
            By the sequence's number, for those that have one: the owner and how many words.
        """
        long = [number for number, sequence in enumerate(sequences) if len(sequence) >= self.length]
        hashes, counts = run_hashes(*word_hashes(sequences[number] for number in long), self.length)
        hits, places = self._sieve.find(hashes)
        texts = np.repeat(np.array(long, dtype=np.int64), counts)[hits]
        starts = stretches(hits, texts)
        best: dict[int, tuple[int, int]] = {}
        for start, length in zip(starts.tolist(), np.diff(starts, append=len(hits)).tolist(), strict=True):
            number, words = int(texts[start]), length + self.length - 1
            if number not in best or words > best[number][1]:
                best[number] = (int(self.owners[places[start]]), words)
        return best


def stretches(hits: npt.NDArray[np.int64], *alike: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where stretches of consecutive numbers begin; every array of `alike` has one value in a stretch.

    Args:
        hits: [hits] int64, ascending.
        *alike: [hits] int64 each.

    Returns:
        [stretches] int64, the places in `hits` of their first members.
    """
    following = np.diff(hits, prepend=-2) == 1
    for values in alike:
        following &= np.diff(values, prepend=-1) == 0
    return np.flatnonzero(~following)


class Sieve:
    """A set of hashes, looked up for many at once: most of those that it has not fall through a table of bits first."""

    def __init__(self, known: Hashes) -> None:
        """Takes the set, [known] uint64, ascending."""
        self._known = known
        self._shift = np.uint64(64 - min(MOST_BITS, max(LEAST_BITS, len(known).bit_length() + 3)))
        self._table = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._table[known >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The places in [hashes] uint64 of those that are known, and their places in the set, both int64."""
        passed = np.flatnonzero(self._table[hashes >> self._shift])
        places = np.searchsorted(self._known, hashes[passed])
        known = self._known[np.minimum(places, len(self._known) - 1)] == hashes[passed]
        return passed[known], places[known]


def evaluation_items(folder: Path) -> Iterator[tuple[str, str, list[list[str]]]]:
    """The items of the general suite as words; see `evaluation_texts`.

    Args:
        folder: with a TASK.jsonl each.

    Yields:
        Task, item id and the words of its texts.
    """
    for task, number, texts in evaluation_texts(folder):
        yield task, number, list(map(words, texts))


def evaluation_texts(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """The items of the general suite.

    Args:
        folder: with a TASK.jsonl each.

    Yields:
        Task, item id and its texts: the context alone, and with each choice or the continuation; in order of file and line.

    Raises:
        UserError: a line is no item.
    """
    for path in sorted(folder.glob("*.jsonl")):
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                item = json.loads(text)
                task, number, texts = str(item["task"]), str(item["id"]), _texts(item)
            except (ValueError, KeyError, TypeError):
                remedy = "make it again: dvc repro -f -s fetch_general"
                raise UserError(f"{path}, line {line} is no item with id, task, context and choices or continuation; {remedy}") from None
            yield task, number, texts


def _texts(item: dict[str, Any]) -> list[str]:
    context = str(item["context"])
    return [context, *(f"{context} {ending}" for ending in (item["choices"] if "choices" in item else [item["continuation"]]))]
