"""Held-out rows with both models' answers, and what the tuned model mistakes for what. In: the item-level outcomes and the test rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.records import Row

# how many of each kind are shown, so that the reader sees gains, losses and what neither model can do
KINDS = {(False, True): 3, (True, False): 1, (False, False): 1, (True, True): 1}
EXCERPT_CHARACTERS = 420


@dataclass(frozen=True)
class Sample:
    """One test row and what became of it.

    Attributes:
        id: the row's.
        text: the row's text, shortened.
        expected: its label or answer.
        base: the base's answer.
        tuned: the tuned model's answer.
        base_right: whether the base's answer counted as right.
        tuned_right: whether the tuned model's did.
    """

    id: str
    text: str
    expected: str
    base: str
    tuned: str
    base_right: bool
    tuned_right: bool


def samples(base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]], prompt: str, rows: Sequence[Row]) -> list[Sample]:
    """A few rows of each kind, the first by id.

    Args:
        base: the base's items, as evaluate keeps them.
        tuned: the tuned model's items.
        prompt: the base's way of asking to show.
        rows: the test rows.

    Returns:
        The samples; none where answers are not generated.
    """
    texts = {row.id: row.text for row in rows}
    before = {item["item_id"]: item for item in base if item["task"] == "domain" and item["prompt"] == prompt}
    after = sorted((item for item in tuned if item["task"] == "domain"), key=lambda item: str(item["item_id"]))
    left = dict(KINDS)
    chosen = []
    for item in after:
        other = before.get(item["item_id"])
        if other is None or item["answer"] is None:
            continue
        kind = (other["score"] == 1, item["score"] == 1)
        if left[kind]:
            left[kind] -= 1
            text = texts[item["item_id"]]
            short = text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " …"
            chosen.append((kind, Sample(item["item_id"], short, item["target"], other["answer"], item["answer"], *kind)))
    order = list(KINDS)
    return [sample for _, sample in sorted(chosen, key=lambda pair: order.index(pair[0]))]


def confusions(tuned: Sequence[dict[str, Any]], most: int = 6) -> list[tuple[str, str, int]]:
    """The tuned model's most frequent mistakes: the right answer, the answer given, how often."""
    wrong = [
        (item["target"], item["answer"]) for item in tuned if item["task"] == "domain" and item["answer"] is not None and item["score"] == 0
    ]
    return [(*pair, times) for pair, times in sorted(Counter(wrong).items(), key=lambda item: (-item[1], item[0]))[:most]]
