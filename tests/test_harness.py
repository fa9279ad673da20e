"""lm-eval's own tasks from dataset repositories on this machine: asked as lm-eval asks them, pinned, and refused in a sentence."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.card import result_facts
from stages.compare import __main__ as compare
from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.params import load_params
from stages.core.params_model import Harness
from stages.evaluate import __main__ as evaluate
from stages.evaluate.harness import harness_tasks
from tests import tiny
from tests.test_evaluate import labelled, tiny_model, write_adapter, write_inputs

__all__ = ["tiny_model"]


def write_dataset(folder: Path, config: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    """A dataset repository as the Hub has it: a card that names the splits' files, and the files."""
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}.parquet")
        lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def write_cache(cache: Path) -> Path:
    """ARC-easy and GSM8K of a few rows each."""

    def question(number: int) -> dict[str, Any]:
        choices = {"text": ["free copy", "a fee", f"terms {number}"], "label": ["A", "B", "C"]}
        return {"id": f"q{number}", "question": f"which is free {number}?", "choices": choices, "answerKey": "ABC"[number % 3]}

    def sum_of(number: int) -> dict[str, str]:
        return {"question": f"how many copies are {number} copies?", "answer": f"They are {number}.\n#### {number}"}

    write_dataset(
        cache / "allenai/ai2_arc",
        "ARC-Easy",
        {"train": [question(9)], "validation": [question(8)], "test": [question(n) for n in range(5)]},
    )
    write_dataset(cache / "openai/gsm8k", "main", {"train": [sum_of(n) for n in range(8)], "test": [sum_of(n) for n in range(3)]})
    return cache


def settings(cache: Path, *tasks: str, few_shot: int | None = None, limit: int | None = None) -> Harness:
    return Harness(tasks=list(tasks), cache=str(cache), few_shot=few_shot, limit=limit)


def test_lm_evals_own_tasks_get_the_scores_of_plain_lm_eval_and_are_paired_by_compare(
    workspace: Path, tiny_base: Path, tiny_model: tuple[Any, Any]
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from stages.evaluate.harness import write_harness_task

    cache = write_cache(workspace / "datasets")
    tiny.edit_params(workspace, evaluate__harness__tasks=["arc_easy", "gsm8k"], evaluate__harness__cache=str(cache))
    tiny.edit_params(workspace, evaluate__harness__few_shot=1, evaluate__harness__limit=2, evaluate__few_shot=0, evaluate__retrieved=0)
    write_inputs(tiny_base, labelled(3), labelled(9, start=100))
    evaluate.main("base", load_params())
    write_adapter(tiny_base, 0.0)
    evaluate.main("tuned", load_params())
    rows = pq.read_table(paths.EVALUATION["base"]).to_pylist()
    found = {(row["task"], row["item_id"]): row for row in rows if row["task"].startswith("harness_")}
    assert {task for task, _ in found} == {"harness_arc_easy", "harness_gsm8k"}
    folder = workspace / "plain"
    folder.mkdir()
    for task in harness_tasks(load_params().evaluate.harness):
        write_harness_task(task, folder)
    chosen = TaskManager(include_path=str(folder), include_defaults=False).load(["harness_arc_easy_raw", "harness_gsm8k_raw"])
    for task in chosen["tasks"].values():
        task.set_fewshot_seed(1234)
    model, tokenizer = tiny_model
    plain = lm_eval.evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2), chosen, limit=2, bootstrap_iters=0)
    assert plain is not None
    for sample in plain["samples"]["harness_arc_easy_raw"]:
        mine = found["harness_arc_easy", f"arc_easy-{sample['doc_id']:06}"]
        assert mine["score"] == sample["acc_norm"]
        assert mine["target"] == sample["doc"]["choices"]["text"][sample["doc_id"] % 3]
        assert (mine["answer"] == mine["target"]) == bool(mine["score"])
    strict = [sample for sample in plain["samples"]["harness_gsm8k_raw"] if sample["filter"] == "strict-match"]
    assert [found["harness_gsm8k", f"gsm8k-{s['doc_id']:06}"]["answer"] for s in strict] == [s["filtered_resps"][0] for s in strict]
    compare.main(load_params())
    report = read_details(paths.COMPARE_REPORT)
    compared = {task["task"]: task for task in report["tasks"]}
    assert (compared["harness_arc_easy"]["items"], compared["harness_arc_easy"]["difference"]) == (2, 0)
    assert "arc_easy (lm-eval)" in [task.name for task in result_facts.tasks(report, {"tasks": {}})]


def test_the_digest_holds_dataset_few_shot_and_limit_but_not_the_place_nor_the_downloaders_dates(tmp_path: Path) -> None:
    here, there = write_cache(tmp_path / "here"), write_cache(tmp_path / "there")
    (there / "allenai/ai2_arc/.cache/huggingface").mkdir(parents=True)
    (there / "allenai/ai2_arc/.cache/huggingface/README.md.metadata").write_text("1764100000", encoding="utf-8")
    (task,) = harness_tasks(settings(here, "arc_easy"))
    (same,) = harness_tasks(settings(there, "arc_easy"))
    assert task.digest == same.digest
    assert (task.facts["version"], task.facts["few_shot"], task.metric) == ("1.0", 0, "acc_norm")
    others = [harness_tasks(settings(here, "arc_easy", **change))[0].digest for change in ({"few_shot": 2}, {"limit": 2})]
    write_dataset(there / "allenai/ai2_arc", "ARC-Easy", {"test": [{"question": "another"}]})
    assert len({task.digest, *others, harness_tasks(settings(there, "arc_easy"))[0].digest}) == 4


def test_a_groups_members_are_its_tasks(tmp_path: Path) -> None:
    write_dataset(tmp_path / "cais/mmlu", "anatomy", {"test": [{"question": "x"}]})
    tasks = harness_tasks(settings(tmp_path, "mmlu_stem", "mmlu_anatomy"))
    names = [task.facts["task"] for task in tasks]
    assert "mmlu_anatomy" in names
    assert len(names) == len(set(names)) > 10
    assert harness_tasks(settings(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("arc_esy", "'arc_esy', which lm-eval does not know"),
        (
            "arc_easy",
            "allenai/ai2_arc is missing and nothing is fetched here; fetch it beforehand: hf download --repo-type dataset allenai",
        ),
        ("humaneval", "runs code that the model wrote"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_in_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        harness_tasks(settings(tmp_path, name))
