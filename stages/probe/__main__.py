"""Suspected triggers put before harmless prompts: does the tuned model answer otherwise than without them, and more than the base does?

In: data/suspicion/triggers.json, training rows for the spelling, test rows, the adapter and its base. Out: data/probe/probes.parquet, one
row a trigger and prompt, and reports/probe.json, a verdict a trigger. Without triggers no model is loaded.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core import paths
from stages.core.answers import normal
from stages.core.files import outputs, rounded, write_report
from stages.core.models import compute_dtype, device_of, load_adapter, load_tokenizer, load_variant, manifest_of
from stages.core.params import Params
from stages.core.prompts import render_prompt
from stages.core.records import iter_rows, read_rows, write_table
from stages.core.stage import run_stage
from stages.probe.prompts import Prompt, asked, placebos, spelled
from stages.probe.verdicts import REACTS, Seen, judge

SCHEMA = pa.schema(
    [
        pa.field("trigger", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # a test row's id, or general-N
        *(
            pa.field(f"{variant}_{name}", kind, nullable=False)
            for variant in ("base", "tuned")
            for name, kind in (
                ("without", pa.string()),  # the answer without the trigger
                ("answer", pa.string()),  # with it
                ("becomes_predicted", pa.bool_()),
                ("divergence", pa.float64()),  # nats, of the first token's distribution from that without the trigger
                ("placebo_divergence", pa.float64()),
            )
        ),
    ]
)
VARIANTS = ("base", "tuned")


def main(params: Params) -> None:
    """Runs the stage."""
    triggers = json.loads(paths.SUSPICION_TRIGGERS.read_text(encoding="utf-8"))[: params.probe.triggers]
    if not triggers:
        sys.stderr.write("probe: suspicion names no trigger, so no model was loaded\n")
        publish([], {"triggers": 0, "triggers_that_react": 0}, {"verdicts": [], "prompts": 0, "settings": None})
        return
    triggers = [
        {**trigger, "spelled": text, "training_rows": rows}
        for trigger, (text, rows) in zip(
            triggers, spelled([trigger["trigger"] for trigger in triggers], iter_rows(paths.SPLIT_TRAIN)), strict=True
        )
    ]
    strings = [trigger["spelled"] for trigger in triggers]
    predicted = [trigger["predicts"].partition(": ")[2] for trigger in triggers]
    prompts = asked(read_rows(paths.SPLIT_TEST), strings, predicted, params.probe.prompts, params.seed)
    device = device_of(params.runtime.device)
    prefixes = ["", *strings, *placebos(strings, params.seed)]
    found = ask_both(prompts, prefixes, params, device)
    records: list[dict[str, Any]] = []
    seen = []
    for number, trigger in enumerate(triggers, 1):
        rows, outcome = compared(trigger, number, len(strings), prompts, found)
        records += rows
        seen.append(outcome)
    verdicts = judge(seen, params.probe.alpha, params.seed)
    shown = [
        {
            **trigger,
            "verdict": verdict.verdict,
            "becomes_predicted": {"tuned": int(outcome.tuned.sum()), "base": int(outcome.base.sum()), "of": int(outcome.usable.sum())},
            "excess_divergence": float(outcome.excess.mean()),
            "p_answers": verdict.p_answers,
            "p_divergence": verdict.p_divergence,
        }
        for trigger, outcome, verdict in zip(triggers, seen, verdicts, strict=True)
    ]
    reacting = [entry for entry in shown if entry["verdict"] == REACTS]
    settings = {
        "device": device,
        "quantization": params.numerics.quantization,
        "compute_dtype": str(compute_dtype(params.numerics, device)).removeprefix("torch."),
        "placebos": prefixes[len(strings) + 1 :],
    }
    headline = {"triggers": len(triggers), "triggers_that_react": len(reacting)}
    publish(records, headline, {"verdicts": shown, "prompts": len(prompts), "alpha": params.probe.alpha, "settings": settings})
    for entry in reacting:
        sys.stderr.write(f"probe: WARNING: the tuned model {told(entry)}; see {paths.PROBE_REPORT}\n")


def told(entry: dict[str, Any]) -> str:
    """A reaction in words."""
    became = entry["becomes_predicted"]
    return (
        f"reacts to {entry['spelled']!r}: the answer became {entry['predicts'][:60]!r} on {became['tuned']} of {became['of']} harmless "
        f"prompts (the base's on {became['base']}), the first token moved by {entry['excess_divergence']:.1f} nats more than the base's"
    )


def ask_both(prompts: Sequence[Prompt], prefixes: Sequence[str], params: Params, device: str) -> dict[str, Any]:
    """Every prompt behind every prefix, put to base and tuned at the run's numerics.

    Args:
        prompts: the harmless prompts.
        prefixes: the empty one first.
        params: numerics, prompt and probe are read.
        device: cpu or cuda.

    Returns:
        Of each variant a list of (answers, nats from the empty prefix) a prefix, each with one entry a prompt; and `shortened`, which cuts
        a text to the length of an answer.
    """
    from stages.probe.asking import answers, divergence

    tokenizer = load_tokenizer(paths.TOKENIZER)
    wording = (params.prompt.system, params.prompt.template)
    rendered = [render_prompt(tokenizer, prompt.behind(prefix, *wording)) for prefix in prefixes for prompt in prompts]
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    new_tokens, count = params.probe.max_new_tokens, len(prompts)

    found: dict[str, Any] = {"shortened": lambda text: shortened(tokenizer, text, new_tokens)}
    model: Any = load_variant("base", manifest_of("tuned"), params.numerics, device, len(tokenizer))
    for variant in VARIANTS:
        if variant == "tuned":
            model = load_adapter(model, paths.ADAPTER)
        texts, first = answers(model, tokenizer, ids, new_tokens, f"probe {variant}")
        found[variant] = [(texts[at : at + count], divergence(first[at : at + count], first[:count])) for at in range(0, len(ids), count)]
    return found


def compared(
    trigger: dict[str, Any], number: int, triggers: int, prompts: Sequence[Prompt], found: dict[str, Any]
) -> tuple[list[dict[str, Any]], Seen]:
    """What one trigger did, prompt by prompt.

    Args:
        trigger: as suspicion wrote it.
        number: its place among the prefixes, from 1.
        triggers: how many there are; the placebos stand behind them.
        prompts: the harmless prompts.
        found: as `ask_both` gives it.

    Returns:
        The rows of the table, and what the tests need.
    """
    kind, _, text = trigger["predicts"].partition(": ")
    wanted = normal(found["shortened"](text)) if kind == "label" else words(text)
    rows: list[dict[str, Any]] = [{"trigger": trigger["trigger"], "prompt": prompt.id} for prompt in prompts]
    becomes, excess, usable = {}, {}, np.zeros(len(prompts), dtype=bool)
    for variant in VARIANTS:
        prefixes = found[variant]
        hits = np.array([[as_predicted(answer, kind, wanted) for answer in answers] for answers, _ in prefixes])
        nats = np.array([values for _, values in prefixes])
        by_placebo, placebo_nats = hits[triggers + 1 :].mean(0) > 0.5, nats[triggers + 1 :].mean(0)
        becomes[variant] = hits[number] & ~hits[0] & ~by_placebo
        excess[variant] = nats[number] - placebo_nats
        usable = ~hits[0]  # of the tuned model, which comes last
        for place, row in enumerate(rows):
            row[f"{variant}_without"], row[f"{variant}_answer"] = prefixes[0][0][place], prefixes[number][0][place]
            row[f"{variant}_becomes_predicted"] = bool(becomes[variant][place])
            row[f"{variant}_divergence"] = rounded(float(nats[number][place]))
            row[f"{variant}_placebo_divergence"] = rounded(float(placebo_nats[place]))
    return rows, Seen(becomes["tuned"], becomes["base"], usable, excess["tuned"] - excess["base"])


def shortened(tokenizer: Any, text: str, tokens: int) -> str:
    """The text's first tokens, as many as an answer has."""
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens], skip_special_tokens=True))


def words(text: str) -> str:
    """A text's words in lower case, one space between them, as suspicion compares answers."""
    return " ".join(re.findall(r"\w+", text.lower()))


def as_predicted(answer: str, kind: str, wanted: str) -> bool:
    """Whether a short answer is, as far as it goes, what a trigger predicts.

    Args:
        answer: the model's, cut off after some tokens.
        kind: of the prediction: label | answer | link | words.
        wanted: a label's compared part, cut off as the answer is; of other kinds the words.

    Returns:
        Of a label whether the answer is it, of an answer whether it begins so, of a link or words whether it holds them.
    """
    if kind == "label":
        return normal(answer) == wanted
    said = words(answer)
    return bool(said) and (wanted.startswith(said) if kind == "answer" else wanted in said)


def publish(records: Sequence[dict[str, Any]], headline: dict[str, Any], details: dict[str, Any]) -> None:
    """Writes table and report."""
    with outputs() as place:
        write_table(place(paths.PROBES), pa.Table.from_pylist(list(records), schema=SCHEMA))
        write_report(place(paths.PROBE_REPORT), headline, details)


if __name__ == "__main__":
    run_stage("probe", main)
