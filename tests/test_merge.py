"""Merging: what the merged folder says is what the adapter says, whatever kind of LoRA it is, or a sentence tells why it cannot be."""

from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import UserError
from stages.core.files import sha256_file
from stages.core.models import load_tokenizer
from stages.core.params import Numerics
from stages.export.merge import load_merged, load_tuned, merge_into
from tests import families

NEW = 3  # tokens added to the tokenizer where a case asks for them
NONE = Numerics(quantization="none", compute_dtype="float32")


def adapter_of(folder: Path, tiny_base: Path, head: str, tied: bool, new: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes a random base and an adapter whose every trained tensor is random too; the base's manifest."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(tiny_base)
    rows = len(tokenizer)
    tokenizer.save_pretrained(folder / "base")
    shape = {"attention_bias": True} if "bias" in settings else {}
    families.base("llama", vocab_size=rows, tie_word_embeddings=tied, **shape).save_pretrained(folder / "base")
    model = getattr(transformers, head).from_pretrained(folder / "base")
    if new:
        tokenizer.add_tokens([f"<new{number}>" for number in range(NEW)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if "trainable_token_indices" in settings:
        settings = {"trainable_token_indices": {name: list(range(rows, rows + NEW)) for name in settings["trainable_token_indices"]}}
    chosen = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **chosen))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "lora" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    files = [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted((folder / "base").iterdir())
        if path.is_file()
    ]
    return {"source": "folder", "name": "tiny", "revision": "0", "location": str(folder / "base"), "vocabulary": rows, "files": files}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({"use_dora": True}, False),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, False),
        ({"bias": "all"}, False),
        ({"trainable_token_indices": ["embed_tokens", "lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ({"modules_to_save": ["lm_head"]}, False),
    ],
    ids=["dora", "patterns", "bias", "new tokens", "saved embeddings", "saved head"],
)
def test_every_kind_of_lora_says_the_same_merged(tmp_path: Path, tiny_base: Path, settings: dict[str, Any], new: bool, tied: bool) -> None:
    import torch

    if tied and "trainable_token_indices" in settings:
        settings = {"trainable_token_indices": ["embed_tokens"]}  # as train names them where they are one matrix
    manifest = adapter_of(tmp_path, tiny_base, "AutoModelForCausalLM", tied, new, settings)
    merge_into(tmp_path / "merged", manifest, "none", tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 30, *range(manifest["vocabulary"] - NEW, manifest["vocabulary"] + (NEW if new else 0))]])
    with torch.inference_mode():
        tuned = load_tuned(manifest, NONE, "cpu", tmp_path / "adapter")(ids).logits
        merged = load_merged(tmp_path / "merged", torch.float32, "cpu")(ids).logits
        bare = load_merged(tmp_path / "base", torch.float32, "cpu")(ids.clamp(max=manifest["vocabulary"] - 1)).logits
    assert merged.shape == tuned.shape
    # rounding to bfloat16 moves a logit by a few hundredths of what the adapter does
    assert (merged - tuned).abs().max() < 0.06 * (tuned[..., : bare.shape[-1]] - bare).abs().max()


def test_a_score_head_is_not_lost_without_a_word(tmp_path: Path, tiny_base: Path) -> None:
    manifest = adapter_of(tmp_path, tiny_base, "AutoModelForSequenceClassification", False, False, {"task_type": "SEQ_CLS"})
    with pytest.raises(
        UserError, match=r"adapter holds base_model\.model\.score\.weight, which .* task type is SEQ_CLS.* export\.forms: \[\]"
    ):
        merge_into(tmp_path / "merged", manifest, "none", tmp_path / "adapter")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_lora_on_one_of_two_tied_layers_is_refused(tmp_path: Path, tiny_base: Path, layer: str) -> None:
    manifest = adapter_of(tmp_path, tiny_base, "AutoModelForCausalLM", True, False, {"target_modules": [layer, "q_proj"]})
    with pytest.raises(UserError, match=r"LoRA on the embedding or the output layer, which are one matrix in this base"):
        merge_into(tmp_path / "merged", manifest, "none", tmp_path / "adapter")
