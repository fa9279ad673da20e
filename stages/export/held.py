"""The held-out rows that every form is asked, and what the adapter says to them.

In: test rows, models. Out: next-token predictions and greedy answers, side by side in figures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.answers import normal
from stages.core.models import load_tokenizer
from stages.core.records import Row
from stages.export.agreement import Encoded, Predictions, answers, compare, predictions

EXAMPLES = 5  # answers unlike the adapter's that the report shows


@dataclass(frozen=True)
class Reference:
    """The adapter over the base it was trained on.

    Attributes:
        predictions: next tokens on the checked rows.
        answers: token ids of its greedy answers to the asked rows.
    """

    predictions: Predictions
    answers: list[list[int]]


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
    """

    rows: list[Row]
    encoded: list[Encoded]
    check_prompts: int
    answer_prompts: int
    longest_answer: int
    stops: list[int]

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

    def reference(self, model: Any) -> Reference:
        """What a model says to these rows."""
        return Reference(predictions(model, self.checked), answers(model, self.asked, self.longest_answer, self.stops))

    def against(self, reference: Reference, model: Any, folder: Path) -> dict[str, Any]:
        """A model of transformers held against the reference.

        Args:
            reference: the adapter.
            model: to be compared.
            folder: with its tokenizer.

        Returns:
            What `compare` and `told` give.
        """
        ours = self.reference(model)
        return {
            **compare(reference.predictions, ours.predictions),
            **told(self.asked_rows, ours.answers, reference.answers, folder, self.stops),
        }


def told(rows: list[Row], ours: list[list[int]], adapter: list[list[int]], folder: Path, stops: list[int]) -> dict[str, Any]:
    """A form's greedy answers against the adapter's and the right ones.

    Args:
        rows: that were asked.
        ours: the form's token ids, a stop id last where it ended by itself.
        adapter: the adapter's.
        folder: with the tokenizer.
        stops: ids that end an answer.

    Returns:
        `answers`; `same_answer`, the share equal to the adapter's; `stopped`, the share ended by itself of those that the adapter ended, or
        None; `exact_match`, the share right of labelled rows, or None; `examples`, the first that differ.
    """
    tokenizer = load_tokenizer(folder)
    ended = [answer[-1:] != [] and answer[-1] in stops for answer in adapter]
    stopped = [mine[-1:] != [] and mine[-1] in stops for mine, end in zip(ours, ended, strict=True) if end]
    texts = [[str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers] for answers in (ours, adapter)]
    right = [normal(text) == normal(row.label) for text, row in zip(texts[0], rows, strict=True) if row.label is not None]
    unlike = [(row.id, mine, theirs) for row, mine, theirs in zip(rows, *texts, strict=True) if mine != theirs]
    return {
        "answers": len(rows),
        "same_answer": 1 - len(unlike) / len(rows),
        "stopped": sum(stopped) / len(stopped) if stopped else None,
        "exact_match": sum(right) / len(right) if right else None,
        "examples": [{"id": key, "form": mine, "adapter": theirs} for key, mine, theirs in unlike[:EXAMPLES]],
    }
