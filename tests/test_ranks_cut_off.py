"""The stage with two ranks, really killed: all of them end with it, and the run goes on with as many ranks or with one, and ends alike."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests import tiny, trainable

CHANGES: dict[str, Any] = {
    "train__epochs": 10.0,
    "train__max_steps": None,
    "train__eval_every": 20,
    "train__learning_rate": 1e-2,
    "train__parallel": "fsdp",
    "runtime__save_every": 3,
    "runtime__processes": 2,
}
SECONDS = 30.0  # far more than they need, on a busy machine


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that the stage has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def saved(root: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name.removeprefix("step-")) for path in root.glob(".work/train/*/*/step-????????")), default=0)


def alive(pids: list[int]) -> bool:
    """Whether any of some processes still runs."""
    return any(Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() for pid in pids)


def cut_off(root: Path, how: Callable[[subprocess.Popen[str], list[int]], None]) -> tuple[int, str]:
    """Starts the stage, waits until it has come further, does something to it: its exit code and what it said."""
    before = saved(root)
    process = trainable.start(root)
    trainable.wait_for(lambda: saved(root) > before, process)
    ranks = ranks_of(process)
    how(process, ranks)
    said = process.communicate(timeout=SECONDS)[1]
    end = time.monotonic() + SECONDS
    while alive(ranks):
        assert time.monotonic() < end, "a rank outlived the stage"
        time.sleep(0.05)
    assert not (root / "models/adapter").exists()
    return process.returncode, said


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Any]:
    """A run that was cut off in three ways and finished by one process, beside one that never was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("DVC_ROOT", raising=False)
        root = trainable.prepare(tmp_path_factory.mktemp("cut") / "w", tiny_base, **CHANGES)
        straight = trainable.prepare(tmp_path_factory.mktemp("straight") / "w", tiny_base, **{**CHANGES, "runtime__processes": 1})
        told = {
            "rank": cut_off(root, lambda process, ranks: os.kill(ranks[1], signal.SIGKILL)),
            "parent": cut_off(root, lambda process, ranks: process.kill()),
            "stopped": cut_off(root, lambda process, ranks: process.terminate()),
        }
        tiny.edit_params(root, runtime__processes=1)
        sliced = trainable.prepare(tmp_path_factory.mktemp("sliced") / "w", tiny_base, **{**CHANGES, "train__parallel": "sequence"})
        told["slice"] = cut_off(sliced, lambda process, ranks: os.kill(ranks[1], signal.SIGKILL))
        for each in (root, straight, sliced):
            code, said = trainable.run(each)
            assert code == 0, said
    return {"root": root, "straight": straight, "sliced": sliced, "told": told}


@pytest.mark.parametrize("which", ["rank", "slice"])
def test_a_rank_that_dies_ends_all_with_a_sentence(story: dict[str, Any], which: str) -> None:
    code, said = story["told"][which]
    assert code == 1
    assert "train: rank 1 of 2 (process " in said
    assert "was killed by signal 9 without a word; the other ranks were ended and nothing was published" in said
    assert "Traceback" not in said


def test_ranks_die_with_the_stage_and_a_signal_to_it_is_one_to_the_run(story: dict[str, Any]) -> None:
    assert story["told"]["parent"][0] == -signal.SIGKILL
    code, said = story["told"]["stopped"]
    assert code == 75
    assert "train: stopped by SIGTERM; nothing was published" in said


@pytest.mark.parametrize(("which", "times"), [("root", 3), ("sliced", 1)])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not_whatever_the_number_of_processes(
    story: dict[str, Any], which: str, times: int
) -> None:
    courses = []
    for name in (which, "straight"):
        state = json.loads((story[name] / "models/adapter/train_state.json").read_text())
        courses.append([point["loss"] for point in [*state["train"], *state["validation"]]])
    assert courses[0] == pytest.approx(courses[1], rel=1e-2)
    machine = json.loads((story[which] / "reports/train_machine.json").read_text())["details"][0]
    assert len(machine["resumed_from"]) == times
    used, straight = (
        pq.read_table(story[name] / "data/trained/steps.parquet").select(["id", "step"]).to_pylist() for name in (which, "straight")
    )
    assert sorted(used, key=str) == sorted(straight, key=str)  # by whichever rank: the same rows in every step
