"""What must not matter does not: the path, packing, accumulation, recomputation, offload, order; on tiny random models on a CPU."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from stages.core.models import load_adapter
from stages.train import adapter, checkpoints
from stages.train.batches import fill, plan
from stages.train.fused.model import FusedModel, why_not
from stages.train.gates import probe_logits
from stages.train.plain import PlainModel
from tests import families, references, trainable
from tests.families import FUSED, OTHERS, furthest, gradients, in_double, loss_alone, tuned

LENGTHS = (23, 9, 17, 31, 2, 12)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A tiny model is slower on many threads."""
    torch.set_num_threads(1)


def same(fused: FusedModel, model: Any, rows: Any) -> None:
    """Holds a fused model in float64 to transformers and PEFT, a row at a time."""
    loss, alone = fused.summed_loss(rows), loss_alone(model, rows)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-10)
    assert furthest(gradients(model, loss), gradients(model, alone)) < 1e-9


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
def test_the_fused_path_is_transformers_and_peft_in_double_precision(family: str, heads: tuple[int, int]) -> None:
    base = families.base(family, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    train = families.settings()
    model = in_double(tuned(base, train))
    assert why_not(model, train, max(LENGTHS)) is None
    same(FusedModel(model, None, False, 4096), model, families.rows(LENGTHS))


@given(
    family=st.sampled_from(FUSED),
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    kept=st.integers(0, 3),
    offload=st.booleans(),
    mlp_tokens=st.integers(1, 70),
    targets=st.sets(st.sampled_from(PROJECTIONS), min_size=1).map(sorted),
    rslora=st.booleans(),
    tied=st.booleans(),
    head_dim=st.sampled_from([8, 16, 24]),
)
@given_settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
def test_the_fused_path_is_transformers_and_peft_whatever_is_kept_targeted_or_tied(
    family: str, lengths: list[int], kept: int, offload: bool, mlp_tokens: int, targets: list[str], rslora: bool, tied: bool, head_dim: int
) -> None:
    wide = {"head_dim": head_dim} if family in ("mistral", "qwen3") else {}  # heads whose columns are not those of the hidden state
    base = families.base(family, tie_word_embeddings=tied, **wide)
    train = families.settings(target_modules=targets, rslora=rslora)
    model = in_double(tuned(base, train))
    assert why_not(model, train, max(lengths)) is None
    same(FusedModel(model, kept, offload, mlp_tokens), model, families.rows(lengths, seed=kept))


@pytest.mark.parametrize("family", FUSED)
def test_recomputation_offload_and_pieces_of_the_mlp_change_no_bit_or_only_the_last(family: str) -> None:
    model = tuned(families.base(family), families.settings())
    rows = families.rows(LENGTHS)
    fused = FusedModel(model, None, False, 4096)
    kept = gradients(model, fused.summed_loss(rows))
    for changes in ({"kept": 0}, {"kept": 1}, {"kept": 0, "offload": True}):
        for name, value in changes.items():
            setattr(fused, name, value)
        again = gradients(model, fused.summed_loss(rows))
        assert furthest(again, kept) < 1e-6, changes
    fused.mlp_tokens = 5
    assert furthest(gradients(model, fused.summed_loss(rows)), kept) < 1e-5


@pytest.mark.parametrize("family", [*FUSED, *OTHERS])
@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_rows_padded_or_packed_have_the_loss_and_the_gradients_of_each_alone(family: str, batching: str) -> None:
    model = tuned(families.base(family), families.settings())
    rows = families.rows(LENGTHS)
    plain = PlainModel(model, batching, torch.float32, 0)
    alone = loss_alone(model, rows)
    together = plain.summed_loss(rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    assert furthest(gradients(model, together), gradients(model, alone)) < 1e-3
    plain.kept = 1
    assert furthest(gradients(model, plain.summed_loss(rows)), gradients(model, loss_alone(model, rows))) < 1e-3


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_a_step_is_the_mean_over_its_trained_tokens_however_it_is_cut(kernels: str, batching: str, tmp_path: Path) -> None:
    train = families.settings(kernels=kernels, batching=batching, effective_batch=4, micro_batch_tokens=4096, epochs=1.0)
    model = tuned(families.base("llama"), train)
    rows = families.rows([*LENGTHS, 14, 5, 26, 11])
    one = families.training(model, train, tmp_path, rows)
    assert [len(step.rows) for step in one.plan] == [4, 4, 2]  # the last one is not full
    for step in one.plan:
        chosen = [rows[row] for row in step.rows]
        targets = sum(row.targets for row in chosen)
        expected = gradients(model, loss_alone(model, chosen) / targets)
        for limit in (4096, 40, 32):
            cut = fill(step.rows, one.lengths, limit, one.batching, "cpu")
            for micro_batch in cut:
                (one.engine.summed_loss([rows[row] for row in micro_batch]) / targets).backward()
            found = gradients(model, torch.zeros((), requires_grad=True))
            assert furthest(found, expected) < 1e-3, (step.number, limit)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_rows_of_like_length_together_leave_every_step_a_fair_draw(batching: str) -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 64).tolist()
    first = [plan(lengths, 1.0, None, 8, 512, batching, "cpu", seed)[0] for seed in range(400)]
    means = [np.mean([lengths[row] for row in step.rows]) for step in first]
    deviation = np.std(lengths) / np.sqrt(8 * len(first))
    assert abs(np.mean(means) - np.mean(lengths)) < 4 * deviation
    seen = np.bincount([row for step in first for row in step.rows], minlength=64)
    assert abs(seen - 50).max() < 6 * np.sqrt(50)  # 400 draws of 8 of 64


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_told_why_they_train_on_the_plain_path_and_do(family: str, tmp_path: Path) -> None:
    train = families.settings(learning_rate=3e-2, epochs=12.0, effective_batch=4, micro_batch_tokens=128, warmup_share=0.0)
    model = adapter.attach(families.base(family), train, [], seed=1)
    assert why_not(model, train, 31) == f"the fused kernels know llama, mistral, qwen2, qwen3, not {family}"
    training = families.training(model, train, tmp_path, families.rows(LENGTHS))
    training.fit()
    assert training.state.train[-1]["loss"] < training.state.train[0]["loss"] - 0.5


@pytest.mark.parametrize(
    ("family", "config", "train", "longest", "said"),
    [
        ("llama", {}, {"dora": True}, 31, "no DoRA"),
        ("llama", {}, {"dropout": 0.1}, 31, "no dropout"),
        ("llama", {}, {"target_modules": ["q_proj", "lm_head"]}, 31, "train LoRA inside the decoder layers only, not .*lm_head"),
        ("llama", {"hidden_act": "gelu"}, {}, 31, "silu without attention dropout, not gelu"),
        ("llama", {"attention_dropout": 0.1}, {}, 31, "silu without attention dropout"),
        ("llama", {"attention_bias": True}, {}, 31, "biases of queries, keys and values only"),
        ("llama", {"mlp_bias": True}, {}, 31, "biases of queries, keys and values only"),
        ("mistral", {"sliding_window": 16}, {}, 31, "only to 16, fewer than the longest row's 31"),
        ("mistral", {"sliding_window": 31}, {}, 31, None),
        ("qwen3", {"head_dim": 12}, {}, 31, "heads of up to 256 columns in steps of 8, not 12"),
    ],
    ids=str,
)
def test_what_the_fused_kernels_do_not_know_is_told(
    family: str, config: dict[str, Any], train: dict[str, Any], longest: int, said: str | None
) -> None:
    chosen = families.settings(**train)
    found = why_not(adapter.attach(families.base(family, **config), chosen, [], seed=1), chosen, longest)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found), found


def test_new_tokens_train_on_the_plain_path() -> None:
    train = families.settings()
    found = why_not(adapter.attach(families.base("llama"), train, [5, 6], seed=1), train, 31)
    assert found is not None
    assert re.search(r"LoRA inside the decoder layers only, not .*token_adapter", found), found


@pytest.mark.parametrize("family", FUSED)
def test_an_adapter_trained_on_the_fused_path_says_the_same_when_it_is_read_back(family: str, tmp_path: Path) -> None:
    train = families.settings(kernels="fused", learning_rate=1e-2, effective_batch=3, micro_batch_tokens=64, rslora=True)
    model = adapter.attach(families.base(family), train, [], seed=1)
    rows = families.rows(LENGTHS)
    training = families.training(model, train, tmp_path / "run", rows)
    assert training.fused is not None
    training.fit()
    tensors, config = adapter.published(model, None, "tiny")
    checkpoints.write(tmp_path / "adapter", {"adapter_model.safetensors": tensors}, {"adapter_config.json": config})
    trained = probe_logits(model, rows[0], "cpu")
    assert (probe_logits(load_adapter(families.base(family), tmp_path / "adapter"), rows[0], "cpu") - trained).abs().max() < 1e-4
    assert (probe_logits(families.base(family), rows[0], "cpu") - trained).abs().max() > 1e-2


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_a_training_is_the_one_that_was_written_down(kernels: str, tiny_base: Path, tmp_path: Path) -> None:
    written = references.read("course")
    found = references.course(tiny_base, tmp_path, kernels)
    for name, values in written["values"].items():
        assert found[name] == pytest.approx(values, rel=2e-3), f"{name} is not as under {written['versions']}; see tests/references"


def test_a_hundred_steps_are_those_of_transformers_peft_and_trl(tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"learning_rate": 5e-3, "max_steps": 100, "epochs": 40.0, "weight_decay": 0.01, "max_grad_norm": 0.5}
    ours = {}
    for kernels in ("plain", "fused"):
        training = trainable.training(tiny_base, tmp_path / kernels, kernels=kernels, **changes)
        initial = adapter.peft_tensors(training.model)
        training.fit()
        ours[kernels] = [point["loss"] for point in training.state.train]
    theirs, validation = references.by_trl(tiny_base, tmp_path / "trl", training, initial)
    assert len(theirs) == 100
    assert theirs[-1] < theirs[0] - 0.05
    for kernels, losses in ours.items():
        assert losses == pytest.approx(theirs, abs=1e-4), kernels
    assert training.state.validation[-1]["loss"] == pytest.approx(validation, abs=1e-4)
