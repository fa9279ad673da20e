"""What is remembered of a row once its text is gone, and the shingles of the few rows that are compared; both read a row group at a time.

In: the rows of one group. Out: arrays, small enough to hold those of millions of rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from stages.core.parallel import cores, in_order
from stages.core.params import Dedupe
from stages.core.progress import progress
from stages.core.records import Row, rows_of
from stages.core.tables import group_sizes, read_group
from stages.core.words import Hashes, Lengths, run_hashes, word_hashes
from stages.dedupe.contamination import Contamination, evaluation_index
from stages.dedupe.signatures import Bands, Shingles, band_hashes, rows_per_band, signatures
from stages.dedupe.texts import texts_of


@dataclass
class Facts:
    """Of many rows, in the order of the file.

    Attributes:
        ids: their ids.
        exact: [rows] uint64, equal for exact duplicates; among a million rows two others are equal with a probability of 3e-8.
        prompt: [rows] uint64, a hash of the prompt's words; 0 of a labelled row.
        label: [rows] uint64, a hash of the label; 0 of a row without one.
        prompts: [rows, bands] uint32, the prompt's buckets.
        wholes: the whole text's buckets, or None where they are the prompt's in every row.
        contaminated: the evaluation item that a row contains, by the row's number.
    """

    ids: list[str]
    exact: Hashes
    prompt: Hashes
    label: Hashes
    prompts: Bands
    wholes: Bands | None
    contaminated: dict[int, Contamination]


@dataclass(frozen=True)
class Sets:
    """The shingle sets of some rows, end to end.

    Attributes:
        shingles: [shingles] uint32, of each row ascending and distinct.
        starts: [rows] int64, where each row's begin.
        counts: [rows] int64, how many each has.
    """

    shingles: Shingles
    starts: Lengths
    counts: Lengths

    def taken(self, rows: npt.NDArray[np.int64]) -> "Sets":
        """The sets of some rows, in their order; the shingles stay where they are."""
        return Sets(self.shingles, self.starts[rows], self.counts[rows])


def read_facts(source: Path, general: Path, params: Dedupe, seed: int) -> Facts:
    """The facts of all rows of a file, read by as many processes as there are cores.

    Args:
        source: rows.
        general: the folder of the evaluation items.
        params: the section `dedupe`.
        seed: of MinHash.

    Returns:
        The facts.
    """
    groups = range(len(group_sizes(source)))
    read = partial(_group_facts, source, general, params, seed)
    parts = list(progress(in_order(read, groups, _workers(len(groups))), "dedupe", total=len(groups), unit="group"))
    parts = parts or [facts_of([], general, params, seed)]
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    wholes = None
    if any(part.wholes is not None for part in parts):
        wholes = np.concatenate([part.prompts if part.wholes is None else part.wholes for part in parts])
    return Facts(
        [name for part in parts for name in part.ids],
        np.concatenate([part.exact for part in parts]),
        np.concatenate([part.prompt for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.prompts for part in parts]),
        wholes,
        {int(start) + number: match for start, part in zip(starts, parts, strict=False) for number, match in part.contaminated.items()},
    )


def read_sets(source: Path, wanted: npt.NDArray[np.int64], shingle_words: int) -> tuple[Sets, Sets, Sets]:
    """The shingle sets of some rows of a file.

    Args:
        source: rows.
        wanted: [rows] int64, their numbers in the file, ascending.
        shingle_words: words of a shingle.

    Returns:
        Those of the prompts, of the whole texts (the same object where no row's differ) and of the answers, in the order of `wanted`.
    """
    firsts = np.cumsum([0, *group_sizes(source)])
    edges = np.searchsorted(wanted, firsts)
    asked = [(group, wanted[start:stop] - firsts[group]) for group, (start, stop) in enumerate(pairwise(edges.tolist())) if start < stop]
    read = partial(_group_sets, source, shingle_words)
    parts = list(progress(in_order(read, asked, _workers(len(asked))), "dedupe: verify", total=len(asked), unit="group"))
    prompts, answers = (_sets([part[view] for part in parts]) for view in ("prompt", "answer"))
    unlike = any("whole" in part for part in parts)
    return prompts, _sets([part.get("whole", part["prompt"]) for part in parts]) if unlike else prompts, answers


def shingled(sequences: Iterable[list[str]], shingle_words: int) -> tuple[Shingles, Lengths]:
    """The distinct shingles of each sequence of words.

    Args:
        sequences: words, none empty.
        shingle_words: words of a shingle; a shorter sequence is one shingle.

    Returns:
        [shingles] uint32, ascending within a sequence, and [sequences] int64, how many each has.
    """
    hashes, counts = run_hashes(*word_hashes(sequences), shingle_words)
    owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    keyed = np.sort((owners << np.uint64(32)) | (hashes >> np.uint64(32)))
    keyed = keyed[np.flatnonzero(np.diff(keyed, prepend=np.uint64(2**64 - 1)))] if len(keyed) else keyed
    return keyed.astype(np.uint32), np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(counts))


def _group_facts(source: Path, general: Path, params: Dedupe, seed: int, group: int) -> Facts:
    return facts_of(rows_of(read_group(source, group)), general, params, seed)


def facts_of(rows: list[Row], general: Path, params: Dedupe, seed: int) -> Facts:
    """The facts of some rows; the arguments are those of `read_facts`."""
    texts = [texts_of(row) for row in rows]
    depth = rows_per_band(params.near_threshold)

    def bands(sequences: Iterable[list[str]]) -> Bands:
        return band_hashes(signatures(*shingled(sequences, params.shingle_words), seed), depth)

    prompts = bands(text.prompt for text in texts)
    unlabelled = [number for number, text in enumerate(texts) if not text.labelled]
    wholes = None
    if unlabelled:
        wholes = prompts.copy()
        wholes[unlabelled] = bands(texts[number].whole for number in unlabelled)
    return Facts(
        [row.id for row in rows],
        np.array([text.exact for text in texts], dtype=np.uint64),
        np.array([0 if text.labelled else _digest(" ".join(text.prompt)) for text in texts], dtype=np.uint64),
        np.array([0 if row.label is None else _digest(row.label) for row in rows], dtype=np.uint64),
        prompts,
        wholes,
        evaluation_index(general.resolve(), params.eval_ngram).find([text.held for text in texts]),
    )


def _group_sets(source: Path, shingle_words: int, asked: tuple[int, npt.NDArray[np.int64]]) -> dict[str, tuple[Shingles, Lengths]]:
    group, numbers = asked
    texts = [texts_of(row) for row in rows_of(read_group(source, group).take(numbers))]
    sets = {"prompt": [text.prompt for text in texts], "answer": [text.answer for text in texts]}
    if not all(text.labelled for text in texts):
        sets["whole"] = [text.whole for text in texts]
    return {view: shingled(sequences, shingle_words) for view, sequences in sets.items()}


def _sets(parts: list[tuple[Shingles, Lengths]]) -> Sets:
    shingles, counts = zip((np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int64)), *parts, strict=True)
    together = np.concatenate(counts)
    return Sets(np.concatenate(shingles), np.cumsum(together) - together, together)


def _digest(text: str) -> int:
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1  # 0 is for none


def _workers(groups: int) -> int:
    return max(1, min(cores(), groups))
