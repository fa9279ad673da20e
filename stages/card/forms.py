"""The shipped forms beside the adapter, a column each: what they score on the same rows, and how far they are from it.

In: the reports of export and compare. Out: the rows of a table.
"""

from dataclasses import dataclass

from stages.card.reading import Report
from stages.card.result_facts import LEVEL, measure_of
from stages.card.words import ACCURACY, chance, count, number, percent, size

FORMS = {"merged": "Merged, bfloat16", "f16": "GGUF F16", "q8_0": "GGUF Q8_0", "q4_k_m": "GGUF Q4_K_M"}


@dataclass(frozen=True)
class Table:
    """Columns and rows in words; the first cell of a row names it.

    Attributes:
        heads: of the columns.
        rows: as long as `heads`.
        note: what was compared, and with what the differences could be seen.
    """

    heads: list[str]
    rows: list[list[str]]
    note: str


def table(export: Report, compare: Report) -> Table | None:
    """The adapter and each form it is shipped in, or None where the adapter ships alone.

    Args:
        export: the report of export.
        compare: that of compare, which paired the forms' answers with the evaluated adapter's.

    Returns:
        The table.
    """
    forms, rows = export["forms"], []
    if not forms:
        return None
    numerics, answered = export["compared"], count(export["adapter"]["answers"])
    if paired := compare["forms"]:
        metric = ACCURACY if compare["confusion"] is not None else measure_of(paired[0]["metric"])
        scores = [metric.value(score) for score in (paired[0]["adapter"], *(one["score"] for one in paired))]
        rows += [
            [f"{metric.name} on {count(paired[0]['items'])} test rows", *scores],
            ["difference from the adapter", "", *(metric.gap(one["difference"]) for one in paired)],
            [f"its {LEVEL} interval", "", *(metric.limits(*one["ci95"]) for one in paired)],
            ["p after Holm's correction", "", *(chance(one["p_holm"]) for one in paired)],
            ["verdict", "", *(one["verdict"] for one in paired)],
        ]
    sizes = [size(export["adapter_bytes"]), *(size(form.get("bytes", export["merged_bytes"])) for form in forms)]
    rows += [
        ["same greedy answer", "", *(percent(form["same_answer"]) for form in forms)],
        ["stops where the adapter does", "", *("–" if form["stopped"] is None else percent(form["stopped"]) for form in forms)],
        ["same next token", "", *(percent(form["answer"]["top1_agreement"]) for form in forms)],
        ["mean KL divergence, nats", "", *(number(form["answer"]["kl_mean_nats"]) for form in forms)],
        ["size", *sizes],
    ]
    note = (
        f"What is exported is the adapter added to {export['merged_onto']['weights']}. Each form was loaded again from its file, the GGUF "
        f"forms by llama.cpp, and held against the adapter over the base at {numerics['quantization']} and {numerics['compute_dtype']}. "
        f"Compared were next tokens on {count(forms[0]['answer']['positions'])} answer tokens of {count(export['agreement']['prompts'])} "
        f"test rows, and greedy answers to {answered}, a seeded sample."
    )
    if paired:
        least = max(one["detectable"] for one in paired)
        note += f" With so many rows you cannot count on seeing a difference of less than {metric.gap(least).removeprefix('+')}."
    return Table(["", f"Adapter, {numerics['quantization']}", *(FORMS[form["form"]] for form in forms)], rows, note)
