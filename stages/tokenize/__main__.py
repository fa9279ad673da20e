"""Token ids and the mask of the tokens to learn. In: the training and validation rows and the base's tokenizer.

Out: data/tokenized (id, input_ids, trained; what did not fit; the tokenizer with the template used) and reports/tokenize.json, the audit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core import files, paths
from stages.core.errors import UserError
from stages.core.models import NEW_TOKENS, base_folder, load_tokenizer, read_manifest
from stages.core.params import Params
from stages.core.progress import progress
from stages.core.prompts import conversation
from stages.core.records import Message, Rejected, Row, count_rules, read_rows, write_rejected, write_table
from stages.core.stage import run_stage
from stages.core.tokens import token_texts
from stages.tokenize import audit, fit
from stages.tokenize.encode import Chat, Encoded, RowFault, control_token, encode

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("trained", pa.list_(pa.bool_()), nullable=False),
    ]
)
BATCH_ROWS = 500
PREVIEW_ROWS = 6
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass
class Side:
    """What became of the rows of one side of the split.

    Attributes:
        rows: as read.
        kept: (id, tokens) in row order; a part of a split row has the id `ROW#1`, `ROW#2` …
        rejected: the rows left out.
        faults: sentences about rows that stop the stage.
        truncated: ids of the rows that were shortened.
        split: ids of the rows that became several.
    """

    rows: list[Row]
    kept: list[tuple[str, Encoded]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)


def main(params: Params) -> None:
    """Tokenises both sides and writes them with the tokenizer and the audit."""
    manifest = read_manifest()
    chat, new = audit.prepare(base_folder(manifest), manifest, params.tokenize)
    control = audit.control_tokens(chat)
    sides = {}
    for name, path in (("train", paths.SPLIT_TRAIN), ("validation", paths.SPLIT_VALIDATION)):
        rows = read_rows(path)
        conversations = [conversation(row, params.prompt.system, params.prompt.template) for row in rows]
        sides[name] = tokenized(chat, control, rows, conversations, params.tokenize.max_tokens, params.tokenize.too_long)
    stop_on_faults([fault for side in sides.values() for fault in side.faults])
    if not sides["train"].kept:
        reasons = ", ".join(f"{rule}: {count}" for rule, count in count_rules(sides["train"].rejected).items()) or "there was none"
        raise UserError(
            f"no training row is left of {len(sides['train'].rows)} ({reasons}); raise tokenize.max_tokens, or see tokenize.too_long"
        )
    details = {**audit.describe(chat, manifest, params.tokenize, new), **report(chat, sides)}
    with files.outputs() as place:
        for name, path in (("train", paths.TOKENIZED_TRAIN), ("validation", paths.TOKENIZED_VALIDATION)):
            write_table(place(path), table(sides[name].kept))
        write_rejected(place(paths.TOKENIZED_REJECTED), [item for side in sides.values() for item in side.rejected])
        folder = place(paths.TOKENIZER)
        chat.tokenizer.save_pretrained(folder)
        files.write_json(folder / NEW_TOKENS, new)
        check_saved(chat, folder, [encoded for _, encoded in sides["train"].kept[:BATCH_ROWS]])
        files.write_report(place(paths.TOKENIZE_REPORT), {}, details)


def tokenized(
    chat: Chat, control: list[str], rows: Sequence[Row], conversations: Sequence[list[Message]], max_tokens: int, too_long: str
) -> Side:
    """Tokenises rows and applies the over-length policy.

    Args:
        chat: tokenizer and template.
        control: texts that a message must not hold.
        rows: the rows.
        conversations: what each row says.
        max_tokens: what a row may have.
        too_long: drop, truncate, split or raise.

    Returns:
        What became of them; rows in = rows kept (a split row once) + rejected + at fault.
    """
    side = Side(list(rows))
    items = iter(progress(list(zip(rows, conversations, strict=True)), "tokenize"))
    while batch := list(islice(items, BATCH_ROWS)):
        results = encode(chat, [messages for _, messages in batch])
        for (row, messages), result in zip(batch, results, strict=True):
            if evidence := control_token(control, messages):
                side.rejected.append(Rejected(row, "control_token", evidence))
                continue
            try:
                _place(side, chat, row, messages, result, max_tokens, too_long)
            except RowFault as fault:
                side.faults.append(f"row {row.id} ({row.source}, {row.origin}) {fault}")
    return side


def _place(side: Side, chat: Chat, row: Row, messages: list[Message], encoded: Encoded | RowFault, max_tokens: int, too_long: str) -> None:
    """Puts one row where it belongs; raises its fault, or that of its shortened form."""
    if isinstance(encoded, RowFault):
        raise encoded
    if len(encoded.input_ids) <= max_tokens:
        side.kept.append((row.id, encoded))
        return
    if too_long == "raise":
        raise RowFault(
            f"has {len(encoded.input_ids)} tokens, tokenize.max_tokens is {max_tokens}; raise it, or choose another tokenize.too_long"
        )
    if too_long == "truncate" and (shorter := fit.truncate(chat, messages, max_tokens)):
        side.kept.append((row.id, shorter))
        side.truncated.append(row.id)
    elif too_long == "split" and (parts := fit.split(chat, messages, max_tokens)):
        side.kept += [(f"{row.id}#{number}", part) for number, part in enumerate(parts, 1)]
        side.split.append(row.id)
    else:
        evidence = {"tokens": len(encoded.input_ids), "answer_tokens": sum(encoded.trained), "max_tokens": max_tokens, "policy": too_long}
        side.rejected.append(Rejected(row, "too_long", evidence))


def stop_on_faults(faults: list[str]) -> None:
    """Raises UserError with the first fault, the next rows' ids and how many there are."""
    if not faults:
        return
    others = f" (and {len(faults) - 1} more rows: {', '.join(f.split()[1] for f in faults[1:4])} …)" if len(faults) > 1 else ""
    raise UserError(f"{faults[0]}{others}")


def table(kept: list[tuple[str, Encoded]]) -> pa.Table:
    """The rows as Arrow: id, input_ids int32, trained bool."""
    columns = [[name for name, _ in kept], [row.input_ids for _, row in kept], [row.trained for _, row in kept]]
    return pa.table([pa.array(column, type=f.type) for column, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def check_saved(chat: Chat, folder: Path, rows: list[Encoded]) -> None:
    """Reads the saved tokenizer back, as training and evaluation will, and compares tokens and template.

    Args:
        chat: the tokenizer as used.
        folder: where it was saved.
        rows: rows to tokenise again.

    Raises:
        UserError: the saved tokenizer does not do the same.
    """
    saved = load_tokenizer(folder)
    texts = [row.text for row in rows if not row.in_pieces]
    again = saved(texts, add_special_tokens=False)["input_ids"] if texts else []
    if again != [row.input_ids for row in rows if not row.in_pieces] or saved.chat_template != chat.tokenizer.chat_template:
        raise UserError(
            f"the base's tokenizer ({type(chat.tokenizer).__name__}) does not tokenise alike after it is saved and loaded; "
            f"open an issue with the base's name, or choose another base"
        )


def report(chat: Chat, sides: dict[str, Side]) -> dict[str, Any]:
    """Counts of rows and tokens a side, and the first rows' tokens for the eye."""
    rejected = [item for side in sides.values() for item in side.rejected]
    everything = [encoded for side in sides.values() for _, encoded in side.kept]
    backend = chat.tokenizer.backend_tokenizer
    return {
        "rules": count_rules(rejected),
        "round_trip": audit.round_trip(chat, [e.text for e in everything], [e.input_ids for e in everything]),
        "sides": {name: counts(side) for name, side in sides.items()},
        "preview": [
            {"id": name, "tokens": [list(pair) for pair in zip(token_texts(backend, row.input_ids), row.trained, strict=True)]}
            for name, row in sides["train"].kept[:PREVIEW_ROWS]
        ],
    }


def counts(side: Side) -> dict[str, Any]:
    """Rows in, out and rejected, and their tokens: total, trained, share trained, percentiles a row (nearest rank)."""
    lengths = sorted(len(encoded.input_ids) for _, encoded in side.kept)
    tokens, trained = sum(lengths), sum(sum(encoded.trained) for _, encoded in side.kept)
    return {
        "rows_in": len(side.rows),
        "rows_rejected": len(side.rejected),
        "rows_truncated": len(side.truncated),
        "rows_split": len(side.split),
        "rows_out": len(side.kept),
        "rows_in_pieces": sum(encoded.in_pieces for _, encoded in side.kept),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": trained / tokens if tokens else 0.0,
        "tokens_per_row": {name: lengths[max(0, -int(-share * len(lengths) // 1) - 1)] for name, share in PERCENTILES.items()}
        if lengths
        else {},
    }


if __name__ == "__main__":
    run_stage("tokenize", main)
