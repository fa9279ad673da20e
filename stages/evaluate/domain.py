"""The domain's test rows as tasks: the training prompt for every model, and for the base the label list and examples as well.

In: test and training rows. Out: tasks. Each way of asking gives two: what the model writes, and how likely it holds the labels, or the
reference answer of a row without one. The base has not learnt the task, so it is asked in several ways and judged by its best.
"""

import random
import sys
from typing import TYPE_CHECKING

from stages.core.answers import normal
from stages.core.errors import UserError
from stages.core.params import Params
from stages.core.prompts import ask, conversation, render_prompt
from stages.core.records import Message, Row
from stages.core.retrieval import nearest_rows
from stages.evaluate.tasks import Task, answer_task, label_scores_task, label_task, reference_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def domain_tasks(
    variant: str, test: list[Row], train: list[Row], params: Params, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[list[Task]]:
    """What a model is asked about the test rows.

    Args:
        variant: base or tuned.
        test: the rows asked about.
        train: the rows examples come from.
        params: seed, prompt and evaluate are read.
        tokenizer: with this run's chat template.
        max_length: tokens the model can read.

    Returns:
        The tasks of each way of asking. Of labelled rows the generated answers and the label scores of each prompt: `plain`, and for the
        base those of `base_questions`. Of other rows what `free_tasks` gives.
    """
    system, template, settings = params.prompt.system, params.prompt.template, params.evaluate
    if any(row.label is None for row in test):
        return free_tasks(variant, test, train, params, tokenizer, max_length)
    labels = sorted({row.answer for row in [*test, *train]})
    check_labels(labels, settings.max_new_tokens, tokenizer)

    questions = {"plain": {row.id: ask(row.text, system, template) for row in test}}
    if variant == "base":
        questions |= base_questions(test, train, labels, params, tokenizer, max_length - settings.max_new_tokens)
    end = answer_end(tokenizer)
    ways = []
    for prompt, asked in questions.items():
        rendered = {key: render_prompt(tokenizer, messages) for key, messages in asked.items()}
        scores = label_scores_task(prompt, rendered, test, labels, end)
        ways.append([label_task(prompt, rendered, test, settings.max_new_tokens), scores])
    return ways


def base_questions(
    test: list[Row], train: list[Row], labels: list[str], params: Params, tokenizer: "PreTrainedTokenizerBase", room: int
) -> dict[str, dict[str, list[Message]]]:
    """The messages of each test row by prompt and id, for a model that has not learnt the labels.

    Args:
        test: the rows asked about.
        train: the rows examples come from.
        labels: all labels.
        params: seed, prompt and evaluate are read.
        tokenizer: that counts a prompt's tokens.
        room: tokens that a prompt may have.

    Returns:
        `label_list`, `few_shot` where an example was asked for and has room, and `retrieved` unless evaluate.retrieved is 0.
    """
    system, settings = params.prompt.system, params.evaluate
    listed = {row.id: ask(row.text, system, settings.base_prompt, labels) for row in test}
    questions = {"label_list": listed}
    examples = few_shot_examples(train, settings.few_shot, params.seed)
    longest = max(listed.values(), key=lambda messages: len(messages[-1]["content"]))

    def shots(messages: list[Message]) -> list[Message]:
        turns: list[Message] = messages[:-1]
        for row in examples:
            turns += [ask(row.text, None, settings.base_prompt, labels)[0], {"role": "assistant", "content": row.answer}]
        return [*turns, messages[-1]]

    while examples and token_count(render_prompt(tokenizer, shots(longest)), tokenizer) > room:
        examples.pop()
    if examples:
        questions["few_shot"] = {key: shots(messages) for key, messages in listed.items()}
    if settings.retrieved:
        near = nearest_rows(test, train, settings.retrieved)
        questions["retrieved"] = {
            row.id: after_examples(row, near[row.id], params.prompt.system, params.prompt.template, tokenizer, room) for row in test
        }
    return questions


def free_tasks(
    variant: str, test: list[Row], train: list[Row], params: Params, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[list[Task]]:
    """What a model is asked about rows without labels: to write the last answer, and how likely it holds the reference.

    A row whose prompt and answer do not fit in the model is not asked, by no model, and that is told.

    Args:
        variant: base or tuned.
        test: the rows asked about.
        train: the rows examples come from.
        params: seed, prompt and evaluate are read.
        tokenizer: with this run's chat template.
        max_length: tokens the model can read.

    Returns:
        Both tasks of each way of asking, or the second alone with evaluate.max_free_tokens 0: `plain`, and for the base `few_shot` and
        `retrieved`.

    Raises:
        UserError: no row fits.
    """
    system, template, settings = params.prompt.system, params.prompt.template, params.evaluate
    answers, room = {}, {}
    for row in test:
        *question, answer = conversation(row, system, template)
        left = max_length - max(settings.max_free_tokens, token_count(answer["content"], tokenizer))
        if answer["content"] and token_count(render_prompt(tokenizer, question), tokenizer) <= left:
            answers[row.id], room[row.id] = answer["content"], left
    if len(answers) < len(test):
        found = (
            f"{len(test) - len(answers)} of {len(test)} test rows have no answer, or with {settings.max_free_tokens} tokens to write "
            f"(evaluate.max_free_tokens) more tokens than the model can read ({max_length})"
        )
        if not answers:
            raise UserError(f"{found}; lower evaluate.max_free_tokens, or clean.max_characters")
        sys.stderr.write(f"evaluate@{variant}: WARNING: {found}; no model is asked them\n")

    rows = [row for row in test if row.id in answers]
    shown: dict[str, dict[str, list[Row]]] = {"plain": {row.id: [] for row in rows}}
    if variant == "base" and (examples := few_shot_examples(train, settings.few_shot, params.seed)):
        shown["few_shot"] = {row.id: examples for row in rows}
    if variant == "base" and settings.retrieved:
        shown["retrieved"] = nearest_rows(rows, train, settings.retrieved)
    ways = []
    for prompt, before in shown.items():
        asked = {row.id: after_examples(row, before[row.id], system, template, tokenizer, room[row.id]) for row in rows}
        rendered = {key: render_prompt(tokenizer, messages) for key, messages in asked.items()}
        weighed = reference_task(prompt, rendered, answers)
        written = [answer_task(prompt, rendered, answers, settings.max_free_tokens)] if settings.max_free_tokens else []
        ways.append([*written, weighed])
    return ways


def after_examples(
    row: Row, near: list[Row], system: str | None, template: str, tokenizer: "PreTrainedTokenizerBase", room: int
) -> list[Message]:
    """The training prompt with other rows as earlier turns, the nearest last, the farthest left out where there is no room.

    Args:
        row: the row asked about.
        near: the other rows, the nearest first; their system messages are left out.
        system: the system message of a labelled row, or None.
        template: the user message of a labelled row, with `{text}`.
        tokenizer: that counts the prompt's tokens.
        room: tokens that the prompt may have.

    Returns:
        The messages.
    """
    asked = conversation(row, system, template)[:-1]
    start = next((place for place, message in enumerate(asked) if message["role"] != "system"), len(asked))
    for kept in range(len(near), -1, -1):
        turns = [message for example in reversed(near[:kept]) for message in conversation(example, None, template)]
        messages = [*asked[:start], *(message for message in turns if message["role"] != "system"), *asked[start:]]
        if token_count(render_prompt(tokenizer, messages), tokenizer) <= room:
            break
    return messages


def token_count(text: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens a rendered text has."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_end(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the chat template writes after an answer, up to the first special token: the sign that the answer is complete.

    Args:
        tokenizer: with this run's chat template.

    Returns:
        The text; the tokenizer's end token where the template writes no special token.
    """
    answer = "0answer0"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    after = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition(answer)[2]
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} | set(tokenizer.all_special_tokens)
    ends = [after.index(token) + len(token) for token in special if token in after]
    return after[: min(ends)] if ends else str(tokenizer.eos_token or "")


def few_shot_examples(rows: list[Row], count: int, seed: int) -> list[Row]:
    """A seeded choice of short examples, the labels in turn, the most frequent first, then shuffled so that their order tells nothing.

    Args:
        rows: training rows; without labels all are of one kind.
        count: how many are wanted.
        seed: of the choice.

    Returns:
        At most `count` rows, from the shorter half of each label's.
    """
    rng = random.Random(f"few-shot {seed}")
    by_label: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (len(row.text if row.label else row.text + row.answer), row.id)):
        by_label.setdefault(row.label or "", []).append(row)
    piles = []
    for _, pile in sorted(by_label.items(), key=lambda item: (-len(item[1]), item[0])):
        half = pile[: (len(pile) + 1) // 2]
        rng.shuffle(half)
        piles.append(half)
    deepest = max(map(len, piles), default=0)
    chosen = [pile[depth] for depth in range(deepest) for pile in piles if depth < len(pile)][:count]
    rng.shuffle(chosen)
    return chosen


def check_labels(labels: list[str], max_new_tokens: int, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuses labels that no answer could match, or that one answer would match twice.

    Args:
        labels: all labels.
        max_new_tokens: of an answer.
        tokenizer: that counts them.

    Raises:
        UserError: names the labels at fault.
    """
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(normal(label), label)
        if other != label:
            raise UserError(
                f"the labels {other!r} and {label!r} differ only in case, quotes or later lines, which scoring ignores; rename one"
            )
        tokens = token_count(label, tokenizer)
        if tokens > max_new_tokens:
            raise UserError(
                f"the label {label!r} has {tokens} tokens, but evaluate.max_new_tokens is {max_new_tokens}; raise it to {tokens} or more"
            )
