"""Whether a model's probabilities can be believed: expected calibration error, Brier score and the points of a reliability plot.

In: items of the label_scores task, whose `probability` is that of the label chosen among all. Out: numbers.
"""

from typing import Any

import numpy as np

from stages.compare.reading import Items

BINS = 10  # of equal numbers of items, so that none is empty and each is as sure as the others


def calibration(items: Items) -> dict[str, Any]:
    """A model's calibration on the domain.

    The error is the mean distance of accuracy and confidence over bins of equal numbers of items (Nguyen and O'Connor, 2015, Posterior
    calibration and exploratory analysis for natural language processing models, EMNLP); the Brier score is that of the chosen label,
    the mean of (probability - right)^2 (Brier, 1950, Verification of forecasts expressed in terms of probability, Mon. Weather Rev. 78).

    Args:
        items: `probability` in [0, 1] and `score` 0 or 1 each.

    Returns:
        items, accuracy, confidence (the mean probability), ece, brier, and the bins: items, confidence, accuracy each, ascending.
    """
    ordered = sorted(items.values(), key=lambda item: (item["probability"], item["item_id"]))
    sure, right = (np.array([item[name] for item in ordered]) for name in ("probability", "score"))
    parts = [part for part in np.array_split(np.arange(len(ordered)), BINS) if part.size]
    bins = [{"items": part.size, "confidence": float(sure[part].mean()), "accuracy": float(right[part].mean())} for part in parts]
    return {
        "items": len(ordered),
        "accuracy": float(right.mean()),
        "confidence": float(sure.mean()),
        "ece": sum(part["items"] * abs(part["accuracy"] - part["confidence"]) for part in bins) / len(ordered),
        "brier": float(np.mean((sure - right) ** 2)),
        "bins": bins,
    }
