"""Runs of words that texts share: which of many named texts a run occurs in, and the longest run of two.

In: word sequences. Out: an index of their runs, looked up for many sequences at once.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.errors import UserError
from stages.core.words import Hashes, run_hashes, word_hashes, words

_SIEVE_BITS = 22  # a table of 4 MiB that most runs of other texts do not pass


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
        self._sieve = np.zeros(1 << _SIEVE_BITS, dtype=np.bool_)
        self._sieve[self._slot(self.hashes)] = True

    def _slot(self, hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - _SIEVE_BITS)

    def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which hashes are known.

        Args:
            hashes: [runs] uint64, of runs of `length` words.

        Returns:
            [found] int64 places in `hashes`, and [found] int64 places in the index's `hashes` and `owners`.
        """
        if not len(self.hashes):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        passed = np.flatnonzero(self._sieve[self._slot(hashes)])
        places = np.minimum(np.searchsorted(self.hashes, hashes[passed]), len(self.hashes) - 1)
        known = self.hashes[places] == hashes[passed]
        return passed[known], places[known]


def longest_shared_run(one: list[str], other: list[str]) -> int:
    """How many words the longest run has that both sequences contain, in time proportional to the product of their lengths."""
    longest = 0
    before = [0] * (len(other) + 1)
    for word in one:
        here = [0] * (len(other) + 1)
        for place, its in enumerate(other):
            if word == its:
                here[place + 1] = before[place] + 1
                longest = max(longest, here[place + 1])
        before = here
    return longest


def evaluation_items(folder: Path) -> Iterator[tuple[str, str, list[list[str]]]]:
    """The items of the general suite.

    Args:
        folder: with a TASK.jsonl each.

    Yields:
        Task, item id and the words of its texts: the context alone, and with each choice or the continuation; in order of file and line.

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
            yield task, number, list(map(words, texts))


def _texts(item: dict[str, Any]) -> list[str]:
    context = str(item["context"])
    return [context, *(f"{context} {ending}" for ending in (item["choices"] if "choices" in item else [item["continuation"]]))]
