"""What each training row's answer costs the base or the tuned model, with its prompt and without.

In: the model, the tokenised training rows. Out: data/row_losses/VARIANT.parquet (id, trained tokens, mean nats a token with the prompt and
alone) and reports/row_losses_VARIANT.json: how they spread, the rows that cost most, and those whose prompt does not help.
"""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core import paths
from stages.core.batches import TokenRow, read_tokens
from stages.core.files import outputs, rounded, write_report
from stages.core.losses import answer_header, summed_nats
from stages.core.models import compute_dtype, device_of, load_tokenizer, load_variant, manifest_of
from stages.core.params import Params
from stages.core.records import Row, iter_rows, write_table
from stages.core.sampling import seeded_sample
from stages.core.stage import run_stage

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # trained ones, of which each has a loss
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("loss_alone", pa.float64(), nullable=False),
    ]
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_ROWS = 20
TEXT_CHARACTERS = 240
ANSWER_CHARACTERS = 120
LEAST_NATS = 1e-6  # an answer known by heart costs next to nothing alone: the ratio is taken to no less than this


def main(variant: str, params: Params) -> None:
    """Measures the rows with one of the two models; `variant` is base or tuned."""
    domain = {row.id for row in iter_rows(paths.SPLIT_TRAIN)}  # not the general rows of rehearsal
    tokens = [row for row in read_tokens(paths.TOKENIZED_TRAIN) if row.id.partition("#")[0] in domain]
    sample = seeded_sample((row.id for row in tokens), params.row_losses.max_rows, params.seed)
    chosen = [row for row in tokens if row.id in sample]
    tokenizer = load_tokenizer(paths.TOKENIZER)
    device = device_of(params.runtime.device)
    model = load_variant(variant, manifest_of(variant), params.numerics, device, len(tokenizer))
    with_prompt = summed_nats(model, chosen, f"row_losses@{variant}")
    alone = nats_alone(model, chosen, answer_header(tokenizer), f"row_losses@{variant} alone")
    records = [
        {"id": row.id, "tokens": row.targets, "loss": rounded(nats / row.targets), "loss_alone": rounded(bare / row.targets)}
        for row, nats, bare in zip(chosen, with_prompt, alone, strict=True)
    ]
    settings = {
        "device": device,
        "quantization": params.numerics.quantization,
        "compute_dtype": str(compute_dtype(params.numerics, device)).removeprefix("torch."),
    }
    headline, details = report(records, texts_of(records))
    with outputs() as place:
        write_table(place(paths.ROW_LOSSES[variant]), pa.Table.from_pylist(records, schema=SCHEMA))
        write_report(place(paths.ROW_LOSSES_REPORT[variant]), headline, {"rows_in": len(tokens), **details, "settings": settings})


def nats_alone(model: Any, rows: Sequence[TokenRow], header: Sequence[int], stage: str) -> list[float]:
    """The cross-entropy of each row's answers without what was said before them, summed over the same tokens as with it.

    Each answer, a run of trained tokens, follows the header alone. Equal answers, such as a class's label, are computed once.

    Args:
        model: as `summed_nats` takes it.
        rows: the rows.
        header: the tokens that stand before an answer, see `answer_header`.
        stage: the name shown with the progress.

    Returns:
        One sum a row, in the rows' order.
    """
    of_row = [answers(row) for row in rows]
    distinct = sorted({answer for found in of_row for answer in found})
    mask = [False] * len(header)
    bare = [TokenRow("", np.array([*header, *answer]), np.array([*mask, *[True] * len(answer)])) for answer in distinct]
    nats = dict(zip(distinct, summed_nats(model, bare, stage), strict=True))
    return [sum(nats[answer] for answer in found) for found in of_row]


def answers(row: TokenRow) -> list[tuple[int, ...]]:
    """The runs of trained tokens of a row, without its first token, which nothing predicts."""
    pairs = zip(row.trained[1:].tolist(), row.input_ids[1:].tolist(), strict=True)
    return [tuple(token for _, token in run) for trained, run in groupby(pairs, key=lambda pair: pair[0]) if trained]


def texts_of(records: Sequence[dict[str, Any]]) -> dict[str, Row]:
    """The rows of split's training side that some records are of, by the record's id; parts of a split row share one."""
    wanted: dict[str, list[str]] = {}
    for record in records:
        wanted.setdefault(record["id"].partition("#")[0], []).append(record["id"])
    return {part: row for row in iter_rows(paths.SPLIT_TRAIN) for part in wanted.get(row.id, ())}


def report(records: Sequence[dict[str, Any]], rows: dict[str, Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details.

    The instruction-following difficulty of a row (IFD; Li et al. 2024, arXiv 2308.12032) is its loss over its loss alone: at 1 or above
    the prompt does not help the model to the answer, so that the two may not belong together.

    Args:
        records: id, tokens, loss, loss_alone each.
        rows: the row of each record.

    Returns:
        `rows`, `loss`, `loss_alone`, `prompt_does_not_help` (a share); and quantiles with the worst rows of either kind.
    """
    loss = np.array([record["loss"] for record in records])
    alone = np.array([record["loss_alone"] for record in records])
    difficulty = loss / np.maximum(alone, LEAST_NATS)

    def shown(number: int) -> dict[str, Any]:
        row = rows[records[number]["id"]]
        texts = {"text": short(row.text, TEXT_CHARACTERS), "answer": short(row.answer, ANSWER_CHARACTERS)}
        return {
            **records[number],
            "ifd": float(difficulty[number]),
            "source": row.source,
            "origin": row.origin,
            "label": row.label,
            **texts,
        }

    order = range(len(records))
    by_loss = sorted(order, key=lambda number: (-loss[number], records[number]["id"]))
    unhelped = sorted((n for n in order if difficulty[n] >= 1), key=lambda number: (-difficulty[number], records[number]["id"]))
    headline = {
        "rows": len(records),
        "loss": float(loss.mean()),
        "loss_alone": float(alone.mean()),
        "prompt_does_not_help": len(unhelped) / len(records),
    }
    details = {
        "trained_tokens": sum(record["tokens"] for record in records),
        "quantiles": {
            name: {f"p{round(100 * share)}": float(np.quantile(values, share)) for share in QUANTILES}
            for name, values in (("loss", loss), ("loss_alone", alone), ("ifd", difficulty))
        },
        "worst": [shown(number) for number in by_loss[:SHOWN_ROWS]],
        "unhelped": [shown(number) for number in unhelped[:SHOWN_ROWS]],
    }
    return headline, details


def short(text: str, characters: int) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[:characters]}…"


if __name__ == "__main__":
    chosen_variant, *rest = sys.argv[1:] or [""]
    if chosen_variant not in paths.ROW_LOSSES:
        sys.exit(f"usage: python -m stages.row_losses {{{','.join(paths.ROW_LOSSES)}}} [--debug]")
    run_stage(f"row_losses@{chosen_variant}", partial(main, chosen_variant), rest)
