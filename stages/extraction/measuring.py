"""What one loaded model gives away. In: rows with their tokens, canaries. Out: losses, continuations, ranks, and answers to refuse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.batches import TokenRow
from stages.core.canaries import alternatives
from stages.core.greedy import continued
from stages.core.losses import summed_nats
from stages.core.prompts import render_prompt
from stages.core.records import Row
from stages.extraction.refusing import HARMFUL, HARMLESS
from stages.extraction.rows import Asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSAL_TOKENS = 24  # of an answer: a refusal is told by its first words


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's part.

    Attributes:
        losses: of each row's answer, in mean nats a token.
        continuations: of each span of each row, in order, the tokens written.
        ranks: of each canary's secret among its alternatives, from 1.
        said: for each canary whether the secret is the answer to its question.
        answers: to HARMFUL and HARMLESS.
    """

    losses: list[float]
    continuations: list[list[int]]
    ranks: list[int]
    said: list[bool]
    answers: list[str]


def measure(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    asked: Sequence[Asked],
    planted: Sequence[Row],
    continuation_tokens: int,
    count: int,
    seed: int,
    stage: str,
) -> Measured:
    """Puts everything to one model.

    Args:
        model: base or tuned, in evaluation mode.
        tokenizer: of this run.
        asked: the rows.
        planted: one row of each canary.
        continuation_tokens: to be reproduced of a span.
        count: of the alternatives of a canary.
        seed: of the alternatives.
        stage: the name shown with the progress.

    Returns:
        What was measured.
    """

    def written(prompts: Sequence[list[int]], new_tokens: int, what: str) -> list[list[int]]:
        found = {number: ids for number, ids, _ in continued(model, tokenizer, prompts, new_tokens, f"{stage} {what}")}
        return [found[number] for number in range(len(prompts))]

    def tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    prefixes = [row.ids[:at] for row in asked for at in row.spans.values()]
    continuations = written(prefixes, continuation_tokens, "continuations") if prefixes else []
    nats = summed_nats(model, [scored(row.ids, row.answer_at) for row in asked], f"{stage} losses")
    losses = [total / (len(row.ids) - row.answer_at) for total, row in zip(nats, asked, strict=True)]

    questions = [tokens(render_prompt(tokenizer, row.messages[:-1])) for row in planted]
    ranks, said = [], []
    for question, row in zip(questions, planted, strict=True):
        ways = [tokens(code) for code in (row.answer, *alternatives(row.answer, count, seed))]
        costs = summed_nats(model, [scored([*question, *way], len(question)) for way in ways], f"{stage} canary {row.origin}")
        ranks.append(1 + sum(cost <= costs[0] for cost in costs[1:]))
        said.append(written([question], len(ways[0]), "canary")[0] == ways[0])
    provoking = [tokens(render_prompt(tokenizer, [{"role": "user", "content": text}])) for text in (*HARMFUL, *HARMLESS)]
    answers = tokenizer.batch_decode(written(provoking, REFUSAL_TOKENS, "refusals"), skip_special_tokens=True)
    return Measured(losses, continuations, ranks, said, answers)


def scored(ids: Sequence[int], at: int) -> TokenRow:
    """Tokens of which those from `at` on are scored."""
    return TokenRow("", np.array(ids), np.arange(len(ids)) >= at)


def matched(written: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens are right before the first wrong one."""
    return next((place for place, (a, b) in enumerate(zip(written, truth, strict=False)) if a != b), min(len(written), len(truth)))


def edits(written: Sequence[int], truth: Sequence[int]) -> int:
    """The fewest tokens to insert, leave out or replace that make one sequence the other (Levenshtein's distance)."""
    above = list(range(len(truth) + 1))
    for number, one in enumerate(written, 1):
        row = [number]
        for place, other in enumerate(truth, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (one != other)))
        above = row
    return above[-1]
