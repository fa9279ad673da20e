"""What the tuned model forgot of the general suite: how much, which items, and whether that is more than is tolerated.

In: comparisons, items and data/general. Out: numbers, words, and the items lost with their text.
"""

import json
from pathlib import Path
from typing import Any

from stages.compare.reading import Items, differing
from stages.compare.statistics import Paired

SHOWN = 12  # items lost that the report shows of each task
TEXT = 400  # characters of a question's end, where LAMBADA's matter


def forgetting(result: Paired | None, alpha: float, limit: float) -> str:
    """none, within limit or over limit: a significant loss of accuracy counts, by its size against the limit."""
    if result is None:
        return "not measured"
    if result.p_holm >= alpha or result.difference >= 0:
        return "none"
    return "within limit" if -result.difference <= limit else "over limit"


def general_headline(suite: dict[str, Paired], pooled: Paired | None) -> dict[str, Any]:
    """The general suite in a few numbers: each task's in a list, which DVC's tables pass over, and all items together."""
    if pooled is None:
        return {"tasks": [], "base": None, "tuned": None, "difference": None, "ci95": None, "p_value": None, "items": 0}
    return {
        "tasks": [{"task": name, "base": r.first, "tuned": r.second, "difference": r.difference} for name, r in suite.items()],
        "base": pooled.first,
        "tuned": pooled.second,
        "difference": pooled.difference,
        "ci95": [pooled.low, pooled.high],
        "p_value": pooled.p_value,
        "items": pooled.items,
    }


def general_loss(suite: dict[str, Paired], pooled: Paired | None, alpha: float, limit: float) -> dict[str, Any]:
    """The loss against its limit.

    Args:
        suite: each task's comparison, corrected for their number.
        pooled: that of all items, or None where none was asked.
        alpha: of the tests.
        limit: the largest tolerated loss of accuracy.

    Returns:
        What `general_loss` of the report holds.
    """
    up_to = max(0.0, -pooled.low) if pooled else None
    return {
        "limit": limit,
        "up_to": up_to,  # the interval's end: a larger loss is unlikely
        "limit_excluded": up_to is not None and up_to <= limit,
        "detectable": pooled.detectable if pooled else None,
        "by_task": [{"task": name, "forgetting": forgetting(result, alpha, limit)} for name, result in suite.items()],
    }


def lost_items(name: str, before: Items, after: Items, folder: Path) -> list[dict[str, Any]]:
    """The first items of a general task that the base got right and the tuned model wrong, with their text.

    Args:
        name: of the task.
        before: the base's items.
        after: the tuned model's.
        folder: data/general.

    Returns:
        task, item_id, the end of the question (of lm-eval's own tasks the id), the right answer and both models' answers; None where a
        model is not asked for one.
    """
    path = folder / f"{name}.jsonl"  # of one of lm-eval's own tasks there is none
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    texts = {item["id"]: item["context"] for item in map(json.loads, filter(None, lines))}
    return [
        {
            "task": name,
            "item_id": key,
            "text": texts.get(key, key)[-TEXT:],
            "target": after[key]["target"].strip(),
            "base": before[key]["answer"],
            "tuned": after[key]["answer"],
        }
        for key in differing(before, after, True)[1][:SHOWN]
    ]


def refusal(pooled: Paired, limit: float) -> str:
    """Why the gate stops the pipeline, in one sentence."""
    return (
        f"the tuned model lost {100 * -pooled.difference:.1f} points on {pooled.items} general items, and compare.max_forgetting "
        f"tolerates {100 * limit:g}; reports/compare.json names the items lost: train less or gentler (train.epochs, train.learning_rate), "
        "mix in general rows (tokenize.rehearsal), or set compare.gate: report"
    )
