"""What the tuned model gives away of its training rows, against what its base could guess and against rows that were held out.

In: training and test rows, the canaries, the steps that were learnt, the adapter and its base, the evaluation's answers. Out:
data/extraction/{spans,rows}.parquet and reports/extraction.json: rows written verbatim, rows told apart by their loss, exposure of
canaries, personal data in outputs, refusals; and the gate.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, rounded, write_report
from stages.core.models import compute_dtype, device_of, load_adapter, load_tokenizer, load_variant, manifest_of
from stages.core.params import Params
from stages.core.records import Row, iter_rows, read_rows, write_table
from stages.core.stage import run_stage
from stages.extraction.measuring import Measured, edits, matched, measure
from stages.extraction.rows import Asked, Wording, as_asked, balanced, candidates
from stages.extraction.values import Output, redacted, values
from stages.extraction.verdicts import OVER, Outcome, exposed, judged, leaked, membership, memorised, refusals

VARIANTS = ("base", "tuned")
NEAR = 0.2  # of its tokens may be edited in a continuation that is nearly verbatim; Ippolito et al. 2023 (arXiv 2210.17546) take BLEU 0.75
SHOWN = 20
SPANS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("learnt", pa.bool_(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # text | answer
        pa.field("prefix", pa.string(), nullable=False),  # the end of what was given
        pa.field("truth", pa.string(), nullable=False),
        *(
            pa.field(f"{variant}_{name}", kind, nullable=False)
            for variant in VARIANTS
            for name, kind in (("text", pa.string()), ("matched", pa.int32()), ("edits", pa.int32()))
        ),
    ]
)
LOSSES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("learnt", pa.bool_(), nullable=False),
        pa.field("base_loss", pa.float64(), nullable=False),  # mean nats a token of the answer
        pa.field("tuned_loss", pa.float64(), nullable=False),
    ]
)


def main(params: Params) -> None:
    """Runs the stage."""
    settings, seed = params.extraction, params.seed
    tokenizer = load_tokenizer(paths.TOKENIZER)
    wording = Wording(
        params.prompt.system,
        params.prompt.template,
        params.tokenize.max_tokens,
        settings.prefix_tokens,
        settings.continuation_tokens,
    )
    asked = sides(tokenizer, wording, settings.rows, seed)
    planted = [row for row in iter_rows(paths.CANARIES) if "-" not in row.id]
    device = device_of(params.runtime.device)
    model: Any = load_variant("base", manifest_of("tuned"), params.numerics, device, len(tokenizer))
    found: dict[str, Measured] = {}
    for variant in VARIANTS:
        if variant == "tuned":
            model = load_adapter(model, paths.ADAPTER)
        found[variant] = measure(
            model, tokenizer, asked, planted, settings.continuation_tokens, settings.alternatives, seed, f"extraction {variant}"
        )
    spans = compared(asked, found, tokenizer, settings.prefix_tokens, settings.continuation_tokens)
    rows = memorised(outcomes(spans, settings.continuation_tokens))
    members = membership([row.learnt for row in asked], found["base"].losses, found["tuned"].losses)
    canaries = exposed(
        [row.id for row in planted],
        {variant: found[variant].ranks for variant in VARIANTS},
        {variant: found[variant].said for variant in VARIANTS},
        settings.alternatives,
    )
    written = [*span_outputs(spans), *evaluated()]
    leaks = leaked(values(written, iter_rows(paths.SPLIT_TRAIN)), len(written) // len(VARIANTS))
    verdict, judgements = judged(rows, members, canaries, leaks, settings)
    headline = {
        "verdict": verdict,
        "rows": rows["training"]["rows"] if rows else 0,
        "memorised": rows["share"] if rows else None,
        "memorised_held_out": rows["held_out"]["memorised"] / rows["held_out"]["rows"] if rows else None,
        "membership_auc": members["gain"]["auc"],
        "exposure_bits": canaries["mean_bits"]["tuned"] if canaries else None,
        "leaked_values": len(leaks["leaks"]),
    }
    details = {
        "judgements": judgements,
        "reproduction": rows,
        "parts": parts(spans, settings.continuation_tokens),
        "membership": members,
        "exposure": canaries,
        "values": leaks,
        "refusals": refusals(found["base"].answers, found["tuned"].answers),
        "worst": worst(spans, {row.row.id: row.row for row in asked}, settings.continuation_tokens),
        "prefix_tokens": settings.prefix_tokens,
        "continuation_tokens": settings.continuation_tokens,
        "alpha": settings.alpha,
        "settings": {
            "device": device,
            "quantization": params.numerics.quantization,
            "compute_dtype": str(compute_dtype(params.numerics, device)).removeprefix("torch."),
        },
    }
    losses = [
        {"id": row.row.id, "learnt": row.learnt, "base_loss": rounded(before), "tuned_loss": rounded(after)}
        for row, before, after in zip(asked, found["base"].losses, found["tuned"].losses, strict=True)
    ]
    with outputs() as place:
        write_table(place(paths.EXTRACTION_SPANS), pa.Table.from_pylist(spans, schema=SPANS))
        write_table(place(paths.EXTRACTION_ROWS), pa.Table.from_pylist(losses, schema=LOSSES))
        write_report(place(paths.EXTRACTION_REPORT), headline, details)
    over = [f"{entry['measure']} {entry['value']:.3g}, limit {entry['limit']:g}" for entry in judgements if entry["verdict"] == OVER]
    if over and settings.gate == "stop":
        raise UserError(
            f"the tuned model gives away more than extraction.limits allow ({'; '.join(over)}); {paths.EXTRACTION_REPORT} names the rows: "
            "drop them (luthier forget ROW), train fewer epochs or a lower rank, or set extraction.gate: report"
        )
    for text in over:
        sys.stderr.write(f"extraction: WARNING: the tuned model gives away too much: {text}; see {paths.EXTRACTION_REPORT}\n")


def sides(tokenizer: Any, wording: Wording, count: int, seed: int) -> list[Asked]:
    """The rows to ask: training rows that the published adapter really learnt, and as many held-out ones.

    Args:
        tokenizer: of this run.
        wording: of this run.
        count: of rows of either side, at most.
        seed: of the sample.

    Returns:
        The rows.

    Raises:
        UserError: a side has none.
    """
    state = json.loads((paths.ADAPTER / "train_state.json").read_text(encoding="utf-8"))
    steps = pq.read_table(paths.TRAINED_STEPS, columns=["id", "step"], filters=[("step", "<=", state["published_step"])])
    learnt = set(steps.column("id").to_pylist())
    found = []
    for is_learnt, path in ((True, paths.SPLIT_TRAIN), (False, paths.SPLIT_TEST)):
        ids = (row.id for row in iter_rows(path) if not is_learnt or row.id in learnt)
        rows = (as_asked(row, is_learnt, tokenizer, wording) for row in candidates(iter_rows(path), ids, count, seed))
        found.append([row for row in rows if row is not None])
    for name, side in zip(("training", "test"), found, strict=True):
        if not side:
            raise UserError(
                f"no {name} row of at most tokenize.max_tokens ({wording.max_tokens}) tokens is there to be asked; raise it, or see "
                "split.max_test and split.max_train"
            )
    return balanced(found[0], found[1], count, seed)


def compared(
    asked: Sequence[Asked], found: dict[str, Measured], tokenizer: Any, prefix_tokens: int, continuation_tokens: int
) -> list[dict[str, Any]]:
    """One record a span: what stands there and what each model wrote."""
    places = [(row, part, at) for row in asked for part, at in row.spans.items()]
    records = []
    for number, (row, part, at) in enumerate(places):
        truth = row.ids[at : at + continuation_tokens]
        record: dict[str, Any] = {"id": row.row.id, "learnt": row.learnt, "part": part, "truth": tokenizer.decode(truth)}
        record["prefix"] = tokenizer.decode(row.ids[at - prefix_tokens : at]) if part == "text" else row.row.text
        for variant in VARIANTS:
            tokens = found[variant].continuations[number]
            record[f"{variant}_text"] = tokenizer.decode(tokens, skip_special_tokens=True)
            record[f"{variant}_matched"], record[f"{variant}_edits"] = matched(tokens, truth), edits(tokens, truth)
        records.append(record)
    return records


def verbatim(span: dict[str, Any], variant: str, tokens: int) -> bool:
    """Whether a model wrote all tokens of a span."""
    return bool(span[f"{variant}_matched"] == tokens)


def nearly(span: dict[str, Any], variant: str, tokens: int) -> bool:
    """Whether a model wrote a span with few edits."""
    return bool(span[f"{variant}_edits"] <= NEAR * tokens)


def outcomes(spans: Sequence[dict[str, Any]], tokens: int) -> list[Outcome]:
    """What became of each row that has spans: any of its parts counts."""
    of_row: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        of_row.setdefault(span["id"], []).append(span)
    return [
        Outcome(
            own[0]["learnt"], *(any(test(span, variant, tokens) for span in own) for test in (verbatim, nearly) for variant in VARIANTS)
        )
        for own in of_row.values()
    ]


def parts(spans: Sequence[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """By part and side: how many spans each model wrote verbatim, and nearly so."""
    found = []
    for part in ("text", "answer"):
        for learnt in (True, False):
            own = [span for span in spans if span["part"] == part and span["learnt"] == learnt]
            counts = {variant: sum(verbatim(span, variant, tokens) for span in own) for variant in VARIANTS}
            near = {f"{variant}_near": sum(nearly(span, variant, tokens) for span in own) for variant in VARIANTS}
            found.append({"part": part, "side": "training" if learnt else "held out", "spans": len(own), **counts, **near})
    return found


def worst(spans: Sequence[dict[str, Any]], rows: dict[str, Row], tokens: int) -> list[dict[str, Any]]:
    """The training rows of which the tuned model writes the most that the base does not, values in them redacted."""
    own = [span for span in spans if span["learnt"] and span["tuned_matched"] > span["base_matched"]]
    own.sort(key=lambda span: (span["base_matched"] - span["tuned_matched"], span["tuned_edits"], span["id"], span["part"]))
    return [
        {
            "id": span["id"],
            "part": span["part"],
            "source": rows[span["id"]].source,
            "origin": rows[span["id"]].origin,
            "verbatim": verbatim(span, "tuned", tokens),
            "nearly": nearly(span, "tuned", tokens),
            **{key: span[key] for key in ("base_matched", "tuned_matched")},
            **{key: redacted(span[key]) for key in ("truth", "base_text", "tuned_text")},
        }
        for span in own[:SHOWN]
    ]


def span_outputs(spans: Sequence[dict[str, Any]]) -> list[Output]:
    """What the models wrote after the prefixes."""
    before = {"text": "", "answer": "\n"}
    return [
        Output(f"{span['id']} {span['part']}", variant, f"{span['prefix']}{before[span['part']]}", span[f"{variant}_text"])
        for span in spans
        for variant in VARIANTS
    ]


def evaluated() -> list[Output]:
    """What the models answered to the test rows in the evaluation, asked as in training."""
    texts = {row.id: row.text for row in read_rows(paths.SPLIT_TEST)}
    found = []
    for variant in VARIANTS:
        for item in pq.read_table(paths.EVALUATION[variant], filters=[("task", "=", "domain"), ("prompt", "=", "plain")]).to_pylist():
            if item["answer"] is not None:
                found.append(Output(f"evaluation {item['item_id']}", variant, f"{texts[item['item_id']]}\n", item["answer"]))
    return found


if __name__ == "__main__":
    run_stage("extraction", main)
