"""The three loads of export: the adapter over the base at the run's numerics, the merge onto a base's values, the merged folder.

In: models/adapter and the base it names. Out: a folder that plain transformers loads.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from stages.core.errors import UserError
from stages.core.models import load_adapter, load_base, load_tokenizer
from stages.core.params import Numerics

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_tuned(manifest: dict[str, Any], numerics: Numerics, device: str, adapter: Path) -> "torch.nn.Module":
    """The tuned model as it was trained and is evaluated: the adapter over the base at the run's numerics."""
    return load_adapter(load_base(manifest, numerics, device, len(load_tokenizer(adapter))), adapter)


def merge_into(folder: Path, manifest: dict[str, Any], quantization: Literal["nf4", "none"], adapter: Path) -> None:
    """Writes the merged model, bfloat16 safetensors with configuration and tokenizer; equal adapters give equal bytes.

    PEFT adds the float32 product of the low-rank factors to the bfloat16 weight, so the sum is rounded once
    (docs/decisions/merge-onto-what-was-trained.md).

    Args:
        folder: where to write; made here.
        manifest: of the base.
        quantization: nf4 adds it to the values that the base's 16 levels stand for, none to the weights as fetched.
        adapter: the adapter's folder, tokenizer included.
    """
    tokenizer = load_tokenizer(adapter)
    # load_base unpacks NF4 on a CPU
    base = load_base(manifest, Numerics(quantization=quantization, compute_dtype="bfloat16"), "cpu", len(tokenizer))
    tuned = load_adapter(base, adapter)
    check_mergeable(tuned, adapter)
    tuned.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_mergeable(tuned: "PeftModel", adapter: Path) -> None:
    """Stops where merging would lose a part of the adapter, which PEFT does without a word, or change what it did not train.

    Args:
        tuned: the adapter over its base.
        adapter: its folder.

    Raises:
        UserError: names the part and why.
    """
    from safetensors import safe_open

    config, base = tuned.peft_config["default"], cast(Any, tuned.get_base_model())
    parts = {name for name, _ in base.named_children()}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        left = [key for key in file.keys() if key.removeprefix("base_model.model.").split(".")[0] not in parts]  # noqa: SIM118
    remedy = "set export.forms: [] to ship the adapter alone"
    if left:
        raise UserError(
            f"{adapter} holds {min(left)}, which a causal language model has no place for (the adapter's task type is {config.task_type}), "
            f"and merged or as GGUF it would be lost; {remedy}"
        )
    shared = [base.get_input_embeddings(), base.get_output_embeddings()]
    if base.config.tie_word_embeddings and any(hasattr(layer, "lora_A") for layer in shared):
        raise UserError(
            f"{adapter} has LoRA on the embedding or the output layer, which are one matrix in this base: merged, both would change where "
            f"one was trained; take it out of train.target_modules, or {remedy}"
        )


def load_merged(folder: Path, dtype: "torch.dtype", device: str) -> "PreTrainedModel":
    """The merged folder as a user loads it: plain transformers, no PEFT, no quantisation."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device}, local_files_only=True).eval()
