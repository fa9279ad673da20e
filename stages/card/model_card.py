"""The card's metadata as the Hugging Face hub reads it. In: facts and parameters. Out: the front matter and the whole card."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.card.facts import Facts, Sources
from stages.card.report import markdown
from stages.card.result_facts import eval_results
from stages.card.words import TASKS
from stages.core.errors import UserError


def card(facts: Facts, sources: Sources) -> str:
    """The model card: metadata between two lines of dashes, then the body."""
    return f"---\n{metadata(facts, sources).to_yaml()}\n---\n\n{markdown(facts)}"


def metadata(facts: Facts, sources: Sources) -> ModelCardData:
    """What the hub shows and filters by."""
    sections, classified = sources.sections, bool(facts.labels)
    tasks = sources.reports["fetch_general"]["tasks"]
    results = [
        EvalResult(
            task_type="text-classification" if classified and found["task"] == "domain" else "text-generation",
            dataset_type=found["task"],
            dataset_name=TASKS.get(found["task"], ", ".join(source["name"] for source in facts.sources)),
            dataset_split=tasks[found["task"]]["split"] if found["task"] in tasks else "test",
            metric_type=found["metric"],
            metric_value=found["value"],
        )
        for found in eval_results(sources.reports["compare"])
    ]
    package = sources.reports["fetch_data"]["package"]
    return ModelCardData(
        model_name=facts.name,
        base_model=sources.base["name"],
        datasets=[package["name"]] if package is not None else None,  # a user's file has no name on the hub
        language=sections["card"]["language"],
        license=sections["card"]["license"],
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "luthier", *(["text-classification"] if classified else [])],
        eval_results=results,
    )


def check_licences(licence: str, parts: Mapping[str, Any]) -> None:
    """Refuses to give away freely what was made from parts that forbid commercial use.

    Only that one contradiction is looked for: licences named -NC, against a card.license that is not.

    Args:
        licence: card.license.
        parts: the licence of the base and of the data, by what they are of; None where none is stated.

    Raises:
        UserError: a part forbids commercial use and the card does not say so.
    """
    for name, part in parts.items():
        if part is not None and "-nc" in part.lower() and "-nc" not in licence.lower():
            raise UserError(
                f"card.license is {licence}, but {name} is under {part}, which forbids commercial use; set card.license: {part.lower()} or "
                f"train on another"
            )
