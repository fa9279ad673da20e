"""Near-duplicates: rows that share a bucket are candidates, their exact Jaccard similarity decides, and the first of those alike stays.

In: the buckets of rows in order of id, and the shingle sets of the candidates. Out: for each row its cluster, the kept row it repeats, or
the rows it contradicts. Only rows that are kept are compared with, so that what was kept once is kept again.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from stages.core.components import Union
from stages.core.words import Hashes, spread
from stages.dedupe.facts import Sets
from stages.dedupe.signatures import Bands

MAX_COMPARED = 64  # a bucket of more rows is crowded, and of those kept in its crowded buckets a row is compared with so many
MAX_SAME_PROMPT = 10  # a prompt that more rows share is an instruction, and says nothing about their likeness
BLOCK_SHINGLES = 4_000_000  # of pairs that are compared at once

Numbers = npt.NDArray[np.int64]
Likeness = Callable[[Sets, Numbers, Numbers], npt.NDArray[np.float64]]


@dataclass
class Clusters:
    """What `find_clusters` found; rows are told by their place in the order of ids.

    Attributes:
        union: the clusters, each known by its smallest member.
        repeats: of a row to drop, the kept row it repeats and their Jaccard similarity.
        conflicts: pairs of rows whose prompts are alike and whose answers are not, with the larger similarity.
        compared: pairs whose similarity was computed.
    """

    union: Union[int] = field(default_factory=Union)
    repeats: dict[int, tuple[int, float]] = field(default_factory=dict)
    conflicts: list[tuple[int, int, float]] = field(default_factory=list)
    compared: int = 0


@dataclass(frozen=True)
class Pool:
    """The rows that are compared.

    Attributes:
        prompts: their prompts' shingle sets.
        wholes: their whole texts'.
        answers: their answers'.
        label: [rows] uint64, a hash of the label; 0 of a row without one.
        common: [rows] bool, whether more than MAX_SAME_PROMPT rows have the prompt.
        threshold: of similarity.
    """

    prompts: Sets
    wholes: Sets
    answers: Sets
    label: Hashes
    common: npt.NDArray[np.bool_]
    threshold: float

    def similar(
        self, one: Numbers, other: Numbers, likeness: Likeness
    ) -> tuple[Numbers, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Compares pairs.

        Args:
            one: [pairs] int64, places in the pool.
            other: [pairs] int64.
            likeness: `jaccard`, or `jaccard_of_few` where the pairs are of one row.

        Returns:
            Of the pairs that are alike: their numbers, the similarity of the whole texts, the larger of it and the prompts', and whether
            the answers agree: equal labels, or answers as similar as that.
        """
        whole = self._likeness(self.wholes, one, other, likeness)
        prompt = whole
        if self.prompts is not self.wholes:
            prompt = np.where(self.common[one] & self.common[other], 0.0, self._likeness(self.prompts, one, other, likeness))
        alike = np.flatnonzero(np.maximum(prompt, whole) >= self.threshold)
        one, other, whole, prompt = one[alike], other[alike], whole[alike], prompt[alike]
        agree = self.label[one] == self.label[other]
        free = np.flatnonzero(agree & (self.label[one] == 0))
        agree[free] = self._likeness(self.answers, one[free], other[free], likeness) >= self.threshold
        return alike, whole, np.maximum(prompt, whole), agree

    def _likeness(self, sets: Sets, one: Numbers, other: Numbers, likeness: Likeness) -> npt.NDArray[np.float64]:
        """The similarities; 0 of pairs whose sizes alone keep them below the threshold, for none is above the smaller over the larger."""
        first, second = sets.counts[one], sets.counts[other]
        near = np.flatnonzero(np.minimum(first, second) / np.maximum(first, second) >= self.threshold)
        found = np.zeros(len(one))
        found[near] = likeness(sets, one[near], other[near])
        return found


def shared_prompts(prompt: Hashes) -> tuple[npt.NDArray[np.bool_], int]:
    """Which rows have a prompt that more than MAX_SAME_PROMPT rows have, and how many such prompts there are.

    Args:
        prompt: [rows] uint64, a hash of the prompt; 0 where it is not asked.

    Returns:
        [rows] bool, and the number of prompts.
    """
    names, where, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    many = (counts > MAX_SAME_PROMPT) & (names != 0)
    return many[where], int(many.sum())


class Buckets:
    """Who meets whom: the pairs of the buckets that few rows share, and the crowded buckets of each row.

    Attributes:
        pairs: [pairs] uint64, the larger row's number times 2^32 plus the smaller's, ascending.
        crowded: of each row in buckets of more than MAX_COMPARED rows, those buckets.
    """

    pairs: Hashes
    crowded: dict[int, list[int]]

    def __init__(self, views: Iterable[tuple[Bands, npt.NDArray[np.bool_]]]) -> None:
        """Sorts the rows by bucket.

        Args:
            views: [rows, bands] uint32 and [rows] bool, which rows to look at, of each way of looking at a row.
        """
        self.pairs = np.zeros(0, dtype=np.uint64)
        self.crowded = defaultdict(list)
        buckets = 0
        for bands, seen in views:
            rows = np.flatnonzero(seen).astype(np.uint64)
            for band in range(bands.shape[1]):
                keyed = np.sort((bands[seen, band].astype(np.uint64) << np.uint64(32)) | rows)
                edges = np.flatnonzero(np.diff(keyed >> np.uint64(32), prepend=np.uint64(2**32), append=np.uint64(2**32)))
                sizes = np.diff(edges)
                members = keyed & np.uint64(2**32 - 1)
                few = (sizes > 1) & (sizes <= MAX_COMPARED)
                self.pairs = _distinct(np.concatenate([self.pairs, _pairs(members, edges[:-1][few], sizes[few])]))
                for start, size in zip(edges[:-1][sizes > MAX_COMPARED].tolist(), sizes[sizes > MAX_COMPARED].tolist(), strict=True):
                    for row in members[start : start + size].tolist():
                        self.crowded[row].append(buckets)
                    buckets += 1

    def rows(self) -> Numbers:
        """The rows that meet another, ascending."""
        larger, smaller = _split(self.pairs)
        return np.unique(np.concatenate([larger, smaller, np.fromiter(self.crowded, dtype=np.int64, count=len(self.crowded))]))


def find_clusters(buckets: Buckets, rows: Numbers, pool: Pool, keep: bool) -> Clusters:
    """Clusters rows of similar prompts or similar whole texts.

    Two rows are similar when the word shingles of their prompts, or of prompts and answers together, have a Jaccard similarity of at
    least the threshold; system messages are left out, for a long one makes all rows alike. A row is dropped when its whole text
    is similar to a kept row's and the answers agree too: the same label, or answers as similar as that. Similar prompts whose answers do
    not agree are a conflict, and both stay.

    Args:
        buckets: of the rows in order of id.
        rows: [rows] int64, those that meet another, ascending: `buckets.rows()`.
        pool: what is compared of them, in the same order.
        keep: near-duplicates stay, and only the clusters tell of them.

    Returns:
        The clusters.
    """
    found = Clusters()
    larger, smaller = _split(buckets.pairs)
    alike: dict[int, list[tuple[int, float, float, bool]]] = defaultdict(list)
    one, other = np.searchsorted(rows, larger), np.searchsorted(rows, smaller)
    which, *told = pool.similar(one, other, jaccard)
    for row, its, *how in zip(larger[which].tolist(), smaller[which].tolist(), *(array.tolist() for array in told), strict=True):
        alike[row].append((its, *how))
    found.compared = len(larger)

    place = dict(zip(rows.tolist(), range(len(rows)), strict=True)) if buckets.crowded else {}
    kept: dict[int, list[int]] = defaultdict(list)  # of each crowded bucket, ascending
    for row in sorted({*alike, *buckets.crowded}):
        met = [pair for pair in alike.get(row, ()) if pair[0] not in found.repeats]
        crowds = buckets.crowded.get(row, ())
        theirs = _most_met([kept[crowd][-MAX_COMPARED:] for crowd in crowds], {pair[0] for pair in met})
        if theirs:
            mine = np.full(len(theirs), place[row])
            which, *told = pool.similar(mine, np.array([place[its] for its in theirs]), jaccard_of_few)
            met += zip((theirs[number] for number in which.tolist()), *(array.tolist() for array in told), strict=True)
            found.compared += len(theirs)
        best: tuple[float, int] | None = None
        for its, whole, most, agree in sorted(met):
            found.union.join(row, its)
            if not agree:
                found.conflicts.append((its, row, most))
            elif whole >= pool.threshold and (best is None or whole > best[0]):
                best = (whole, its)
        if best is not None and not keep:
            found.repeats[row] = (best[1], best[0])
            continue
        for crowd in crowds:
            kept[crowd].append(row)
    return found


def _most_met(crowds: list[list[int]], known: set[int]) -> list[int]:
    """Of the latest rows kept in crowded buckets those in the most buckets, the latest of equals, at most MAX_COMPARED, ascending."""
    met = Counter(row for crowd in crowds for row in crowd if row not in known)
    return sorted(heapq.nlargest(MAX_COMPARED, met, key=lambda row: (met[row], row)))


def jaccard(sets: Sets, one: Numbers, other: Numbers) -> npt.NDArray[np.float64]:
    """The size of two sets' intersection over that of their union, of many pairs at once.

    Args:
        sets: of shingles.
        one: [pairs] int64, places in `sets`.
        other: [pairs] int64.

    Returns:
        [pairs] float64.
    """
    sizes = sets.counts[one] + sets.counts[other]
    shared = np.zeros(len(one), dtype=np.int64)
    blocks = np.cumsum(sizes) // BLOCK_SHINGLES
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(one)]
    for start, stop in pairwise(edges):
        # both halves ascend, and a stable sort merges such runs in one pass
        keyed = np.sort(np.concatenate([_keyed(sets, one[start:stop]), _keyed(sets, other[start:stop])]), kind="stable")
        twice = keyed[1:][keyed[1:] == keyed[:-1]] >> np.uint64(32)
        shared[start:stop] = np.bincount(twice.astype(np.int64), minlength=stop - start)
    return shared / (sizes - shared)


def _keyed(sets: Sets, rows: Numbers) -> Hashes:
    """The shingles of some rows end to end, each with the place of its row in `rows` above it, and so ascending."""
    counts = sets.counts[rows]
    places = np.repeat(np.arange(len(rows), dtype=np.uint64), counts)
    return (places << np.uint64(32)) | sets.shingles[spread(sets.starts[rows], counts)]


def jaccard_of_few(sets: Sets, one: Numbers, other: Numbers) -> npt.NDArray[np.float64]:
    """What `jaccard` gives, for pairs of one and the same row: its shingles are looked up, and nothing is sorted."""
    if not len(one):
        return np.zeros(0)
    mine = sets.shingles[sets.starts[one[0]] : sets.starts[one[0]] + sets.counts[one[0]]]
    counts = sets.counts[other]
    theirs = sets.shingles[spread(sets.starts[other], counts)]
    found = mine[np.minimum(np.searchsorted(mine, theirs), len(mine) - 1)] == theirs
    shared = np.add.reduceat(found.astype(np.int64), np.cumsum(counts) - counts)
    return shared / (len(mine) + counts - shared)


def conflict_groups(conflicts: Iterable[tuple[int, int, float]]) -> list[list[int]]:
    """Conflicting pairs as sorted groups of rows that hang together, the largest first."""
    union: Union[int] = Union()
    pairs = list(conflicts)
    for one, other, _ in pairs:
        union.join(one, other)
    groups: dict[int, set[int]] = defaultdict(set)
    for pair in pairs:
        for row in pair[:2]:
            groups[union.find(row)].add(row)
    return sorted((sorted(group) for group in groups.values()), key=lambda group: (-len(group), group[0]))


def _pairs(members: Hashes, starts: Numbers, sizes: Numbers) -> Hashes:
    """All pairs within each bucket, the larger member's number times 2^32 plus the smaller's; members ascend within a bucket."""
    earlier = spread(np.zeros(len(starts), dtype=np.int64), sizes)  # a member's place in its bucket: how many come before it
    place = spread(starts, sizes)
    later = np.repeat(place, earlier)
    first = np.repeat(np.repeat(starts, sizes), earlier) + spread(np.zeros(len(earlier), dtype=np.int64), earlier)
    return (members[later] << np.uint64(32)) | members[first]


def _distinct(values: Hashes) -> Hashes:
    """The distinct values, ascending; numpy's own `unique` hashes them, which is slower for many."""
    values = np.sort(values)
    return values[np.flatnonzero(np.diff(values, prepend=~values[:1]))]


def _split(pairs: Hashes) -> tuple[Numbers, Numbers]:
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(2**32 - 1)).astype(np.int64)
