"""AdamW over the adapter's parameters: its groups, its learning rate at each step, its state as tensors and back. In: params."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.train.adapter import Tensors

if TYPE_CHECKING:
    import torch

    from stages.core.params import Train

B_MATRIX = ".lora_B."


def learning_rate(step: int, total: int, settings: "Train") -> float:
    """The learning rate of a step: a linear warm-up that never is zero, then the schedule, whose last step is the smallest.

    Args:
        step: counted from 1.
        total: steps of the plan.
        settings: learning_rate, warmup_share, schedule.

    Returns:
        The rate.
    """
    warmup = math.ceil(total * settings.warmup_share)
    if step <= warmup:
        return settings.learning_rate * step / (warmup + 1)
    done = (step - 1 - warmup) / (total - warmup)
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (1 - done if settings.schedule == "linear" else 1)


def make_optimizer(parameters: "Mapping[str, torch.nn.Parameter]", settings: "Train", device: str) -> "torch.optim.Optimizer":
    """AdamW, with 32-bit state or with bitsandbytes' 8-bit one, which may be paged out of the GPU.

    With lora_plus_ratio the B matrices are a group of their own (LoRA+, arXiv 2402.12354). Each group's `ratio` is its learning rate over
    that of the schedule.

    Args:
        parameters: to train, by name.
        settings: optimizer, learning_rate, lora_plus_ratio, weight_decay.
        device: cpu or cuda.

    Returns:
        The optimizer.

    Raises:
        UserError: the 8-bit ones are asked for without CUDA.
    """
    import torch

    groups: list[dict[str, Any]] = [{"params": list(parameters.values()), "ratio": 1.0}]
    if settings.lora_plus_ratio is not None:
        groups[0]["params"] = [parameter for name, parameter in parameters.items() if B_MATRIX not in name]
        groups.append({"params": [p for name, p in parameters.items() if B_MATRIX in name], "ratio": settings.lora_plus_ratio})
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    if device != "cuda":
        raise UserError(f"train.optimizer {settings.optimizer} needs CUDA, but the device is {device}; use adamw")
    import bitsandbytes

    kind = bitsandbytes.optim.AdamW8bit if settings.optimizer == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    made: torch.optim.Optimizer = kind(groups, settings.learning_rate, weight_decay=settings.weight_decay)
    # its first step would make each parameter's state after others were changed already: memory must not run out between them
    _make_state(made)
    return made


def _make_state(optimizer: Any) -> None:
    """Makes bitsandbytes' state of every parameter, all zero."""
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, group_number, number)


def set_learning_rate(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """Gives every group its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def optimizer_state(optimizer: "torch.optim.Optimizer") -> tuple[Tensors, dict[str, float]]:
    """The optimizer's state as tensors and numbers, each named by the parameter's number and the state's name."""
    import torch

    tensors: Tensors = {}
    numbers: dict[str, float] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                numbers[f"{number}.{name}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: "torch.optim.Optimizer", tensors: Tensors, numbers: Mapping[str, float]) -> None:
    """Sets the state that `optimizer_state` gave; not by load_state_dict, which takes bitsandbytes' state out of its pages.

    Args:
        optimizer: over the same parameters; new, or with the state of some trial steps.
        tensors: the saved tensors.
        numbers: the saved numbers.
    """
    if not tensors:  # of an AdamW before its first step
        optimizer.state.clear()
    parameters = _parameters(optimizer)
    for key, value in _parts(tensors):
        state = optimizer.state[parameters[key[0]]]
        if key[1] in state:
            state[key[1]].copy_(value)
        else:
            state[key[1]] = value.to(parameters[key[0]].device)
    for key, plain in _parts(numbers):
        optimizer.state[parameters[key[0]]][key[1]] = plain


def _parameters(optimizer: "torch.optim.Optimizer") -> "Sequence[torch.nn.Parameter]":
    """The parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts(named: Mapping[str, Any]) -> Iterator[tuple[tuple[int, str], Any]]:
    for key, value in named.items():
        number, _, name = key.partition(".")
        yield (int(number), name), value
