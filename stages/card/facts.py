"""Everything that card and HTML report tell, put together once, so that both tell the same.

In: reports, curves, outcomes, parameters, provenance. Out: Facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.card import data_facts, evidence, flow, forms, gives_away, plain, result_facts, rights, run_facts, snippets, worst
from stages.card.charts import Chart, sparkline
from stages.card.reading import Report
from stages.card.weaknesses import weaknesses
from stages.card.words import PROMPTS, count
from stages.core.sources import Source, data_sources

RARE_ROWS = 20  # of training, below which a label is named among the limits


@dataclass(frozen=True)
class Sources:
    """What the facts are made from.

    Attributes:
        base: models/base.json.
        reports: the stages' reports by name.
        curves: train, validation and speed.
        sections: the parameters by section.
        provenance: what provenance.json holds.
        flow: the rows by stage, rule and source.
    """

    base: Report
    reports: Mapping[str, Report]
    curves: Mapping[str, run_facts.Curve]
    sections: Mapping[str, Any]
    provenance: Mapping[str, Any]
    flow: flow.Flow


@dataclass(frozen=True)
class Facts:
    """What the templates show; texts are plain, escaping is the template's."""

    name: str
    intended_use: str
    license: str
    language: str
    developed_by: str | None
    repository: str | None
    plain: list[tuple[str, str]]
    glossary: list[tuple[str, str]]
    not_for: str
    verdict: result_facts.Verdict
    metric: str
    better: str
    level: str
    items: int
    domain: list[result_facts.Comparison]
    scores: list[result_facts.Score]
    axis: list[str]
    difference: str
    tasks: list[result_facts.Comparison]
    forgetting: str
    evidence: evidence.Evidence
    measures: list[tuple[result_facts.Comparison, str | None]]
    gives_away: gives_away.GivesAway
    tuned_cost: str
    best_prompt: str
    labels: list[Report]
    mistakes: list[tuple[str, str, int]]
    samples: list[dict[str, Any]]
    base: Report
    limits: list[str]
    sources: list[Source]
    rights: list[str]
    weaknesses: list[str]
    attribution: str | None
    funnel: list[data_facts.Step]
    picture: flow.Picture
    repairs: list[tuple[str, str, str]]
    detectors: list[tuple[str, str, Report]]
    worst: list[worst.Topic]
    split_words: str
    rows_trained: int
    suspects: list[data_facts.Suspect]
    suspects_note: str
    preview: list[list[data_facts.Token]]
    tokens_note: str
    training_note: str
    charts: list[Chart]
    sparkline: str
    first_loss: float
    last_loss: float
    settings: list[tuple[str, str]]
    forms: forms.Table | None
    machine: list[tuple[str, str]]
    hardware: str
    seconds: float
    grid: float
    energy: list[tuple[str, str]]
    watched: list[tuple[str, str]]
    origin: list[tuple[str, str]]
    commit: str | None
    dirty: bool | None
    snippet: str
    merged_snippet: str | None


def gather(sources: Sources) -> Facts:
    """Puts the facts together."""
    reports, sections = sources.reports, sources.sections
    compare, split, fetched = reports["compare"], reports["split"], reports["fetch_data"]
    metric = result_facts.metric_of(compare)
    domain = result_facts.domain(compare, reports["evaluate_base"], reports["evaluate_tuned"])
    steps, origins = data_facts.funnel(reports), data_sources(fetched)
    labelled = split["labels"]["train"].keys() != {"(none)"}
    weak = [*weaknesses(compare), *gives_away.weaknesses(reports["extraction"])]
    leaks = gives_away.gives_away(reports["extraction"])
    allowed = rights.words(sections["card"]["license"], rights.parts(sources.base, origins))
    losses = [loss for _, loss in run_facts.points(sources.curves["train"], "loss")]
    return Facts(
        name=sections["card"]["name"],
        intended_use=sections["card"]["intended_use"],
        license=sections["card"]["license"],
        language=sections["card"]["language"],
        developed_by=sections["card"]["developed_by"],
        repository=sections["card"]["repository"],
        plain=plain.answers(
            sources.base["name"],
            sources.base["parameters"],
            steps[-1].rows_out,
            compare["domain"]["items"],
            sections["card"]["intended_use"],
            weak,
            f"{leaks.title}. {leaks.meaning}",
            allowed,
        ),
        glossary=plain.GLOSSARY,
        not_for=plain.NOT_FOR,
        verdict=result_facts.verdict(compare),
        metric=metric.name,
        better=metric.better,
        items=compare["domain"]["items"],
        level=result_facts.LEVEL,
        domain=domain,
        scores=result_facts.scores(domain),
        axis=result_facts.axis(compare),
        difference=result_facts.difference(compare),
        tasks=result_facts.tasks(compare, reports["fetch_general"]),
        evidence=evidence.evidence(compare),
        measures=result_facts.measures(compare),
        gives_away=leaks,
        tuned_cost=result_facts.tuned_cost(reports["evaluate_tuned"]),
        forgetting=result_facts.forgetting(compare),
        best_prompt=PROMPTS[compare["base_prompt"]],
        labels=result_facts.labels(compare),
        mistakes=result_facts.mistakes(compare),
        samples=result_facts.samples(compare),
        base=sources.base,
        limits=_limits(reports, sections),
        sources=origins,
        rights=allowed,
        weaknesses=weak,
        attribution=fetched["attribution"],
        funnel=steps,
        picture=flow.picture(sources.flow),
        repairs=data_facts.repairs(reports["clean"]),
        detectors=data_facts.detectors(reports["clean"]),
        worst=worst.topics(reports),
        split_words=_split_words(split["rows"]),
        rows_trained=steps[-1].rows_out,
        suspects=data_facts.suspects(reports["label_check"]),
        suspects_note=data_facts.suspects_note(reports["label_check"]),
        preview=data_facts.preview(reports["tokenize"]),
        tokens_note=data_facts.tokens_note(reports["tokenize"]),
        training_note=run_facts.training_note(reports),
        charts=run_facts.charts(sources.curves["train"], sources.curves["validation"], sources.curves["speed"]),
        sparkline=sparkline(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        settings=run_facts.settings(sections),
        forms=forms.table(reports["export"], compare),
        machine=run_facts.machine(reports),
        hardware=run_facts.hardware(reports),
        seconds=reports["train_machine"]["seconds"],
        grid=sections["card"]["grid_co2_grams_per_kwh"],
        energy=run_facts.energy(sources.provenance["energy"]),
        watched=run_facts.watched(reports),
        origin=run_facts.origin(sources.provenance, reports),
        commit=sources.provenance["code"]["commit"],
        dirty=sources.provenance["code"]["dirty"],
        snippet=snippets.adapter_snippet(sections, labelled),
        merged_snippet=snippets.merged_snippet(sections, labelled) if reports["export"]["ships"] == "merged" else None,
    )


def _split_words(rows: Mapping[str, int]) -> str:
    return f"{count(rows['validation'])} rows were set aside for validation and {count(rows['test'])} for testing."


def _limits(reports: Mapping[str, Report], sections: Mapping[str, Any]) -> list[str]:
    """What the numbers do not say."""
    compare, split = reports["compare"], reports["split"]
    said = [f"Measured on {count(compare['domain']['items'])} rows from where the training rows come from; others may give other results."]
    taught = split["labels"]["train"]
    rare = [f"{label} ({count(rows)})" for label, rows in sorted(taught.items()) if rows < RARE_ROWS]
    if rare and "(none)" not in taught:
        said.append(f"Few training rows taught these labels: {', '.join(rare)}.")
    answered = next(entry for entry in reports["evaluate_tuned"]["tasks"] if entry["task"] in ("domain", "reference"))
    if cut := answered.get("truncated", 0):
        limit = count(sections["evaluate"]["max_free_tokens"])
        said.append(
            f"{count(cut)} of {count(answered['items'])} answers had not ended after {limit} tokens and are scored as far as they went."
        )
    if (left := reports["evaluate_tuned"]["test_rows"] - answered["items"]) > 0:
        said.append(f"{count(left)} held-out rows are longer than the model can read with an answer and were not asked.")
    said.append("It was tuned on one kind of question and answers others as its base does, or worse.")
    if sections["numerics"]["quantization"] != "none":
        said.append(f"All scores are those of the adapter over the base at {sections['numerics']['quantization']}.")
    return said
