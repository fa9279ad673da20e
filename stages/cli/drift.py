"""How the data of one run differs from that of another. In: two commits, or one and the checkout. Out: counts, shares and distances.

Rows come from DVC's cache by the digests of each commit's dvc.lock, counts from the reports in git, so that what is not on this machine is
still compared by its counts.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

import pyarrow.parquet as pq

from stages.cli import history
from stages.cli.cache import cached
from stages.cli.trace import STEPS
from stages.core import paths
from stages.core.errors import UserError
from stages.core.records import iter_rows

# `python -m stages.NAME` writes reports/NAME.json
REPORTS = {stage: paths.REPORTS / f"{stage}.json" for stage, _, _ in STEPS}
ABSENT = "not in the data"
# where the rows lie that end there; rows that a stage kept for the next one are not read again
ENDS = {
    "kept by fetch_data": paths.RAW_ROWS,
    "train": paths.SPLIT_TRAIN,
    "validation": paths.SPLIT_VALIDATION,
    "test": paths.SPLIT_TEST,
    **{f"rejected by {stage}": rejected for stage, _, rejected in STEPS if stage != "tokenize"},
}


@dataclass
class Learnt:
    """The training rows of a run.

    Attributes:
        words: words of prompt and answer of each row, by id.
        content: a number that changes with the row's text, by id.
        vocabulary: how often each word occurs.
    """

    words: dict[str, int] = field(default_factory=dict)
    content: dict[str, int] = field(default_factory=dict)
    vocabulary: Counter[str] = field(default_factory=Counter)


class Run:
    """The data of one run: its name for the reader, its dvc.lock, and the data stages' reports, {} for one that it has not."""

    def __init__(self, rev: str | None) -> None:
        """Reads dvc.lock and reports.

        Args:
            rev: a commit or tag; None for the checkout.
        """
        commit = None if rev is None else history.commit_of(rev)
        self.name = "the checkout" if commit is None else f"{commit[:7]}"
        self.lock = history.read_lock(commit)
        self.reports = {stage: _report(path, commit) for stage, path in REPORTS.items()}

    @cached_property
    def missing(self) -> list[str]:
        """The tables that this machine does not have."""
        recorded = {out["path"] for stage in self.lock.stages.values() for out in stage.get("outs", [])}
        return sorted({path.as_posix() for path in ENDS.values() if path.as_posix() in recorded and cached(self.lock, path) is None})

    @cached_property
    def fates(self) -> dict[str, tuple[str, str, str]]:
        """Of each row read: its source, where its way ended, and its place in the source, by id."""
        found: dict[str, tuple[str, str, str]] = {}
        for end, path in ENDS.items():
            file = cached(self.lock, path)
            names = ["id", "source", "origin", *(["rule"] if end.startswith("rejected") else [])]
            for batch in pq.ParquetFile(file).iter_batches(columns=names) if file is not None else ():
                for record in batch.to_pylist():
                    place = f"{end}: {record['rule']}" if "rule" in record else end
                    found[record["id"]] = (intern(record["source"]), intern(place), record["origin"])
        return found

    @cached_property
    def learnt(self) -> Learnt:
        """The training rows."""
        found = Learnt()
        file = cached(self.lock, paths.SPLIT_TRAIN)
        for row in iter_rows(file) if file is not None else ():
            text = f"{row.text}\n{row.answer}"
            words = re.findall(r"\w+", text.lower())
            found.words[row.id] = len(words)
            found.content[row.id] = hash(text)
            found.vocabulary.update(words)
        return found

    @property
    def labels(self) -> dict[str, int]:
        """Training rows by label, as split counted them."""
        counts: dict[str, int] = self.reports["split"].get("labels", {}).get("train", {})
        return counts


def _report(path: Path, commit: str | None) -> dict[str, Any]:
    """A report, {} where the run has none."""
    try:
        return history.read_report(path, commit)
    except UserError:
        return {}


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Counts as shares of their sum."""
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def total_variation(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Half the sum of the differences of shares: the share that would have to change its name, from 0 to 1."""
    one, other = shares(before), shares(after)
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in one.keys() | other.keys()) / 2


def divergence(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The Jensen-Shannon divergence of two distributions, in bits, from 0 to 1 (Lin 1991)."""
    one, other = shares(before), shares(after)
    total = 0.0
    for name in sorted(one.keys() | other.keys()):
        p, q = one.get(name, 0.0), other.get(name, 0.0)
        total += sum(share * math.log2(2 * share / (p + q)) for share in (p, q) if share) / 2
    return max(0.0, total)


def chance_divergence(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """What divergence, in bits, two samples so large of one and the same distribution show on average.

    A divergence this small is a chi-square statistic: names - 1 degrees of freedom, each worth (1/n + 1/m) / (8 ln 2) bits.
    """
    n, m = sum(before.values()), sum(after.values())
    names = len(before.keys() | after.keys())
    return min(1.0, (names - 1) * (1 / n + 1 / m) / (8 * math.log(2))) if n and m and names else 0.0


def greatest_gap(before: Sequence[int], after: Sequence[int]) -> float:
    """The greatest distance between two distribution functions (Kolmogorov-Smirnov), from 0 to 1."""
    if not before or not after:
        return 0.0
    import numpy as np

    one, other = np.sort(before), np.sort(after)
    points = np.concatenate([one, other])
    gaps = np.searchsorted(one, points, side="right") / len(one) - np.searchsorted(other, points, side="right") / len(other)
    return float(np.abs(gaps).max())


def turned(before: Counter[str], after: Counter[str], many: int) -> tuple[list[str], list[str]]:
    """The words whose share grew and shrank most, the greatest first.

    Args:
        before: counts of words.
        after: counts of words.
        many: of each.

    Returns:
        The words that grew, the words that shrank.
    """
    one, other = shares(before), shares(after)
    change = {name: other.get(name, 0.0) - one.get(name, 0.0) for name in one.keys() | other.keys()}
    order = sorted(change, key=lambda name: (-change[name], name))
    return [name for name in order[:many] if change[name] > 0], [name for name in order[::-1][:many] if change[name] < 0]
