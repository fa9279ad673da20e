"""Training on a CUDA device: NF4 in bfloat16, the optimisers that need one, resume, memory and energy. `make test-gpu` runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.models import digests, load_base
from stages.core.params import Numerics, Train, load_params
from stages.train import adapter, machine
from stages.train.choice import choose
from stages.train.dry_run import rehearse
from stages.train.gates import check_packing, settle_determinism
from stages.train.ranks import Ranks
from stages.train.sft import Training
from tests import trainable
from tests.tiny import ROOT

pytestmark = pytest.mark.gpu

PLAIN = {"rank": 4, "alpha": 8, "effective_batch": 4, "micro_batch_tokens": 128, "eval_every": 4, "epochs": 4.0, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stage sets before it trains."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def manifest_of(base: Path) -> dict[str, Any]:
    """What fetch_model would write of a base in a folder."""
    files = sorted(path for path in base.iterdir() if path.is_file())
    return {
        "source": "folder",
        "location": str(base),
        "files": [{"path": p.name, "sha256": d} for p, d in zip(files, digests(files), strict=True)],
        "vocabulary": json.loads((base / "config.json").read_text())["vocab_size"],
    }


def training(base: Path, root: Path, quantization: str = "nf4", **changes: Any) -> Training:
    """A training of the tiny base on the GPU, before its first step."""
    manifest = manifest_of(base)
    settings = Train.model_validate({**load_params(ROOT / "params.yaml").train.model_dump(), **PLAIN, **changes})
    model = load_base(manifest, Numerics(quantization=quantization, compute_dtype="auto"), "cuda", manifest["vocabulary"] + 2)
    new = [manifest["vocabulary"], manifest["vocabulary"] + 1]
    rows = trainable.in_memory(trainable.token_rows(16, manifest["vocabulary"] + 2))
    root.mkdir(parents=True, exist_ok=True)
    made = trainable.around(adapter.attach(model, settings, new, seed=1), settings, root, rows, rows[:4])
    assert settle_determinism(made) == (made.fused is not None or made.settings.batching == "bucket")
    return made


def course(trained: Training) -> list[float]:
    """Trains to the end: the loss of each step."""
    trained.fit()
    return [point["loss"] for point in trained.state.train]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_loss_falls_and_packed_rows_are_kept_apart_in_bfloat16(tiny_base: Path, tmp_path: Path, quantization: str) -> None:
    import torch

    bucketed = training(tiny_base, tmp_path / "bucket", quantization, batching="bucket")
    packed = training(tiny_base, tmp_path / "pack", quantization, batching="pack")
    assert bucketed.plain.dtype is torch.bfloat16
    check_packing(packed)
    seen, other = course(bucketed), course(packed)
    assert seen[-1] < seen[0] - 0.2
    assert other == pytest.approx(seen, abs=0.1)


def test_activation_checkpointing_leaves_the_course_and_takes_less_memory(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    found: dict[Any, Any] = {}
    for recompute in ("none", 1, "all"):
        one = training(tiny_base, tmp_path / str(recompute), recompute=recompute, micro_batch_tokens=4096, effective_batch=16)
        torch.cuda.reset_peak_memory_stats()
        found[recompute] = (course(one), torch.cuda.max_memory_allocated())
    assert found["all"][0] == pytest.approx(found["none"][0], abs=0.05)
    # of the two layers, one is whole while it is computed again, so that the second saves next to nothing
    assert max(found["all"][1], found[1][1]) < found["none"][1]


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_a_run_that_goes_on_from_a_checkpoint_after_a_dry_run_ends_in_the_same_bits(
    tiny_base: Path, tmp_path: Path, optimizer: str, kernels: str
) -> None:
    import torch

    # rank 64: bitsandbytes keeps 8-bit state for tensors of 4,096 numbers and more only
    changes: dict[str, Any] = {"optimizer": optimizer, "rank": 64, "lora_plus_ratio": 4.0, "kernels": kernels}
    changes |= {"dropout": 0.1} if kernels == "plain" else {"neftune_alpha": 5.0}
    straight = training(tiny_base, tmp_path / "straight", **changes)
    straight.fit()
    cut = training(tiny_base, tmp_path / "cut", **changes)
    for step in cut.plan[:6]:
        cut._evaluate_if_due()
        cut._train(step)
    cut.save()
    resumed = training(tiny_base, tmp_path / "cut", **changes)
    rehearse(resumed)
    assert resumed.state.resumed_from == [6]
    resumed.fit()
    assert [point["loss"] for point in resumed.state.train] == [point["loss"] for point in straight.state.train]
    for name, parameter in adapter.trainable(straight.model).items():
        assert torch.equal(parameter, adapter.trainable(resumed.model)[name]), name


def test_memory_is_metered_and_energy_is_or_says_why_not(tiny_base: Path, tmp_path: Path) -> None:
    trained = training(tiny_base, tmp_path)
    trained.fit()
    assert trained.state.peak_gpu_bytes
    assert machine.gpu_name("cuda")
    if trained.state.joules is None:
        assert "NVML" in (trained.state.why_no_joules or "")
    else:
        assert trained.state.joules >= 0


def test_a_base_that_the_planner_does_not_know_is_trained_with_the_least_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        vocab_size=100,
        max_position_embeddings=64,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    manifest = manifest_of(tmp_path / "base")
    params = load_params(ROOT / "params.yaml")
    train = params.train.model_copy(update={"recompute": "auto", "micro_batch_tokens": "auto", "target_modules": ["q_proj", "v_proj"]})
    base = load_base(manifest, Numerics(quantization="none", compute_dtype="auto"), "cuda", 100)
    model = adapter.attach(base, train, [], seed=1)
    made = choose(params.model_copy(update={"train": train}), model, 2, [30, 40, 20], manifest, tmp_path, Ranks(), "single")
    assert (made.path, made.micro_batch_tokens, made.recomputed, made.predicted) == ("plain", 40, 2, None)
    assert "config.json of opt has no intermediate_size" in capsys.readouterr().err
