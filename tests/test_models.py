"""The base is the one its manifest names, and every stage that loads it gets the same numbers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import fetch_model
from stages.core import models, paths
from stages.core.errors import UserError
from stages.core.params import Numerics, load_params
from tests.tiny import edit_params

PLAIN = Numerics(quantization="none", compute_dtype="float32")


@pytest.fixture
def manifest(place: Path, tiny_base: Path) -> dict[str, Any]:
    """The manifest of a copy of the tiny base, in a folder of its own with a cache of its own."""
    shutil.copytree(tiny_base, place / "base")
    edit_params(place, model__source="folder", model__folder__path="base")
    fetch_model.main(load_params())
    return models.read_manifest()


def test_a_base_that_changed_by_one_byte_is_refused(manifest: dict[str, Any]) -> None:
    assert models.base_folder(manifest) == Path("base")
    weights = Path("base/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"base/model.safetensors has sha256 \w{64}, but models/base.json names \w{64}"):
        models.base_folder(manifest)


def test_a_base_with_a_missing_file_is_refused(manifest: dict[str, Any]) -> None:
    Path("base/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"base/tokenizer.json of the base model is missing; fetch it again"):
        models.base_folder(manifest)


def test_a_digest_is_taken_once_and_again_when_the_file_is_written(manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Path] = []
    real = models.sha256_file
    monkeypatch.setattr(models, "sha256_file", lambda path: taken.append(path) or real(path))
    models.base_folder(manifest)
    assert taken == []
    os.utime("base/config.json", ns=(1, 1))
    models.base_folder(manifest)
    assert [path.name for path in taken] == ["config.json"]


def test_a_damaged_memory_of_digests_costs_time_only(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cache/verified.json").write_text("{")
    assert models.base_folder(manifest) == Path("base")
    assert json.loads((tmp_path / "cache/verified.json").read_text())


def test_a_relative_folder_is_found_from_a_queued_experiment(
    manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert models.base_folder(manifest) == tmp_path / "base"


def test_the_cache_places_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    assert models.located("package", "models/x") == tmp_path / "models/x"
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert models.located("hub", "models--a--b/snapshots/c") == tmp_path / "hf/hub/models--a--b/snapshots/c"


def test_automatic_numerics_are_float32_on_a_cpu_and_bfloat16_on_cuda() -> None:
    import torch

    automatic = Numerics(quantization="none", compute_dtype="auto")
    assert models.compute_dtype(automatic, "cpu") == torch.float32
    assert models.compute_dtype(automatic, "cuda") == torch.bfloat16


def test_cuda_that_is_not_there_is_told_in_a_sentence() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=r"runtime.device is cuda, but PyTorch sees no CUDA device"):
        models.device_of("cuda")
    assert models.device_of("auto") == "cpu"


def test_nf4_on_a_cpu_changes_the_weights_of_the_layers_a_little_and_the_embedding_not_at_all(manifest: dict[str, Any]) -> None:
    import torch

    plain = models.load_base(manifest, PLAIN, "cpu")
    nf4 = models.load_base(manifest, Numerics(quantization="nf4", compute_dtype="float32"), "cpu")
    assert torch.equal(plain.get_input_embeddings().weight, nf4.get_input_embeddings().weight)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        difference = (plain(ids).logits - nf4(ids).logits).abs().max().item()
    assert 0 < difference < 0.5
    assert not any(parameter.requires_grad for parameter in nf4.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old_ones_each_time(manifest: dict[str, Any], tied: bool) -> None:
    import torch

    if not tied:
        config = json.loads(Path("base/config.json").read_text())
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig(**{**config, "tie_word_embeddings": False})).save_pretrained("base")
        fetch_model.main(load_params())
        manifest = models.read_manifest()
    size = manifest["vocabulary"]
    first = models.load_base(manifest, PLAIN, "cpu", vocabulary=size + 3)
    second = models.load_base(manifest, PLAIN, "cpu", vocabulary=size + 3)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        rows = getattr(first, layer)().weight
        assert rows.shape[0] == size + 3
        assert torch.allclose(rows[size:], rows[:size].mean(0).expand(3, -1))
        assert torch.equal(rows, getattr(second, layer)().weight)
    assert (first.get_input_embeddings().weight.data_ptr() == first.get_output_embeddings().weight.data_ptr()) == tied
    assert first.config.vocab_size == size + 3


def test_a_vocabulary_that_fits_leaves_the_embedding_alone(manifest: dict[str, Any]) -> None:
    model = models.load_base(manifest, PLAIN, "cpu", vocabulary=manifest["vocabulary"] - 5)
    assert model.get_input_embeddings().weight.shape[0] == manifest["vocabulary"]


def test_an_adapter_is_loaded_onto_the_base_in_evaluation_mode(manifest: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    trained = get_peft_model(models.load_base(manifest, PLAIN, "cpu"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    trained.save_pretrained(tmp_path / "adapter")
    loaded = models.load_adapter(models.load_base(manifest, PLAIN, "cpu"), tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trained.eval()(ids).logits)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_manifest_of_the_workspace_is_the_one_that_is_read(manifest: dict[str, Any]) -> None:
    assert manifest == json.loads(paths.BASE.read_text())
