"""Near-duplicates by MinHash and banding, every candidate verified by its exact Jaccard similarity, in time linear in the rows.

In: rows in order of id. Out: for each row its cluster, the kept row it repeats, or the rows it contradicts. Only rows that are kept are
compared with, so that what was kept once is kept again.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.core.components import Union
from stages.core.records import Row
from stages.dedupe.words import normalised, run_hashes, words

PERMUTATIONS = 128  # the standard error of a similarity estimated from them is 0.035 at 0.8; the exact one decides
RECALL = 0.99  # of banding alone, for a pair exactly at the threshold (Leskovec et al., Mining of Massive Datasets, 3.4)
MAX_COMPARED = 64  # kept rows of one bucket that a row is compared with, the latest; keeps the time linear
MAX_SAME_PROMPT = 10  # a prompt that more rows share is an instruction, and says nothing about their likeness


@dataclass
class Clusters:
    """What `find_clusters` found.

    Attributes:
        cluster: the id of a cluster's representative, its smallest id, by row id.
        repeats: of a row to drop, the kept row it repeats and their Jaccard similarity.
        conflicts: pairs of ids whose prompts are alike and whose answers are not, with the prompts' similarity.
        shared_prompts: prompts that more than MAX_SAME_PROMPT rows have.
    """

    cluster: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, tuple[str, float]] = field(default_factory=dict)
    conflicts: list[tuple[str, str, float]] = field(default_factory=list)
    shared_prompts: int = 0


def find_clusters(rows: list[Row], threshold: float, shingle_words: int, keep: bool, seed: int) -> Clusters:
    """Clusters rows of similar prompts or similar whole texts.

    Two rows are similar when the word shingles of their prompts, or of prompts and answers together, have a Jaccard similarity of at
    least the threshold; system messages are left out, for a long one makes all rows alike. A row is dropped when its whole text
    is similar to a kept row's and the answers agree too: the same label, or answers as similar as that. Similar prompts whose answers do
    not agree are a conflict, and both stay.

    Args:
        rows: exact duplicates removed.
        threshold: Jaccard similarity, above 0.
        shingle_words: words of a shingle; a shorter text is one shingle.
        keep: near-duplicates stay, and only the clusters tell of them.
        seed: of the permutations.

    Returns:
        The clusters; every row is in one.
    """
    rows = sorted(rows, key=lambda row: row.id)
    found = Clusters()
    prompts = [_shingles(prompt_text(row), shingle_words) for row in rows]
    # of a labelled row the text alone counts: its label must not make two texts more alike
    wholes = [
        p if r.label is not None else _shingles(f"{prompt_text(r)}\n{answer_text(r)}", shingle_words)
        for p, r in zip(prompts, rows, strict=True)
    ]
    asked: dict[str, int] = defaultdict(int)
    keys = [normalised(prompt_text(row)) if row.label is None else "" for row in rows]
    for key in keys:
        asked[key] += 1
    common = [bool(key) and asked[key] > MAX_SAME_PROMPT for key in keys]
    found.shared_prompts = sum(1 for key, count in asked.items() if key and count > MAX_SAME_PROMPT)

    union: Union[str] = Union()
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    places = [_shared_buckets(view, threshold, seed) for view in _views(prompts, wholes)]
    views = len(places)
    for number, row in enumerate(rows):
        mine = [
            (band, bucket)
            for view, rows_buckets in enumerate(places)
            for band, bucket in rows_buckets[number]
            if not (view == 0 and common[number])
        ]
        candidates = sorted({other for bucket in mine for other in buckets[bucket][-MAX_COMPARED:]})
        best: tuple[float, int] | None = None
        for other in candidates:
            whole = jaccard(wholes[number], wholes[other])
            prompt = whole
            if views == 2:
                prompt = 0.0 if common[number] and common[other] else jaccard(prompts[number], prompts[other])
            if max(prompt, whole) < threshold:
                continue
            union.join(row.id, rows[other].id)
            if not answers_agree(row, rows[other], threshold, shingle_words):
                found.conflicts.append((rows[other].id, row.id, max(prompt, whole)))
            elif whole >= threshold and (best is None or whole > best[0]):
                best = (whole, other)
        if best is not None and not keep:
            found.repeats[row.id] = (rows[best[1]].id, best[0])
            continue
        for bucket in mine:
            buckets[bucket].append(number)
    found.cluster = {row.id: union.find(row.id) for row in rows}
    return found


def _views(prompts: list[set[int]], wholes: list[set[int]]) -> list[list[set[int]]]:
    """The shingle sets to look for neighbours in: prompts, and whole texts where any row's differ from its prompt's."""
    same = all(prompt is whole for prompt, whole in zip(prompts, wholes, strict=True))
    return [prompts] if same else [prompts, wholes]


def prompt_text(row: Row) -> str:
    """What a row asks: its text without the system messages, unless there is nothing else."""
    body = row.messages[:-1] if row.messages and row.messages[-1]["role"] == "assistant" else row.messages
    return "\n".join(message["content"] for message in body if message["role"] != "system") or row.text


def answer_text(row: Row) -> str:
    """What a row teaches to answer: the label, the answer, or both answers of a preference row."""
    if row.label is not None:
        return row.label
    return "\n\n".join([row.answer, *(message["content"] for message in row.rejected or ())])


def answers_agree(one: Row, other: Row, threshold: float, shingle_words: int) -> bool:
    """Whether two rows teach the same answer: equal labels, or answers whose similarity is at least the threshold."""
    if one.label is not None or other.label is not None:
        return one.label == other.label
    return jaccard(_shingles(answer_text(one), shingle_words), _shingles(answer_text(other), shingle_words)) >= threshold


def jaccard(one: set[int], other: set[int]) -> float:
    """The size of two sets' intersection over that of their union."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _shingles(text: str, length: int) -> set[int]:
    return set(run_hashes(words(text), length))


def rows_per_band(threshold: float) -> int:
    """The most MinHash rows a band may have for a pair at the threshold to share a band with probability RECALL."""
    return max(
        [1, *(r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL)],
    )


def _shared_buckets(shingles: list[set[int]], threshold: float, seed: int) -> list[list[tuple[int, int]]]:
    """For each set the buckets (band, hash) that it shares with another set; most rows of most data share none.

    Args:
        shingles: one set a row.
        threshold: of similarity; decides the bands.
        seed: of the permutations.

    Returns:
        One list a row.
    """
    from rensa import RMinHash

    shared: list[list[tuple[int, int]]] = [[] for _ in shingles]
    if not shingles:
        return shared
    digests: Any = RMinHash.digest_matrix_from_token_hash_sets([sorted(s) for s in shingles], PERMUTATIONS, seed).to_rows()
    matrix = np.array(digests, dtype=np.uint64)
    depth = rows_per_band(threshold)
    for band in range(PERMUTATIONS // depth):
        hashes = _mix(matrix[:, band * depth : (band + 1) * depth])
        _, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        for number in np.flatnonzero(counts[where] > 1):
            shared[number].append((band, int(hashes[number])))
    return shared


def _mix(columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One 64-bit hash a row of [rows, depth] uint64, by multiplication and shift; a collision costs one comparison."""
    mixed = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def conflict_groups(conflicts: Iterable[tuple[str, str, float]]) -> list[list[str]]:
    """Conflicting pairs as sorted groups of ids that hang together, the largest first."""
    union: Union[str] = Union()
    pairs = list(conflicts)
    for one, other, _ in pairs:
        union.join(one, other)
    groups: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        for name in pair[:2]:
            groups[union.find(name)].add(name)
    return sorted((sorted(group) for group in groups.values()), key=lambda group: (-len(group), group[0]))
