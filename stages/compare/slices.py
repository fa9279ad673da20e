"""The domain in slices, by label, source, group, language and length: where the tuned model is weak, and where it lost.

In: both models' items on the test rows, the classical baseline's, the rows. Out: a comparison a slice, and the worst of them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from stages.compare.clean import compared
from stages.compare.reading import Items
from stages.compare.statistics import Paired, corrected
from stages.core.language import language_of
from stages.core.records import Row
from stages.core.row_texts import prompt_text

FEWEST = 10  # items of a slice that is judged: fewer show nothing but a difference of most of them (docs/evaluation.md)


def slices(before: Items, after: Items, classical: Items | None, rows: dict[str, Row], pair: Callable[..., Paired]) -> list[dict[str, Any]]:
    """Base against tuned in every slice of enough items, corrected for their number, and in every label.

    Args:
        before: the base's items by row id.
        after: the tuned model's.
        classical: the classical baseline's, or None where there is none.
        rows: the test rows by id.
        pair: compares two models' items.

    Returns:
        `by`, `slice`, the comparison, `classical`, and `judged`: whether the slice has items enough.
    """
    parts = [(by, name, keys) for by, cut in cuts(sorted(after), rows).items() for name, keys in cut.items()]
    results = {(by, name): pair({key: before[key] for key in keys}, {key: after[key] for key in keys}) for by, name, keys in parts}
    judged = corrected({key: result for key, result in results.items() if result.items >= FEWEST})
    return [
        {
            "by": by,
            "slice": name,
            **compared(judged.get((by, name), results[by, name])),
            "classical": sum(classical[key]["score"] for key in keys) / len(keys) if classical else None,
            "judged": (by, name) in judged,
        }
        for by, name, keys in parts
        if (by, name) in judged or by == "label"
    ]


def cuts(keys: list[str], rows: dict[str, Row]) -> dict[str, dict[str, list[str]]]:
    """The ids of each slice; a way of cutting that leaves everything in one slice is no slice."""
    names: dict[str, dict[str, str | None]] = {
        "label": {key: rows[key].label for key in keys},
        "source": {key: rows[key].source for key in keys},
        "group": {key: rows[key].group for key in keys},
        "language": {key: language_of(spoken(rows[key])) for key in keys},
    }
    found: dict[str, dict[str, list[str]]] = {}
    for by, values in names.items():
        groups = {name: [key for key in keys if values[key] == name] for name in sorted({v for v in values.values() if v is not None})}
        found[by] = groups if len(groups) > 1 else {}
    return {**found, "length": by_length(keys, rows)}


def spoken(row: Row) -> str:
    """What a row asks and, where that is no label, its answer."""
    return prompt_text(row) if row.label is not None else f"{prompt_text(row)}\n{row.answer}"


def by_length(keys: list[str], rows: dict[str, Row]) -> dict[str, list[str]]:
    """The ids in quarters by the number of words, as far as lengths differ."""
    words = {key: len(rows[key].text.split()) for key in keys}
    ends = sorted({int(np.quantile(list(words.values()), share, method="lower")) for share in (0.25, 0.5, 0.75, 1.0)})
    starts = [0, *(end + 1 for end in ends[:-1])]
    if len(ends) == 1:
        return {}
    return {
        f"up to {end} words" if start == 0 else f"{start} to {end} words": [key for key in keys if start <= words[key] <= end]
        for start, end in zip(starts, ends, strict=True)
    }


def worst(found: list[dict[str, Any]], higher: bool) -> dict[str, Any] | None:
    """The judged slice in which the tuned model scores worst, the first of equals; None where none is judged."""
    judged = [part for part in found if part["judged"]]
    return min(judged, key=lambda part: part["tuned"] if higher else -part["tuned"]) if judged else None
