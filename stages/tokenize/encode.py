"""One conversation as token ids and the mask of the tokens to learn, or the fault that makes it untrainable.

In: messages and a `Chat`, the tokenizer with its template. Out: `Encoded`, or `RowFault` with the sentence that tells why.

The mask comes from rendering: what the model is given before answer k is `render_prompt` of the messages before it, so that text must be a
beginning of the whole, and what follows it, up to and including the first special token behind the answer, is what the model has to
write itself. The same rule holds for every template, with or without `{% generation %}`, and for what a template puts before an answer (an
empty thinking block). What stands behind that special token, often a newline, is never generated and not learnt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from stages.core.prompts import render_prompt
from stages.core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters each covers


class RowFault(Exception):
    """A conversation that cannot be trained on; the message follows the row's name in a sentence."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template.

    Attributes:
        tokenizer: a fast one.
        special: ids that are never text: they delimit turns, begin and end the text.
        stops: ids at which generation stops.
        embedded: ids below this have a row in the base's embedding.
        new: the ids of tokenize.new_tokens, for which the embedding grows.
        lost: per sequence of roles, the first message that the template drops, or None; filled as they come.
    """

    tokenizer: "PreTrainedTokenizerBase"
    special: frozenset[int]
    stops: frozenset[int]
    embedded: int
    new: frozenset[int]
    lost: dict[tuple[str, ...], int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation's tokens.

    Attributes:
        text: what the template wrote.
        input_ids: its tokens.
        trained: for each token, whether it is learnt.
        in_pieces: whether prompt and answers were tokenised apart (see `encode`).
    """

    text: str
    input_ids: list[int]
    trained: list[bool]
    in_pieces: bool


def encode(chat: Chat, conversations: Sequence[Sequence[Message]]) -> list[Encoded | RowFault]:
    """Renders, tokenises in one batch and masks.

    A tokenizer may join the end of a prompt and the beginning of an answer into one token ("\\n" and "\\nYes", ": " and "yes"). At
    inference the prompt is tokenised alone, so such a conversation is tokenised in pieces, cut where answers begin, and the model learns
    from the tokens it will be given. The report counts these rows.

    Args:
        chat: tokenizer and template.
        conversations: messages, each with `role` and `content`.

    Returns:
        One result a conversation, in order.
    """
    results: dict[int, Encoded | RowFault] = {}
    texts: dict[int, tuple[str, list[str]]] = {}
    for number, messages in enumerate(conversations):
        try:
            texts[number] = _render(chat, messages)
        except RowFault as fault:
            results[number] = fault
    whole = tokens(chat, [text for text, _ in texts.values()])
    prompts = iter(tokens(chat, [prompt for _, prompts in texts.values() for prompt in prompts]))
    for (number, (text, before)), encoded in zip(texts.items(), whole, strict=True):
        try:
            results[number] = _masked(chat, conversations[number], text, before, encoded, [next(prompts)[0] for _ in before])
        except RowFault as fault:
            results[number] = fault
    return [results[number] for number in range(len(conversations))]


def tokens(chat: Chat, texts: list[str]) -> list[Tokens]:
    """The tokens of each text; nothing is added to it, as the template has written every special token."""
    if not texts:
        return []
    batch = chat.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


def _render(chat: Chat, messages: Sequence[Message]) -> tuple[str, list[str]]:
    """The conversation's text, and the text before each answer; raises RowFault where the template does not keep to the messages."""
    try:
        text = str(chat.tokenizer.apply_chat_template(list(messages), tokenize=False))
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        prompts = [render_prompt(chat.tokenizer, messages[:number]) for number in answers]
    except TemplateError as error:
        raise RowFault(f"is refused by the chat template: {error}") from error
    if not answers:
        raise RowFault("has no answer, so no token to learn; give it an assistant message")
    _check_content(chat, messages, text)
    for number, prompt in zip(answers, prompts, strict=True):
        if not text.startswith(prompt):
            at = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
            raise RowFault(
                f"is rewritten by the chat template: the prompt of message {number + 1} (assistant) reads {prompt[at : at + 30]!r} where "
                f"the whole conversation reads {text[at : at + 30]!r} (character {at + 1})"
            )
    return text, prompts


def _check_content(chat: Chat, messages: Sequence[Message], text: str) -> None:
    """Every message must stand in the text, in order; white space at its ends may go."""
    roles = tuple(message["role"] for message in messages)
    if roles not in chat.lost:
        chat.lost[roles] = _lost(chat, roles)
    at, lost = 0, chat.lost[roles]
    for number, message in enumerate(messages):
        content = message["content"].strip()
        found = text.find(content, at)
        if found < 0 or number == lost:
            raise RowFault(
                f"loses message {number + 1} ({message['role']}: {content[:40]!r}) in the chat template, which drops or rewrites it"
            )
        at = found + len(content)


def _lost(chat: Chat, roles: tuple[str, ...]) -> int | None:
    """The first message of a sequence of roles that the template drops: words nobody writes cannot be found by chance."""
    words = [f"qx{number}zj" for number in range(len(roles))]
    messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    text = str(chat.tokenizer.apply_chat_template(messages, tokenize=False))
    return next((number for number, word in enumerate(words) if word not in text), None)


def _masked(chat: Chat, messages: Sequence[Message], text: str, prompts: list[str], whole: Tokens, before: list[list[int]]) -> Encoded:
    """The mask over a text's tokens, given the tokens of each prompt alone; raises RowFault where there is none to be had."""
    ids, offsets = whole
    starts = [len(prompt) for prompt in before]
    in_pieces = any(ids[: len(prompt)] != prompt for prompt in before)
    if in_pieces:
        ids, offsets, starts = _in_pieces(chat, text, [len(prompt) for prompt in prompts], ids)
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    trained = [False] * len(ids)
    end = 0
    for start, stop, prompt, answer in zip(starts, [*starts[1:], len(ids)], prompts, answers, strict=True):
        end = next(
            (
                position
                for position in range(start, stop)
                if ids[position] in chat.special and text[len(prompt) : offsets[position][0]].rstrip().endswith(answer)
            ),
            -1,
        )
        if end < 0:
            raise RowFault(
                f"gets no end from the chat template: no special token follows the answer {answer[:40]!r}, so the model would "
                f"never learn to stop; end answers with {{{{ eos_token }}}} in the template"
            )
        trained[start : end + 1] = [True] * (end + 1 - start)
    if ids[end] not in chat.stops:
        name, stops = chat.tokenizer.convert_ids_to_tokens(ids[end]), chat.tokenizer.convert_ids_to_tokens(sorted(chat.stops))
        raise RowFault(
            f"ends with {name}, at which generation does not stop (it stops at {', '.join(stops)}); "
            f"end the last answer with {{{{ eos_token }}}} in the template"
        )
    _check_ids(chat, ids)
    return Encoded(text, ids, trained, in_pieces)


def _in_pieces(chat: Chat, text: str, cuts: list[int], whole: list[int]) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Ids and offsets of a text tokenised in pieces, and the first token of each piece but the first."""
    edges = [0, *cuts, len(text)]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    starts: list[int] = []
    for number, (piece_ids, piece_offsets) in enumerate(tokens(chat, [text[a:b] for a, b in pairwise(edges)])):
        if number:
            starts.append(len(ids))
        ids += piece_ids
        offsets += [(a + edges[number], b + edges[number]) for a, b in piece_offsets]
    if chat.tokenizer.decode(ids) != chat.tokenizer.decode(whole):
        # e.g. SentencePiece puts a space before every text it is given
        raise RowFault(
            "has an answer whose beginning joins with the prompt into one token, and this tokenizer changes the text "
            "when they are tokenised apart; let the template end the prompt with a special token or without white space"
        )
    return ids, offsets, starts


def _check_ids(chat: Chat, ids: list[int]) -> None:
    """Two BOS at the beginning, and tokens that have no row in the embedding."""
    bos = chat.tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise RowFault(f"begins with {chat.tokenizer.bos_token} twice; write it once in the chat template")
    if strange := sorted({token for token in ids if token >= chat.embedded and token not in chat.new}):
        name = chat.tokenizer.convert_ids_to_tokens(strange[0])
        raise RowFault(
            f"holds token {strange[0]} ({name}), but the base's embedding has {chat.embedded} rows: the tokenizer is "
            f"not this model's; if it is meant to grow, name the tokens in tokenize.new_tokens"
        )


def control_token(texts: Iterable[str], messages: Sequence[Message]) -> dict[str, object] | None:
    """The first control token written out in a message, as the evidence of its rejection: it would be read as the end of a turn.

    Args:
        texts: the tokens' texts.
        messages: the conversation.

    Returns:
        `message` (its number from 1), `role` and `token`, or None.
    """
    for number, message in enumerate(messages, 1):
        for text in texts:
            if text in message["content"]:
                return {"message": number, "role": message["role"], "token": text}
    return None
