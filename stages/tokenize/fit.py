"""What becomes of a conversation that has more than tokenize.max_tokens: the policies truncate and split.

In: messages. Out: the encoded rows that take its place, or none where the policy cannot make it fit (the row is then rejected).
A shortened conversation that the template refuses raises its RowFault.
"""

from collections.abc import Sequence

from stages.core.records import Message
from stages.tokenize.encode import Chat, Encoded, RowFault, encode

CUT = "…"  # stands where text was taken out, so that the model is not taught that the pieces belong together


def truncate(chat: Chat, messages: Sequence[Message], max_tokens: int) -> Encoded | None:
    """Cuts the middle out of the longest question until the conversation fits; answers and the system message are kept whole.

    The beginning and the end of a question say most about it, and the cut is made in the text, so the row is one that the template and
    the tokenizer could have been given.

    Args:
        chat: tokenizer and template.
        messages: a conversation that is too long.
        max_tokens: what it may have.

    Returns:
        The row, or None where answers, system message and template alone are too long.
    """
    kept = {number: len(message["content"]) for number, message in enumerate(messages) if message["role"] not in ("assistant", "system")}
    while True:
        shortened = [
            {**message, "content": _without_middle(message["content"], kept[number])} if number in kept else message
            for number, message in enumerate(messages)
        ]
        encoded = one(chat, shortened)
        over = len(encoded.input_ids) - max_tokens
        if over <= 0:
            return encoded
        longest = max(kept, key=lambda number: (kept[number], -number), default=None)
        if longest is None or kept[longest] == 0:
            return None
        question = len(chat.tokenizer(shortened[longest]["content"], add_special_tokens=False)["input_ids"])
        share = max(0.0, 1 - over / max(question, 1))
        kept[longest] = min(int(kept[longest] * share), kept[longest] - 1)


def _without_middle(text: str, kept: int) -> str:
    """The first and the last of `kept` characters with a mark between them, or the text where it is no longer than that."""
    if kept >= len(text):
        return text
    head, tail = (kept + 1) // 2, kept // 2
    return f"{text[:head].rstrip()} {CUT} {text[len(text) - tail :].lstrip()}".strip()


def split(chat: Chat, messages: Sequence[Message], max_tokens: int) -> list[Encoded]:
    """Cuts a conversation into rows between turns, each as long as fits, each with the system message in front.

    A turn ends with an answer, so every row has something to learn. What came before a cut is not seen behind it. A single turn
    cannot be cut: a conversation with one that does not fit, a single-turn row too, is not split at all.

    Args:
        chat: tokenizer and template.
        messages: a conversation that is too long.
        max_tokens: what a row may have.

    Returns:
        The rows in order, or none where a turn does not fit.
    """
    system = [messages[0]] if messages[0]["role"] == "system" else []
    rows: list[Encoded] = []
    current: list[Message] = []
    best: Encoded | None = None
    for turn in _turns(messages[len(system) :]):
        longer = one(chat, [*system, *current, *turn])
        if len(longer.input_ids) > max_tokens and best is not None:
            rows.append(best)
            current, longer = [], one(chat, [*system, *turn])
        if len(longer.input_ids) > max_tokens:
            return []
        current, best = [*current, *turn], longer
    return [*rows, best] if best is not None else []


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages cut behind each answer; what follows the last answer stays with it."""
    turns: list[list[Message]] = [[]]
    for number, message in enumerate(messages):
        turns[-1].append(message)
        if message["role"] == "assistant" and any(later["role"] == "assistant" for later in messages[number + 1 :]):
            turns.append([])
    return turns


def one(chat: Chat, messages: Sequence[Message]) -> Encoded:
    """One conversation encoded; raises its fault."""
    result = encode(chat, [messages])[0]
    if isinstance(result, RowFault):
        raise result
    return result
