"""Memory of a real card: a cap that is lowered in the run, the dry run's peak, and the choice that fits. `make test-gpu` runs it."""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core.models import load_base
from stages.core.params import Numerics, Train, load_params
from stages.train import adapter
from stages.train.choice import choose
from stages.train.dry_run import rehearse
from stages.train.gates import check_kernels, settle_determinism
from stages.train.ranks import Ranks
from stages.train.sft import Training
from tests import trainable
from tests.tiny import ROOT, edit_params

pytestmark = pytest.mark.gpu

ROWS, TOKENS = 16, 2048


@pytest.fixture(autouse=True)
def whole_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the stage sets before it trains, and the card's memory without a cap before and after."""
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gc.collect()
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose activations of a few rows are hundreds of MiB, beside weights of 100 MiB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 400}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def training(base: Path, root: Path, kernels: str, quantization: str = "nf4", **changes: Any) -> Training:
    """A training of the wide base, of 16 rows of 100 to 2,048 tokens, all of a step in one forward pass."""
    from stages.core.models import digests

    files = sorted(path for path in base.iterdir() if path.is_file())
    listed = [{"path": p.name, "sha256": d} for p, d in zip(files, digests(files), strict=True)]
    manifest = {"source": "folder", "location": str(base), "files": listed, "vocabulary": 400}
    plain = {"rank": 8, "effective_batch": 8, "micro_batch_tokens": 8 * TOKENS, "eval_every": 2, "epochs": 2.0, "kernels": kernels}
    settings = Train.model_validate({**load_params(ROOT / "params.yaml").train.model_dump(), **plain, **changes})
    model = load_base(manifest, Numerics(quantization=quantization, compute_dtype="auto"), "cuda")
    rows = [
        (f"row{n}", [3 + (n * 7 + place) % 390 for place in range(length)], [place > 20 for place in range(length)])
        for n, length in enumerate(range(TOKENS, 100, -(TOKENS - 100) // (ROWS - 1)))
    ]
    made = trainable.around(
        adapter.attach(model, settings, [], seed=1), settings, root, trainable.in_memory(rows), trainable.in_memory(rows[:4])
    )
    settle_determinism(made)
    return made


def cap_at(bytes_more: int) -> None:
    """Leaves this process so much more memory than it holds now."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + bytes_more) / total)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_memory_that_is_taken_away_in_the_run_leaves_its_course(
    wide_base: Path, tmp_path: Path, kernels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    whole = training(wide_base, tmp_path / "whole", kernels)
    for step in whole.plan:
        whole._train(step)
    tight = training(wide_base, tmp_path / "tight", kernels)
    torch.cuda.reset_peak_memory_stats()
    tight._train(tight.plan[0])
    needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    cap_at(needed // 3)
    for step in tight.plan[1:]:
        tight._train(step)
    assert tight.state.shrunk[0]["step"] == 2
    assert "the memory ran out in step 2" in capsys.readouterr().err
    losses, others = ([point["loss"] for point in one.state.train] for one in (whole, tight))
    assert others == pytest.approx(losses, abs=0.02)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_the_peak_of_the_dry_run_is_that_of_the_run(wide_base: Path, tmp_path: Path, kernels: str) -> None:
    one = training(wide_base, tmp_path, kernels)
    rehearse(one)
    one.fit()
    assert one.state.dry_run_peak_bytes is not None
    assert one.state.peak_gpu_bytes is not None
    assert one.state.peak_gpu_bytes <= 1.03 * one.state.dry_run_peak_bytes
    assert one.state.peak_gpu_bytes >= 0.8 * one.state.dry_run_peak_bytes


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_fused_kernels_pass_their_gate_in_bfloat16(wide_base: Path, tmp_path: Path, quantization: str) -> None:
    found = check_kernels(training(wide_base, tmp_path, "fused", quantization))
    sys.stderr.write(f"{quantization}: {found}\n")
    assert found["loss"] < 2e-2


def test_what_is_left_to_the_planner_is_chosen_within_the_cap_and_kept(wide_base: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    edit_params(tmp_path, train__micro_batch_tokens="auto", train__recompute="auto", runtime__gpu_memory_gib=4.0)
    params = load_params(tmp_path / "params.yaml")
    one = training(wide_base, tmp_path / "run", "plain")
    files = [{"path": "config.json", "sha256": digest_of(wide_base / "config.json")}]
    manifest = {"source": "folder", "location": str(wide_base), "files": files}
    made = choose(params, one.model, one.plain.layers, one.lengths, manifest, tmp_path, Ranks(), "single")
    assert made.path == "fused"
    assert made.predicted is not None
    assert made.predicted["peak_bytes"] <= 4 * 2**30
    assert made.micro_batch_tokens >= max(one.lengths)
    assert choose(params, one.model, one.plain.layers, one.lengths, {}, tmp_path, Ranks(), "single") == made
    assert json.loads((tmp_path / "choice.json").read_text())["recomputed"] == made.recomputed


def digest_of(path: Path) -> str:
    """A file's sha256."""
    from stages.core.files import sha256_file

    return sha256_file(path)
