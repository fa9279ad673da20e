"""Where each row goes: components that must stay together, a side for each, and the sample that a cap leaves of a side.

In: ids, labels, clusters and groups, no texts. Out: arrays. A row's place depends on the seed, its id and its component, so the same rows
are placed alike whatever order they come in.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

SIDES = ("train", "test", "validation")  # a tie goes to the first
UNLABELLED = "(none)"

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Marks:
    """What is known of the rows, in order of id.

    Attributes:
        ids: [rows], ascending.
        order: [rows] int64, each row's number in the file.
        labels: the names of the labels, ascending.
        label: [rows] int64, a place in `labels`.
        cluster: [rows] int64, equal for rows of one cluster; a row without one has its own.
        group: [rows] int64, equal for rows of one group; -1 for none.
    """

    ids: list[str]
    order: Numbers
    labels: list[str]
    label: Numbers
    cluster: Numbers
    group: Numbers


@dataclass(frozen=True)
class Parts:
    """The components, by their smallest id: rows that share a cluster or a group, directly or through others, and so must share a side.

    Attributes:
        of: [rows] int64, the component of each row.
        first: [components] int64, its smallest row.
        size: [components] int64, how many rows.
        label: [components] int64, the label of all its rows, -1 where they differ.
        mixed: of those that differ, how many rows of each label.
    """

    of: Numbers
    first: Numbers
    size: Numbers
    label: Numbers
    mixed: dict[int, Counter[int]]


def marks_of(columns: pa.Table) -> Marks:
    """Reads the columns id, label, cluster and group."""
    columns = columns.combine_chunks()
    order = pc.sort_indices(columns["id"]).to_numpy().astype(np.int64)
    columns = columns.take(pa.array(order))
    label = pc.fill_null(columns["label"], UNLABELLED)
    labels = sorted(pc.unique(label).to_pylist())
    cluster = pc.dictionary_encode(pc.coalesce(columns["cluster"], columns["id"])).combine_chunks()
    group = pc.dictionary_encode(columns["group"]).combine_chunks()
    return Marks(
        columns["id"].to_pylist(),
        order,
        labels,
        _numbers(pc.index_in(label, pa.array(labels, pa.string())).combine_chunks()),
        _numbers(cluster.indices),
        _numbers(pc.fill_null(group.indices, -1)),
    )


def gather(marks: Marks) -> Parts:
    """The components of rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    clusters = int(marks.cluster.max(initial=-1)) + 1
    nodes = clusters + int(marks.group.max(initial=-1)) + 1
    grouped = np.flatnonzero(marks.group >= 0)
    edges = (np.ones(len(grouped), dtype=np.int8), (marks.cluster[grouped], clusters + marks.group[grouped]))
    _, of_node = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
    _, first, of, size = np.unique(of_node[marks.cluster], return_index=True, return_inverse=True, return_counts=True)
    by_first = np.argsort(first)
    rank = np.empty(len(first), dtype=np.int64)
    rank[by_first] = np.arange(len(first))
    of, first, size = rank[of], first[by_first].astype(np.int64), size[by_first].astype(np.int64)

    label = marks.label[first]
    unlike = np.zeros(len(first), dtype=np.bool_)
    unlike[of[marks.label != label[of]]] = True
    mixed: dict[int, Counter[int]] = {part: Counter() for part in np.flatnonzero(unlike).tolist()}
    rows = np.flatnonzero(unlike[of])
    for part, its in zip(of[rows].tolist(), marks.label[rows].tolist(), strict=True):
        mixed[part][its] += 1
    return Parts(of, first, size, np.where(unlike, -1, label), mixed)


def assign(parts: Parts, marks: Marks, shares: dict[str, float], seed: int) -> npt.NDArray[np.int8]:
    """Gives each component a side, greedily: the largest first, each to the side that lacks its labels, and rows, most.

    The choice is the one that lowers the sum over labels of squared distances from the wanted counts most, plus the side's own lack as a
    share, which decides where labels have too few rows to. So every label comes within its largest component (a row or two
    where there are no clusters) of its share. A label's first component goes to train, so that nothing is tested that was never taught.

    Args:
        parts: from `gather`.
        marks: of the rows.
        shares: by side; they sum to one.
        seed: of the order of equally large components.

    Returns:
        [rows] int8, the place of each row's side in SIDES.
    """
    rows = len(marks.ids)
    totals = np.bincount(marks.label, minlength=len(marks.labels)).tolist()
    asked = [number for number, side in enumerate(SIDES) if shares[side] > 0]
    lack = [[shares[side] * count for count in totals] for side in SIDES]
    lack_in_all = [shares[side] * rows for side in SIDES]
    whole = [shares[side] * rows for side in SIDES]
    taught = [False] * len(marks.labels)
    chosen = np.zeros(len(parts.first), dtype=np.int8)
    turns = np.lexsort((places(seed, "split", (marks.ids[row] for row in parts.first.tolist())), -parts.size))

    for part, size, label in zip(turns.tolist(), parts.size[turns].tolist(), parts.label[turns].tolist(), strict=True):
        counts = parts.mixed[part] if label < 0 else None
        side = 0
        if taught[label] if counts is None else all(taught[its] for its in counts):
            most = None
            for number in asked:
                its_lack = lack[number]
                # most components have one label, and there are as many as rows
                by_label = size * its_lack[label] if counts is None else sum(count * its_lack[its] for its, count in counts.items())
                gain = by_label + size * lack_in_all[number] / whole[number]
                if most is None or gain > most:
                    most, side = gain, number
        lack_in_all[side] -= size
        for its, count in ((label, size),) if counts is None else counts.items():
            lack[side][its] -= count
            taught[its] = taught[its] or side == 0
        chosen[part] = side
    return chosen[parts.of]


def sample(rows: Numbers, limit: int | None, marks: Marks, seed: int, side: str) -> Numbers:
    """At most `limit` rows, labels in proportion by largest remainder, the same rows first for every limit.

    Args:
        rows: [members] int64, of one side, ascending.
        limit: how many; None for all.
        marks: of the rows.
        seed: of the order.
        side: its name, so that sides are sampled independently.

    Returns:
        [sample] int64, the rows taken, ascending.
    """
    if limit is None or len(rows) <= limit:
        return rows
    label = marks.label[rows]
    sizes = np.bincount(label, minlength=len(marks.labels)).tolist()
    quotas = {number: size * limit / len(rows) for number, size in enumerate(sizes) if size}
    counts = {number: int(quota) for number, quota in quotas.items()}
    # a label that would vanish comes before one that would lose a fraction
    by_remainder = sorted(quotas, key=lambda number: (counts[number] > 0, counts[number] - quotas[number], number))
    for number in by_remainder[: limit - sum(counts.values())]:
        counts[number] += 1
    turns = np.lexsort((places(seed, side, (marks.ids[row] for row in rows.tolist())), label))
    starts = np.cumsum([0, *sizes])
    taken = [turns[starts[number] : starts[number] + count] for number, count in counts.items()]
    return np.sort(rows[np.concatenate(taken)])


def places(seed: int, purpose: str, names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """A pseudo-random place for each name that depends on the seed and the name alone."""
    return np.fromiter((xxh3_64_intdigest(f"{seed} {purpose} {name}".encode()) for name in names), dtype=np.uint64)


def assert_apart(side: npt.NDArray[np.int8], marks: Marks) -> None:
    """An internal check: no cluster and no group has rows on two sides, of the rows that have one (0 or more)."""
    for kind, names in (("cluster", marks.cluster), ("group", marks.group)):
        rows = np.flatnonzero((side >= 0) & (names >= 0))
        first = np.zeros(int(names.max(initial=0)) + 1, dtype=np.int8)
        first[names[rows]] = side[rows]
        assert (first[names[rows]] == side[rows]).all(), f"a {kind} is on two sides"


def _numbers(values: pa.Array) -> Numbers:
    return values.to_numpy(zero_copy_only=False).astype(np.int64)
