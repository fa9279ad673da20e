"""Split: train, validation and test, no near-duplicate cluster and no group on two sides, labels in proportion.

In: data/suspicion/rows.parquet. Out: data/split/{train,validation,test}.parquet, the rows beyond the caps, reports/split.json.
A row's place depends on the seed, its id and its component, so the same rows are split alike whatever order they come in.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64_intdigest

from stages.core import paths
from stages.core.components import components
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.params import Params, Split
from stages.core.records import Rejected, Row, count_rules, read_rows, write_rejected, write_rows
from stages.core.stage import run_stage

SIDES = ("train", "test", "validation")  # a tie goes to the first
UNLABELLED = "(none)"


@dataclass(frozen=True)
class Component:
    """Rows that share a cluster or a group, directly or through others, and so must share a side.

    Attributes:
        rows: in order of id.
        labels: how many rows of each label.
    """

    rows: list[Row]
    labels: Counter[str]


def main(params: Params) -> None:
    """Runs the stage."""
    rows = read_rows(paths.SUSPICION_ROWS)
    with outputs() as place:
        sides, rejected, report = split(rows, params.split, params.seed)
        for side, path in (("train", paths.SPLIT_TRAIN), ("validation", paths.SPLIT_VALIDATION), ("test", paths.SPLIT_TEST)):
            write_rows(place(path), sides[side])
        write_rejected(place(paths.SPLIT_REJECTED), rejected)
        write_report(place(paths.SPLIT_REPORT), {"train_rows": len(sides["train"])}, report)


def split(rows: list[Row], params: Split, seed: int) -> tuple[dict[str, list[Row]], list[Rejected], dict[str, Any]]:
    """Splits rows and samples each side down to its cap.

    Args:
        rows: with their clusters.
        params: the section `split`.
        seed: of the order in which components are placed and rows sampled.

    Returns:
        The rows of each side in the order they came, the rows beyond the caps, and the report's details.
    """
    parts = gather(rows)
    shares = {"train": 1 - params.validation - params.test, "test": params.test, "validation": params.validation}
    side_of = assign(parts, shares, seed)
    placed = {side: [row for row in rows if side_of[row.id] == side] for side in SIDES}
    _check(placed, params, len(rows), len(parts))

    sides: dict[str, list[Row]] = {}
    rejected: list[Rejected] = []
    for side, limit in (("train", params.max_train), ("validation", params.max_validation), ("test", params.max_test)):
        chosen = sample(placed[side], limit, seed, side)
        sides[side] = [row for row in placed[side] if row.id in chosen]
        evidence = {"side": side, "rows": len(placed[side]), "limit": limit}
        rejected += [Rejected(row, f"over_max_{side}", evidence) for row in placed[side] if row.id not in chosen]

    assert len(rows) == sum(map(len, sides.values())) + len(rejected), "split lost or made rows"
    assert_apart(sides)
    labels = {side: Counter(row.label or UNLABELLED for row in members) for side, members in sides.items()}
    report = {
        "rows_in": len(rows),
        "rows_out": sum(map(len, sides.values())),
        "rejected": count_rules(rejected),
        "rows": {side: len(members) for side, members in sides.items()},
        "rows_before_caps": {side: len(placed[side]) for side in sides},
        "labels": {side: dict(sorted(counts.items())) for side, counts in labels.items()},
        "components": len(parts),
        "largest_component": max((len(part.rows) for part in parts), default=0),
        "groups": len({row.group for row in rows if row.group is not None}),
    }
    return sides, rejected, report


def gather(rows: list[Row]) -> list[Component]:
    """The components of rows, by their smallest id."""
    members: dict[str, list[Row]] = defaultdict(list)
    for name, row in sorted(zip(components(rows), rows, strict=True), key=lambda item: item[1].id):
        members[name].append(row)
    return [Component(part, Counter(row.label or UNLABELLED for row in part)) for part in members.values()]


def assign(parts: list[Component], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Gives each component a side, greedily: the largest first, each to the side that lacks its labels, and rows, most.

    The choice is the one that lowers the sum over labels of squared distances from the wanted counts most, plus the side's own lack as a
    share, which decides where labels have too few rows to. So every label comes within its largest component (a row or two
    where there are no clusters) of its share. A label's first component goes to train, so that nothing is tested that was never taught.

    Args:
        parts: from `gather`.
        shares: by side; they sum to one.
        seed: of the order of equally large components.

    Returns:
        The side of each row's id.
    """
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update(part.labels)
    lack = {side: {label: shares[side] * count for label, count in totals.items()} for side in SIDES}
    rows = totals.total()
    lack_in_all = {side: shares[side] * rows for side in SIDES}
    side_of: dict[str, str] = {}
    taught: set[str] = set()
    asked = [side for side in SIDES if shares[side] > 0]

    for part in sorted(parts, key=lambda part: (-len(part.rows), _order(seed, "split", part.rows[0].id))):
        size = len(part.rows)

        def gain(side: str, part: Component = part, size: int = size) -> float:
            by_label = sum(count * lack[side][label] for label, count in part.labels.items())
            return by_label + size * lack_in_all[side] / (shares[side] * rows)

        side = "train" if part.labels.keys() - taught else max(asked, key=gain)
        if side == "train":
            taught |= part.labels.keys()
        lack_in_all[side] -= size
        for label, count in part.labels.items():
            lack[side][label] -= count
        for row in part.rows:
            side_of[row.id] = side
    return side_of


def sample(rows: list[Row], limit: int | None, seed: int, side: str) -> set[str]:
    """The ids of at most `limit` rows, labels in proportion by largest remainder, the same rows first for every limit.

    Args:
        rows: of one side.
        limit: how many; None for all.
        seed: of the order.
        side: its name, so that sides are sampled independently.

    Returns:
        The ids.
    """
    if limit is None or len(rows) <= limit:
        return {row.id for row in rows}
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _order(seed, side, row.id)):
        by_label[row.label or UNLABELLED].append(row.id)
    quotas = {label: len(ids) * limit / len(rows) for label, ids in by_label.items()}
    counts = {label: int(quota) for label, quota in quotas.items()}
    # a label that would vanish comes before one that would lose a fraction
    by_remainder = sorted(quotas, key=lambda label: (counts[label] > 0, counts[label] - quotas[label], label))
    for label in by_remainder[: limit - sum(counts.values())]:
        counts[label] += 1
    return {name for label, ids in by_label.items() for name in ids[: counts[label]]}


def assert_apart(sides: dict[str, list[Row]]) -> None:
    """An internal check: no cluster and no group has rows on two sides."""
    for kind in ("cluster", "group"):
        seen: dict[str, str] = {}
        for side, rows in sides.items():
            for row in rows:
                name = getattr(row, kind)
                assert name is None or seen.setdefault(name, side) == side, f"{kind} {name} is on two sides"


def _order(seed: int, purpose: str, name: str) -> tuple[int, str]:
    """A pseudo-random place that depends on the seed and the row alone."""
    return xxh3_64_intdigest(f"{seed} {purpose} {name}".encode()), name


def _check(placed: dict[str, list[Row]], params: Split, rows: int, parts: int) -> None:
    """Raises UserError for a side that params ask for and no row reached."""
    if not rows:
        raise UserError(
            f"{paths.SUSPICION_ROWS} holds no rows to split; see reports/clean.json and reports/dedupe.json for what rejected them"
        )
    for side, members in placed.items():
        share = {"train": 1 - params.validation - params.test, "test": params.test, "validation": params.validation}[side]
        if members or share == 0 or (side == "validation" and params.max_validation == 0):
            continue
        found = f"split would leave {side} empty: {rows} rows in {parts} independent clusters or groups, of which it may have {share:.0%}"
        remedy = f"raise split.{side}" if side != "train" else "lower split.test and split.validation"
        alternative = ", or set split.validation: 0" if side == "validation" else ""
        raise UserError(f"{found}; add data, {remedy}{alternative}")


if __name__ == "__main__":
    run_stage("split", main)
