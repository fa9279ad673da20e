"""Memory that runs out: the dry run finds it before the first step and changes nothing; in the run, less is computed at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.errors import UserError
from stages.train import adapter
from stages.train.batches import computed_tokens, cut, fill
from stages.train.dry_run import rehearse, worst
from stages.train.room import FILE, Room
from stages.train.sft import Training
from tests import trainable

PATHS = [{"kernels": "plain", "batching": "bucket"}, {"kernels": "plain", "batching": "pack"}, {"kernels": "fused"}]
# what a GPU with too little memory does: PyTorch's own error out of the middle of a forward pass, from a step on
SCARCE = """
import torch
from stages.train import sft
plain = sft.Training._attempt
def attempt(self, step):
    def scarce(module, inputs):
        if step.number >= 3 and inputs[0].numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
    hook = self.model.get_base_model().get_input_embeddings().register_forward_pre_hook(scarce)
    try:
        return plain(self, step)
    finally:
        hook.remove()
sft.Training._attempt = attempt
"""
KILLED = """
import os, signal
from stages.train import sft
known = sft.Training._train
def hit(self, step):
    if step.number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    known(self, step)
sft.Training._train = hit
"""
CHANGES: dict[str, Any] = {"train__epochs": 2.0, "train__max_steps": None, "train__dropout": 0.0, "train__eval_every": 4}
CHANGES |= {"runtime__save_every": 4, "train__neftune_alpha": 5.0, "train__lora_plus_ratio": 4.0}
COMPARED = [
    "models/adapter/adapter_model.safetensors",
    "models/adapter/train_state.json",
    "data/trained/steps.parquet",
    "reports/train.json",
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is slower on many threads, and the tests' processes share the machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


def scarce(training: Training, tokens: int, work: tuple[bool, ...] = (True, False)) -> Training:
    """A training whose passes over more tokens find no memory, in training, in validation or in both."""

    def refuse(module: Any, inputs: Any) -> None:
        if training.model.training in work and inputs[0].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    training.model.get_base_model().get_input_embeddings().register_forward_pre_hook(refuse)
    return training


def course(training: Training) -> list[float]:
    """Trains to the end: loss and gradient norm of each step, then the validation losses."""
    training.fit()
    seen = [point[name] for point in training.state.train for name in ("loss", "grad_norm")]
    return seen + [point["loss"] for point in training.state.validation]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_run_that_ran_out_of_memory_is_within_rounding_the_run_that_did_not(
    tiny_base: Path, tmp_path: Path, path: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**path, "eval_every": 2, "learning_rate": 1e-2, "rank": 4}
    whole = trainable.training(tiny_base, tmp_path / "whole", **changes)
    tight = scarce(trainable.training(tiny_base, tmp_path / "tight", **changes), 60)
    assert course(tight) == pytest.approx(course(whole), rel=1e-4)
    assert whole.state.shrunk == []
    assert {level["work"] for level in tight.state.shrunk} == {"train", "validation"}
    assert all(level["micro_batch_tokens"] <= 64 for level in tight.state.shrunk)
    assert "the memory ran out in step 1 on" in capsys.readouterr().err
    for step in tight.plan:
        cut_up = tight.micro_batches(step, step.number)
        assert sorted(row for micro_batch in cut_up for row in micro_batch) == sorted(step.rows)
        assert max(computed_tokens(micro_batch, tight.lengths, tight.batching) for micro_batch in cut_up) <= 60


def test_a_step_that_is_done_again_has_the_noise_of_its_rows_again(tiny_base: Path, tmp_path: Path) -> None:
    whole = trainable.training(tiny_base, tmp_path / "whole", neftune_alpha=5.0)
    tight = scarce(trainable.training(tiny_base, tmp_path / "tight", neftune_alpha=5.0), 60)
    assert course(tight) == pytest.approx(course(whole), rel=1e-4)  # a row's noise does not depend on its micro-batch


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_where_single_rows_do_not_fit_fewer_activations_are_kept_until_nothing_is_left(
    tiny_base: Path, tmp_path: Path, kernels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = scarce(trainable.training(tiny_base, tmp_path, kernels=kernels, micro_batch_tokens=64), 4)
    with pytest.raises(UserError, match=r"memory is exhausted by the training even of one row of \d+ tokens .* lower tokenize"):
        training._train(training.plan[0])
    kept = [level["kept"] for level in training.state.shrunk]
    assert kept[-1] == 0
    assert sorted(kept, reverse=True) == kept
    assert training.state.shrunk[-1]["offload"] == (kernels == "fused")
    assert training.state.step == 0
    assert "activations of 1 layers kept" in capsys.readouterr().err


def test_recomputing_on_the_plain_path_keeps_less_and_computes_the_same(tiny_base: Path, tmp_path: Path) -> None:
    found = {}
    for kept in (2, 1, 0):
        training = trainable.training(tiny_base, tmp_path / str(kept))
        training.ready("train", 1)
        training.plain.kept = kept
        held = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, held=held: held.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            loss = training.plain.summed_loss(training.rows[:4])
        loss.backward()
        found[kept] = (sum(held), [parameter.grad.clone() for parameter in training.parameters.values()])
    assert found[2][0] > found[1][0] > found[0][0]
    for kept in (1, 0):
        assert all(torch.equal(one, other) for one, other in zip(found[2][1], found[kept][1], strict=True))


def test_other_errors_of_a_step_are_not_taken_for_memory(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)

    def fail(module: Any, inputs: Any) -> None:
        raise RuntimeError("a fault")

    training.model.get_base_model().get_input_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a fault"):
        training._train(training.plan[0])
    assert training.state.shrunk == []


def test_levels_hold_from_their_step_on_for_their_work_and_outlive_the_process(tmp_path: Path) -> None:
    room = Room(tmp_path, kept=8, offload=False, mlp_tokens=None)
    assert room.shrink("train", 5, rows=3, tokens=301, longest=120).micro_batch_tokens == 150
    assert room.shrink("train", 9, rows=1, tokens=120, longest=120).kept == 4
    again = Room(tmp_path, kept=8, offload=False, mlp_tokens=None)
    for held in (room, again):
        assert [held.level("train", step).micro_batch_tokens for step in (4, 5, 9)] == [None, 150, 150]
        assert [held.level("train", step).kept for step in (4, 5, 9)] == [8, 8, 4]
        assert held.level("validation", 9).micro_batch_tokens is None
    assert json.loads((tmp_path / FILE).read_text()) == again.shrunk


def test_only_micro_batches_above_the_limit_are_cut() -> None:
    lengths = [50, 10, 48, 12, 11, 9]
    whole = fill(range(6), lengths, 100, "bucket", "cpu")
    assert whole == [(0, 2), (3, 4, 1, 5)]
    assert cut(whole, lengths, None, "bucket", "cpu") == whole
    assert cut(whole, lengths, 60, "bucket", "cpu") == [(0,), (2,), (3, 4, 1, 5)]


def test_the_worst_micro_batches_are_the_longest_the_squarest_and_the_most_to_learn() -> None:
    rows = trainable.in_memory(
        [
            (str(n), [3] * tokens, [False] * (tokens - learnt) + [True] * learnt)
            for n, (tokens, learnt) in enumerate([(40, 2), (9, 8), (30, 2)])
        ]
    )
    micro_batches = [(1, 1, 1), (0,), (2, 2), (1,)]
    assert worst(micro_batches, rows, "pack") == [(2, 2), (1, 1, 1)]
    assert worst([(0,), (1, 1)], rows, "pack") == [(0,), (1, 1)]
    assert worst([(1,)], rows, "bucket") == [(1,)]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_dry_run_leaves_every_bit_as_it_was(tiny_base: Path, tmp_path: Path, path: dict[str, Any]) -> None:
    changes = {**path, "epochs": 2, "neftune_alpha": 5.0, "weight_decay": 0.1}
    without = trainable.training(tiny_base, tmp_path / "without", **changes)
    rehearsed = trainable.training(tiny_base, tmp_path / "with", **changes)
    rehearse(rehearsed)
    assert rehearsed.state.dry_run_peak_bytes
    for training in (without, rehearsed):
        for step in training.plan[:3]:
            training._train(step)
        training.save()
    resumed = trainable.training(tiny_base, tmp_path / "with", **changes)
    rehearse(resumed)
    assert resumed.state.resumed_from == [3]
    assert course(resumed) == course(without)
    for name, parameter in without.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name])


def test_the_dry_run_passes_over_the_worst_rows_and_finds_a_way_before_the_first_step(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = scarce(trainable.training(tiny_base, tmp_path), 60)
    rehearse(training)
    said = capsys.readouterr().err
    assert "the memory ran out in step 1 on" in said
    assert "in the validation after step 0" in said
    assert "GiB at most and left" in said
    training.fit()
    assert "ran out" not in capsys.readouterr().err


def test_the_published_bytes_are_the_same_with_and_without_a_dry_run_and_shrinking_survives_a_kill(tmp_path: Path, tiny_base: Path) -> None:
    found = {}
    for name, code in {"with": "", "without": "from stages.train import dry_run\ndry_run.rehearse = lambda training: None"}.items():
        root = trainable.prepare(tmp_path / name, tiny_base, **CHANGES)
        status, said = trainable.run(root, code)
        assert status == 0, said
        assert ("the dry run on" in said) == (name == "with")
        found[name] = [(root / path).read_bytes() for path in COMPARED]
    assert found["with"] == found["without"]

    for name in ("scarce", "killed"):
        root = trainable.prepare(tmp_path / name, tiny_base, **CHANGES)
        if name == "killed":
            assert trainable.run(root, SCARCE + KILLED)[0] == -9
        # memory is scarce no more where the killed run goes on: it keeps to what it had to do all the same
        status, said = trainable.run(root, SCARCE if name == "scarce" else "")
        assert status == 0, said
        found[name] = [(root / path).read_bytes() for path in COMPARED]
    assert found["scarce"] == found["killed"]
    assert found["scarce"] != found["with"]
    shrunk = json.loads((root / "reports/train.json").read_text())["details"][0]["shrunk"]
    assert [level["step"] for level in shrunk] == [3]
    machine = json.loads((root / "reports/train_machine.json").read_text())["details"][0]
    assert machine["shrunk"] == shrunk
    assert machine["dry_run_peak_bytes"] > 0


def test_the_adapter_keeps_its_initial_values_through_a_failed_dry_run(tiny_base: Path, tmp_path: Path) -> None:
    training = scarce(trainable.training(tiny_base, tmp_path), 40, work=(False,))
    before = adapter.copied(training.parameters)
    rehearse(training)
    assert all(torch.equal(before[name], parameter) for name, parameter in training.parameters.items())
    assert all(level["work"] == "validation" for level in training.state.shrunk)
