"""The tokenizer and its chat template: made ready for this run, and examined before any row is trusted to them.

In: the base's folder and `tokenize` of params.yaml. Out: a `Chat`, and what the report says of it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from stages.core import paths
from stages.core.errors import UserError
from stages.core.models import load_tokenizer
from stages.core.params import Tokenize
from stages.core.prompts import render_prompt
from stages.core.records import Message
from stages.tokenize.encode import Chat, RowFault, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template that asks for today's date would give other bytes tomorrow; this is the date that Llama's own falls back to.
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}\n"
QUESTION, ANSWER, SYSTEM = "qx1zj", "qx2zj", "qx3zj"  # words nobody writes


def prepare(base: Path, manifest: dict[str, Any], params: Tokenize) -> tuple[Chat, dict[str, int]]:
    """The base's tokenizer with this run's template and new tokens.

    Args:
        base: the base's folder.
        manifest: models/base.json.
        params: tokenize of params.yaml.

    Returns:
        The chat, and the new tokens' ids by token.

    Raises:
        UserError: there is no template, a new token is none, or the tokenizer lacks what training needs.
    """
    tokenizer = load_tokenizer(base)
    if not tokenizer.is_fast:
        raise UserError(f"the base's tokenizer ({type(tokenizer).__name__}) gives no offsets; choose a base with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise UserError("the base's tokenizer has no EOS token, so no answer could end; name one as eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = _template(tokenizer, params.chat_template)
    tokenizer.chat_template = FIXED_DATE + template if "strftime_now" in template else template
    new = _add_tokens(tokenizer, params.new_tokens, template)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | set(tokenizer.all_special_ids)
    chat = Chat(
        tokenizer=tokenizer,
        special=frozenset(special),
        stops=frozenset(_stops(base) | {tokenizer.get_vocab()[str(tokenizer.eos_token)]}),
        embedded=int(manifest["vocabulary"]),
        new=frozenset(new.values()),
    )
    return chat, new


def _template(tokenizer: "PreTrainedTokenizerBase", named: str | None) -> str:
    """The chat template's source: the model's own, or a file of templates/, which is a dep of the stage."""
    if named is not None:
        path = Path(named)
        if path.parent != paths.TEMPLATES or not path.is_file():
            have = ", ".join(str(file) for file in sorted(paths.TEMPLATES.glob("*.jinja"))) or "none"
            raise UserError(f"tokenize.chat_template is {named}, expected a file directly in {paths.TEMPLATES}/ (there: {have})")
        return path.read_text(encoding="utf-8")
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        remedy = f"name one, e.g. tokenize.chat_template: {paths.TEMPLATES}/chatml.jinja"
        raise UserError(f"the base's tokenizer has no chat template; {remedy}") from None


def _add_tokens(tokenizer: "PreTrainedTokenizerBase", names: list[str], template: str) -> dict[str, int]:
    """Adds tokenize.new_tokens; one that the template writes becomes a special token, which no text can hold by chance."""
    known = tokenizer.get_vocab()
    if clash := next((name for number, name in enumerate(names) if name in known or name in names[:number]), None):
        raise UserError(f"tokenize.new_tokens names {clash!r}, which the vocabulary holds already; remove it from the list")
    for name in names:
        tokenizer.add_tokens([name], special_tokens=name in template)
    vocabulary = tokenizer.get_vocab()
    return {name: vocabulary[name] for name in names}


def _stops(base: Path) -> set[int]:
    """The ids at which the base's generation stops, of its generation_config.json and config.json."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (base / name).is_file():
            stops = json.loads((base / name).read_text(encoding="utf-8")).get("eos_token_id")
            found |= set(stops) if isinstance(stops, list) else {stops} - {None}
    return found


def control_tokens(chat: Chat) -> list[str]:
    """The texts of the tokens that delimit turns: written out in a message they would be read as such, and rows with them are rejected.

    Args:
        chat: tokenizer and template.

    Returns:
        Those the template writes, and the tokenizer's BOS, EOS and padding.

    Raises:
        UserError: the template cannot render a question and an answer, or the tokens fail a check that every row would fail.
    """
    try:
        probe = encode(chat, [_probe()])[0]
    except TemplateError as error:
        raise UserError(f"the chat template is broken: {error}; mend it or name another in tokenize.chat_template") from error
    if isinstance(probe, RowFault):
        raise UserError(f"a plain question and answer {probe}")
    named = {chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id}
    ids = {token for token in probe.input_ids if token in chat.special} | {token for token in named if token is not None}
    return [str(token) for token in chat.tokenizer.convert_ids_to_tokens(sorted(ids))]


def _probe() -> list[Message]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def added_system(chat: Chat) -> str | None:
    """The text that the template puts before a question that has no system message, where it opens one by itself; else None."""
    question = _probe()[:1]
    head = render_prompt(chat.tokenizer, question).split(QUESTION)[0]
    try:
        with_system = render_prompt(chat.tokenizer, [{"role": "system", "content": SYSTEM}, *question])
    except TemplateError:  # it takes no system message
        return None
    opening = with_system.split(SYSTEM)[0] if SYSTEM in with_system else ""
    return head[len(opening) :] if opening.strip() and head.startswith(opening) else None


def describe(chat: Chat, manifest: dict[str, Any], params: Tokenize, new: dict[str, int]) -> dict[str, Any]:
    """What the report says of the tokenizer: `special_tokens`, `template`, `embedding`, `new_tokens`, and `notes` in sentences."""
    tokenizer = chat.tokenizer
    template = str(tokenizer.chat_template)
    size, rows = len(tokenizer), int(manifest["vocabulary"])
    system = added_system(chat)
    bos = tokenizer.bos_token_id
    first = encode(chat, [_probe()])[0]
    assert not isinstance(first, RowFault)  # control_tokens has tried it
    wants_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    notes = []
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        notes.append(
            f"Padding and end of answer are the same token, {tokenizer.eos_token}. That is harmless here: padding is masked from "
            f"attention and never a label, and the token that ends an answer is a label by its place, not by its id."
        )
    if system is not None:
        notes.append("The template adds a system message of its own to conversations that have none.")
    if wants_bos and first.input_ids[0] != bos:
        notes.append(f"The tokenizer begins plain texts with {tokenizer.bos_token}, the template does not; the template is followed.")
    if template.startswith(FIXED_DATE):
        notes.append("The template asks for today's date; it is given 26 Jul 2024, so that equal rows stay equal.")
    if size - len(new) > rows:
        notes.append(f"The tokenizer names {size - len(new) - rows} tokens for which the base has no row; no row of the data uses them.")
    if size < rows:
        notes.append(f"The embedding has {rows - size} rows more than the tokenizer has tokens; they are never used.")
    return {
        "tokenizer": type(tokenizer).__name__,
        "special_tokens": _special(chat),
        "pad_is_eos": tokenizer.pad_token_id == tokenizer.eos_token_id,
        "template": {
            "source": params.chat_template or "the model's own",
            "sha256": hashlib.sha256(template.encode()).hexdigest(),
            "adds_system_message": system,
        },
        "embedding": {"rows": rows, "vocabulary": size, "rows_in_training": max(rows, size)},
        "new_tokens": new,
        "notes": notes,
    }


def _special(chat: Chat) -> list[dict[str, Any]]:
    """The named special tokens and those at which generation stops: `token`, `id`, and `roles` (bos, eos, pad, unk, stop)."""
    roles: dict[int, list[str]] = {}
    for role in ("bos", "eos", "pad", "unk"):
        token = getattr(chat.tokenizer, f"{role}_token_id")
        if token is not None:
            roles.setdefault(int(token), []).append(role)
    for token in chat.stops:
        roles.setdefault(token, []).append("stop")
    return [{"token": str(chat.tokenizer.convert_ids_to_tokens(i)), "id": i, "roles": roles[i]} for i in sorted(roles)]


def round_trip(chat: Chat, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> float:
    """The share of texts that come back from their tokens unchanged; below 1 the tokenizer normalises, e.g. spaces."""
    same = sum(chat.tokenizer.decode(list(i), clean_up_tokenization_spaces=False) == text for text, i in zip(texts, ids, strict=True))
    return same / len(texts) if texts else 1.0
