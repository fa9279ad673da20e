"""Models of published shapes with random weights, made where they are trained. In: a shape. Out: a base, or a PeftModel in training mode.

No disk and never a whole model in bfloat16: it is made on the meta device, then filled module by module, and each matrix of an NF4 base
is quantised before the next is drawn, so that a 32B base takes no more memory while it is made than after.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.params import load_params
from stages.core.streaming import decoder_layers
from stages.train import adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "1b": "Llama-3.2-1B",
    "7b": "Qwen2.5-7B",
    "8b": "Llama-3.1-8B",
    "13b": "Llama-2-13B",
    "32b": "Qwen2.5-32B",
    "70b": "Llama-3.1-70B",
}
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "tie_word_embeddings": True,
}


def config_of(shape: str) -> dict[str, Any]:
    """The published config.json of a shape, or the tests' `tiny` one."""
    if shape == "tiny":
        return dict(TINY)
    config: dict[str, Any] = json.loads((ROOT / "tests/configs" / f"{SHAPES[shape]}.json").read_text(encoding="utf-8"))
    return config


def build(shape: str, quantization: str, rank: int, device: str = "cuda", dtype: "torch.dtype | None" = None) -> "PeftModel":
    """A base of the shape with a fresh LoRA on all linear layers, in training mode; arguments as of `made` and `adapted`."""
    return adapted(made(shape, quantization, device, dtype), rank)


def adapted(base: Any, rank: int) -> "PeftModel":
    """A base with a fresh LoRA of a rank on all linear layers, its parameters in float32; in training mode, the base frozen."""
    train = load_params(ROOT / "params.yaml").train
    return adapter.attach(base, train.model_copy(update={"rank": rank, "alpha": rank, "target_modules": "all-linear"}), [], seed=1)


def made(
    shape: str,
    quantization: str,
    device: str = "cuda",
    dtype: "torch.dtype | None" = None,
    take: "Callable[[int, torch.nn.Module], None] | None" = None,
    ends: "Callable[[PreTrainedModel], None] | None" = None,
) -> Any:
    """A base of the shape.

    Args:
        shape: 1b | 7b | 8b | 13b | 32b | 70b | tiny.
        quantization: nf4 (double-quantised, CUDA only) | none.
        device: cuda | cpu.
        dtype: of the base's weights that are not quantised, and of the products; None takes bfloat16.
        take: called with the number of each decoder layer and the layer, once it is made; it may keep a part (Shards.take).
        ends: called with the model once all but its layers is made (Shards.take_ends), or None.

    Returns:
        transformers' model, frozen.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = dtype or torch.bfloat16
    fields = config_of(shape)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.use_cache = False
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    torch.manual_seed(0)
    layers = decoder_layers(base)
    last = {id(list(layer.modules())[-1]): number for number, layer in enumerate(layers)}
    inside = {id(module) for layer in layers for module in layer.modules()}
    modules = list(base.named_modules())
    for _, module in modules:
        if id(module) not in inside:
            _fill(module, device, dtype)
    base.tie_weights()
    if ends is not None:
        ends(base)
    for name, module in modules:
        if id(module) not in inside:
            continue
        if quantization == "nf4" and isinstance(module, torch.nn.Linear):
            base.set_submodule(name, _quantized(module, device, dtype))
        else:
            _fill(module, device, dtype)
        if take is not None and id(module) in last:
            take(last[id(module)], layers[last[id(module)]])
    rotary = base.model.rotary_emb
    base.model.rotary_emb = type(rotary)(config).to(device)  # its buffers are computed, not drawn
    if quantization == "nf4":
        base.is_loaded_in_4bit = True  # what PEFT asks before it takes its layers for bitsandbytes
    return base.eval().requires_grad_(False)


def _quantized(module: "torch.nn.Linear", device: str, dtype: "torch.dtype") -> "torch.nn.Module":
    """A 4-bit layer with random weights in a linear layer's place."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        module.in_features, module.out_features, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )
    weight = torch.randn(module.out_features, module.in_features, device=device, dtype=dtype) * 0.02
    layer.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)._quantize(device)
    if module.bias is not None:
        layer.bias = torch.nn.Parameter(torch.randn(module.out_features, device=device, dtype=dtype) * 0.02, requires_grad=False)
    return layer


def _fill(module: "torch.nn.Module", device: str, dtype: "torch.dtype") -> None:
    """Gives a module's own parameters random values, norms ones."""
    import torch

    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() == 1 and name == "weight":
            filled = torch.ones(parameter.shape, device=device, dtype=dtype)
        else:
            filled = torch.randn(parameter.shape, device=device, dtype=dtype) * 0.02
        setattr(module, name, torch.nn.Parameter(filled, requires_grad=False))
