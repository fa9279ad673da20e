"""Trains the default with other values, and scores each on labelled rows that the split left over: what its learning rate was chosen by.

In: a checkout after `make repro`, a GPU. Out: benchmarks/results/defaults.json, a line a variant. The rows are those that `split` left out
of the test and validation rows for their number (309 of the default), so no variant was ever scored on a test row.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.core import paths
from tests.tiny import ROOT, edit_params

RESULTS = Path("benchmarks/results/defaults.json")
AT_ONCE = 8
PARTS = ["stages", "templates", "params.yaml", "versions.yaml", "dvc.yaml", "pyproject.toml", "data", "models/base.json"]

FASTER: dict[str, Any] = {"effective_batch": 8, "learning_rate": 1e-3}
TWICE: dict[str, Any] = {**FASTER, "epochs": 2.0}
VARIANTS: list[dict[str, Any]] = [
    {"effective_batch": 16, "learning_rate": 5e-4, "epochs": 1.0},
    {"effective_batch": 16, "learning_rate": 1e-3, "epochs": 1.0},
    {"effective_batch": 16, "learning_rate": 2e-3, "epochs": 1.0},
    {"effective_batch": 16, "learning_rate": 5e-4, "epochs": 2.0},
    {"effective_batch": 16, "learning_rate": 1e-3, "epochs": 2.0},
    {"effective_batch": 8, "learning_rate": 5e-4, "epochs": 1.0},
    {**FASTER, "epochs": 1.0},
    {**FASTER, "epochs": 1.5},
    {**FASTER, "learning_rate": 2e-3, "epochs": 1.0},
    {**TWICE, "learning_rate": 7e-4},
    {**TWICE},
    {**TWICE, "seed": 2},
    {**FASTER, "epochs": 1.0, "rehearsal": 0.1},
    {**TWICE, "rehearsal": 0.1},
    {**TWICE, "seed": 2, "rehearsal": 0.1},
    {**TWICE, "rehearsal": 0.3},
    {**TWICE, "rehearsal": 1.0},
]


def left_over(split: Path) -> pa.Table:
    """The rows of the test and validation side that were one too many."""
    rejected, columns = pq.read_table(split / "rejected.parquet"), pq.read_schema(split / "test.parquet")
    chosen = pc.is_in(rejected["rule"], pa.array(["over_max_test", "over_max_validation"]))
    return rejected.filter(chosen).select(columns.names).cast(columns).sort_by("id")


def scored(variant: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains one variant in a folder of its own and scores it.

    Args:
        variant: values of train, `seed` and `rehearsal`; `base`: the base alone is scored.
        folder: for the workspace.

    Returns:
        The variant, the validation loss, and of each task and prompt the accuracy.
    """
    for part in PARTS:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / part, target) if (ROOT / part).is_dir() else shutil.copy(ROOT / part, target)
    (folder / "reports").mkdir()
    pq.write_table(left_over(folder / "data/split"), folder / paths.SPLIT_TEST)
    asked = "base" if "base" in variant else "tuned"
    names = {"seed": "seed", "rehearsal": "tokenize__rehearsal"}
    edit_params(folder, **{names.get(name, f"train__{name}"): value for name, value in variant.items() if name != "base"})
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        "DVC_ROOT": str(folder),
        "OMP_NUM_THREADS": "2",
    }
    for stage in [["tokenize"], ["train"]] * (asked == "tuned") + [["evaluate", asked]]:
        command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]]
        subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.PIPE)
    tasks = json.loads((folder / paths.EVALUATE_REPORT[asked]).read_text())["details"][0]["tasks"]
    accuracies = {f"{task['task']} {task['prompt']}": round(task[task["metric"]], 4) for task in tasks}
    loss = None if asked == "base" else json.loads((folder / paths.TRAIN_REPORT).read_text())["validation_loss"]
    return {**variant, "validation_loss": loss, "accuracy": accuracies}


def main() -> None:
    """Runs all variants, AT_ONCE at a time, and writes what they scored in their order."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        chosen = [{"base": True}, *VARIANTS]
        found = list(pool.map(lambda pair: scored(pair[1], Path(folder, str(pair[0]))), enumerate(chosen)))
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
