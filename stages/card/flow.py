"""The way of the rows by source, as the picture of the report. In: the tables of the data stages. Out: counts, bands and a table by source.

A band's place and width are in per cent of the picture's width, so that the page scales them without scaling text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core import paths

REJECTED = {
    "fetch_data": paths.RAW_REJECTED,
    "clean": paths.CLEAN_REJECTED,
    "local_models": paths.LOCAL_REJECTED,
    "dedupe": paths.DEDUPE_REJECTED,
    "label_check": paths.LABEL_REJECTED,
    "suspicion": paths.SUSPICION_REJECTED,
    "split": paths.SPLIT_REJECTED,
}
SIDES = {"set aside for validation": paths.SPLIT_VALIDATION, "set aside for testing": paths.SPLIT_TEST}
BANDS = 5  # sources with a colour of their own; the rest share one
OTHERS = "all other sources"


@dataclass(frozen=True)
class Flow:
    """Rows by source.

    Attributes:
        read: rows read, by source.
        lost: rows that did not go on, by stage, then by rule, then by source.
    """

    read: Counter[str]
    lost: dict[str, dict[str, Counter[str]]]

    def after(self) -> dict[str, Counter[str]]:
        """Rows that a stage passed on, by stage, then by source."""
        left = self.read
        found: dict[str, Counter[str]] = {}
        for stage, rules in self.lost.items():
            left = left - sum(rules.values(), Counter())
            found[stage] = left
        return found


@dataclass(frozen=True)
class Band:
    """A source's rows between two stages: an SVG point list in a box of 100 by 100, and the number of its colour."""

    colour: int
    points: str


@dataclass(frozen=True)
class Stretch:
    """The picture of one stage.

    Attributes:
        bands: what flows through it.
        lost: the point list of what does not.
        bar: the rows it passes on: colour and width in per cent of each source.
    """

    bands: tuple[Band, ...]
    lost: str
    bar: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Picture:
    """The whole picture.

    Attributes:
        legend: colour, name, rows read and rows trained on of each band's source; empty where there is only one.
        first: the bar of the rows read.
        stretches: by stage.
        rules: a line for each stage and rule: stage, rule, rows of each band's source.
    """

    legend: tuple[tuple[int, str, int, int], ...]
    first: tuple[tuple[int, float], ...]
    stretches: dict[str, Stretch]
    rules: tuple[tuple[str, str, tuple[int, ...]], ...]


def read_flow() -> Flow:
    """Counts the rows of the tables by source and rule."""
    lost: dict[str, dict[str, Counter[str]]] = {stage: _counts(path, "rule") for stage, path in REJECTED.items()}
    for name, path in SIDES.items():
        lost["split"][name] = sum(_counts(path, "source").values(), Counter())
    lost["tokenize"] = _untokenized()
    read = sum(_counts(paths.RAW_ROWS, "source").values(), Counter()) + sum(lost["fetch_data"].values(), Counter())
    return Flow(read, lost)


def _counts(path: Path, by: str) -> dict[str, Counter[str]]:
    """Rows of a table by one of its columns, then by source."""
    import pyarrow.parquet as pq

    names = sorted({by, "source"})
    counted: dict[str, Counter[str]] = {}
    for record in pq.read_table(path, columns=names).group_by(names).aggregate([([], "count_all")]).to_pylist():
        counted.setdefault(record[by], Counter())[record["source"]] += record["count_all"]
    return counted


def _untokenized() -> dict[str, Counter[str]]:
    """Rows of the training side that tokenize rejected, by rule, then by source."""
    import pyarrow.parquet as pq

    gone = {record["id"]: record for record in pq.read_table(paths.TOKENIZED_REJECTED, columns=["id", "rule", "source"]).to_pylist()}
    side = pq.read_table(paths.SPLIT_TRAIN, columns=["id"]).column("id").to_pylist() if gone else []
    counted: dict[str, Counter[str]] = {}
    for name in side:
        if name in gone:
            counted.setdefault(gone[name]["rule"], Counter())[gone[name]["source"]] += 1
    return counted


def picture(flow: Flow) -> Picture:
    """Lays the picture out.

    Args:
        flow: the counts.

    Returns:
        Bands of the sources with the most rows, the others' together.
    """
    order = sorted(flow.read, key=lambda name: (-flow.read[name], name))
    colours = {name: min(place, BANDS) for place, name in enumerate(order)}
    names = [*order[:BANDS], *([OTHERS] if len(order) > BANDS else [])]
    widest = max(1, flow.read.total())

    def banded(counts: Mapping[str, int]) -> list[int]:
        found = [0] * len(names)
        for name, rows in counts.items():
            found[colours[name]] += rows
        return found

    after = {stage: banded(counts) for stage, counts in flow.after().items()}
    before = banded(flow.read)
    first, stretches = before, {}
    for stage, left in after.items():
        stretches[stage] = _stretch(before, left, widest)
        before = left
    rules = [
        (stage, rule, tuple(banded(counts))) for stage, by_rule in flow.lost.items() for rule, counts in sorted(by_rule.items()) if counts
    ]
    legend = tuple((place, name, first[place], before[place]) for place, name in enumerate(names)) if len(names) > 1 else ()
    return Picture(legend, _bar(first, widest), stretches, tuple(rules))


def _bar(rows: Sequence[int], widest: int) -> tuple[tuple[int, float], ...]:
    return tuple((colour, 100 * count / widest) for colour, count in enumerate(rows) if count)


def _stretch(before: Sequence[int], after: Sequence[int], widest: int) -> Stretch:
    """From one bar to the next: each band narrows to what goes on, and the lost rows run out at the side."""
    bands, above, below = [], 0.0, 0.0
    for colour, (top, bottom) in enumerate(zip(before, after, strict=True)):
        wide, narrow = 100 * top / widest, 100 * bottom / widest
        if top:
            bands.append(Band(colour, _points([(above, 0), (above + wide, 0), (below + narrow, 100), (below, 100)])))
        above, below = above + wide, below + narrow
    lost = _points([(above, 0), (above, 100), (below, 100)]) if above > below else ""
    return Stretch(tuple(bands), lost, _bar(after, widest))


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:g}" for x, y in corners)
