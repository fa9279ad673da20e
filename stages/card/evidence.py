"""Where the tuned model is weak: slices, confusions, calibration, and what it lost of the general suite.

In: compare's report. Out: what the templates show.
"""

from dataclasses import dataclass
from typing import Any

from stages.card.charts import Chart, line_chart
from stages.card.reading import Report
from stages.card.result_facts import metric_of
from stages.card.words import chance, count, percent, task_name

LOST = 12  # items that the report shows, the first of each task in turn


@dataclass(frozen=True)
class Slice:
    """A part of the test rows, base against tuned, in words; `p_value` is None where the slice has too few items to be judged."""

    by: str
    name: str
    items: str
    base: str
    tuned: str
    classical: str | None
    gap: str
    limits: str
    p_value: str | None


@dataclass(frozen=True)
class Confusion:
    """Right labels (rows) and answers (columns) of one model: how often, and as a share of the row."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]


@dataclass(frozen=True)
class Evidence:
    """What the templates show of it.

    Attributes:
        worst: the worst slice in a sentence, or None.
        slices: all but the labels, which have a table of their own.
        confusions: of the tuned model and of the base; empty where answers are not labels.
        calibration: a sentence a model.
        reliability: the plot, or None where no label was scored.
        lost: general items that the base got right and the tuned model wrong.
    """

    worst: str | None
    slices: list[Slice]
    confusions: list[Confusion]
    calibration: list[str]
    reliability: Chart | None
    lost: list[dict[str, Any]]


def evidence(compare: Report) -> Evidence:
    """Puts it together."""
    return Evidence(
        worst=worst(compare),
        slices=[described(part, compare) for part in compare["slices"] if part["by"] != "label"],
        confusions=confusions(compare),
        calibration=[calibrated(name, found) for name, found in sorted(compare["calibration"].items())],
        reliability=reliability(compare["calibration"]),
        lost=lost(compare["general_lost"]),
    )


def worst(compare: Report) -> str | None:
    """The worst slice in one sentence."""
    part, metric = compare["worst_slice"], metric_of(compare)
    if part is None:
        return None
    where = f"{part['by']} {part['slice']}" if part["by"] != "length" else f"texts of {part['slice']}"
    beside = "" if part["classical"] is None else f" and the classical classifier {metric.value(part['classical'])}"
    return (
        f"Weakest, of the slices with at least {count(compare['fewest_items'])} rows, is {where}: {metric.value(part['tuned'])} "
        f"on {count(part['items'])} rows, where the base reaches {metric.value(part['base'])}{beside}."
    )


def described(part: Report, compare: Report) -> Slice:
    """A slice in words."""
    metric = metric_of(compare)
    return Slice(
        by=part["by"],
        name=part["slice"],
        items=count(part["items"]),
        base=metric.value(part["base"]),
        tuned=metric.value(part["tuned"]),
        classical=None if part["classical"] is None else metric.value(part["classical"]),
        gap=metric.gap(part["difference"]),
        limits=metric.limits(*part["ci95"]),
        p_value=chance(part["p_holm"]) if part["judged"] else None,
    )


def confusions(compare: Report) -> list[Confusion]:
    """Both models' confusion matrices, the tuned model's first."""
    if compare["confusion"] is None:
        return []
    found = []
    for name in ("tuned", "base"):
        table = compare["confusion"][name]
        rows = [
            (label, [(times, times / max(1, sum(counts))) for times in counts])
            for label, counts in zip(table["labels"], table["counts"], strict=True)
        ]
        found.append(Confusion(name, table["columns"], rows))
    return found


def calibrated(name: str, found: Report) -> str:
    """A model's calibration in one sentence."""
    distance = f"confidence and accuracy are {percent(found['ece'])} apart on average"
    sure = f"it is right on {percent(found['accuracy'])} of {count(found['items'])} rows and {percent(found['confidence'])} sure"
    return f"{name.capitalize()}: {sure}; {distance} (expected calibration error); Brier score {found['brier']:.3f}."


def reliability(found: Report) -> Chart | None:
    """Accuracy by confidence, both in per cent."""
    if not found:
        return None
    kinds = {"tuned": "first", "base": "second"}
    series = [
        (name, kind, [(100 * part["confidence"], 100 * part["accuracy"]) for part in found[name]["bins"]])
        for name, kind in kinds.items()
        if name in found
    ]
    ideal = ("well calibrated", "ideal", [(0.0, 0.0), (100.0, 100.0)])
    return line_chart("Accuracy by confidence", "per cent", [*series, ideal], x_name="confidence, per cent")


def lost(items: list[Report]) -> list[dict[str, Any]]:
    """The general items lost, the tasks in turn, with the tasks' names."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        by_task.setdefault(item["task"], []).append({**item, "task": task_name(item["task"])})
    longest = max(map(len, by_task.values()), default=0)
    return [found[turn] for turn in range(longest) for found in by_task.values() if turn < len(found)][:LOST]
