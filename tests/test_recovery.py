"""What the rules do to a run: a planted fault is told, stops it or is left out, and the end is that of a run without that step."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.batches import TokenRow
from stages.core.errors import UserError
from stages.core.params import load_params
from stages.train import adapter, checkpoints
from stages.train.__main__ import counts
from stages.train.sft import Training
from tests import trainable
from tests.tiny import ROOT

PLANTED = 7  # the row at fault
STEPS = {"epochs": 9, "dropout": 0.1, "eval_every": 5}  # 27 steps of 4 of the 12 rows: enough for the median of 20 losses
BLAMED = 22
BROKEN = {"spike": "roll_back", "spike_score": 4.0}  # a random base that small cannot be wrecked further


def watching(train: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Settings of a run whose rules are changed."""
    return {**STEPS, "watch": {"non_finite": "stop", "spike": "warn", "spike_score": 8.0, **(train or {})}, **changes}


def made(base: Path, root: Path, runtime: dict[str, Any] | None = None, **settings: Any) -> Training:
    """A training; `runtime` changes the rules of runtime.watch, save_every 4."""
    rules = load_params(ROOT / "params.yaml").runtime.watch.model_dump()
    return trainable.training(base, root, runtime={"save_every": 4, "watch": {**rules, **(runtime or {})}}, **settings)


def weights(training: Training) -> dict[str, torch.Tensor]:
    """The adapter."""
    return adapter.copied(adapter.trainable(training.model))


def same(one: Training, other: Training) -> bool:
    """Whether two trainings ended in the same bits."""
    second = weights(other)
    course = one.state.train == other.state.train and one.state.validation == other.state.validation
    return course and all(torch.equal(tensor, second[name]) for name, tensor in weights(one).items())


def plant(training: Training, change: Callable[[torch.Tensor], torch.Tensor], steps: Sequence[int] | None = None) -> None:
    """Changes the loss of every micro-batch with the planted row, in some steps or in all."""
    plain = training.plain.summed_loss

    def planted(rows: Sequence[TokenRow], **named: Any) -> torch.Tensor:
        loss = plain(rows, **named)
        there = training.rows[PLANTED] in rows and training.model.training
        return change(loss) if there and (steps is None or training.state.step + 1 in steps) else loss

    training.plain.summed_loss = planted  # type: ignore[method-assign]


def without(base: Path, root: Path, steps: list[int], **settings: Any) -> Training:
    """A training that never made some steps."""
    found = made(base, root, **settings)
    found.state.left_out = steps
    found.fit()
    return found


def step_of(training: Training, first: int) -> int:
    """The first step from `first` on that trains on the planted row."""
    return next(step.number for step in training.plan[first - 1 :] if PLANTED in step.rows)


def test_a_row_that_gives_nan_stops_the_run_and_is_named(tiny_base: Path, tmp_path: Path) -> None:
    training = made(tiny_base, tmp_path, **watching())
    token = 379  # of no other row
    training.rows[PLANTED].input_ids[0] = token
    embedding = training.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, out: out * math.nan if (inputs[0] == token).any() else out)
    with pytest.raises(UserError, match=rf"step {step_of(training, 1)}: the loss is nan on the rows .*row007.*; nothing was published"):
        training.fit()
    assert training.state.step == step_of(training, 1) - 1


def test_a_step_with_nan_is_left_out_and_the_rest_is_as_if_it_never_was(tiny_base: Path, tmp_path: Path) -> None:
    settings = watching({"non_finite": "roll_back"})
    training = made(tiny_base, tmp_path / "planted", **settings)
    at = step_of(training, 10)
    plant(training, lambda loss: loss * math.nan, [at])
    assert training.fit() == "last_step"
    assert training.state.left_out == [at]
    assert [(event["rule"], event["action"], event["step"]) for event in training.state.events] == [("non_finite", "roll_back", at)]
    assert f"step {at} is left out" in training.state.events[0]["message"]
    assert at not in [point["step"] for point in training.state.train]
    assert same(training, without(tiny_base, tmp_path / "without", [at], **settings))


def test_a_gradient_that_is_no_number_is_left_out_too(tiny_base: Path, tmp_path: Path) -> None:
    training = made(tiny_base, tmp_path, **watching({"non_finite": "roll_back"}))
    at = step_of(training, 4)
    plant(training, lambda loss: loss + (loss - loss.detach()) * math.inf * 0, [at])
    assert training.fit() == "last_step"
    assert training.state.left_out == [at]


def test_a_run_that_needs_more_than_three_steps_left_out_stops(tiny_base: Path, tmp_path: Path) -> None:
    training = made(tiny_base, tmp_path, **watching({"non_finite": "roll_back"}))
    plant(training, lambda loss: loss * math.nan)
    with pytest.raises(UserError, match=r"3 steps were left out already, and more is no matter of a few rows; nothing was published"):
        training.fit()
    assert len(training.state.left_out) == 3


def test_a_spike_of_a_row_is_told_and_changes_nothing(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = made(tiny_base, tmp_path, **watching())
    at = step_of(training, 21)
    plant(training, lambda loss: loss * 20, [at])
    assert training.fit() == "last_step"
    assert training.state.left_out == []
    (event,) = training.state.events
    assert (event["rule"], event["action"], event["step"]) == ("spike", "warn", at)
    assert f"train: step {at}: the loss jumped to" in capsys.readouterr().err


def test_a_spike_of_a_row_leaves_its_step_out(tiny_base: Path, tmp_path: Path) -> None:
    settings = watching({"spike": "roll_back"})
    training = made(tiny_base, tmp_path / "planted", **settings)
    at = step_of(training, 21)
    plant(training, lambda loss: loss * 20, [at])
    assert training.fit() == "last_step"
    assert training.state.left_out == [at]
    assert same(training, without(tiny_base, tmp_path / "without", [at], **settings))


def break_update(training: Training) -> None:
    """Lets the update of one step wreck the adapter."""
    plain = training.optimizer.step

    def step(*arguments: Any, **named: Any) -> Any:
        done = plain(*arguments, **named)
        if training.state.step == BLAMED - 1 and training.model.training:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in adapter.trainable(training.model).values():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=30)
        return done

    training.optimizer.step = step  # type: ignore[method-assign]


def test_a_spike_that_the_update_before_made_takes_the_run_back_before_that_update(tiny_base: Path, tmp_path: Path) -> None:
    settings = watching(BROKEN, early_stop=50)
    training = made(tiny_base, tmp_path / "planted", **settings)
    break_update(training)
    assert training.fit() == "last_step"
    assert training.state.left_out == [BLAMED]
    (event,) = training.state.events
    assert event["step"] == BLAMED + 1
    assert f"step {BLAMED}, whose update raised its own rows' loss, is left out" in event["message"]
    assert same(training, without(tiny_base, tmp_path / "without", [BLAMED], **settings))


def test_a_run_killed_after_going_back_ends_in_the_bytes_of_one_that_was_not(tiny_base: Path, tmp_path: Path) -> None:
    settings = watching(BROKEN)
    straight = made(tiny_base, tmp_path / "straight", **settings)
    break_update(straight)
    straight.fit()
    cut = made(tiny_base, tmp_path / "cut", **settings)
    break_update(cut)
    back = cut.go_back

    def die(folder: Path) -> None:
        back(folder)
        raise KeyboardInterrupt

    cut.go_back = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    resumed = made(tiny_base, tmp_path / "cut", **settings)
    assert resumed.state.resumed_from == [20]
    break_update(resumed)
    resumed.fit()
    assert resumed.state.left_out == straight.state.left_out == [BLAMED]
    assert same(resumed, straight)


def test_rows_of_a_left_out_step_are_not_counted_as_seen(tiny_base: Path, tmp_path: Path) -> None:
    found = without(tiny_base, tmp_path, [2], **watching())
    assert counts(found)["seen"]["rows"] == 4 * (len(found.plan) - 1)


def test_a_rule_that_says_stop_keeps_the_work_and_the_same_run_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    rules = {"plateau": "stop", "plateau_steps": 10}
    settings = watching(learning_rate=1e-9)
    training = made(tiny_base, tmp_path / "stopped", runtime=rules, **settings)
    with pytest.raises(UserError, match=r"step \d+: the mean loss of the last 10 steps .*the same command goes on after step \d+"):
        training.fit()
    step = training.state.step
    assert checkpoints.newest(tmp_path / "stopped") == checkpoints.place(tmp_path / "stopped", step)
    resumed = made(tiny_base, tmp_path / "stopped", runtime=rules, **settings)
    assert resumed.state.resumed_from == [step]
    assert resumed.fit() == "last_step"
    whole = made(tiny_base, tmp_path / "whole", **settings)
    whole.fit()
    assert same(resumed, whole)


def test_a_rising_validation_loss_is_told(tiny_base: Path, tmp_path: Path) -> None:
    training = made(tiny_base, tmp_path, runtime={"validation_rising": "stop"}, **{**watching(), "eval_every": 1})
    rising = iter(range(100))
    training._validation_loss = lambda: float(next(rising))  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"step 3: the validation loss rose 3 times in a row, from 0 to 3"):
        training.fit()


def test_the_sensors_change_no_bit_of_the_adapter(tiny_base: Path, tmp_path: Path) -> None:
    read = made(tiny_base, tmp_path / "read", runtime={"sample_seconds": 0.005}, **watching())
    read.fit()
    assert read.state.sensors["samples"] > 0
    lines = (tmp_path / "read" / "telemetry.jsonl").read_text().splitlines()
    assert all("load" in json.loads(line) for line in lines)
    blind = made(tiny_base, tmp_path / "blind", runtime={"sample_seconds": None}, **watching())
    blind.fit()
    assert blind.state.sensors["samples"] == 0
    assert same(read, blind)


def test_each_step_has_its_speed_and_its_memory(tiny_base: Path, tmp_path: Path) -> None:
    training = made(tiny_base, tmp_path, **watching())
    training.matmul_rate = 1e12
    training.fit()
    for point, step in zip(training.state.speed, training.plan, strict=True):
        tokens = sum(len(training.rows[row].input_ids) for row in step.rows)
        flops = training.work.flops([training.rows[row] for row in step.rows])
        assert point["ceiling_share"] == pytest.approx(flops / 1e12 / (tokens / point["tokens_per_second"]))
        assert point["memory_bytes"] > 0
        assert point["allocated_bytes"] > 0
