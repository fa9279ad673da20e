"""What a row says, as texts: all that a stage may change or judge, and what it asks and teaches to answer. In: a row. Out: texts."""

from collections.abc import Callable
from dataclasses import replace

from stages.core.records import Row


def contents(row: Row) -> list[str]:
    """The texts of a row that a stage may change or judge: every message's, but not the label of a labelled row."""
    messages = row.messages[:-1] if row.label is not None and row.messages[-1]["role"] == "assistant" else row.messages
    return [message["content"] for message in (*messages, *(row.chosen or ()), *(row.rejected or ()))]


def with_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text changed but its label's."""
    if row.label is None or row.messages[-1]["role"] != "assistant":
        return row.mapped(change)
    changed = replace(row, messages=row.messages[:-1]).mapped(change)
    return replace(changed, messages=(*changed.messages, row.messages[-1]))


def prompt_text(row: Row) -> str:
    """What a row asks: its text without the system messages, unless there is nothing else."""
    body = row.messages[:-1] if row.messages and row.messages[-1]["role"] == "assistant" else row.messages
    return "\n".join(message["content"] for message in body if message["role"] != "system") or row.text


def answer_text(row: Row) -> str:
    """What a row teaches to answer: the label, the answer, or both answers of a preference row."""
    if row.label is not None:
        return row.label
    return "\n\n".join([row.answer, *(message["content"] for message in row.rejected or ())])
