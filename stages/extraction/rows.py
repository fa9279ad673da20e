"""Rows as they are put to the models: training rows that were really learnt, and as many held-out ones that are like them.

In: rows, the tokenizer, the run's wording. Out: token ids, where the answer begins, and where what is to be reproduced begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.core.prompts import conversation, render_prompt
from stages.core.records import Row
from stages.core.sampling import seeded_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CANDIDATES = 20  # rows that are tokenised for each one that is asked for, so that enough long ones are among them


@dataclass(frozen=True, slots=True)
class Wording:
    """How rows become prompts, and how much of them is given and asked for.

    Attributes:
        system: the system message of labelled rows.
        template: the user message of labelled rows.
        max_tokens: of a row; longer ones were not learnt whole.
        prefix_tokens: of a text that are given.
        continuation_tokens: that are to be reproduced.
    """

    system: str | None
    template: str
    max_tokens: int
    prefix_tokens: int
    continuation_tokens: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A row as it is put to the models.

    Attributes:
        row: as split wrote it.
        learnt: whether it was trained on; else it is held out.
        ids: the tokens of its prompt, as at inference, and of its last answer.
        answer_at: the answer's first token.
        spans: by part, `text` or `answer`, the first token that is to be reproduced; a part that is too short has none.
    """

    row: Row
    learnt: bool
    ids: list[int]
    answer_at: int
    spans: dict[str, int]


def as_asked(row: Row, learnt: bool, tokenizer: "PreTrainedTokenizerBase", wording: Wording) -> Asked | None:
    """A row with its tokens.

    Of the text, what the user said last, `prefix_tokens` are given and the next ones asked for, with all that stands before it in the
    conversation as context, as the model saw it in training. Of the answer the first tokens are asked for: its prefix is the prompt.

    Args:
        row: any row with an answer.
        learnt: whether it was trained on.
        tokenizer: of this run, a fast one.
        wording: of this run.

    Returns:
        The row, or None where it is too long.
    """
    *before, answer = conversation(row, wording.system, wording.template)
    prompt = render_prompt(tokenizer, before)
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    answer_ids: list[int] = tokenizer(answer["content"].strip(), add_special_tokens=False)["input_ids"]
    if len(ids) + len(answer_ids) > wording.max_tokens or not answer_ids:
        return None
    spans = {}
    said = next((message["content"].strip() for message in reversed(row.messages) if message["role"] == "user"), "")
    at = prompt.rfind(said) if said else -1
    inside = [place for place, (start, end) in enumerate(encoded["offset_mapping"]) if at <= start < end <= at + len(said)]
    if at >= 0 and len(inside) >= wording.prefix_tokens + wording.continuation_tokens:
        spans["text"] = inside[wording.prefix_tokens]
    if len(answer_ids) >= wording.continuation_tokens:
        spans["answer"] = len(ids)
    return Asked(row, learnt, ids + answer_ids, len(ids), spans)


def candidates(rows: Iterable[Row], ids: Iterable[str], count: int, seed: int) -> list[Row]:
    """The rows among which `balanced` chooses: a seeded sample, CANDIDATES times as many as are asked for."""
    wanted = seeded_sample(ids, CANDIDATES * count, seed)
    return [row for row in rows if row.id in wanted]


def balanced(learnt: Sequence[Asked], held_out: Sequence[Asked], count: int, seed: int) -> list[Asked]:
    """At most `count` rows of either side, those with something to reproduce first, and as many of each kind on both sides.

    Args:
        learnt: training rows.
        held_out: rows that were not trained on.
        count: of each side.
        seed: of the sample.

    Returns:
        The rows, by side and id.
    """
    chosen: list[Asked] = []
    left = count
    for long_enough in (True, False):
        sides = [[asked for asked in side if bool(asked.spans) == long_enough] for side in (learnt, held_out)]
        each = min(left, *map(len, sides))
        left -= each
        for side in sides:
            taken = seeded_sample((asked.row.id for asked in side), each, seed)
            chosen += [asked for asked in side if asked.row.id in taken]
    return sorted(chosen, key=lambda asked: (not asked.learnt, asked.row.id))
