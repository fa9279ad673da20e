"""lm-eval's own tasks (arc_easy, mmlu, gsm8k …), asked as lm-eval defines them, of datasets that lie on this machine.

In: evaluate.harness, a folder of dataset repositories. Out: tasks, and the file lm-eval reads each from: its own definition, with the
dataset's place put in. Nothing is fetched.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.core.files import rounded, sha256_file, write_json
from stages.core.params_model import Harness
from stages.evaluate.tasks import Task


@dataclass(frozen=True, kw_only=True)
class HarnessTask(Task):
    """One of lm-eval's own tasks; `documents` is empty, for lm-eval reads them itself.

    Attributes:
        facts: all that changes the score: lm-eval's name and version of the task, dataset, its files' sha256, few_shot, limit.
        generates: whether the answer is generated text.
    """

    facts: dict[str, Any]
    generates: bool

    @property
    def digest(self) -> str:
        """The sha256 of the facts; lm-eval's definition stands under its version in the settings."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def harness_tasks(settings: Harness) -> list[HarnessTask]:
    """The tasks that evaluate.harness names, groups such as mmlu as their members.

    Args:
        settings: evaluate.harness.

    Returns:
        The tasks by name.

    """
    if not settings.tasks:
        return []
    index = known_tasks()
    members = sorted({member for name in settings.tasks for member in leaves(name, index)})
    assert settings.cache is not None
    return [harness_task(name, index[name].cfg, index[name].yaml_path, settings, Path(settings.cache)) for name in members]


@cache
def known_tasks() -> Mapping[str, Any]:
    """lm-eval's tasks, groups and tags by name; thousands of files are read for it."""
    from lm_eval.tasks import TaskManager

    found: Mapping[str, Any] = TaskManager().task_index
    return found


def leaves(name: str, index: Mapping[str, Any]) -> list[str]:
    """The single tasks of a task, group or tag of lm-eval."""
    if name not in index:
        raise UserError(f"evaluate.harness.tasks names {name!r}, which lm-eval does not know; `lm-eval ls tasks` lists all")
    entry = index[name]
    if entry.kind.name == "TASK":
        return [name]
    members = entry.tags if entry.kind.name == "TAG" else (entry.cfg or {}).get("task", [])
    if not members or not all(isinstance(member, str) for member in members):
        raise UserError(f"evaluate.harness.tasks names {name!r}, whose members cannot be taken one by one; name the single tasks instead")
    return [leaf for member in sorted(members) for leaf in leaves(member, index)]


def harness_task(name: str, config: dict[str, Any], definition: Path, settings: Harness, datasets: Path) -> HarnessTask:
    """One task, its dataset found and digested; a UserError tells why it cannot be asked."""
    if config.get("unsafe_code"):
        raise UserError(
            f"lm-eval's task {name} runs code that the model wrote, which evaluate does not; take it out of evaluate.harness.tasks"
        )
    if "dataset_path" not in config:
        raise UserError(f"lm-eval's task {name} makes its own items, so there is no dataset to pin; take it out of evaluate.harness.tasks")
    dataset = str(config["dataset_path"])
    folder = (datasets / dataset).resolve()
    if not folder.is_dir():
        raise UserError(
            f"lm-eval's task {name} needs the dataset {dataset}, but {datasets / dataset} is missing and nothing is fetched here; fetch it "
            f"beforehand: hf download --repo-type dataset {dataset} --local-dir {datasets / dataset}"
        )
    metrics = {metric["metric"]: metric for metric in config.get("metric_list") or [{"metric": "acc"}]}
    metric = "acc_norm" if "acc_norm" in metrics else next(iter(metrics))
    if not metrics[metric].get("higher_is_better", True):
        raise UserError(f"lm-eval's task {name} has {metric}, of which less is better; evaluate.harness takes tasks where more is better")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.relative_to(folder).parts)
    digests = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}  # .cache holds hf's own dates
    facts = {
        "task": name,
        "version": str((config.get("metadata") or {}).get("version")),
        "dataset": dataset,
        "dataset_sha256": hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        "few_shot": config.get("num_fewshot") or 0 if settings.few_shot is None else settings.few_shot,
        "limit": settings.limit,
    }
    kwargs = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    asked = {"include": str(definition), "dataset_path": str(folder), "dataset_kwargs": kwargs, "num_fewshot": facts["few_shot"]}
    generates = config.get("output_type") == "generate_until"
    return HarnessTask(f"harness_{name}", "raw", metric, True, asked, [], limit=settings.limit, facts=facts, generates=generates)


def write_harness_task(task: HarnessTask, folder: Path) -> None:
    """Writes KEY.yaml, which includes lm-eval's own definition; `datasets` beside it becomes the cache of what is read."""
    kwargs = {**task.config["dataset_kwargs"], "cache_dir": str(folder.resolve() / "datasets")}
    write_json(folder / f"{task.key}.yaml", {"task": task.key, **task.config, "dataset_kwargs": kwargs})


def harness_items(task: HarnessTask, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's samples as rows of the outcome, of several ways of reading an answer (gsm8k's strict and flexible) by the first.

    Args:
        task: what was asked.
        samples: as lm-eval logged them.

    Returns:
        A row an item; the item's number in the dataset is its id.

    Raises:
        UserError: the metric is no number an item.
    """
    rows = []
    for sample in (sample for sample in samples if sample["filter"] == samples[0]["filter"]):
        score, target, arguments = sample[task.metric], sample["target"], sample["arguments"]
        if not isinstance(score, int | float):
            raise UserError(
                f"lm-eval's task {task.facts['task']} has no {task.metric} for a single item, so it cannot be paired; take it out of "
                "evaluate.harness.tasks"
            )
        choices = [str(argument[1]).strip() for argument in arguments] if not task.generates else []
        rows.append(
            {
                "item_id": f"{task.facts['task']}-{sample['doc_id']:06}",
                "score": rounded(float(score)),
                "answer": str(sample["filtered_resps"][0]) if task.generates else likeliest(task, choices, sample["filtered_resps"]),
                "target": choices[target] if isinstance(target, int) and len(choices) > target else str(target),
                "probability": None,
                "target_probability": None,
            }
        )
    return rows


def likeliest(task: HarnessTask, choices: list[str], responses: list[Any]) -> str | None:
    """The choice with the highest log-likelihood, by character where the metric counts so; None where there is no choice."""
    if len(choices) < 2:
        return None
    ranks = [
        response[0] / (max(1, len(choice)) if task.metric == "acc_norm" else 1) for choice, response in zip(choices, responses, strict=True)
    ]
    return choices[ranks.index(max(ranks))]
