"""The two evaluations as compare reads them, and the refusal to compare what was not made alike.

In: data/evaluation/{base,tuned}.parquet. Out: items by task and prompt, settings.
"""

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.core import paths
from stages.core.errors import UserError

Items = dict[str, dict[str, Any]]  # by id: score, answer, target


def read_evaluation(variant: str) -> tuple[dict[tuple[str, str], Items], dict[str, Any]]:
    """A model's items by task and prompt, in order of their ids, and the settings it was asked with."""
    table = pq.read_table(paths.EVALUATION[variant])
    found: dict[tuple[str, str], Items] = {}
    for row in table.to_pylist():
        found.setdefault((row["task"], row["prompt"]), {})[row["item_id"]] = row
    return found, json.loads(table.schema.metadata[b"settings"])


def check_alike(base: dict[str, Any], tuned: dict[str, Any]) -> None:
    """Refuses two evaluations that were not made alike.

    Args:
        base: the base's settings; it may have been asked more than the tuned model.
        tuned: the tuned model's.

    Raises:
        UserError: names what differs.
    """
    shared = {**base, "tasks": {key: base["tasks"].get(key) for key in tuned["tasks"]}}
    first, second = flat(shared), flat(tuned)
    unlike = [
        f"{key} ({first.get(key, 'none')} and {second.get(key, 'none')})"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]
    if unlike:
        raise UserError(
            f"the base and the tuned model were not evaluated alike: {', '.join(unlike)}; "
            "evaluate both on this machine: dvc repro -f -s evaluate@base evaluate@tuned, then dvc repro"
        )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict of dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in settings.items():
        pairs.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return pairs


def scores(items: dict[Any, dict[str, Any]]) -> np.ndarray:
    """[items] float64 in order of the ids."""
    return np.array([items[key]["score"] for key in sorted(items)])


def differing(before: Items, after: Items, higher: bool) -> tuple[list[str], list[str]]:
    """The ids of the items won and lost by the tuned model, sorted."""
    sign = 1 if higher else -1
    gains = {key: sign * (after[key]["score"] - before[key]["score"]) for key in sorted(after)}
    return [key for key, gain in gains.items() if gain > 0], [key for key, gain in gains.items() if gain < 0]
