"""The adapter: LoRA layers on a frozen base, what of it is published, and the gate it must pass. In: base, params. Out: model, tensors.

The published tensors always stand on the base as it was fetched, also where an initialisation took its part out of the base's weights.
"""

import difflib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from stages.core.params import Train

Tensors = dict[str, "torch.Tensor"]

# They move a part of the base's weights into the adapter (PEFT, LoraConfig.init_lora_weights).
TAKEN_FROM_BASE = ("pissa", "olora")
LEAST_CHANGE = 1e-5


def attach(base: "PreTrainedModel", settings: "Train", new_tokens: Sequence[int], seed: int) -> "PeftModel":
    """Puts trainable LoRA layers, in float32, on the base.

    Args:
        base: the frozen base; the object itself is changed.
        settings: rank, alpha, dropout, target_modules, init, rslora, dora.
        new_tokens: ids whose embedding rows are trained as well.
        seed: of the initial weights.

    Returns:
        The model, in training mode.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(base, settings.target_modules),
        init_lora_weights=True if settings.init == "default" else settings.init,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        trainable_token_indices=_embeddings(base, new_tokens) if new_tokens else None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5.23 by an older name
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    return model.train()


def _targets(base: "PreTrainedModel", asked: str | list[str]) -> str | list[str]:
    """target_modules after checking each name, which PEFT takes as the end of a layer's full name."""
    import torch

    if isinstance(asked, str):
        return asked
    layers = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    known = sorted({part for name in layers for part in (name, name.rsplit(".", 1)[-1])})
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            near = difflib.get_close_matches(target, known, 1, 0.0)
            raise UserError(
                f"params.yaml: train.target_modules names {target}, which is no linear layer of {type(base).__name__}; "
                f"the nearest is {near[0]}"
            )
    return asked


def _embeddings(base: "PreTrainedModel", new_tokens: Sequence[int]) -> dict[str, list[int]]:
    """The new tokens' rows by the embedding's name; the output embedding has its own where it is not tied to the input's."""
    layers = [base.get_input_embeddings()]
    if base.get_output_embeddings().weight is not layers[0].weight:
        layers.append(base.get_output_embeddings())
    return {name: list(new_tokens) for name, module in base.named_modules() if any(module is layer for layer in layers)}


def trainable(model: "PeftModel") -> dict[str, "torch.nn.Parameter"]:
    """The parameters being trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def restore(model: "PeftModel", tensors: Tensors) -> None:
    """Sets the trained parameters to saved values.

    Args:
        model: the model.
        tensors: as `trainable` named them.
    """
    import torch

    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def copied(tensors: Mapping[str, "torch.Tensor"]) -> Tensors:
    """Copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def peft_tensors(model: "PeftModel") -> Tensors:
    """The adapter's tensors under PEFT's names, copied to the CPU."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the Hub whether the base's vocabulary has changed
    return copied(get_peft_model_state_dict(model, save_embedding_layers=False))


def published(model: "PeftModel", initial: Tensors | None, base_name: str) -> tuple[Tensors, dict[str, Any]]:
    """The adapter as it is published: tensors and adapter_config.json, without paths and in a fixed order.

    Where the initial adapter A0, B0 was taken out of the base, training computed W - s B0 A0 + s B A. On the untouched W that is the
    LoRA of twice the rank with A stacked on A0 and B beside -B0, at the same scale s.

    Args:
        model: the trained model.
        initial: the tensors at the start where they were taken out of the base, else None.
        base_name: the base's name for the configuration.

    Returns:
        Tensors by PEFT's names, and the configuration.
    """
    import torch

    tensors = peft_tensors(model)
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))  # PEFT keeps names in sets
    config.update(
        base_model_name_or_path=base_name, inference_mode=True, init_lora_weights=True, target_modules=sorted(config["target_modules"])
    )
    if initial is not None:
        for name, tensor in tensors.items():
            if ".lora_A." in name:
                tensors[name] = torch.cat([tensor, initial[name]], 0)
            elif ".lora_B." in name:
                tensors[name] = torch.cat([tensor, -initial[name]], 1)
        config["r"] *= 2
        config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    return tensors, config


def check_not_inert(tensors: Tensors, before: "torch.Tensor", after: "torch.Tensor") -> dict[str, float]:
    """Stops an adapter that does nothing.

    Args:
        tensors: the published tensors.
        before: `[targets, vocabulary] float32`, the base's logits on a row.
        after: the tuned model's on the same row.

    Returns:
        The largest absolute entry of any LoRA B and the largest absolute change of a logit.

    Raises:
        UserError: LoRA B is all zero, or no logit moved.
    """
    largest = max(float(tensor.abs().max()) for name, tensor in tensors.items() if ".lora_B." in name)
    change = float((after - before).abs().max())
    if largest == 0 or change < LEAST_CHANGE:
        raise UserError(
            f"the trained adapter changes nothing (largest weight of LoRA B {largest:.2g}, largest change of a logit {change:.2g}), so "
            f"nothing was published; raise train.learning_rate, or train more steps"
        )
    return {"largest_lora_b": largest, "largest_logit_change": change}
