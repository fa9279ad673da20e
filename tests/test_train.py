"""Training in one process on the tiny base: equal settings learn alike, what is published is what was trained, gates stop the rest."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.core.batches import IGNORED, TokenRow, collate
from stages.core.errors import UserError
from stages.core.models import load_adapter
from stages.core.params import Train, load_params
from stages.core.stage import sentence
from stages.train import adapter, checkpoints
from stages.train.__main__ import make_plan
from stages.train.gates import check_packing, probe_logits
from stages.train.optimizer import learning_rate, make_optimizer
from stages.train.sft import Training
from stages.train.state import State
from stages.train.tracking import Tracker
from tests import trainable
from tests.tiny import ROOT


def settings(**changes: Any) -> Train:
    """The repository's own training parameters, changed."""
    return Train.model_validate({**load_params(ROOT / "params.yaml").train.model_dump(), **changes})


def losses(training: Training) -> list[float]:
    """Trains to the end: the loss of each step."""
    training.fit()
    return [point["loss"] for point in training.state.train]


def fresh(base: Path) -> Any:
    """The tiny base without an adapter."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def wake(training: Training) -> Training:
    """Gives every LoRA B random values, so that the adapter matters before any step."""
    torch.manual_seed(5)
    for name, parameter in adapter.trainable(training.model).items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return training


def test_padded_and_packed_rows_have_the_loss_of_each_row_alone(tiny_base: Path, tmp_path: Path) -> None:
    training = wake(trainable.training(tiny_base, tmp_path))
    rows = training.rows[:6]
    alone = sum(training.plain.summed_loss([row], "bucket").item() for row in rows)
    assert training.plain.summed_loss(rows, "bucket").item() == pytest.approx(alone, rel=1e-5)
    assert training.plain.summed_loss(rows, "pack").item() == pytest.approx(alone, rel=1e-5)


def test_packed_logits_are_the_unpacked_ones(tiny_base: Path, tmp_path: Path) -> None:
    training = wake(trainable.training(tiny_base, tmp_path))
    rows = training.rows[:4]
    with torch.no_grad():
        packed = training.plain.logits(collate(rows, "pack", 0))[0]
        alone = torch.cat([training.plain.logits(collate([row], "bucket", 0))[0] for row in rows])
    assert (packed - alone).abs().max() < 1e-4


def test_a_base_that_mixes_packed_rows_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, batching="pack")
    check_packing(training)
    forward = training.model.forward
    # as an architecture does that makes nothing of position ids: the second row sees the first
    training.model.forward = lambda position_ids=None, **kwargs: forward(**kwargs)
    with pytest.raises(UserError, match=r"set train.batching: bucket"):
        check_packing(training)


def test_the_loss_is_the_mean_cross_entropy_of_the_trained_tokens_alone(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)
    rows = [training.rows[row] for row in training.plan[0].rows]
    base = fresh(tiny_base).requires_grad_(False)
    summed, targets = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.input_ids)[None]
        logged = base(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        found = [-float(logged[place, ids[0, place + 1]]) for place in range(len(row.trained) - 1) if row.trained[place + 1]]
        summed, targets = summed + sum(found), targets + len(found)
    assert losses(training)[0] == pytest.approx(summed / targets, rel=1e-5)


def test_accumulating_packing_and_checkpointing_activations_change_memory_and_not_the_course(tiny_base: Path, tmp_path: Path) -> None:
    whole = losses(trainable.training(tiny_base, tmp_path / "whole", micro_batch_tokens=4096))
    for name, changes in {
        "one row a forward pass": {"micro_batch_tokens": 40},
        "packed": {"batching": "pack", "micro_batch_tokens": 80},
        "activations computed again": {"recompute": "all"},
        "activations of one layer computed again": {"recompute": 1},
    }.items():
        assert losses(trainable.training(tiny_base, tmp_path / name, **changes)) == pytest.approx(whole, abs=1e-4), name


def test_the_loss_falls_on_rows_that_can_be_learnt(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, epochs=20, learning_rate=3e-2, target_modules=["q_proj", "down_proj"])
    seen = losses(training)
    assert seen[-1] < seen[0] - 0.3  # all that frozen random embeddings allow
    assert training.state.validation[-1]["loss"] < training.state.validation[0]["loss"]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_to_its_value_and_then_falls_and_no_step_is_wasted(schedule: str) -> None:
    rates = [learning_rate(step, 50, settings(schedule=schedule, learning_rate=0.5, warmup_share=0.1)) for step in range(1, 51)]
    assert rates[:6] == pytest.approx([0.5 * step / 6 for step in range(1, 7)])
    assert max(rates) == 0.5
    assert all(rate > 0 for rate in rates)
    assert rates[6:] == sorted(rates[6:], reverse=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dora": True},
        {"rslora": True},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"init": "pissa"},
        {"init": "olora"},
        {"init": "pissa", "rslora": True},
    ],
    ids=str,
)
def test_the_published_adapter_on_the_untouched_base_says_what_the_trained_model_says(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    training = trainable.training(tiny_base, tmp_path, learning_rate=1e-2, max_steps=2, **changes)
    initial = adapter.peft_tensors(training.model) if training.settings.init in adapter.TAKEN_FROM_BASE else None
    training.fit()
    tensors, config = adapter.published(training.model, initial, "tiny")
    folder = tmp_path / "adapter"
    checkpoints.write(folder, {"adapter_model.safetensors": tensors}, {"adapter_config.json": config})
    row = training.validation[0]
    before, trained = probe_logits(fresh(tiny_base), row, "cpu"), probe_logits(training.model, row, "cpu")
    loaded = probe_logits(load_adapter(fresh(tiny_base), folder), row, "cpu")
    assert (loaded - trained).abs().max() < 1e-4
    assert adapter.check_not_inert(tensors, before, loaded)["largest_logit_change"] > 1e-3


def test_the_configuration_names_the_base_and_no_path_and_sorts_its_names(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)
    _, config = adapter.published(training.model, None, "owner/name")
    assert config["base_model_name_or_path"] == "owner/name"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tiny_base) not in json.dumps(config)


def test_the_embedding_rows_of_new_tokens_are_trained_and_published_and_no_others(tiny_base: Path, tmp_path: Path) -> None:
    base = fresh(tiny_base)
    new = [base.config.vocab_size, base.config.vocab_size + 1]
    base.resize_token_embeddings(base.config.vocab_size + 2)
    other = fresh(tiny_base)
    other.resize_token_embeddings(other.config.vocab_size + 2)
    other.load_state_dict(base.state_dict())
    model = adapter.attach(base.requires_grad_(False), settings(rank=4), new, seed=1)
    embeddings = [parameter for name, parameter in adapter.trainable(model).items() if "lora_" not in name]
    assert [tuple(parameter.shape) for parameter in embeddings] == [(2, base.config.hidden_size)]
    embeddings[0].data.normal_()
    tensors, config = adapter.published(model, None, "tiny")
    checkpoints.write(tmp_path / "adapter", {"adapter_model.safetensors": tensors}, {"adapter_config.json": config})
    row = TokenRow("r", torch.tensor([5, new[0], 7, new[1]]).numpy(), torch.tensor([False, True, True, True]).numpy())
    assert (probe_logits(load_adapter(other, tmp_path / "adapter"), row, "cpu") - probe_logits(model, row, "cpu")).abs().max() < 1e-4


def test_an_unknown_target_module_is_named_with_the_nearest(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target_modules names q_prj, which is no linear layer of LlamaForCausalLM; the nearest is q_proj"):
        trainable.training(tiny_base, tmp_path, target_modules=["v_proj", "q_prj"])


def test_an_adapter_that_changes_nothing_is_not_published(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)
    tensors, _ = adapter.published(training.model, None, "tiny")
    row = training.validation[0]
    with pytest.raises(UserError, match=r"changes nothing.*learning_rate"):
        adapter.check_not_inert(tensors, probe_logits(fresh(tiny_base), row, "cpu"), probe_logits(training.model, row, "cpu"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_rows(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)
    next(iter(adapter.trainable(training.model).values())).data.fill_(math.nan)
    first = training.rows[training.plan[0].micro_batches[0][0]].id
    with pytest.raises(UserError, match=rf"step 1: the loss is nan on the rows .*{first}"):
        training.fit()
    assert training.state.step == 0


def test_early_stopping_ends_the_run_and_publishes_the_best_adapter(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, epochs=40, learning_rate=0.3, schedule="constant", eval_every=1, early_stop=3)
    assert training.fit() == "early_stop"
    best = training.state.best
    assert best is not None
    assert training.state.step == best["step"] + 3 < len(training.plan)
    assert training._validation_loss() == pytest.approx(best["loss"], rel=1e-6)


def test_an_interrupted_run_that_goes_on_has_the_state_of_one_that_was_not(tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"dropout": 0.2, "eval_every": 2, "early_stop": 50, "epochs": 3}
    straight = trainable.training(tiny_base, tmp_path / "straight", **changes)
    straight.fit()
    cut = trainable.training(tiny_base, tmp_path / "cut", **changes)
    for step in cut.plan[:5]:
        cut._evaluate_if_due()
        cut._train(step)
    cut.save()
    resumed = trainable.training(tiny_base, tmp_path / "cut", **changes)
    assert resumed.state.resumed_from == [5]
    resumed.fit()
    assert resumed.state.train == straight.state.train
    assert resumed.state.validation == straight.state.validation
    for name, parameter in adapter.trainable(straight.model).items():
        assert torch.equal(parameter, adapter.trainable(resumed.model)[name])


def test_a_row_longer_than_a_micro_batch_is_named(tiny_base: Path, tmp_path: Path) -> None:
    rows = trainable.training(tiny_base, tmp_path).rows
    longest = max(rows, key=lambda row: len(row.input_ids))
    with pytest.raises(UserError, match=rf"row {longest.id} has \d+ tokens, more than train.micro_batch_tokens \(16\)"):
        make_plan(rows, settings(), 16, "bucket", "cpu", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"dora": True, "init": "pissa"}, "take one of them"), ({"init": "orthogonal", "rank": 5}, "needs an even train.rank, not 5")],
)
def test_lora_variants_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**changes)


def test_optimisers_with_8_bit_state_are_refused_without_cuda() -> None:
    with pytest.raises(UserError, match=r"adamw_8bit needs CUDA, but the device is cpu; use adamw"):
        make_optimizer({"a": torch.nn.Parameter(torch.zeros(2))}, settings(optimizer="adamw_8bit"), "cpu")


def test_a_broken_logger_does_not_end_the_training(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = trainable.training(tiny_base, tmp_path, max_steps=1)
    (tmp_path / "file").write_text("no folder")
    training.tracker = Tracker(tmp_path / "file")
    assert training.fit() == "last_step"
    assert "the live log stopped" in capsys.readouterr().err


def test_a_replayed_step_is_logged_once(tmp_path: Path) -> None:
    for first in (1, 2):  # the second process goes on after step 1, though step 3 was logged
        tracker = Tracker(tmp_path / "live")
        for step in range(first, 5 if first == 2 else 4):
            tracker.log(step, {"loss": step / 10})
    logged = (tmp_path / "live/plots/metrics/loss.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[0]) for line in logged] == [1, 2, 3, 4]


def test_too_little_disk_is_told_in_numbers_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MiB free, but the checkpoints and the adapter need 953,674,316 MiB"):
        checkpoints.check_room(tmp_path, 10**15)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_no_half_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write(checkpoints.place(tmp_path, 2), {"a.safetensors": {"x": torch.ones(3)}}, {})

    def full(descriptor: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "_sync", full)
    with pytest.raises(OSError, match=r"No space left") as raised:
        checkpoints.write(checkpoints.place(tmp_path, 4), {"a.safetensors": {"x": torch.ones(3)}}, {})
    said = sentence(raised.value)
    assert said is not None
    assert f"{checkpoints.place(tmp_path, 4)} could not be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert checkpoints.newest(tmp_path) == checkpoints.place(tmp_path, 2)


@pytest.mark.parametrize("harm", ["truncated", "missing", "unmarked"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4):
        checkpoints.write(checkpoints.place(tmp_path, step), {"a.safetensors": {"x": torch.ones(3)}}, {"state.json": {"step": step}})
    last = checkpoints.place(tmp_path, 4)
    assert checkpoints.newest(tmp_path) == last
    if harm == "truncated":
        (last / "a.safetensors").write_bytes((last / "a.safetensors").read_bytes()[:-1])
    else:
        (last / ("a.safetensors" if harm == "missing" else "COMPLETE")).unlink()
    assert checkpoints.newest(tmp_path) == checkpoints.place(tmp_path, 2)
    assert "passed over" in capsys.readouterr().err


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoints.write(checkpoints.place(tmp_path, step), {}, {"state.json": {"step": step}})
        checkpoints.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_the_best_evaluation_is_the_lowest_after_a_step_and_the_earliest_of_equals() -> None:
    state = State(validation=[{"step": s, "loss": x} for s, x in ((0, 0.1), (2, 0.5), (4, 0.3), (6, 0.3), (8, 0.4))])
    assert state.best == {"step": 4, "loss": 0.3}
    assert state.stalled(2)
    assert not state.stalled(3)
    assert not state.stalled(None)


def test_no_column_of_a_batch_is_without_a_target(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path)
    batch = collate(training.rows[:3], "pack", 0)
    assert (batch.targets != IGNORED).any(0).all()
    assert training.plain.logits(batch).shape[:2] == batch.targets.shape
