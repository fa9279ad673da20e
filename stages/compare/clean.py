"""The clean subset: the items that share no run of words with a training row, and what the comparison says on them alone.

In: data/split/overlap.parquet, comparisons. Out: numbers, and a sentence where the clean subset tells another story than all items.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.compare.statistics import Paired


def overlapping(path: Path) -> dict[str, set[str]]:
    """The ids of the items that share at least 8 words in a row with a training row, by task."""
    found: dict[str, set[str]] = {}
    for row in pq.read_table(path, columns=["task", "item_id"]).to_pylist():
        found.setdefault(row["task"], set()).add(row["item_id"])
    return found


def clean_part(result: Paired | None) -> dict[str, Any] | None:
    """The comparison on the clean subset as the report holds it; None where no item is clean."""
    return None if result is None else compared(result)


def compared(result: Paired) -> dict[str, Any]:
    """A comparison of base and tuned as the report holds it, on whichever items."""
    return {
        "items": result.items,
        "base": result.first,
        "tuned": result.second,
        "difference": result.difference,
        "ci95": [result.low, result.high],
        "p_value": result.p_value,
        "p_holm": result.p_holm,
    }


def clean_note(every: Paired, clean: Paired | None, higher: bool, alpha: float) -> str | None:
    """What a reader of the verdict must know of the clean subset; None where it says what all items say.

    Args:
        every: the comparison on all items.
        clean: on the clean subset, or None where no item is clean.
        higher: whether more of the metric is better.
        alpha: of the verdict.

    Returns:
        A sentence where the clean subset's difference lies outside the interval of all items or its verdict is another.
    """
    if clean is None:
        return (
            f"All {every.items} items share at least 8 words in a row with a training row, so none tells what was learnt and what repeated."
        )
    mine, whole = verdict(clean, higher, alpha), verdict(every, higher, alpha)
    if every.low <= clean.difference <= every.high and mine == whole:
        return None
    where = f"On the {clean.items} of {every.items} items that share no 8 words in a row with a training row"
    interval = f"{clean.difference:+.3f}, 95 % interval {clean.low:+.3f} to {clean.high:+.3f}"
    return f"{where} the verdict is: {mine} ({interval}); on all items: {whole} ({every.difference:+.3f})."


def verdict(result: Paired, higher: bool, alpha: float) -> str:
    """improved, no difference or worse; a corrected p value of alpha or more is no difference, however far the means look apart."""
    if result.p_holm >= alpha or result.difference == 0:
        return "no difference"
    return "improved" if (result.difference > 0) == higher else "worse"
