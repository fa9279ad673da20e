"""card: the model card, its provenance and the HTML report.

In: the reports, the base's manifest and the curves; of the tables of rows their sources and rules, and the digests of all data files.
Out: reports/card/README.md, reports/card/provenance.json, reports/card/bom.cdx.json, reports/report.html.
"""

from typing import Any

from ruamel.yaml import YAML

from stages.card import rights
from stages.card.bom import bom
from stages.card.facts import Sources, gather
from stages.card.flow import read_flow
from stages.card.model_card import card
from stages.card.provenance_record import energy_of, record
from stages.card.reading import read, read_curve, read_manifest
from stages.card.report import html
from stages.core import paths
from stages.core.files import outputs, write_json
from stages.core.params import Params
from stages.core.sources import data_sources
from stages.core.stage import run_stage

REPORTS = {
    "fetch_data": paths.FETCH_DATA_REPORT,
    "fetch_general": paths.FETCH_GENERAL_REPORT,
    "clean": paths.CLEAN_REPORT,
    "local_models": paths.LOCAL_REPORT,
    "dedupe": paths.DEDUPE_REPORT,
    "label_check": paths.LABEL_REPORT,
    "suspicion": paths.SUSPICION_REPORT,
    "split": paths.SPLIT_REPORT,
    "tokenize": paths.TOKENIZE_REPORT,
    "train": paths.TRAIN_REPORT,
    "train_machine": paths.TRAIN_MACHINE,
    "row_losses_base": paths.ROW_LOSSES_REPORT["base"],
    "row_losses_tuned": paths.ROW_LOSSES_REPORT["tuned"],
    "probe": paths.PROBE_REPORT,
    "export": paths.EXPORT_REPORT,
    "evaluate_base": paths.EVALUATE_REPORT["base"],
    "evaluate_tuned": paths.EVALUATE_REPORT["tuned"],
    "extraction": paths.EXTRACTION_REPORT,
    "compare": paths.COMPARE_REPORT,
}
CURVES = {"train": paths.TRAIN_CURVE, "validation": paths.VALIDATION_CURVE, "speed": paths.SPEED_CURVE}
DATA = [
    paths.DECISIONS,
    paths.GENERAL,
    paths.REHEARSAL,
    paths.RAW_ROWS,
    paths.SPLIT_TRAIN,
    paths.SPLIT_VALIDATION,
    paths.SPLIT_TEST,
    paths.TOKENIZED_TRAIN,
    paths.TOKENIZED_VALIDATION,
    paths.TOKENIZER,
]


def main(params: Params) -> None:
    """Runs the stage."""
    sections = sections_of(params)
    base = read_manifest(paths.BASE)
    reports = {name: read(path) for name, path in REPORTS.items()}
    rights.check(params.card.license, rights.parts(base, data_sources(reports["fetch_data"])))
    files = [paths.BASE, *REPORTS.values(), *CURVES.values(), *DATA, *paths.EVALUATION.values()]
    energy = energy_of(reports["train_machine"], params.card)
    provenance = record(base, reports, sections, files, energy)
    sources = Sources(
        base=base,
        reports=reports,
        curves={name: read_curve(path) for name, path in CURVES.items()},
        sections=sections,
        provenance=provenance,
        flow=read_flow(),
    )
    facts = gather(sources)
    pinned = YAML(typ="safe", pure=True).load(paths.VERSIONS.read_text(encoding="utf-8"))
    materials = bom(facts, sources, pinned, paths.LOCK.read_text(encoding="utf-8"))
    with outputs() as place:
        place(paths.CARD).write_text(card(facts, sources), encoding="utf-8")
        write_json(place(paths.PROVENANCE), provenance)
        place(paths.BOM).write_text(materials, encoding="utf-8")
        place(paths.HTML_REPORT).write_text(html(facts), encoding="utf-8")


def sections_of(params: Params) -> dict[str, Any]:
    """Every parameter that shapes the model or its evidence, by section: all but `runtime`, which changes no result."""
    shaping = {
        "model": params.model,
        "data": params.data,
        "general": params.general,
        "clean": params.clean,
        "local_models": params.local_models,
        "dedupe": params.dedupe,
        "label_check": params.label_check,
        "suspicion": params.suspicion,
        "split": params.split,
        "prompt": params.prompt,
        "tokenize": params.tokenize,
        "numerics": params.numerics,
        "train": params.train,
        "row_losses": params.row_losses,
        "probe": params.probe,
        "export": params.export,
        "evaluate": params.evaluate,
        "extraction": params.extraction,
        "compare": params.compare,
        "card": params.card,
    }
    return {"seed": params.seed, **{name: section.model_dump() for name, section in shaping.items()}}


if __name__ == "__main__":
    run_stage("card", main)
