"""Asks the base or the tuned model every test row and every item of the general suite, and keeps each item's score.

In: the model, test rows, examples, general suite. Out: data/evaluation/VARIANT.parquet, one row an item and prompt, its settings in the
schema's metadata; reports/evaluate_VARIANT.json; the seconds in reports/evaluate_VARIANT_machine.json. Finished tasks stay in the work
dir, so a killed evaluation goes on with the next.
"""

import contextlib
import io
import json
import logging
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, rounded, sha256_tree, write_report
from stages.core.models import base_folder, compute_dtype, device_of, load_tokenizer, load_variant, manifest_of
from stages.core.params import Params
from stages.core.provenance import versions
from stages.core.records import read_rows, write_table
from stages.core.runs import held_run
from stages.core.stage import run_stage
from stages.evaluate.domain import domain_tasks
from stages.evaluate.harness import HarnessTask, harness_items, harness_tasks, write_harness_task
from stages.evaluate.tasks import GENERAL, Task, general_task, settings_digest, write_task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.evaluate.engine import Engine

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # 1 right, 0 wrong; of reference the bits for a byte
        pa.field("answer", pa.string()),
        pa.field("target", pa.string(), nullable=False),
        # of label_scores: the share of the answer, and of the target, in the probability of all labels; elsewhere null
        pa.field("probability", pa.float64()),
        pa.field("target_probability", pa.float64()),
        pa.field("target_tokens", pa.int64()),  # of reference; elsewhere null
    ]
)
SAMPLES = 5
FEWSHOT_SEED = 1234  # of the examples of lm-eval's own tasks: the one that lm-eval's command takes
PACKAGES = ["bitsandbytes", "datasets", "lm-eval", "peft", "torch", "transformers"]


def main(variant: str, params: Params) -> None:
    """Evaluates one of the two models; `variant` is base or tuned."""
    manifest = manifest_of(variant)
    test = read_rows(paths.SPLIT_TEST)
    if not test:
        raise UserError(f"{paths.SPLIT_TEST} has no rows to evaluate on; raise split.test or add data")
    with held_run(f"evaluate@{variant}") as run:
        tokenizer = load_tokenizer(paths.TOKENIZER)
        ways = domain_tasks(variant, test, read_rows(paths.SPLIT_TRAIN), params, tokenizer, longest_input(manifest, tokenizer))
        ways += [[task] for name in GENERAL if (task := general_task(name, paths.GENERAL / f"{name}.jsonl"))]
        ways += [[task] for task in harness_tasks(params.evaluate.harness)]
        device = device_of(params.runtime.device)
        model: PreTrainedModel | PeftModel | None = None
        results: dict[str, dict[str, Any]] = {}
        for way in ways:
            done = run.folder / "done" / f"{way[0].key}.json"
            if not done.is_file():
                model = model or loaded(variant, manifest, params, device, len(tokenizer))
                keep(done, asked(way, model, tokenizer, params.evaluate.batch_size, f"evaluate@{variant}", run.folder / "tasks"))
            results |= json.loads(done.read_text(encoding="utf-8"))
        tasks = [task for way in ways for task in way]
        settings = {
            "seed": params.seed,
            "device": device,
            "quantization": params.numerics.quantization,
            "compute_dtype": str(compute_dtype(params.numerics, device)).removeprefix("torch."),
            "batch_size": params.evaluate.batch_size,
            "base": {file["path"]: file["sha256"] for file in manifest["files"]},
            "tokenizer": sha256_tree(paths.TOKENIZER),
            "versions": versions(PACKAGES),
            "tasks": {
                t.key: {
                    "metric": t.metric,
                    "higher_is_better": t.higher_is_better,
                    "sha256": t.digest,
                    **(t.facts if isinstance(t, HarnessTask) else {}),
                }
                for t in tasks
            },
        }
        items = [
            {"task": task.name, "prompt": task.prompt, **item}
            for task in tasks
            for item in sorted(results[task.key]["items"], key=lambda item: item["item_id"])
        ]
        run.check_unmoved()
        with outputs() as place:
            metadata = {"settings": json.dumps(settings, sort_keys=True)}
            table = pa.Table.from_pylist(items, schema=SCHEMA.with_metadata(metadata))
            write_table(
                place(paths.EVALUATION[variant]), table.sort_by([("task", "ascending"), ("prompt", "ascending"), ("item_id", "ascending")])
            )
            write_report(place(paths.EVALUATE_REPORT[variant]), {}, {"test_rows": len(test), **details(tasks, results, settings)})
            write_report(place(paths.EVALUATE_MACHINE[variant]), {}, {"device": device, "ways": speeds(ways, results)})


def loaded(variant: str, manifest: dict[str, Any], params: Params, device: str, vocabulary: int) -> "PreTrainedModel | PeftModel":
    """The model that is asked, its layers laid out for speed."""
    from stages.evaluate.linear import prepack

    model = load_variant(variant, manifest, params.numerics, device, vocabulary)
    prepack(model)
    return model


def longest_input(manifest: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens the model can read, as lm-eval finds it in its configuration."""
    from lm_eval.models.utils import DEFAULT_MAX_LENGTH, resolve_max_length
    from transformers import AutoConfig

    return int(resolve_max_length(AutoConfig.from_pretrained(base_folder(manifest)), tokenizer, default=DEFAULT_MAX_LENGTH))


def asked(
    way: list[Task], model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, stage: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Runs the tasks of one way of asking through lm-eval.

    Args:
        way: one task, or what is written and what is weighed after the same prompts, which are read once for answers and labels.
        model: whom to ask.
        tokenizer: of this run.
        batch_size: rows for one forward pass, at most.
        stage: the name shown with the progress.
        folder: for the tasks' files.

    Returns:
        By key `items`: a row of the outcome each; `means`: every metric of the task, an answer's mean `prompt_tokens` and `new_tokens`,
        and of free answers how many were `truncated`; `seconds`: of the whole way.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    from stages.evaluate.engine import Engine

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is loaded already
    folder.mkdir(parents=True, exist_ok=True)
    for task in way:
        write_harness_task(task, folder) if isinstance(task, HarnessTask) else write_task(task, folder)
    first, last = way[0], way[-1]
    choices = last.documents[0]["choices"] if last.name == "label_scores" else ()
    engine = Engine(model, tokenizer, batch_size, f"{stage} {first.key}", first.rendered, choices)
    start = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's and datasets' own bars
        chosen = TaskManager(include_path=str(folder), include_defaults=False).load([task.key for task in way])
        for loaded in chosen["tasks"].values():
            loaded.set_fewshot_seed(FEWSHOT_SEED)
        found = lm_eval.evaluate(engine, chosen, limit=first.limit, bootstrap_iters=0, log_samples=True)
    seconds = time.monotonic() - start
    assert found is not None
    sys.stderr.write(f"{stage}: {first.key}, {len(found['samples'][first.key])} items in {seconds:.0f} s\n")
    results = {
        task.key: {**outcome(task, found["samples"][task.key], found["results"][task.key], engine), "seconds": seconds} for task in way
    }
    if cut := results[first.key]["means"].get("truncated", 0):
        remedy = "their limit is lm-eval's own" if isinstance(first, HarnessTask) else "raise evaluate.max_free_tokens"
        found = f"{cut} of {len(results[first.key]['items'])} answers to {first.key} were cut at their limit of new tokens"
        sys.stderr.write(f"{stage}: WARNING: {found} and are scored as they are; {remedy}\n")
    return results


def outcome(task: Task, samples: list[dict[str, Any]], results: dict[str, Any], engine: "Engine") -> dict[str, Any]:
    """`items` and `means` of a task from lm-eval's samples and results."""
    items = harness_items(task, samples) if isinstance(task, HarnessTask) else [item(task, sample) for sample in samples]
    means = {name.removesuffix(",none"): value for name, value in results.items() if isinstance(value, float) and "stderr" not in name}
    generates = task.generates if isinstance(task, HarnessTask) else task.config["output_type"] == "generate_until"
    costs = [engine.tokens_of(sample["arguments"], sample["resps"][0][0] if generates else None) for sample in samples]
    if task.metric == "bits_per_byte":
        nats = -sum(sample["resps"][0][0][0] for sample in samples) / sum(new for _, new in costs)
        means = {"bits_per_byte": sum(one["score"] for one in items) / len(items), "nats_per_token": nats, "perplexity": math.exp(nats)}
        items = [{**one, "target_tokens": new} for one, (_, new) in zip(items, costs, strict=True)]
    for name, counts in zip(("prompt_tokens", "new_tokens"), zip(*costs, strict=True), strict=True):
        means[name] = sum(counts) / len(counts)
    if generates and task.config.get("generation_kwargs", {}).get("until") != [
        "\n"
    ]:  # of a label the first line is read, however it goes on
        means["truncated"] = sum(sample["arguments"][0][0] in engine.cut for sample in samples)
    return {"items": items, "means": means}


def item(task: Task, sample: dict[str, Any]) -> dict[str, Any]:
    """One of lm-eval's samples as a row of the outcome."""
    document, responses = sample["doc"], [response[0] for response in sample["resps"]]
    found: dict[str, Any] = {"item_id": document["id"], "answer": None, "probability": None, "target_probability": None}
    if task.metric == "bits_per_byte":
        score = -responses[0][0] / math.log(2) / len(document["target"].encode())
        return {**found, "score": rounded(score), "target": document["target"]}
    found["score"] = rounded(float(sample[task.metric]))
    if task.config["output_type"] != "multiple_choice":
        answer = responses[0] if task.metric == "exact_match" else None
        return {**found, "answer": answer, "target": document["target"].strip()}
    likelihoods = [response[0] for response in responses]
    if task.name == "label_scores":
        choices, ranks, shares = document["labels"], likelihoods, softmax(likelihoods)
        found |= {"probability": rounded(max(shares)), "target_probability": rounded(shares[document["gold"]])}
    else:
        choices = document["choices"]
        ranks = [likelihood / len(choice) for likelihood, choice in zip(likelihoods, choices, strict=True)]
    return {**found, "answer": choices[ranks.index(max(ranks))], "target": choices[document["gold"]]}


def softmax(likelihoods: list[float]) -> list[float]:
    """Log-likelihoods as shares of their sum."""
    weights = [math.exp(likelihood - max(likelihoods)) for likelihood in likelihoods]
    return [weight / sum(weights) for weight in weights]


def keep(path: Path, finished: dict[str, Any]) -> None:
    """Writes a finished task's results whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(finished, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


def speeds(ways: list[list[Task]], results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How long each way of asking took on this machine, generated answers and label scores together."""
    return [
        {
            "tasks": [task.name for task in way],
            "prompt": way[0].prompt,
            "items": len(results[way[0].key]["items"]),
            "seconds": results[way[0].key]["seconds"],
            "seconds_per_item": results[way[0].key]["seconds"] / len(results[way[0].key]["items"]),
        }
        for way in ways
    ]


def details(tasks: list[Task], results: dict[str, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The report: every task's means, the domain's accuracy by label, a few items of each way of asking about the domain."""
    by_label: dict[str, dict[str, dict[str, float]]] = {}
    samples = []
    for task in (task for task in tasks if task.name == "domain"):
        items, documents = results[task.key]["items"], {document["id"]: document for document in task.documents}
        if f"label_scores_{task.prompt}" in results:
            targets = sorted({one["target"] for one in items})
            groups = {target: [one["score"] for one in items if one["target"] == target] for target in targets}
            by_label[task.prompt] = {
                target: {"items": len(scores), "accuracy": sum(scores) / len(scores)} for target, scores in groups.items()
            }
        for one in sorted(items, key=lambda one: one["item_id"])[:SAMPLES]:
            samples.append({**one, "prompt": task.prompt, "end_of_prompt": documents[one["item_id"]]["prompt"][-300:]})
    return {
        "tasks": [
            {
                "task": task.name,
                "prompt": task.prompt,
                "metric": task.metric,
                "items": len(results[task.key]["items"]),
                **results[task.key]["means"],
            }
            for task in tasks
        ],
        "accuracy_by_label": by_label,
        "samples": samples,
        "settings": settings,
        "settings_sha256": settings_digest(settings),
    }


if __name__ == "__main__":
    chosen, *rest = sys.argv[1:] or [""]
    if chosen not in paths.EVALUATION:
        sys.exit(f"usage: python -m stages.evaluate {{{','.join(paths.EVALUATION)}}} [--debug]")
    run_stage(f"evaluate@{chosen}", partial(main, chosen), rest)
