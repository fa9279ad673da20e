"""Token ids and the mask of the tokens to learn. In: the training and validation rows and the base's tokenizer.

Out: data/tokenized (id, input_ids, trained; what did not fit; the tokenizer with the template used) and reports/tokenize.json, the audit.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core import files, paths
from stages.core.canaries import canary_rows
from stages.core.errors import UserError
from stages.core.models import NEW_TOKENS, base_folder, load_tokenizer, read_manifest
from stages.core.params import Params
from stages.core.progress import progress
from stages.core.prompts import conversation
from stages.core.records import REJECTED_SCHEMA, Message, Row, TableWriter, count_rows, iter_rows, write_rows
from stages.core.stage import run_stage
from stages.core.tokens import token_texts
from stages.tokenize import audit, fit
from stages.tokenize.encode import Chat, Encoded, RowFault, control_token, encode_batches

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("trained", pa.list_(pa.bool_()), nullable=False),
    ]
)
BATCH_ROWS = 500
FIRST_ROWS = 500  # whose tokens are compared with those of the saved tokenizer, and with their text
FAULTS_SHOWN = 4
PREVIEW_ROWS = 6
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row.

    Attributes:
        row: as read.
        kept: its id and tokens; of a row that was split the parts, with the ids `ROW#1`, `ROW#2` …
        rejected: rule and evidence where it is left out.
        fault: the sentence that stops the stage.
        policy: `truncated` or `split` where it was too long and kept.
    """

    row: Row
    kept: list[tuple[str, Encoded]] = field(default_factory=list)
    rejected: tuple[str, dict[str, Any]] | None = None
    fault: str | None = None
    policy: str | None = None


@dataclass
class Side:
    """The counts of one side of the split, and its first rows.

    Attributes:
        rows: read.
        truncated: rows that were shortened.
        split: rows that became several.
        pieces: rows kept that were tokenised in pieces.
        trained: tokens to learn.
        fault_count: rows that stop the stage.
        lengths: how many rows kept have each number of tokens.
        rules: how many rows each rule rejected.
        faults: the first sentences about rows that stop the stage.
        first: the first rows kept.
    """

    rows: int = 0
    truncated: int = 0
    split: int = 0
    pieces: int = 0
    trained: int = 0
    fault_count: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first: list[tuple[str, Encoded]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts one row."""
        self.rows += 1
        self.truncated += outcome.policy == "truncated"
        self.split += outcome.policy == "split"
        if outcome.rejected is not None:
            self.rules[outcome.rejected[0]] += 1
        if outcome.fault is not None:
            self.fault_count += 1
            self.faults += [outcome.fault] if len(self.faults) < FAULTS_SHOWN else []
        for name, encoded in outcome.kept:
            self.lengths[len(encoded.input_ids)] += 1
            self.trained += sum(encoded.trained)
            self.pieces += encoded.in_pieces
            if len(self.first) < FIRST_ROWS:
                self.first.append((name, encoded))


def main(params: Params) -> None:
    """Tokenises both sides and writes them with the tokenizer and the audit, a batch at a time."""
    manifest = read_manifest()
    chat, new = audit.prepare(base_folder(manifest), manifest, params.tokenize)
    control = audit.control_tokens(chat)
    general = general_rows(params.tokenize.rehearsal)
    canaries = canary_rows(params.tokenize.canaries.count, params.tokenize.canaries.repeats, params.seed)
    mixed_in = {"train": [*general, *canaries], "validation": list[Row]()}
    sides = {"train": Side(), "validation": Side()}
    places = {"train": (paths.SPLIT_TRAIN, paths.TOKENIZED_TRAIN), "validation": (paths.SPLIT_VALIDATION, paths.TOKENIZED_VALIDATION)}
    with files.outputs() as place:
        with TableWriter(place(paths.TOKENIZED_REJECTED), REJECTED_SCHEMA) as rejected:
            for name, (source, target) in places.items():
                everything = chain(iter_rows(source), mixed_in[name])
                rows = progress(everything, "tokenize", total=count_rows(source) + len(mixed_in[name]))
                said = ((row, conversation(row, params.prompt.system, params.prompt.template)) for row in rows)
                with TableWriter(place(target), SCHEMA) as kept:
                    for outcome in tokenized(chat, control, said, params.tokenize.max_tokens, params.tokenize.too_long):
                        sides[name].add(outcome)
                        for key, encoded in outcome.kept:
                            kept.write({"id": key, "input_ids": encoded.input_ids, "trained": encoded.trained})
                        if outcome.rejected is not None:
                            rejected.rejected(outcome.row, *outcome.rejected)
        stop_on_faults([fault for side in sides.values() for fault in side.faults], sum(side.fault_count for side in sides.values()))
        train = sides["train"]
        if not train.lengths:
            reasons = ", ".join(f"{rule}: {count}" for rule, count in sorted(train.rules.items())) or "there was none"
            raise UserError(f"no training row is left of {train.rows} ({reasons}); raise tokenize.max_tokens, or see tokenize.too_long")
        write_rows(place(paths.CANARIES), canaries)
        folder = place(paths.TOKENIZER)
        chat.tokenizer.save_pretrained(folder)
        files.write_json(folder / NEW_TOKENS, new)
        check_saved(chat, folder, [encoded for _, encoded in train.first])
        details = {**audit.describe(chat, manifest, params.tokenize, new), **report(chat, sides)}
        files.write_report(place(paths.TOKENIZE_REPORT), {}, {**details, "rehearsal_rows": len(general), "canary_rows": len(canaries)})


def general_rows(share: float) -> list[Row]:
    """The first general rows that no model is asked, so many for each training row.

    Args:
        share: general rows for each training row.

    Returns:
        The rows, conversations without a label.

    Raises:
        UserError: there are not so many.
    """
    if not share:
        return []
    wanted, there = round(share * count_rows(paths.SPLIT_TRAIN)), count_rows(paths.REHEARSAL)
    if wanted > there:
        raise UserError(
            f"tokenize.rehearsal {share:g} asks for {wanted} general rows, and {paths.REHEARSAL} has {there}; lower it, or ask for items "
            "of more tasks (general.items): a task that is asked leaves 500 others at most"
        )
    return list(islice(iter_rows(paths.REHEARSAL), wanted))


def tokenized(
    chat: Chat, control: list[str], said: Iterable[tuple[Row, list[Message]]], max_tokens: int, too_long: str
) -> Iterator[Outcome]:
    """Tokenises rows and applies the over-length policy.

    Args:
        chat: tokenizer and template.
        control: texts that a message must not hold.
        said: each row and its conversation; read a few batches ahead.
        max_tokens: what a row may have.
        too_long: drop, truncate, split or raise.

    Yields:
        What became of each row, in order.
    """
    ahead: deque[list[tuple[Row, list[Message]]]] = deque()
    for results in encode_batches(chat, _conversations(said, ahead)):
        for (row, messages), result in zip(ahead.popleft(), results, strict=True):
            if evidence := control_token(control, messages):
                yield Outcome(row, rejected=("control_token", evidence))
                continue
            try:
                yield _outcome(chat, row, messages, result, max_tokens, too_long)
            except RowFault as fault:
                yield Outcome(row, fault=f"row {row.id} ({row.source}, {row.origin}) {fault}")


def _conversations(
    said: Iterable[tuple[Row, list[Message]]], ahead: deque[list[tuple[Row, list[Message]]]]
) -> Iterator[list[list[Message]]]:
    """The conversations of one batch after the other; the batches are put into `ahead` for when their results come."""
    items = iter(said)
    while batch := list(islice(items, BATCH_ROWS)):
        ahead.append(batch)
        yield [messages for _, messages in batch]


def _outcome(chat: Chat, row: Row, messages: list[Message], encoded: Encoded | RowFault, max_tokens: int, too_long: str) -> Outcome:
    """What becomes of one row; raises its fault, or that of its shortened form."""
    if isinstance(encoded, RowFault):
        raise encoded
    if len(encoded.input_ids) <= max_tokens:
        return Outcome(row, [(row.id, encoded)])
    if too_long == "raise":
        raise RowFault(
            f"has {len(encoded.input_ids)} tokens, tokenize.max_tokens is {max_tokens}; raise it, or choose another tokenize.too_long"
        )
    if too_long == "truncate" and (shorter := fit.truncate(chat, messages, max_tokens)):
        return Outcome(row, [(row.id, shorter)], policy="truncated")
    if too_long == "split" and (parts := fit.split(chat, messages, max_tokens)):
        return Outcome(row, [(f"{row.id}#{number}", part) for number, part in enumerate(parts, 1)], policy="split")
    evidence = {"tokens": len(encoded.input_ids), "answer_tokens": sum(encoded.trained), "max_tokens": max_tokens, "policy": too_long}
    return Outcome(row, rejected=("too_long", evidence))


def stop_on_faults(faults: list[str], count: int) -> None:
    """Raises UserError with the first fault, the next rows' ids and how many there are."""
    if not faults:
        return
    others = f" (and {count - 1} more rows: {', '.join(f.split()[1] for f in faults[1:FAULTS_SHOWN])} …)" if count > 1 else ""
    raise UserError(f"{faults[0]}{others}")


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
    """Counts of rows and tokens a side, and the first rows' tokens for the eye; `round_trip` is judged by the first rows of both sides."""
    first = [encoded for side in sides.values() for _, encoded in side.first]
    backend = chat.tokenizer.backend_tokenizer
    return {
        "rules": dict(sorted(sum((side.rules for side in sides.values()), Counter()).items())),
        "round_trip": audit.round_trip(chat, [e.text for e in first], [e.input_ids for e in first]),
        "sides": {name: counts(side) for name, side in sides.items()},
        "preview": [
            {"id": name, "tokens": [list(pair) for pair in zip(token_texts(backend, row.input_ids), row.trained, strict=True)]}
            for name, row in sides["train"].first[:PREVIEW_ROWS]
        ],
    }


def counts(side: Side) -> dict[str, Any]:
    """Rows in, out and rejected, and their tokens: total, trained, share trained, percentiles a row (nearest rank)."""
    rows, tokens = side.lengths.total(), sum(length * count for length, count in side.lengths.items())
    lengths = sorted(side.lengths)
    ranks = list(accumulate(side.lengths[length] for length in lengths))
    return {
        "rows_in": side.rows,
        "rows_rejected": side.rules.total(),
        "rows_truncated": side.truncated,
        "rows_split": side.split,
        "rows_out": rows,
        "rows_in_pieces": side.pieces,
        "tokens": tokens,
        "trained_tokens": side.trained,
        "trained_share": side.trained / tokens if tokens else 0.0,
        "tokens_per_row": {name: lengths[bisect_left(ranks, max(1, ceil(share * rows)))] for name, share in PERCENTILES.items()}
        if rows
        else {},
    }


if __name__ == "__main__":
    run_stage("tokenize", main)
