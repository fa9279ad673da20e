"""The base read a matrix at a time, each quantised before the next is read. In: the manifest. Out: the model, layer by layer.

What is given on may be kept in part only, so that no process ever holds the whole model, in bfloat16 or in NF4 (stages/train/shards.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.models import base_folder, compute_dtype, silence, widened

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stages.core.params import Numerics

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def stream_base(
    manifest: dict[str, Any],
    numerics: "Numerics",
    device: str,
    vocabulary: int | None,
    take: "Callable[[int, torch.nn.Module], None]",
    ends: "Callable[[PreTrainedModel], None] | None" = None,
) -> "PreTrainedModel":
    """The base as `load_base` gives it, to the bit, for architectures whose files name their tensors as transformers' modules do.

    Args:
        manifest: as `read_manifest` gives it.
        numerics: quantization and compute_dtype of params.yaml.
        device: cpu or cuda.
        vocabulary: rows the embedding must have at least, or None to leave it.
        take: called with the number of each decoder layer and the layer, once it is loaded.
        ends: called with the model once all but its layers is loaded, or None.

    Returns:
        The model.

    Raises:
        UserError: the architecture is another.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    silence()
    folder = base_folder(manifest)
    config, dtype = AutoConfig.from_pretrained(folder, local_files_only=True), compute_dtype(numerics, device)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    layers = decoder_layers(model)
    inside = {id(module): number for number, layer in enumerate(layers) for module in layer.modules()}
    files = tensor_files(folder)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    unknown = sorted(name for name, _ in model.named_parameters() if name not in files and name not in tied)
    if not layers or unknown:
        what = f"{unknown[0]} is in none of its files" if unknown else "it has no decoder layers that transformers names"
        raise UserError(f"train.parallel is fsdp, which cannot split {type(model).__name__} ({what}); take ddp")
    for name, module in list(model.named_modules()):
        if id(module) not in inside:
            _fill(model, name, module, files, device, dtype, False)
    rotary: Any = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config).to(device)  # its buffers are computed, not stored
    model.tie_weights()
    widened(model, manifest, vocabulary)
    if ends is not None:
        ends(model)
    names = {id(module): name for name, module in model.named_modules()}
    for number, layer in enumerate(layers):
        for module in list(layer.modules()):
            _fill(model, names[id(module)], module, files, device, dtype, numerics.quantization == "nf4")
        take(number, layer)
    if numerics.quantization == "nf4" and device == "cuda":
        model.is_loaded_in_4bit = True  # what PEFT asks before it takes its layers for bitsandbytes'
    model.eval().requires_grad_(False)
    return model


def decoder_layers(model: Any) -> list[Any]:
    """The layers that transformers can recompute, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file of a base holds each tensor."""
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in index.items()}
    with safe_open(folder / SINGLE, "pt") as opened:
        return dict.fromkeys(opened.keys(), folder / SINGLE)


def _fill(model: Any, name: str, module: Any, files: dict[str, Path], device: str, dtype: "torch.dtype", quantised: bool) -> None:
    """Reads a module's own parameters; a linear layer to be quantised is put in its place."""
    import torch
    from safetensors import safe_open

    def read(part: str) -> torch.Tensor:
        with safe_open(files[f"{name}.{part}"], "pt") as opened:  # anew each time, or what was read stays mapped and counts as memory
            tensor: torch.Tensor = opened.get_tensor(f"{name}.{part}")
            return tensor.to(device, dtype)

    own = [part for part, _ in module.named_parameters(recurse=False) if f"{name}.{part}" in files]
    if quantised and isinstance(module, torch.nn.Linear):
        module = linear_nf4(read("weight"), read("bias") if "bias" in own else None, dtype)
        model.set_submodule(name, module)
        return
    for part in own:
        setattr(module, part, torch.nn.Parameter(read(part), requires_grad=False))


def linear_nf4(weight: "torch.Tensor", bias: "torch.Tensor | None", dtype: "torch.dtype") -> "torch.nn.Linear":
    """A linear layer in double-quantised NF4; on a CPU with the weights unpacked again, as `load_base` has them.

    Args:
        weight: `[out, in]`, where the layer shall be.
        bias: `[out]`, or None.
        dtype: of the products.

    Returns:
        The layer.
    """
    import torch
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = weight.shape
    layer: torch.nn.Linear
    if weight.device.type == "cpu":
        layer = torch.nn.Linear(columns, rows, bias is not None, device="meta", dtype=dtype)
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        layer.weight = torch.nn.Parameter(functional.dequantize_4bit(packed, state).to(dtype), requires_grad=False)
    else:
        layer = Linear4bit(
            columns, rows, bias=bias is not None, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
        )
        layer.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)._quantize("cuda")
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return layer
