"""The base comes from a wheel or a folder into one manifest, the same bytes each time; what is no base is told in a sentence."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from stages import fetch_model
from stages.core import models, paths
from stages.core.errors import UserError
from stages.core.params import load_params
from tests.tiny import edit_params

CARD = "---\nlicense: mit\n---\nA tiny model.\n"


@pytest.fixture
def base(place: Path, tiny_base: Path) -> Path:
    """A copy of the tiny base in the folder `base`, which params.yaml names."""
    shutil.copytree(tiny_base, place / "base")
    edit_params(place, model__source="folder", model__folder__path="base")
    return place / "base"


def test_the_manifest_of_a_folder_tells_what_the_base_is(base: Path) -> None:
    (base / "README.md").write_text(CARD)
    (base / "pytorch_model.bin").write_bytes(b"never read")
    fetch_model.main(load_params())
    manifest = models.read_manifest()
    config = json.loads((base / "config.json").read_text())
    assert (manifest["source"], manifest["name"], manifest["location"]) == ("folder", "base", "base")
    assert (manifest["license"], manifest["architecture"], manifest["vocabulary"]) == ("mit", "LlamaForCausalLM", config["vocab_size"])
    model = models.load_base(manifest, load_params().numerics.model_copy(update={"quantization": "none"}), "cpu")
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    names = [file["path"] for file in manifest["files"]]
    assert names == sorted(names)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(names)
    assert not {"README.md", "pytorch_model.bin"} & set(names)
    assert manifest["revision"].startswith("sha256:")


def test_the_manifest_has_the_same_bytes_each_time_and_other_bytes_for_other_weights(base: Path) -> None:
    fetch_model.main(load_params())
    first = paths.BASE.read_bytes()
    fetch_model.main(load_params())
    assert paths.BASE.read_bytes() == first
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    fetch_model.main(load_params())
    assert paths.BASE.read_bytes() != first


def spoil_config(base: Path, **changes: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_base_in_shards_is_counted_whole(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    fetch_model.main(load_params())
    whole = models.read_manifest()
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="60KB")
    shutil.copy(next(base.glob("model-*.safetensors")), base / "model.stray.safetensors")
    fetch_model.main(load_params())
    manifest = models.read_manifest()
    assert manifest["parameters"] == whole["parameters"]
    assert sum(file["path"].endswith(".safetensors") for file in manifest["files"]) > 1
    assert "model.stray.safetensors" not in {file["path"] for file in manifest["files"]}
    min(base.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the \d+ weight files that model.safetensors.index.json names, the first model-00001"):
        fetch_model.main(load_params())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda base: shutil.rmtree(base), "model.folder.path base is not a folder"),
        (lambda base: (base / "config.json").unlink(), "has no config.json"),
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda base: (base / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), r"only as pickles \(pytorch_model.bin\)"),
        (lambda base: os.truncate(base / "model.safetensors", 5000), r"cut short or damaged \(5000 bytes of the \d+"),
        (lambda base: os.truncate(base / "model.safetensors", 100), r"cut short or damaged \(100 bytes"),
        (lambda base: spoil_config(base, model_type="no-such-model"), "config.json cannot be used.*no-such-model"),
        (lambda base: spoil_config(base, model_type="vit"), "of type vit, which is no causal language model"),
        (lambda base: spoil_config(base, quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised already \(gptq\)"),
        (lambda base: spoil_config(base, vocab_size=9999), "vocab_size 9999, but no weight has that many rows"),
        (lambda base: (base / "config.json").write_text("{"), "config.json cannot be used"),
    ],
)
def test_a_folder_that_is_no_base_is_told_in_a_sentence_and_nothing_is_written(spoil: Any, sentence: str, base: Path) -> None:
    spoil(base)
    with pytest.raises(UserError, match=sentence):
        fetch_model.main(load_params())
    assert not paths.BASE.exists()


def test_a_full_disk_is_foreseen_with_both_numbers(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"converting x needs [\d,]+ MB in .*, and [\d,]+ MB are free"):
        fetch_model._need_room(tmp_path, free * 2, "converting x")


def write_gguf(path: Path, base: Path) -> None:
    """The tiny base as llama.cpp's converter writes a Llama: F32, query and key rows in ggml's order."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text())
    state = json.loads((base / "tokenizer.json").read_text())
    vocabulary = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {token["content"] for token in state["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template((base / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in sorted(load_file(base / "model.safetensors").items()):
        for part, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
            if part in name:
                shape = (heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
                tensor = np.ascontiguousarray(tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(place: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny base as GGUF in a folder that pip takes for its index; params.yaml names it."""
    index = place / "index"
    index.mkdir()
    write_gguf(place / "tiny.gguf", tiny_base)
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(place / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    named = {"name": "tiny-model", "version": "1.0", "sha256": sha256, "file": "tiny_model/tiny.gguf"}
    edit_params(place, model__package={**named, "license": "mit", "upstream": "someone/tiny"})
    return wheel


def test_a_packaged_model_is_converted_once_to_the_same_weights_and_tokenizer(package: Path, place: Path, tiny_base: Path) -> None:
    import torch
    from safetensors.torch import load_file

    fetch_model.main(load_params())
    first = paths.BASE.read_bytes()
    manifest = models.read_manifest()
    assert (manifest["name"], manifest["revision"], manifest["license"]) == ("someone/tiny", "tiny-model==1.0", "mit")
    assert str(place) not in first.decode()
    folder = models.base_folder(manifest)
    made, original = load_file(folder / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert made.keys() == original.keys()
    assert all(torch.equal(made[name], original[name].to(torch.bfloat16)) for name in made)
    tokenizer, before = models.load_tokenizer(folder), models.load_tokenizer(tiny_base)
    text = "<|im_start|>user\npermission granted, café <|im_end|>"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == before(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.chat_template == before.chat_template
    package.unlink()  # neither index nor wheel is needed again
    shutil.rmtree(place / "cache/packages")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    fetch_model.main(load_params())
    assert paths.BASE.read_bytes() == first
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_damaged_conversion_is_made_again(package: Path) -> None:
    fetch_model.main(load_params())
    first = paths.BASE.read_bytes()
    folder = models.base_folder(models.read_manifest())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").unlink()
    fetch_model.main(load_params())
    assert paths.BASE.read_bytes() == first
    assert models.base_folder(models.read_manifest()) == folder


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("tiny_model/other.gguf", r"holds no tiny_model/other.gguf; its .gguf files: tiny_model/tiny.gguf"),
        ("tiny_model/model.onnx", r"expected a .gguf file of the wheel"),
    ],
)
def test_a_wrong_file_name_is_told_with_those_that_are_there(file: str, sentence: str, package: Path, place: Path) -> None:
    params = load_params()
    edit_params(place, model__package={**params.model.package.model_dump(), "file": file})
    with pytest.raises(UserError, match=sentence):
        fetch_model.main(load_params())
    assert not list((place / "cache/models").glob("*.part")) if (place / "cache/models").exists() else True


def test_a_broken_gguf_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(UserError, match=r"x.gguf cannot be read as a causal language model"):
        fetch_model.convert(tmp_path / "x.gguf", tmp_path / "out")
