"""Two GPUs of one host: the train stage on one card, on both, split over both, and cut off. `make test-gpu` runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny, trainable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]

CHANGES = {
    "train__rank": 4,
    "train__alpha": 8,
    "train__epochs": 3.0,
    "train__effective_batch": 8,
    "train__micro_batch_tokens": 128,
    "train__eval_every": 4,
    "train__learning_rate": 1e-2,
    "tokenize__max_tokens": 128,
    "runtime__save_every": 2,
}
RUNS: dict[str, dict[str, Any]] = {
    "single": {"train__parallel": "single"},
    "ddp": {"train__parallel": "ddp"},
    "auto": {"train__parallel": "auto", "train__micro_batch_tokens": "auto"},
    "fsdp": {"train__parallel": "fsdp"},
    "fsdp_plain": {"train__parallel": "fsdp", "train__kernels": "plain", "train__recompute": 2},
    # the products of a slice round otherwise than those of whole rows, and large steps in bfloat16 make that a course of its own
    "gentle": {"train__parallel": "single", "train__learning_rate": 1e-3},
    "sequence": {"train__parallel": "sequence", "train__learning_rate": 1e-3},
    "sequence_plain": {"train__parallel": "sequence", "train__learning_rate": 1e-3, "train__kernels": "plain", "train__recompute": 2},
    "killed": {"train__parallel": "fsdp", "train__epochs": 40.0},
}


def workspace(root: Path, base: Path, **changes: Any) -> Path:
    """What train needs, without git."""
    root.mkdir()
    for name in ("dvc.yaml", "params.yaml", "versions.yaml", "stages"):
        source = tiny.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, root / name)
    trainable.inputs(root, base, 48, 6)
    tiny.edit_params(root, **{**CHANGES, **changes})
    return root


def started(root: Path) -> subprocess.Popen[str]:
    """`python -m stages.train`, as DVC starts it."""
    environment = {**os.environ, "DVC_ROOT": str(root), "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=root, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a stage has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Workspaces of finished runs, all trained at once; of `killed`, one rank was killed on the way and the stage started again."""
    folder = tmp_path_factory.mktemp("parallel")
    base = tiny.make_base(folder / "base", layers=5)
    roots = {name: workspace(folder / name, base, **changes) for name, changes in RUNS.items()}
    processes = {name: started(root) for name, root in roots.items()}
    killed = processes["killed"]
    trainable.wait_for(lambda: list(roots["killed"].glob(".work/train/*/*/step-*/COMPLETE")), killed)
    ranks = ranks_of(killed)
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    said = killed.communicate(timeout=30)[1]
    assert killed.returncode == 1
    assert "rank 1 of 2" in said
    assert "killed by signal 9" in said
    assert time.monotonic() - begin < 10
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    for name, process in processes.items():
        if name != "killed":
            said = process.communicate(timeout=200)[1]
            assert process.returncode == 0, f"{name}: {said}"
    tiny.edit_params(roots["killed"], runtime__save_every=50)  # no part of the key
    again = started(roots["killed"])
    said = again.communicate(timeout=200)[1]
    assert again.returncode == 0, said
    assert "going on after step" in said
    return roots


def course(root: Path) -> tuple[list[float], list[float]]:
    """The losses of a run's steps and of its validations."""
    state = json.loads((root / "models/adapter/train_state.json").read_text())
    return [point["loss"] for point in state["train"]], [point["loss"] for point in state["validation"]]


@pytest.mark.parametrize("name", ["ddp", "auto", "fsdp", "fsdp_plain", "sequence", "sequence_plain"])
def test_two_gpus_train_as_one_does(runs: dict[str, Path], name: str) -> None:
    alone = "gentle" if name.startswith("sequence") else "single"
    assert course(runs[name])[0] == pytest.approx(course(runs[alone])[0], rel=1e-2)
    assert course(runs[name])[1] == pytest.approx(course(runs[alone])[1], rel=1e-2)
    one, two = (load_file(runs[each] / "models/adapter/adapter_model.safetensors") for each in (alone, name))
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in one.items()} == {k: (t.shape, t.dtype) for k, t in two.items()}
    configs = [(runs[each] / "models/adapter/adapter_config.json").read_text() for each in (alone, name)]
    assert configs[0] == configs[1]


def test_the_report_tells_of_both_ranks_and_of_what_the_load_took(runs: dict[str, Path]) -> None:
    machine = json.loads((runs["fsdp"] / "reports/train_machine.json").read_text())["details"][0]
    assert machine["parallel"] == "fsdp"
    assert [sorted(rank) for rank in machine["ranks"]] == [["loaded", "trained"]] * 2
    assert all(rank["loaded"]["gpu_bytes"] > 0 for rank in machine["ranks"])


def test_a_run_whose_rank_was_killed_goes_on(runs: dict[str, Path]) -> None:
    machine = json.loads((runs["killed"] / "reports/train_machine.json").read_text())["details"][0]
    assert machine["resumed_from"]
    assert len(course(runs["killed"])[0]) == 240
