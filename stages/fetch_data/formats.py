"""The shapes that users' rows come in, and the one row they become.

In: a record of named columns. Out: a Row without id, or BadRow with what was found and what was expected.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from stages.core.records import Message, Row
from stages.fetch_data.bad_row import BadRow
from stages.fetch_data.readers import Record

# the columns each format needs, in the order in which `auto` tries them
NEEDED = {
    "preference": ("prompt", "chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "labelled": ("text", "label"),
}
# the columns it takes besides; `group` keeps rows of one customer, case or document on one side of the split
OPTIONAL = {
    "preference": ("system", "group"),
    "messages": ("group",),
    "sharegpt": ("system", "group"),
    "alpaca": ("input", "system", "group"),
    "prompt_completion": ("system", "group"),
    "labelled": ("group",),
}
NAMES_SHOWN = 20  # of a record's columns in a message
MAX_INTEGER = 2**63  # what 64 bits and most tools hold; a larger one is no label but a mistake
# OpenAI's names, ShareGPT's names and those of its users
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def detect(columns: Iterable[str]) -> str | None:
    """The first format of NEEDED whose columns are all there, or None."""
    present = set(columns)
    return next((name for name, needed in NEEDED.items() if present.issuperset(needed)), None)


def missing_columns(columns: Iterable[str], format: str) -> str | None:
    """What columns lack for a format, in words.

    Args:
        columns: the names of the record, the user's mapping already applied.
        format: a name of NEEDED, or auto.

    Returns:
        Finding, expectation and, where a column's name is near, the mapping to set; or None where nothing is missing.
    """
    present = list(columns)
    if format == "auto":
        if detect(present) is not None:
            return None
        needed = [name for names in NEEDED.values() for name in names]
        expected = "expected those of one format: " + " | ".join(", ".join(names) for names in NEEDED.values())
        finding = "fits no format"
    else:
        needed = [name for name in NEEDED[format] if name not in present]
        if not needed:
            return None
        expected = f"format {format} needs {', '.join(NEEDED[format])}"
        finding = f"has no column {', '.join(needed)}"
    free = {name.lower(): name for name in present[:NAMES_SHOWN] if name not in needed}
    near = {name: match[0] for name in needed if name not in present and (match := difflib.get_close_matches(name, free, n=1))}
    mapping = ", ".join(f"{name}: {_name_shown(free[match])}" for name, match in near.items()) or f"{needed[0]}: YOUR_COLUMN"
    return f"{finding} (its columns are {_names(present)}), {expected}; set data.files.columns: {{{mapping}}} in params.yaml"


def _names(columns: Iterable[str]) -> str:
    """Columns in words, the first ones where they are many."""
    names = list(columns)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(map(_name_shown, names[:NAMES_SHOWN])) or 'none'}{more}"


def _name_shown(name: str) -> str:
    """A column's name within a sentence of one line."""
    return name[:40] if name.isprintable() else repr(name[:40])


def to_row(record: Record, format: str, source: str, origin: str) -> Row:
    """One record as a row without id.

    Args:
        record: the columns by their standard names.
        format: a name of NEEDED.
        source: the file.
        origin: the place in it.

    Returns:
        The row.

    Raises:
        BadRow: the record does not hold what the format promises.
    """
    absent = [name for name in NEEDED[format] if name not in record]
    if absent:
        raise BadRow(f"has no {', '.join(absent)} (its columns are {_names(record)})", "wrong_columns")
    system = _system(record)
    chosen = rejected = None
    label = None
    if format == "labelled":
        label = _name(record, "label")
        if label is None:
            raise BadRow("has an empty label, expected a text or a number")
        messages = [_message("user", record["text"], "text"), _message("assistant", label, "label")]
    elif format == "preference":
        messages = system + _turns(record, "prompt", "user")
        chosen, rejected = (_answer(record, name, messages) for name in ("chosen", "rejected"))
    elif format == "alpaca":
        instruction = _text(record["instruction"], "instruction")
        context = _text(record.get("input") or "", "input")
        question = f"{instruction}\n\n{context}" if context.strip() else instruction
        messages = [*system, _message("user", question, "instruction"), _message("assistant", record["output"], "output")]
    elif format == "prompt_completion":
        messages = system + _turns(record, "prompt", "user") + _turns(record, "completion", "assistant")
    else:
        messages = system + _conversation(record[NEEDED[format][0]], NEEDED[format][0])
    if format == "preference":
        if messages[-1]["role"] not in ("user", "tool"):
            raise BadRow(f"has a prompt whose last message is of role {messages[-1]['role']}, expected user or tool")
    elif messages[-1]["role"] != "assistant":
        raise BadRow(f"ends with a message of role {messages[-1]['role']}, expected assistant last: its answer is what is learnt")
    return Row(
        id="",
        messages=tuple(messages),
        chosen=None if chosen is None else tuple(chosen),
        rejected=None if rejected is None else tuple(rejected),
        label=label,
        source=source,
        origin=origin,
        group=_name(record, "group"),
    )


def _system(record: Record) -> list[Message]:
    """The optional column `system` as a message."""
    value = record.get("system")
    return [] if value is None or value == "" else [_message("system", value, "system")]


def _turns(record: Record, column: str, role: str) -> list[Message]:
    """A column that holds one message's text or a list of messages."""
    value = record[column]
    return _conversation(value, column) if isinstance(value, list) else [_message(role, value, column)]


def _answer(record: Record, column: str, prompt: list[Message]) -> list[Message]:
    """A preferred or rejected answer, without the prompt where the column repeats it, as UltraFeedback's does."""
    answer = _turns(record, column, "assistant")
    asked = [message for message in prompt if message["role"] != "system"]
    for head in (prompt, asked):
        if len(answer) > len(head) and answer[: len(head)] == head:
            answer = answer[len(head) :]
            break
    if answer[0]["role"] == "user" or answer[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in answer)
        raise BadRow(f"has in {column} messages of the roles {roles}, expected the assistant's answer to the prompt")
    return answer


def _conversation(value: Any, column: str) -> list[Message]:
    """A list of `{role, content}` or `{from, value}` objects."""
    if not isinstance(value, list):
        raise BadRow(f"has {_found(value)} in {column}, expected a list of messages")
    if not value:
        raise BadRow(f"has an empty list in {column}, expected messages")
    messages = []
    for number, item in enumerate(value, 1):
        place = f"message {number} of {column}"
        if not isinstance(item, dict):
            raise BadRow(f"has {_found(item)} as {place}, expected an object with role and content")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            found = f"the role {role[:20]!r}" if isinstance(role, str) else _found(role)
            raise BadRow(f"has {found} in {place}, expected one of {', '.join(ROLES)}")
        if item.get("tool_calls") or isinstance(item.get("function_call"), dict):
            raise BadRow(f"has tool_calls in {place}, expected text; write the call into content as your model's chat template does")
        if item.get("weight") == 0:
            raise BadRow(f"has weight 0 in {place}, but every assistant message is learnt; move it into a row's prompt")
        messages.append(_message(ROLES[role.lower()], item.get("content", item.get("value")), place))
    return messages


def _message(role: str, content: Any, place: str) -> Message:
    """One message; OpenAI's list of text parts becomes one text."""
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, dict) else _found(part) for part in content]
        other = [kind for kind in kinds if kind != "text"]
        if other:
            raise BadRow(f"has a part of type {str(other[0])[:20]} in {place}, expected text alone")
        content = "".join(_text(part.get("text"), place) for part in content)
    return {"role": role, "content": _text(content, place)}


def _text(value: Any, place: str) -> str:
    """A text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise BadRow(f"has {_found(value)} in {place}, expected a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"has half a surrogate pair (U+{ord(value[error.start]):04X}) in {place}, expected whole characters") from None
    return value


def _name(record: Record, column: str) -> str | None:
    """A label or group: a text without surrounding blanks or a number; None where it is absent or blank."""
    value = record.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadRow(f"has {_found(value)} in {column}, expected a text or a number")
    if not isinstance(value, str) and abs(value) >= MAX_INTEGER:
        raise BadRow(f"has a number beyond 64 bits in {column}, expected a text or a smaller number", "huge_number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Parquet's integers beside nulls, often
    return _text(str(value).strip(), column) or None


def _found(value: Any) -> str:
    """A value as a message shows it: its type, and a number's value."""
    if value is None:
        return "null"
    # a text or a list may hold a secret, and what is said here stands beside the rejected row
    short = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < MAX_INTEGER)
    return f"{type(value).__name__} {value!r}" if short else f"a {type(value).__name__}"
