"""The tokenizer in GGUF's fields: tokens, merges, special ids, chat template, and which of llama.cpp's splitters cuts the text.

In: a folder with tokenizer.json. Out: fields of a GGUF file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.models import load_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

# llama.cpp knows no regular expressions of a file, only names of its own (llama-vocab.cpp, tokenizer_pre): the expression of
# tokenizer.json's Split, by name
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type of llama.h


def splitter(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for what cuts the text before the merges.

    Args:
        tokenizer: tokenizer.json.

    Returns:
        A value of tokenizer.ggml.pre.

    Raises:
        UserError: it is none that is known here.
    """
    step = tokenizer["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    kinds = [one.get("type") for one in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        name = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if name is not None:
            return name
    raise UserError(
        f"the base's tokenizer cuts text in a way that export knows no name of llama.cpp for (pre_tokenizer {kinds}); take the GGUF forms "
        "out of export.forms and ship the merged folder"
    )


def add_vocabulary(writer: "GGUFWriter", folder: Path, rows: int, stops: list[int]) -> None:
    """Writes the tokenizer's fields.

    Args:
        writer: of the file.
        folder: with tokenizer.json and the chat template.
        rows: of the embedding; tokens are filled up to them.
        stops: ids that end an answer, the tokenizer's own end first.

    Raises:
        UserError: the tokenizer is of no kind that llama.cpp has.
    """
    tokenizer = load_tokenizer(folder)
    parsed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = parsed["model"]
    if model["type"] != "BPE":
        raise UserError(f"the base's tokenizer is {model['type']}, GGUF is written of BPE alone; take the GGUF forms out of export.forms")
    texts, kinds = _tokens(parsed, rows)
    if model.get("byte_fallback"):  # SentencePiece's: text is cut by scores, and ids are in the order of the merges
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([float(-place) if kind == NORMAL else 0.0 for place, kind in enumerate(kinds)])
        writer.add_add_space_prefix("▁" in json.dumps(parsed.get("normalizer"), ensure_ascii=False) and _prepends(parsed))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitter(parsed))
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    _add_special(writer, tokenizer, stops)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _tokens(parsed: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Every token's text and type, in the order of the ids."""
    texts = [f"[PAD{place}]" for place in range(rows)]
    kinds = [UNUSED] * rows
    fallback = bool(parsed["model"].get("byte_fallback"))
    for text, place in parsed["model"]["vocab"].items():
        texts[place] = text
        is_byte = fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kinds[place] = BYTE if is_byte else UNKNOWN if text == parsed["model"].get("unk_token") and fallback else NORMAL
    for token in parsed["added_tokens"]:
        texts[token["id"]] = token["content"]
        if kinds[token["id"]] != UNKNOWN:
            kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return texts, kinds


def _prepends(parsed: dict[str, Any]) -> bool:
    """Whether the normaliser puts a space before the text."""
    normalizer = parsed.get("normalizer") or {}
    return any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))


def _add_special(writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", stops: list[int]) -> None:
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    ids = tokenizer.encode("a")
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(False)
