"""GGUF: what llama.cpp and transformers' reader say of a file is what transformers says of the folder it was made from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.core.llama_cpp import LlamaCpp
from stages.core.models import load_tokenizer
from stages.core.prompts import ask, render_prompt
from stages.export.gguf_file import write_gguf
from stages.export.quantize import quantized
from stages.export.serving import modelfile
from stages.export.shipped import tensor_error
from tests import families

MESSAGES = ask("permission granted\n\n free of charge 1234 zwölf Boxkämpfer 東京 🦊  \t x", "You sort.", "{text}?")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def make_folder(folder: Path, tokenizer: Path, family: str, **changes: Any) -> Path:
    """A random model of a family with the tiny base's tokenizer, in bfloat16, as export merges it."""
    import torch

    load_tokenizer(tokenizer).save_pretrained(folder)
    rows = len(load_tokenizer(tokenizer))
    model = families.base(family, vocab_size=rows + 3, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    return folder


def said_by_transformers(folder: Path, ids: list[int]) -> Any:
    """Log-probabilities of the token after ids, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3, "attention_bias": True}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    ],
)
def test_llama_cpp_says_what_transformers_says(tmp_path: Path, tiny_base: Path, family: str, changes: dict[str, Any]) -> None:
    folder, file = make_folder(tmp_path / "merged", tiny_base, family, **changes), tmp_path / "f16.gguf"
    write_gguf(folder, file, "f16", {"general.name": "tiny"})
    tokenizer = load_tokenizer(folder)
    with LlamaCpp(file, 256) as llama:
        assert llama.render(MESSAGES) == render_prompt(tokenizer, MESSAGES)
        ids = llama.encode(llama.render(MESSAGES))
        assert ids == tokenizer.encode(render_prompt(tokenizer, MESSAGES), add_special_tokens=False)
        found = llama.probabilities(ids, 1000)
    wanted = said_by_transformers(folder, ids)
    assert len(found) == len(wanted)  # the rows without a token too
    # llama.cpp keeps keys and values in float16
    assert max(abs(value - float(wanted[token])) for token, value in found) < 0.03
    name, error = tensor_error(file, folder)
    assert error < 1e-4, name


def with_bos(folder: Path, bos: str, template: str) -> None:
    """Lets a tokenizer put its beginning of sequence before every text, as Llama's and Mistral's do, and its template too."""
    parsed, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    number = next(token["id"] for token in parsed["added_tokens"] if token["content"] == bos)
    single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    parsed["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [*single, *single], "special_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": bos}))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template)


def make_sentencepiece(folder: Path) -> Path:
    """A tokenizer of Llama 2's kind: spaces are a sign of the text, and what has no token is written in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    signs = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = signs
    texts = ["permission is hereby granted free of charge to any person", "you sort the terms of a program version later"]
    trained.train_from_iterator(texts * 3, trainers.BpeTrainer(vocab_size=150, special_tokens=[], show_progress=False))
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted({sign for text in texts for sign in text.replace(" ", "▁")} | {"▁"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(one + other for one, other in merges)]
    made = Tokenizer(models.BPE({t: n for n, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = signs
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    with_bos(folder, "<s>", CHAT)
    return folder


CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}[assistant]"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_beginning_of_sequence_is_written_once(tmp_path: Path, tiny_base: Path, kind: str) -> None:
    tokenizer_folder = tmp_path / "tokenizer"
    if kind == "sentencepiece":
        make_sentencepiece(tokenizer_folder)
    else:
        load_tokenizer(tiny_base).save_pretrained(tokenizer_folder)
        with_bos(tokenizer_folder, "<|endoftext|>", CHAT)
    folder, file = make_folder(tmp_path / "merged", tokenizer_folder, "llama"), tmp_path / "f16.gguf"
    write_gguf(folder, file, "f16", {})
    tokenizer = load_tokenizer(folder)
    wanted = tokenizer.encode(render_prompt(tokenizer, MESSAGES), add_special_tokens=False)
    assert wanted.count(tokenizer.bos_token_id) == 1
    with LlamaCpp(file, 256) as llama:
        assert llama.encode(llama.render(MESSAGES)) == wanted
    assert tokenizer.bos_token not in modelfile(folder, "f16")


@pytest.mark.parametrize(("form", "least", "most"), [("q8_0", 1e-3, 0.01), ("q4_k_m", 0.02, 0.12)])
def test_a_quantised_file_is_as_far_from_the_weights_as_its_bits_say(
    tmp_path: Path, tiny_base: Path, form: str, least: float, most: float
) -> None:
    folder, file = make_folder(tmp_path / "merged", tiny_base, "llama", hidden_size=256, head_dim=64), tmp_path / "q.gguf"
    types = write_gguf(folder, file, form, {})
    assert least < tensor_error(file, folder)[1] < most
    assert set(types) == ({"F32", "Q8_0"} if form == "q8_0" else {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"})
    with LlamaCpp(file, 128) as llama:
        assert llama.probabilities([5, 6, 7], 1)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["Q8_0", "Q5_0", "Q4_K", "Q6_K"]), st.integers(0, 2**32 - 1))
def test_what_is_quantised_and_read_again_is_near(rows: int, blocks: int, kind: str, seed: int) -> None:
    from gguf import GGMLQuantizationType, dequantize

    weights = np.random.default_rng(seed).normal(size=(rows, 256 * blocks)).astype(np.float32)
    found = dequantize(quantized(weights, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    assert np.linalg.norm(found - weights) < {"Q8_0": 0.01, "Q6_K": 0.03, "Q5_0": 0.07, "Q4_K": 0.12}[kind] * np.linalg.norm(weights)


def test_equal_folders_give_equal_bytes(tmp_path: Path, tiny_base: Path) -> None:
    folder = make_folder(tmp_path / "merged", tiny_base, "llama")
    for name in ("one", "two"):
        write_gguf(folder, tmp_path / name, "q4_k_m", {"general.name": "tiny"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_tampered_tensor_is_found_and_named(tmp_path: Path, tiny_base: Path) -> None:
    from gguf import GGUFReader

    folder, file = make_folder(tmp_path / "merged", tiny_base, "qwen2"), tmp_path / "f16.gguf"
    write_gguf(folder, file, "f16", {})
    reader = GGUFReader(file, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    tensor.data[3] = -tensor.data[3]
    reader.data.flush()
    name, error = tensor_error(file, folder)
    assert name == "model.layers.1.mlp.up_proj.weight"
    assert error > 0.05


def test_queries_in_the_order_of_transformers_would_be_found(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.export import gguf_file

    folder, file = make_folder(tmp_path / "merged", tiny_base, "llama"), tmp_path / "f16.gguf"
    monkeypatch.setattr(gguf_file, "PERMUTED", set())
    write_gguf(folder, file, "f16", {})
    name, error = tensor_error(file, folder)
    assert "self_attn" in name
    assert error > 0.5


def test_a_model_that_gguf_is_not_written_of_is_told(tmp_path: Path, tiny_base: Path) -> None:
    folder = make_folder(tmp_path / "merged", tiny_base, "phi3")
    with pytest.raises(UserError, match=r"the base is a phi3, and GGUF is written of llama, mistral, qwen2, qwen3; .* export.forms"):
        write_gguf(folder, tmp_path / "f16.gguf", "f16", {})


def test_a_tokenizer_that_cuts_text_in_an_unknown_way_is_told(tmp_path: Path, tiny_base: Path) -> None:
    folder = make_folder(tmp_path / "merged", tiny_base, "llama")
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(UserError, match=r"pre_tokenizer \['Whitespace'\]"):
        write_gguf(folder, tmp_path / "f16.gguf", "f16", {})


def test_llama_cpp_stops_at_the_end_of_the_turn_and_not_before(tmp_path: Path, tiny_base: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, file = make_folder(tmp_path / "merged", tiny_base, "llama"), tmp_path / "f16.gguf"
    end = load_tokenizer(folder).eos_token_id
    weights = load_file(folder / "model.safetensors")
    ids = list(range(5, 12))
    for said, ended in ((end, True), (end + 5, False)):
        # the last hidden state is one number, and one row of the output matrix reads it: that token is certain, at one of two signs
        weights["model.norm.weight"] = torch.eye(1, weights["model.norm.weight"].numel()).bfloat16()[0]
        weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
        for sign in (50.0, -50.0):
            weights["lm_head.weight"][said, 0] = sign
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
            if int(said_by_transformers(folder, ids).argmax()) == said:
                break
        write_gguf(folder, file, "f16", {})
        with LlamaCpp(file, 64) as llama:
            answer = llama.answer(ids, 3)
        assert answer.ended is ended
        assert answer.ids[:1] == (() if ended else (said,))


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF\0\0\0\0")
    with pytest.raises(UserError, match=r"llama.cpp cannot load x.gguf"), LlamaCpp(tmp_path / "x.gguf", 64):
        pass


def test_the_modelfile_says_the_template_in_ollamas_words(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(tiny_base, folder)
    assert modelfile(folder, "q8_0").splitlines()[0] == "FROM ./model-q8_0.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in modelfile(folder, "q8_0")
    assert modelfile(folder, "q8_0").endswith("PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n")
    assert (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}'
        "<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"
        "<|im_start|>assistant\n"
    ) in modelfile(folder, "q8_0")


def test_a_template_that_is_more_than_its_turns_is_left_to_ollama(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(tiny_base, folder)
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages | length }} turns" + path.read_text())
    assert "TEMPLATE" not in modelfile(folder, "q8_0")
