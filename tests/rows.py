"""Rows for the tests of the data stages, made in one line each."""

from stages.core.records import Row, with_ids


def labelled(text: str, label: str, group: str | None = None, origin: str = "1") -> Row:
    """A labelled row: the text as the user's message, the label as the answer."""
    return _row([("user", text), ("assistant", label)], label=label, group=group, origin=origin)


def chat(*turns: str, system: str | None = None, group: str | None = None) -> Row:
    """A conversation: user, assistant, user, assistant …"""
    messages = [("system", system)] if system is not None else []
    return _row([*messages, *(("assistant" if number % 2 else "user", turn) for number, turn in enumerate(turns))], group=group)


def preference(prompt: str, chosen: str, rejected: str) -> Row:
    """A prompt with a preferred and another answer."""
    one, other = (({"role": "assistant", "content": answer},) for answer in (chosen, rejected))
    return Row("", ({"role": "user", "content": prompt},), one, other, None, "test", "1", None)


def numbered(rows: list[Row]) -> list[Row]:
    """The rows with their content ids."""
    return list(with_ids(rows))


def _row(messages: list[tuple[str, str]], label: str | None = None, group: str | None = None, origin: str = "1") -> Row:
    return Row("", tuple({"role": role, "content": content} for role, content in messages), None, None, label, "test", origin, group)
