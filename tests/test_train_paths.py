"""The fused and the plain path compute the same, the gate finds where they do not, and NEFTune and LoRA+ work on both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.core.errors import UserError
from stages.core.params import Params, load_params
from stages.train import adapter
from stages.train.choice import Choice, choose, fused_model
from stages.train.gates import check_kernels, probes, settle_determinism
from stages.train.optimizer import optimizer_state
from stages.train.plain import PlainModel
from stages.train.ranks import Ranks
from stages.train.sft import Training
from tests import trainable
from tests.tiny import ROOT, edit_params


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A tiny model is slower on many threads."""
    torch.set_num_threads(1)


def course(training: Training) -> list[float]:
    """Trains to the end: loss and gradient norm of each step, then the validation losses."""
    training.fit()
    seen = [point[name] for point in training.state.train for name in ("loss", "grad_norm")]
    return seen + [point["loss"] for point in training.state.validation]


@pytest.mark.parametrize("init", ["default", "gaussian", "pissa", "olora", "orthogonal"])
@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_the_fused_path_trains_as_the_plain_one_whatever_the_initial_adapter(
    tiny_base: Path, tmp_path: Path, init: str, batching: str
) -> None:
    changes = {"init": init, "batching": batching, "learning_rate": 1e-2, "rslora": True, "lora_plus_ratio": 4.0}
    plain = trainable.training(tiny_base, tmp_path / "plain", kernels="plain", **changes)
    fused = trainable.training(tiny_base, tmp_path / "fused", kernels="fused", **changes)
    assert fused.fused is not None
    assert course(fused) == pytest.approx(course(plain), rel=1e-3)


def test_the_gate_measures_the_fused_path_against_the_plain_one_and_leaves_the_adapter_as_it_was(tiny_base: Path, tmp_path: Path) -> None:
    training = trainable.training(tiny_base, tmp_path, kernels="fused")
    before = adapter.copied(training.parameters)
    assert settle_determinism(training)
    found = check_kernels(training)
    torch.use_deterministic_algorithms(False)
    assert found["loss"] < 1e-5
    assert 0 < found["gradient"] < 1e-4
    assert all(torch.equal(before[name], parameter) for name, parameter in training.parameters.items())
    assert all(parameter.grad is None for parameter in training.parameters.values())


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_the_gate_stops_kernels_that_compute_something_else(tiny_base: Path, tmp_path: Path, fault: str) -> None:
    training = trainable.training(tiny_base, tmp_path, kernels="fused")
    assert training.fused is not None
    right = training.fused.summed_loss

    def wrong(rows: Any) -> torch.Tensor:
        loss = right(rows)
        if fault == "loss":
            return loss * 1.01
        matrix = next(parameter for name, parameter in training.parameters.items() if "layers.1.mlp.up_proj.lora_A" in name)
        return loss + (matrix - matrix.detach()).sum() * 3e-3  # one matrix of the adapter has a gradient that is not its own

    training.fused.summed_loss = wrong  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"fused kernels and the plain path differ on this base .* set train.kernels: plain"):
        check_kernels(training)


def test_probes_are_short_and_keep_a_target(tiny_base: Path, tmp_path: Path) -> None:
    rows = trainable.in_memory([("a", [3] * 900, [False] * 400 + [True] + [False] * 499), ("b", [4] * 300, [True] * 300)])
    assert [(row.id, len(row.input_ids)) for row in probes(rows)] == [("b", 256), ("a", 256)]
    assert all(row.targets for row in probes(rows))


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_neftune_disturbs_training_alone_and_equally_in_equal_steps(tiny_base: Path, tmp_path: Path, kernels: str) -> None:
    quiet, one, other = (
        course(trainable.training(tiny_base, tmp_path / name, kernels=kernels, eval_every=1, neftune_alpha=alpha))
        for name, alpha in (("quiet", None), ("one", 5.0), ("other", 5.0))
    )
    assert one == other
    steps = 2 * len(trainable.training(tiny_base, tmp_path / "count").plan)
    assert all(abs(a - b) > 1e-6 for a, b in zip(one[:steps], quiet[:steps], strict=True))
    assert one[steps] == quiet[steps]  # the validation before the first step


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_the_noise_of_neftune_is_uniform_up_to_alpha_over_the_root_of_the_rows_numbers(
    tiny_base: Path, tmp_path: Path, batching: str
) -> None:
    training = trainable.training(tiny_base, tmp_path, batching=batching)
    rows = sorted(training.rows, key=lambda row: -len(row.input_ids))[:3]
    embedding = training.model.get_base_model().get_input_embeddings()
    seen: list[torch.Tensor] = []
    embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    torch.manual_seed(3)
    training.plain.summed_loss(rows)
    training.plain.neftune = 5.0
    training.plain.summed_loss(rows)
    noise = seen[1] - seen[0]
    start = 0
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        own = noise[0, start : start + length] if batching == "pack" else noise[number, :length]
        start += length
        bound = 5.0 / (own.numel() ** 0.5)
        assert bound * 0.99 < own.abs().max() <= bound * 1.0001
        assert own.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert batching == "pack" or not noise[number, length:].any()
    torch.manual_seed(4)
    training.plain.summed_loss(rows)
    assert not torch.equal(seen[2], seen[1])


def test_neftune_reaches_the_embedding_rows_of_new_tokens_too(tiny_base: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).requires_grad_(False)
    settings = trainable.training(tiny_base, tmp_path / "other").settings
    model = adapter.attach(base, settings, [base.config.vocab_size - 1], seed=1)
    plain = PlainModel(model, "bucket", torch.float32, 2)
    rows = trainable.in_memory(trainable.token_rows(2, 380))
    quiet = plain.summed_loss(rows).item()
    plain.neftune = 50.0
    assert plain.summed_loss(rows).item() != quiet


def test_lora_plus_gives_b_its_own_rate_along_the_schedule_and_its_state_survives_a_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"lora_plus_ratio": 16.0, "epochs": 2, "weight_decay": 0.1, "warmup_share": 0.3}
    training = trainable.training(tiny_base, tmp_path / "one", **changes)
    for step in training.plan:
        training._train(step)
        a, b = training.optimizer.param_groups
        assert a["lr"] == training.state.train[-1]["learning_rate"]
        assert b["lr"] == 16 * a["lr"]
        if step.number == 2:
            training.save()
    names = {id(parameter): name for name, parameter in training.parameters.items()}
    assert all(".lora_A." in names[id(parameter)] for parameter in a["params"])
    assert all(".lora_B." in names[id(parameter)] for parameter in b["params"])
    assert len(a["params"]) + len(b["params"]) == len(names)
    resumed = trainable.training(tiny_base, tmp_path / "one", **changes)
    assert resumed.state.resumed_from == [2]
    for step in resumed.plan[2:]:
        resumed._train(step)
    assert resumed.state.train == training.state.train
    one, other = optimizer_state(training.optimizer)[0], optimizer_state(resumed.optimizer)[0]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_ratio_of_one_is_training_without_lora_plus(tiny_base: Path, tmp_path: Path) -> None:
    one = course(trainable.training(tiny_base, tmp_path / "one", lora_plus_ratio=1.0))
    assert one == pytest.approx(course(trainable.training(tiny_base, tmp_path / "none")), rel=1e-6)


def changed(tmp_path: Path, **changes: Any) -> Params:
    """The repository's params, changed."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    edit_params(tmp_path, **changes)
    return load_params(tmp_path / "params.yaml")


def test_on_a_processor_the_plain_path_is_chosen_and_kept_by_a_resumed_run(tiny_base: Path, tmp_path: Path) -> None:
    model = trainable.training(tiny_base, tmp_path / "run").model
    params = changed(tmp_path, train__micro_batch_tokens="auto")
    made = choose(params, model, 2, [30, 40], {}, tmp_path, Ranks(), "single")
    assert made == Choice("plain", None, 1024, 0, False, None, None)
    assert choose(params, model, 2, [30, 4000], {}, tmp_path, Ranks(), "single") == made  # as it was written
    (tmp_path / "choice.json").unlink()
    assert choose(params, model, 2, [30, 4000], {}, tmp_path, Ranks(), "single").micro_batch_tokens == 4000


def test_what_the_fused_path_cannot_train_is_refused_where_it_is_asked_for(tiny_base: Path, tmp_path: Path) -> None:
    model = trainable.training(tiny_base, tmp_path / "run").model
    with pytest.raises(UserError, match=r"train.kernels is fused, but the fused kernels have no dropout; set train.kernels: auto or plain"):
        choose(changed(tmp_path, train__kernels="fused", train__dropout=0.1), model, 2, [30], {}, tmp_path, Ranks(), "single")
    made = choose(changed(tmp_path, train__kernels="fused", train__recompute=1), model, 2, [30], {}, tmp_path, Ranks(), "single")
    assert (made.path, made.recomputed, made.mlp_tokens) == ("fused", 1, 1024)
    fused = fused_model(made, model)
    assert fused is not None
    assert fused.kept == 1


def test_more_recomputed_layers_than_there_are_are_told(tiny_base: Path, tmp_path: Path) -> None:
    model = trainable.training(tiny_base, tmp_path / "run").model
    with pytest.raises(UserError, match=r"train.recompute is 3, but the base has 2 layers; set train.recompute: all"):
        choose(changed(tmp_path, train__recompute=3), model, 2, [30], {}, tmp_path, Ranks(), "single")
    assert choose(changed(tmp_path, train__recompute="all"), model, 2, [30], {}, tmp_path, Ranks(), "single").recomputed == 2


def test_the_stage_on_the_fused_path_publishes_what_the_plain_one_does_and_reports_the_gate(tmp_path: Path, tiny_base: Path) -> None:
    losses = {}
    for kernels in ("plain", "fused"):
        root = trainable.prepare(tmp_path / kernels, tiny_base, train__kernels=kernels, train__recompute="all")
        status, said = trainable.run(root)
        assert status == 0, said
        machine = json.loads((root / "reports/train_machine.json").read_text())["details"][0]
        assert machine["plan"]["path"] == kernels
        assert (machine["kernels_differ_by"] is None) == (kernels == "plain")
        report = json.loads((root / "reports/train.json").read_text())
        losses[kernels] = [report["train_loss"], report["validation_loss"]]
        assert kernels == "plain" or report["details"][0]["padding_share"] == 0
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-3)
