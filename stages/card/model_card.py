"""The card's metadata as the Hugging Face hub reads it. In: facts and parameters. Out: the front matter and the whole card."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.card.facts import Facts, Sources
from stages.card.report import markdown
from stages.card.result_facts import eval_results
from stages.card.words import task_name
from stages.core.files import rounded


def card(facts: Facts, sources: Sources) -> str:
    """The model card: metadata between two lines of dashes, then the body."""
    return f"---\n{metadata(facts, sources).to_yaml()}\n---\n\n{markdown(facts)}"


def metadata(facts: Facts, sources: Sources) -> ModelCardData:
    """What the hub shows and filters by."""
    sections, classified = sources.sections, bool(facts.labels)
    tasks = sources.reports["fetch_general"]["tasks"]
    package = sources.reports["fetch_data"]["package"]
    results = [
        EvalResult(
            task_type="text-classification" if classified and found["task"] == "domain" else "text-generation",
            dataset_type=found["task"],
            dataset_name=task_name(found["task"]) if found["task"] != "domain" else ", ".join(source["name"] for source in facts.sources),
            dataset_revision=sections["general"]["version"] if found["task"] in tasks else package["version"] if package else None,
            dataset_split=tasks[found["task"]]["split"] if found["task"] in tasks else "test",
            metric_type=found["metric"],
            metric_value=found["value"],
        )
        for found in eval_results(sources.reports["compare"])
    ]
    energy = sources.provenance["energy"]
    more: dict[str, Any] = {}
    if energy is not None:  # https://huggingface.co/docs/hub/model-cards-co2
        how = "measured energy" if energy["watts"] is None else f"energy reckoned from {energy['watts']} W"
        source = f"{how} at {energy['grid_grams_per_kilowatt_hour']} g CO2/kWh"
        hardware = sources.reports["train_machine"]["gpu"] or sources.reports["train_machine"]["machine"]["processor"]
        emitted = {"emissions": rounded(energy["co2_grams"]), "source": source, "training_type": "fine-tuning", "hardware_used": hardware}
        more["co2_eq_emissions"] = emitted
    return ModelCardData(
        model_name=facts.name,
        base_model=sources.base["name"],
        datasets=[package["name"]] if package is not None else None,  # a user's file has no name on the hub
        language=sections["card"]["language"],
        license=sections["card"]["license"].lower(),  # as the hub spells SPDX's names
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "luthier", *(["text-classification"] if classified else [])],
        eval_results=results,
        **more,
    )
