"""The held-out rows that every form is asked, and what the adapter says to them.

In: test rows, models. Out: next-token predictions and greedy answers, side by side in figures.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.answers import normal
from stages.core.llama_cpp import Answer
from stages.core.models import load_tokenizer
from stages.core.records import Row
from stages.export.agreement import Encoded, Predictions, answers, predictions

EXAMPLES = 5  # answers unlike the adapter's that the report shows


def sampled(rows: list[Row], seed: int) -> list[Row]:
    """The rows in an order whose every beginning is a random sample with the labels in their shares.

    Within a label the order is that of the sha256 of seed and id; row k of a label's n stands at (k + 1/2) / n of the whole.

    Args:
        rows: test rows, which lie in no random order.
        seed: another seed, another order.

    Returns:
        The same rows.
    """
    drawn = {row.id: hashlib.sha256(f"{seed}:{row.id}".encode()).digest() for row in rows}
    labels: dict[str | None, list[Row]] = {}
    for row in sorted(rows, key=lambda row: drawn[row.id]):
        labels.setdefault(row.label, []).append(row)
    places = {row.id: (number + 0.5) / len(pile) for pile in labels.values() for number, row in enumerate(pile)}
    return sorted(rows, key=lambda row: (places[row.id], drawn[row.id]))


@dataclass(frozen=True)
class Reference:
    """The adapter over the base it was trained on.

    Attributes:
        predictions: next tokens on the checked rows.
        answers: its greedy answers to the asked rows.
    """

    predictions: Predictions
    answers: list[Answer]


@dataclass(frozen=True)
class Held:
    """Held-out rows.

    Attributes:
        rows: all of them.
        encoded: the same in token ids.
        check_prompts: how many, the first, are compared token by token.
        answer_prompts: how many, the first, are answered.
        longest_answer: tokens an answer may have.
        stops: ids that end an answer.
        tokenizer: the folder whose tokenizer reads the answers.
    """

    rows: list[Row]
    encoded: list[Encoded]
    check_prompts: int
    answer_prompts: int
    longest_answer: int
    stops: list[int]
    tokenizer: Path

    @property
    def checked(self) -> list[Encoded]:
        """The rows compared token by token."""
        return self.encoded[: self.check_prompts]

    @property
    def asked(self) -> list[Encoded]:
        """The rows answered."""
        return self.encoded[: self.answer_prompts]

    @property
    def asked_rows(self) -> list[Row]:
        """The same as rows."""
        return self.rows[: self.answer_prompts]

    @property
    def longest(self) -> int:
        """Tokens that a runtime must hold at once."""
        return max(len(row.ids) for row in self.encoded) + self.longest_answer

    def answers(self, model: Any) -> list[Answer]:
        """A model's greedy answers, by transformers."""
        return self.read(answers(model, self.asked, self.longest_answer, self.stops))

    def read(self, answers: list[list[int]]) -> list[Answer]:
        """Answers in token ids, a stop id last where one ended by itself, in words: the same tokenizer for every runtime."""
        tokenizer = load_tokenizer(self.tokenizer)
        read = []
        for ids in answers:
            ended = bool(ids) and ids[-1] in self.stops
            read.append(Answer(tuple(ids[:-1] if ended else ids), str(tokenizer.decode(ids, skip_special_tokens=True)), ended))
        return read

    def reference(self, model: Any) -> Reference:
        """What a model says to these rows."""
        return Reference(predictions(model, self.checked), self.answers(model))


def told(rows: list[Row], ours: list[Answer], adapter: list[Answer]) -> dict[str, Any]:
    """A form's greedy answers against the adapter's and the right ones.

    Args:
        rows: that were asked.
        ours: the form's.
        adapter: the adapter's.

    Returns:
        `answers`; `same_answer`, the share equal to the adapter's; `stopped`, the share ended by itself of those that the adapter ended, or
        None; `exact_match`, the share right of labelled rows, or None; `examples`, the first that differ.
    """
    stopped = [mine.ended for mine, theirs in zip(ours, adapter, strict=True) if theirs.ended]
    right = [normal(mine.text) == normal(row.label) for mine, row in zip(ours, rows, strict=True) if row.label is not None]
    unlike = [(row.id, mine.text, theirs.text) for row, mine, theirs in zip(rows, ours, adapter, strict=True) if mine.text != theirs.text]
    return {
        "answers": len(rows),
        "same_answer": 1 - len(unlike) / len(rows),
        "stopped": sum(stopped) / len(stopped) if stopped else None,
        "exact_match": sum(right) / len(right) if right else None,
        "examples": [{"id": key, "form": mine, "adapter": theirs} for key, mine, theirs in unlike[:EXAMPLES]],
    }
