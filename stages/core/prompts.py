"""How a row becomes the conversation a model sees, the same in tokenize and evaluate."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.core.records import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def conversation(row: Row, system: str | None, template: str) -> list[Message]:
    """The messages to train on: a labelled row with the user's instruction around its text, any other row as it is.

    Args:
        row: the row; of a preference row the prompt and the chosen answer.
        system: the system message of labelled rows, or None.
        template: the user message of labelled rows, with `{text}` where the row's text goes.

    Returns:
        The messages, the assistant's answer last.
    """
    if row.label is None:
        return [*row.messages, *(row.chosen or ())]
    return [*ask(row.text, system, template), {"role": "assistant", "content": row.label}]


def ask(text: str, system: str | None, template: str, labels: Sequence[str] = ()) -> list[Message]:
    """The question about one text: `{text}` and `{labels}` are replaced, every other brace is left alone."""
    # two passes over the template's own pieces, so that braces in the text are never read as fields
    parts = [part.replace("{labels}", ", ".join(labels)) for part in template.split("{text}")]
    question: Message = {"role": "user", "content": text.join(parts)}
    return [question] if system is None else [{"role": "system", "content": system}, question]


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The exact text a model is asked to continue: the messages in the chat template, with the header of the answer to come.

    The template writes every special token, BOS too where it has one, so encode it with `add_special_tokens=False`.
    """
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
