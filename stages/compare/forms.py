"""The shipped forms against the adapter that was evaluated, on the test rows that they answered.

In: data/evaluation/forms.parquet of export, the tuned model's items. Out: a comparison a form.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.compare.clean import verdict
from stages.compare.measures import WRITTEN
from stages.compare.reading import Items
from stages.compare.statistics import Paired, corrected
from stages.core.answers import normal


def shipped(
    path: Path, adapter: Items, metric: str, labelled: bool, pair: Callable[[Items, Items], Paired], alpha: float
) -> list[dict[str, Any]]:
    """Each form beside the adapter's own answers to the same rows.

    Args:
        path: the forms' answers.
        adapter: the tuned model's items, scored by the metric.
        metric: of `measures.WRITTEN`.
        labelled: whether the rows have labels, which are compared as evaluate compares them.
        pair: compares two models on the same items.
        alpha: of the verdict.

    Returns:
        A form each, in the order of export.forms, with p values after Holm's correction over the forms. `lost` counts the rows that the
        adapter alone got right, `verdict` is worse, no difference or improved.
    """
    answered: dict[str, Items] = {}
    for row in pq.read_table(path).to_pylist():
        items, item = answered.setdefault(row["form"], {}), adapter.get(row["item_id"])
        if item:  # evaluate leaves rows out that have no room for an answer
            same = normal(row["answer"]) == normal(item["target"])
            items[row["item_id"]] = {"score": float(same) if labelled else WRITTEN[metric](row["answer"], item["target"])}
    results = corrected({form: pair({key: adapter[key] for key in items}, items) for form, items in answered.items() if items})
    return [
        {
            "form": form,
            "metric": metric,
            "items": result.items,
            "adapter": result.first,
            "score": result.second,
            "difference": result.difference,
            "ci95": [result.low, result.high],
            "p_value": result.p_value,
            "p_holm": result.p_holm,
            "won": result.won,
            "lost": result.lost,
            "detectable": result.detectable,
            "verdict": verdict(result, True, alpha),
        }
        for form, result in results.items()
    ]
