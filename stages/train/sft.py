"""Supervised fine-tuning: the loop over the plan, token-averaged, resumable. In: model, plan, rows. Out: trained model and State.

What a step does depends on nothing but the state before it and the step's number, so that a run that was cut off and went on ends in
the same bits as one that was not: the learning rate is a function of the step, dropout is seeded anew at each.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.progress import progress
from stages.train import adapter, checkpoints, machine
from stages.train.batches import Batch, Step, TokenRow, collate, fill
from stages.train.stop import Stop, Stopped
from stages.train.tracking import Tracker

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from stages.core.params import Runtime, Train

Point = dict[str, float]


@dataclass
class State:
    """Where a training is, and what it has seen.

    Attributes:
        step: optimiser steps done.
        train: step, loss, grad_norm, learning_rate of each step.
        validation: step and loss of each evaluation.
        speed: step, tokens_per_second, memory_bytes of each step.
        resumed_from: the steps at which a cut-off run went on.
        seconds: of all its processes, up to the last checkpoint.
        joules: of the device in that time, or None.
        why_no_joules: why it is None.
        peak_host_bytes: largest memory of any of its processes.
        peak_gpu_bytes: largest memory reserved on the GPU, or None.
    """

    step: int = 0
    train: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    speed: list[Point] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)
    seconds: float = 0.0
    joules: float | None = 0.0
    why_no_joules: str | None = None
    peak_host_bytes: int = 0
    peak_gpu_bytes: int | None = None

    @property
    def best(self) -> Point | None:
        """The lowest validation loss of a trained adapter, the earliest of equals; None before the first."""
        return min((point for point in self.validation if point["step"] > 0), key=lambda point: point["loss"], default=None)

    def stalled(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row brought no better validation loss."""
        if patience is None or self.best is None:
            return False
        return sum(point["step"] > self.best["step"] for point in self.validation) >= patience


@dataclass
class Training:
    """One training, with all that its loop needs.

    Attributes:
        model: the base with its adapter.
        optimizer: over the adapter's parameters.
        plan: every step of the run.
        rows: training rows.
        validation: validation rows.
        settings: params.yaml's train.
        runtime: params.yaml's runtime.
        seed: of dropout.
        device: cpu or cuda.
        dtype: of the base's activations.
        pad: the padding token.
        root: where checkpoints go.
        tracker: the live log.
        stop: the signals that were caught.
        state: where it is.
        best: the adapter of the lowest validation loss, kept where early_stop is set.
    """

    model: "PeftModel"
    optimizer: "torch.optim.Optimizer"
    plan: Sequence[Step]
    rows: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    settings: "Train"
    runtime: "Runtime"
    seed: int
    device: str
    dtype: "torch.dtype"
    pad: int
    root: Path
    tracker: Tracker
    stop: Stop
    state: State = field(default_factory=State)
    best: adapter.Tensors | None = None

    def __post_init__(self) -> None:
        """Reads the meters, from which the run's cost is counted, and goes on from the newest whole checkpoint."""
        self._meters = machine.reading(self.device)
        self._saved = 0
        self._parameters = adapter.trainable(self.model)
        folder = checkpoints.newest(self.root)
        if folder is not None:
            self._load(folder)

    def fit(self) -> str:
        """Trains to the last step of the plan, or until the validation loss stalls.

        Returns:
            `last_step` or `early_stop`.

        Raises:
            Stopped: a signal came; the state is in a checkpoint.
        """
        try:
            self._evaluate_if_due()
            left = self.plan[self.state.step :]
            for step in progress(left, "train", sum(map(self._tokens, left)), "token", self._tokens):
                if self.state.stalled(self.settings.early_stop):
                    break
                self._train(step)
                self._evaluate_if_due()
                if step.number % self.runtime.save_every == 0:
                    self.save()
        except Stopped:
            self.save()
            raise
        if self.best is not None:
            adapter.restore(self.model, self.best)
        self._count_cost()
        return "early_stop" if self.state.step < len(self.plan) else "last_step"

    def _tokens(self, step: Step) -> int:
        return sum(len(self.rows[row].input_ids) for row in step.rows)

    def _train(self, step: Step) -> None:
        """One optimiser step; its loss is the mean over the targets of all its micro-batches."""
        import torch

        start = time.monotonic()
        torch.manual_seed(_step_seed(self.seed, step.number))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        targets = sum(self.rows[row].targets for row in step.rows)
        loss = 0.0
        for micro_batch in step.micro_batches:
            self.stop.check()
            share = self.summed_loss([self.rows[row] for row in micro_batch]) / targets
            self._check_finite("loss", share.item(), step.number, micro_batch)
            share.backward()
            loss += share.item()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.settings.max_grad_norm).item()
        self._check_finite("gradient", norm, step.number, step.rows)
        rate = learning_rate(step.number, len(self.plan), self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state.step = step.number
        seen = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        speed = {"tokens_per_second": self._tokens(step) / (time.monotonic() - start), "memory_bytes": machine.memory_bytes(self.device)}
        self.state.train.append({"step": step.number, **seen})
        self.state.speed.append({"step": step.number, **speed})
        if step.number % self.runtime.log_every == 0:
            self.tracker.log(step.number, {**seen, **speed})

    def summed_loss(self, rows: Sequence[TokenRow], batching: str | None = None) -> "torch.Tensor":
        """The cross-entropy summed over the targets of one micro-batch, in nats.

        Args:
            rows: the micro-batch.
            batching: bucket | pack; None takes train.batching.

        Returns:
            A scalar in float32.
        """
        import torch

        batch = collate(rows, batching or self.settings.batching, self.pad)
        logits = self.logits(batch)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.to(self.device).flatten(), reduction="sum")

    def logits(self, batch: Batch) -> "torch.Tensor":
        """The logits in the batch's columns, `[rows, kept, vocabulary] float32`."""
        import torch

        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            out = self.model(
                input_ids=batch.input_ids.to(self.device),
                position_ids=None if batch.position_ids is None else batch.position_ids.to(self.device),
                logits_to_keep=batch.columns.to(self.device),
                use_cache=False,
            )
        return out.logits.float()

    def _check_finite(self, what: str, value: float, step: int, rows: Sequence[int]) -> None:
        if math.isfinite(value):
            return
        ids = ", ".join(self.rows[row].id for row in rows)
        raise UserError(
            f"step {step}: the {what} is {value} on the rows {ids}; nothing was published; look at these rows (luthier show), or lower "
            f"train.learning_rate"
        )

    def _evaluate_if_due(self) -> None:
        """Evaluates before the first step, every eval_every steps and after the last, once each."""
        step = self.state.step
        due = step % self.settings.eval_every == 0 or step == len(self.plan)
        if not self.validation or not due or any(point["step"] == step for point in self.state.validation):
            return
        self.state.validation.append({"step": step, "loss": self._validation_loss()})
        if self.settings.early_stop is not None and self.state.best is not None and self.state.best["step"] == step:
            self.best = adapter.copied(self._parameters)
        self.tracker.log_validation(step, self.state.validation[-1]["loss"])

    def _validation_loss(self) -> float:
        """The mean loss over the targets of the validation rows, which were never trained on."""
        import torch

        lengths = [len(row.input_ids) for row in self.validation]
        limit = self.settings.micro_batch_tokens
        self.model.eval()
        summed = 0.0
        with torch.no_grad():
            for micro_batch in fill(range(len(lengths)), lengths, limit, self.settings.batching, self.device):
                self.stop.check()
                summed += self.summed_loss([self.validation[row] for row in micro_batch]).item()
        return summed / sum(row.targets for row in self.validation)

    def save(self) -> None:
        """Writes a checkpoint, unless nothing was done since the last."""
        if self.state.step == self._saved:
            return
        self._count_cost()
        tensors = {"adapter.safetensors": adapter.copied(self._parameters)}
        tensors["optimizer.safetensors"], numbers = optimizer_state(self.optimizer)
        if self.best is not None:
            tensors["best.safetensors"] = self.best
        documents = {"state.json": asdict(self.state), "optimizer.json": numbers}
        checkpoints.write(checkpoints.place(self.root, self.state.step), tensors, documents)
        checkpoints.prune(self.root)
        self._saved = self.state.step

    def _load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        adapter.restore(self.model, load_file(folder / "adapter.safetensors"))
        restore_optimizer(self.optimizer, load_file(folder / "optimizer.safetensors"), checkpoints.read(folder, "optimizer.json"))
        if (folder / "best.safetensors").is_file():
            self.best = load_file(folder / "best.safetensors")
        self.state = State(**checkpoints.read(folder, "state.json"))
        self.state.resumed_from.append(self.state.step)
        self._saved = self.state.step
        sys.stderr.write(f"train: going on after step {self.state.step} of {len(self.plan)}, from {folder}\n")

    def _count_cost(self) -> None:
        """Adds what this process has cost since the last count."""
        now, before = machine.reading(self.device), self._meters
        self.state.seconds += now.seconds - before.seconds
        if now.joules is None or before.joules is None or self.state.joules is None:
            self.state.joules, self.state.why_no_joules = None, now.why_no_joules
        else:
            self.state.joules += now.joules - before.joules
        peak = machine.peak_memory(self.device)
        self.state.peak_host_bytes = max(self.state.peak_host_bytes, peak["host_bytes"])
        if peak["gpu_bytes"] is not None:
            self.state.peak_gpu_bytes = max(self.state.peak_gpu_bytes or 0, peak["gpu_bytes"])
        self._meters = now


def _step_seed(seed: int, step: int) -> int:
    """The seed of a step's dropout: far apart for neighbouring steps and seeds (Knuth's multiplicative hash)."""
    return (seed * 2654435761 + step * 40503) % 2**63


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


def make_optimizer(parameters: Sequence["torch.nn.Parameter"], settings: "Train", device: str) -> "torch.optim.Optimizer":
    """AdamW, with 32-bit state or with bitsandbytes' 8-bit one, which may be paged out of the GPU.

    Args:
        parameters: to train.
        settings: optimizer, learning_rate, weight_decay.
        device: cpu or cuda.

    Returns:
        The optimizer.

    Raises:
        UserError: the 8-bit ones are asked for without CUDA.
    """
    import torch

    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    if device != "cuda":
        raise UserError(f"train.optimizer {settings.optimizer} needs CUDA, but the device is {device}; use adamw")
    import bitsandbytes

    kind = bitsandbytes.optim.AdamW8bit if settings.optimizer == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    made: torch.optim.Optimizer = kind(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    return made


def optimizer_state(optimizer: "torch.optim.Optimizer") -> tuple[adapter.Tensors, dict[str, float]]:
    """The optimizer's state as tensors and numbers, each named by the parameter's number and the state's name."""
    import torch

    tensors: adapter.Tensors = {}
    numbers: dict[str, float] = {}
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                numbers[f"{number}.{name}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: "torch.optim.Optimizer", tensors: adapter.Tensors, numbers: Mapping[str, float]) -> None:
    """Sets the state that `optimizer_state` gave; not by load_state_dict, which takes bitsandbytes' state out of its pages.

    Args:
        optimizer: newly made over the same parameters.
        tensors: the saved tensors.
        numbers: the saved numbers.
    """
    parameters = optimizer.param_groups[0]["params"]
    for number, parameter in enumerate(parameters):
        if hasattr(optimizer, "init_state"):  # bitsandbytes
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, number)
    for key, value in _parts(tensors):
        state = optimizer.state[parameters[key[0]]]
        if key[1] in state:
            state[key[1]].copy_(value)
        else:
            state[key[1]] = value.to(parameters[key[0]].device)
    for key, plain in _parts(numbers):
        optimizer.state[parameters[key[0]]][key[1]] = plain


def _parts(named: Mapping[str, Any]) -> Iterator[tuple[tuple[int, str], Any]]:
    for key, value in named.items():
        number, _, name = key.partition(".")
        yield (int(number), name), value
