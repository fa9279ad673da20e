"""What is asked and how it is scored, as lm-eval tasks: a YAML and a Parquet of documents each.

In: the general suite's files and the test rows. Out: `Task`s, and the files lm-eval reads them from. Every text is a document's field
and never part of the YAML, where lm-eval would read braces as a template and digits as a number.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.core.answers import UNREAD
from stages.core.files import canonical_json, write_json
from stages.core.records import Row, write_table

GENERAL = ("arc_easy", "hellaswag", "openbookqa", "lambada")


@dataclass(frozen=True)
class Task:
    """One set of items asked in one way.

    Attributes:
        name: domain, what is written; label_scores and reference, what is weighed; or the general task's name.
        prompt: plain, label_list, few_shot or retrieved for the domain; raw, without a chat template, for the general suite.
        metric: the per-item score, one of lm-eval's names or bits_per_byte.
        higher_is_better: the metric's direction.
        config: the task's YAML but for the data file.
        documents: an `id` and the fields that `config` names, each.
        limit: how many items are asked at most, or None.
    """

    name: str
    prompt: str
    metric: str
    higher_is_better: bool
    config: dict[str, Any]
    documents: list[dict[str, Any]]
    limit: int | None = None

    @property
    def key(self) -> str:
        """The name lm-eval and the work dir know the task by."""
        return f"{self.name}_{self.prompt}"

    @property
    def rendered(self) -> bool:
        """Whether its prompts come from the chat template."""
        return self.prompt != "raw"

    @property
    def digest(self) -> str:
        """The sha256 of everything that is asked and of how it is scored."""
        return hashlib.sha256(json.dumps([self.config, self.documents], sort_keys=True).encode()).hexdigest()


def general_task(name: str, path: Path) -> Task | None:
    """A task of the general suite in the field's standard zero-shot form: raw text, choices ranked by log-likelihood.

    The metric is the one the field reports: accuracy of the choice with the highest log-likelihood per character (`acc_norm`), and of
    LAMBADA accuracy of the greedy last word.

    Args:
        name: one of GENERAL.
        path: its lines as fetch_general wrote them.

    Returns:
        The task, or None where no item was asked for.
    """
    if not path.is_file():
        return None
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if name == "lambada":
        documents = [{"id": item["id"], "context": item["context"], "target": f" {item['continuation']}"} for item in items]
        config = {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "target", "metric_list": [measured("acc")]}
        return Task(name, "raw", "acc", True, config, documents)
    documents = [{key: item[key] for key in ("id", "context", "choices", "gold")} for item in items]
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [measured("acc"), measured("acc_norm")],
    }
    return Task(name, "raw", "acc_norm", True, config, documents)


def label_task(prompt: str, prompts: dict[str, str], rows: list[Row], max_new_tokens: int) -> Task:
    """Labelled rows, answered by greedy decoding of one line and compared with the label.

    Args:
        prompt: the way of asking.
        prompts: the rendered prompt of each row by its id.
        rows: the test rows.
        max_new_tokens: of an answer.

    Returns:
        The task.
    """
    config = {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0},
        "metric_list": [{**measured("exact_match"), "ignore_case": True, "regexes_to_ignore": UNREAD}],
    }
    documents = [{"id": row.id, "prompt": prompts[row.id], "target": row.answer} for row in rows]
    return Task("domain", prompt, "exact_match", True, config, documents)


def label_scores_task(prompt: str, prompts: dict[str, str], rows: list[Row], labels: list[str], end: str) -> Task:
    """Labelled rows, answered by the label that the model holds for the most likely: decoding that can write nothing but a label.

    Args:
        prompt: the way of asking.
        prompts: the rendered prompt of each row by its id.
        rows: the test rows.
        labels: what may be answered.
        end: what the chat template writes after an answer; without it no label could be more likely than one that is its beginning.

    Returns:
        The task; its documents hold the `labels` beside the `choices` that are scored.
    """
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [measured("acc")],
    }
    choices = [label + end for label in labels]
    documents = [
        {"id": row.id, "prompt": prompts[row.id], "choices": choices, "labels": labels, "gold": labels.index(row.answer)} for row in rows
    ]
    return Task("label_scores", prompt, "acc", True, config, documents)


def answer_task(prompt: str, prompts: dict[str, str], answers: dict[str, str], max_new_tokens: int) -> Task:
    """Rows without labels, answered by greedy decoding up to the end of the turn; compare scores what was written in several ways.

    Args:
        prompt: the way of asking.
        prompts: the rendered prompt of each row by its id.
        answers: the reference answer of each row by its id.
        max_new_tokens: of an answer.

    Returns:
        The task; its own score is the exact match.
    """
    config = {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0},
        "metric_list": [measured("exact_match")],
    }
    documents = [{"id": key, "prompt": text, "target": answers[key]} for key, text in prompts.items()]
    return Task("domain", prompt, "exact_match", True, config, documents)


def reference_task(prompt: str, prompts: dict[str, str], answers: dict[str, str]) -> Task:
    """Rows without labels: how many bits each byte of the reference answer costs the model, of a preference row the chosen answer.

    Args:
        prompt: the way of asking.
        prompts: the rendered prompt of each row by its id.
        answers: the reference answer of each row by its id.

    Returns:
        The task.
    """
    metric = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    config = {"output_type": "loglikelihood", "doc_to_text": "prompt", "doc_to_target": "target", "metric_list": [metric]}
    documents = [{"id": key, "prompt": text, "target": answers[key]} for key, text in prompts.items()]
    return Task("reference", prompt, "bits_per_byte", False, config, documents)


def measured(metric: str) -> dict[str, Any]:
    """A mean per-item metric of lm-eval."""
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def write_task(task: Task, folder: Path) -> None:
    """Writes KEY.yaml and KEY.parquet.

    Parquet, because lm-eval's JSON reader guesses types: a label such as 2020-01-01 would become a date.

    Args:
        task: what to write.
        folder: an existing folder; `datasets` beside the files becomes the cache of what is read from them.
    """
    data = folder.resolve() / f"{task.key}.parquet"
    write_table(data, pa.Table.from_pylist(task.documents))
    config = {
        "task": task.key,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder.resolve() / "datasets")},
        "test_split": "test",
        "num_fewshot": 0,
        **task.config,
    }
    write_json(folder / f"{task.key}.yaml", config)  # JSON is YAML


def settings_digest(settings: dict[str, Any]) -> str:
    """The sha256 of an evaluation's settings in canonical JSON."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()
