"""One conversation as token ids and the mask of the tokens to learn, or the fault that makes it untrainable.

In: messages and a `Chat`, the tokenizer with its template. Out: `Encoded`, or `RowFault` with the sentence that tells why.

The mask comes from rendering: what the model is given before answer k is `render_prompt` of the messages before it, so that text must be a
beginning of the whole, and what follows it, up to and including the first special token behind the answer, is what the model has to
write itself. The same rule holds for every template, with or without `{% generation %}`, and for what a template puts before an answer (an
empty thinking block). What stands behind that special token, often a newline, is never generated and not learnt.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from stages.core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        literals: the texts of the special ids.
    """

    tokenizer: "PreTrainedTokenizerBase"
    special: frozenset[int]
    stops: frozenset[int]
    embedded: int
    new: frozenset[int]
    lost: dict[tuple[str, ...], int | None] = field(default_factory=dict)
    literals: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        """Looks the special ids' texts up."""
        texts = self.tokenizer.convert_ids_to_tokens(sorted(self.special))
        object.__setattr__(self, "literals", dict(zip(sorted(self.special), map(str, texts), strict=True)))

    def render(self, conversations: Sequence[Sequence[Message]], prompt: bool) -> list[str]:
        """What `apply_chat_template` makes of each conversation, `prompt` with the header of the answer to come.

        That function first copies every message into plain types, which is a third of its time; messages here are dicts of two texts.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(self.tokenizer.get_chat_template())
        known = self.tokenizer.special_tokens_map
        return [
            template.render(messages=list(messages), tools=None, documents=None, add_generation_prompt=prompt, **known)
            for messages in conversations
        ]


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


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A conversation's text and the texts before its answers."""

    text: str
    prompts: list[str]


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
    rendered = _render(chat, conversations)
    return _masks(chat, conversations, rendered, _encodings(chat, _texts(rendered)))


def encode_batches(chat: Chat, batches: Iterable[Sequence[Sequence[Message]]]) -> Iterator[list[Encoded | RowFault]]:
    """`encode` for one batch after the other; while one is tokenised, which takes all cores, the next is rendered and the last masked.

    Args:
        chat: tokenizer and template.
        batches: conversations.

    Yields:
        The results of each batch.
    """
    gc.freeze()  # what is there by now stays, and the collector, which the new lists wake, need not walk over it again and again
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting: tuple[Any, Any, Future[list[Any]]] | None = None
            for batch in batches:
                rendered = _render(chat, batch)
                future = pool.submit(_encodings, chat, _texts(rendered))
                if waiting is not None:
                    yield _masks(chat, waiting[0], waiting[1], waiting[2].result())
                waiting = batch, rendered, future
            if waiting is not None:
                yield _masks(chat, waiting[0], waiting[1], waiting[2].result())
    finally:
        gc.unfreeze()


def _texts(rendered: Sequence["_Rendered | RowFault"]) -> list[str]:
    return [item.text for item in rendered if isinstance(item, _Rendered)]


def _encodings(chat: Chat, texts: list[str]) -> list[Any]:
    """The tokenizers library's ids for each text; nothing is added, as the template has written every special token."""
    backend = chat.tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return list(backend.encode_batch_fast(texts, add_special_tokens=False))


def _render(chat: Chat, conversations: Sequence[Sequence[Message]]) -> list["_Rendered | RowFault"]:
    """Each conversation's text, and the text before each answer; a RowFault where the template does not keep to the messages."""
    if not conversations:
        return []
    heads = [
        list(messages[:number]) for messages in conversations for number, message in enumerate(messages) if message["role"] == "assistant"
    ]
    try:
        texts = chat.render(conversations, False)
        prompts = iter(chat.render(heads, True))
    except TemplateError as error:
        if len(conversations) == 1:
            fault = RowFault(f"is refused by the chat template: {error}")
            fault.__cause__ = error
            return [fault]
        return [_render(chat, [messages])[0] for messages in conversations]
    return [_checked(chat, messages, text, prompts) for messages, text in zip(conversations, texts, strict=True)]


def _checked(chat: Chat, messages: Sequence[Message], text: str, prompts: Iterator[str]) -> "_Rendered | RowFault":
    """A rendered conversation, if every message stands in it and every prompt begins it; takes its prompts from the iterator."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    own = [next(prompts) for _ in answers]
    if not answers:
        return RowFault("has no answer, so no token to learn; give it an assistant message")
    try:
        _check_content(chat, messages, text)
    except RowFault as fault:
        return fault
    for number, prompt in zip(answers, own, strict=True):
        if not text.startswith(prompt):
            at = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
            return RowFault(
                f"is rewritten by the chat template: the prompt of message {number + 1} (assistant) reads {prompt[at : at + 30]!r} where "
                f"the whole conversation reads {text[at : at + 30]!r} (character {at + 1})"
            )
    return _Rendered(text, own)


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


def _masks(
    chat: Chat, conversations: Sequence[Sequence[Message]], rendered: Sequence["_Rendered | RowFault"], encodings: Sequence[Any]
) -> list[Encoded | RowFault]:
    """The results of a batch.

    Of a prompt only what follows its last special token is tokenised: a tokenizer cuts a text at its special tokens first and treats what
    lies between them apart, so up to there a prompt has the tokens of the whole. For most templates that tail is the same in every row.
    """
    left: Iterator[Any] = iter(encodings)
    whole: list[Any] = [next(left) if isinstance(item, _Rendered) else None for item in rendered]
    specials = [
        _specials(chat, item.text, encoding.ids) if isinstance(item, _Rendered) else []
        for item, encoding in zip(rendered, whole, strict=True)
    ]
    cuts = [
        [_tail(found, prompt) for prompt in item.prompts] if isinstance(item, _Rendered) else []
        for item, found in zip(rendered, specials, strict=True)
    ]
    tails = sorted({tail for row in cuts for _, tail in row})
    ids_of = dict(zip(tails, (encoding.ids for encoding in _encodings(chat, tails)), strict=True))
    results: list[Encoded | RowFault] = []
    for messages, item, encoding, found, row in zip(conversations, rendered, whole, specials, cuts, strict=True):
        if isinstance(item, RowFault):
            results.append(item)
            continue
        try:
            results.append(_masked(chat, messages, item, encoding.ids, found, [(at, ids_of[tail]) for at, tail in row]))
        except RowFault as fault:
            results.append(fault)
    return results


def _specials(chat: Chat, text: str, ids: list[int]) -> list[tuple[int, int, int]]:
    """The special tokens of a text: index, first character, and the one behind the last; found by their own texts, in order."""
    found, at = [], 0
    for index, token in enumerate(ids):
        if token in chat.special:
            literal = chat.literals[token]
            start = text.find(literal, at)
            if start < 0:  # a tokenizer may take another spelling for one: the slower way knows all offsets
                offsets = chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
                return [(place, *offsets[place]) for place, token in enumerate(ids) if token in chat.special]
            at = start + len(literal)
            found.append((index, start, at))
    return found


def _tail(specials: list[tuple[int, int, int]], prompt: str) -> tuple[int, str]:
    """The index of a prompt's last special token and the prompt from there, or all of it where it has none."""
    for index, start, end in reversed(specials):
        if end <= len(prompt):
            return index, prompt[start:]
    return 0, prompt


def _masked(
    chat: Chat,
    messages: Sequence[Message],
    rendered: _Rendered,
    ids: list[int],
    specials: list[tuple[int, int, int]],
    tails: list[tuple[int, list[int]]],
) -> Encoded:
    """The mask over a text's tokens, given the tail of each prompt alone; raises RowFault where there is none to be had."""
    text, prompts = rendered.text, rendered.prompts
    starts = [at + len(tail) for at, tail in tails]
    in_pieces = any(ids[at : at + len(tail)] != tail for at, tail in tails)
    if in_pieces:
        ids, offsets, starts = _in_pieces(chat, text, [len(prompt) for prompt in prompts], ids)
        specials = [(index, *offsets[index]) for index, token in enumerate(ids) if token in chat.special]
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    trained = [False] * len(ids)
    end = 0
    for start, stop, prompt, answer in zip(starts, [*starts[1:], len(ids)], prompts, answers, strict=True):
        end = next(
            (
                index
                for index, character, _ in specials
                if start <= index < stop and text[len(prompt) : character].rstrip().endswith(answer)
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
    for number, (a, b) in enumerate(pairwise(edges)):
        piece = chat.tokenizer.backend_tokenizer.encode(text[a:b], add_special_tokens=False)
        if number:
            starts.append(len(ids))
        ids += piece.ids
        offsets += [(a + start, a + end) for start, end in piece.offsets]
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
    if max(ids) < chat.embedded:
        return
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
