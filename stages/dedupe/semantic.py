"""Rows that say the same in other words. In: the vectors of the user's embedding model. Out: pairs of rows, paraphrases of items.

Above EXACT_ROWS of core/cells.py neighbours are looked for in cells, and a pair can be missed; the cosine of one that is found is exact.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.core.cells import cells
from stages.core.errors import UserError
from stages.core.words import Hashes

MAX_ALIKE = 64  # rows with which a row is paired, the smallest first, so that the one that stays is among them
BLOCK_ROWS = 4_096  # compared with the items, or as pairs, at once
ROUNDING = 1e-6  # of a cosine in single precision

Numbers = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Vectors:
    """What local_models wrote, in the order of its rows.

    Attributes:
        prompts: [rows, dimensions] float16, of length one or zero.
        wholes: of prompt and answer; of a labelled row the prompt's.
        answers: zero for a labelled row.
        items: [texts, dimensions] float16, of the evaluation items.
        names: task and id of each of those texts.
    """

    prompts: Matrix
    wholes: Matrix
    answers: Matrix
    items: Matrix
    names: list[tuple[str, str]]


@dataclass(frozen=True)
class Paraphrase:
    """The evaluation item that a row is nearest to, and the cosine."""

    task: str
    item: str
    cosine: float


@dataclass
class Semantic:
    """What `find_semantic` found; rows are told by their place in the order of ids.

    Attributes:
        repeats: of a row to drop, the kept row it repeats and the cosine of their whole texts.
        joined: pairs of rows of one cluster.
    """

    repeats: dict[int, tuple[int, float]] = field(default_factory=dict)
    joined: list[tuple[int, int]] = field(default_factory=list)


def read_vectors(folder: Path, rows: int) -> Vectors | None:
    """Reads what local_models wrote.

    Args:
        folder: data/local_models/vectors.
        rows: how many there must be.

    Returns:
        The vectors, not yet in memory; None where no embedding model is asked for.

    Raises:
        UserError: they are of other rows.
    """
    if json.loads((folder / "models.json").read_text(encoding="utf-8"))["embedding"] is None:
        return None
    views = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("prompts", "wholes", "answers")]
    if any(len(view) != rows for view in views):
        raise UserError(f"{folder} has vectors of {len(views[0])} rows, but there are {rows}; make them again: dvc repro -f local_models")
    names = [(task, item) for task, item in json.loads((folder / "items.json").read_text(encoding="utf-8"))]
    return Vectors(views[0], views[1], views[2], np.load(folder / "items.npy"), names)


def paraphrases(vectors: Vectors, threshold: float) -> dict[int, Paraphrase]:
    """The rows that are as near to an evaluation item as the threshold, by their number.

    Args:
        vectors: of rows and items.
        threshold: cosine.

    Returns:
        Of each such row the item that prompt, answer or both together are nearest to.
    """
    if not vectors.names:
        return {}
    items = unit(vectors.items)
    found: dict[int, Paraphrase] = {}
    for start in range(0, len(vectors.prompts), BLOCK_ROWS):
        inside = slice(start, start + BLOCK_ROWS)
        for view in (vectors.prompts, vectors.wholes, vectors.answers):
            likeness = unit(view[inside]) @ items.T
            nearest = likeness.argmax(axis=1)
            cosines = likeness[np.arange(len(nearest)), nearest]
            for place in np.flatnonzero(cosines >= threshold - ROUNDING).tolist():
                number, cosine = start + place, round(float(cosines[place]), 4)
                if number not in found or cosine > found[number].cosine:
                    task, item = vectors.names[nearest[place]]
                    found[number] = Paraphrase(task, item, cosine)
    return found


def find_semantic(
    vectors: Vectors, numbers: Numbers, label: Hashes, common: npt.NDArray[np.bool_], threshold: float, seed: int, keep: bool
) -> Semantic:
    """Joins rows whose prompts or whole texts are near, and drops those whose whole text and answer are.

    Args:
        vectors: of all rows.
        numbers: [rows] int64, the numbers in `vectors` of the rows to look at, which are in order of id.
        label: [rows] uint64, a hash of the label; 0 of a row without one.
        common: [rows] bool, whether the prompt is an instruction of many rows and says nothing about their likeness.
        threshold: cosine.
        seed: of the cells.
        keep: repeats stay, and only the clusters tell of them.

    Returns:
        What was found.
    """
    pairs = list(near_pairs(unit(vectors.prompts[numbers]), np.flatnonzero(~common), threshold, seed))
    if (label == 0).any():
        pairs += near_pairs(unit(vectors.wholes[numbers]), np.arange(len(numbers)), threshold, seed)
    if not pairs:
        return Semantic()
    larger, smaller = np.unique(np.concatenate(pairs), axis=0).T
    alike: dict[int, list[tuple[int, float, bool]]] = defaultdict(list)
    found = Semantic()
    for start in range(0, len(larger), BLOCK_ROWS):
        one, other = larger[start : start + BLOCK_ROWS], smaller[start : start + BLOCK_ROWS]
        prompt, whole, answer = (
            (unit(view[numbers[one]]) * unit(view[numbers[other]])).sum(axis=1)
            for view in (vectors.prompts, vectors.wholes, vectors.answers)
        )
        near = np.where(common[one] & common[other], whole, np.maximum(prompt, whole)) >= threshold - ROUNDING
        agree = (label[one] == label[other]) & ((label[one] != 0) | (answer >= threshold - ROUNDING))
        repeat = agree & (whole >= threshold - ROUNDING)
        for place in np.flatnonzero(near).tolist():
            found.joined.append((int(one[place]), int(other[place])))
            alike[int(one[place])].append((int(other[place]), round(float(whole[place]), 4), bool(repeat[place])))
    for row in sorted(alike) if not keep else ():
        kept = [(-cosine, its) for its, cosine, repeat in alike[row] if repeat and its not in found.repeats]
        if kept:
            cosine, its = min(kept)
            found.repeats[row] = (its, -cosine)
    return found


def near_pairs(vectors: npt.NDArray[np.float32], rows: Numbers, threshold: float, seed: int) -> Iterator[Numbers]:
    """The pairs of rows whose vectors are as near as the threshold.

    Args:
        vectors: [all rows, dimensions] float32, of length one or zero.
        rows: [rows] int64, those to look at, ascending.
        threshold: cosine.
        seed: of the cells.

    Yields:
        [pairs, 2] int64, the larger row's place in `vectors` and the smaller's; of each row at most MAX_ALIKE, with the smallest rows.
    """
    if len(rows) < 2:
        return
    vectors = vectors[rows]
    for members, candidates in cells(vectors, 1, seed):
        alike = vectors[members] @ vectors[candidates].T >= threshold - ROUNDING
        alike &= members[:, None] != candidates[None, :]
        alike &= alike.cumsum(axis=1, dtype=np.int32) <= MAX_ALIKE
        one, other = np.nonzero(alike)
        both = np.stack([rows[members[one]], rows[candidates[other]]], axis=1)
        yield np.sort(both, axis=1)[:, ::-1]


def unit(vectors: Matrix) -> npt.NDArray[np.float32]:
    """Vectors in single precision, of length one again after the rounding to half precision; zero stays zero."""
    wide = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    made: npt.NDArray[np.float32] = wide / np.maximum(lengths, np.float32(1e-6))
    return made
