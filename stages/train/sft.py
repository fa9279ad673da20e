"""Supervised fine-tuning: the loop over the plan, token-averaged, resumable. In: model, plan, rows. Out: trained model and State.

What a step does depends on nothing but the state before it and the step's number, so that a run that was cut off and went on ends in
the same bits as one that was not: the learning rate is a function of the step, dropout is seeded anew at each.
"""

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.batches import TokenRow
from stages.core.progress import progress
from stages.train import adapter, checkpoints, machine, telemetry
from stages.train.batches import Step, computed_tokens, cut, fill
from stages.train.optimizer import learning_rate, optimizer_state, restore_optimizer, set_learning_rate
from stages.train.plain import PlainModel
from stages.train.recovery import approved, hear
from stages.train.room import OutOfRoom, Room, free_cache, told, watched
from stages.train.stop import Stop, Stopped
from stages.train.tracking import Tracker
from stages.train.watch import SLOW_STEPS, Watch

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from stages.core.params import Runtime, Train
    from stages.train.fused.model import FusedModel

Point = dict[str, float]


@dataclass
class State:
    """Where a training is, and what it has seen.

    Attributes:
        step: optimiser steps done, or left out.
        train: step, loss, grad_norm, learning_rate of each step.
        validation: step and loss of each evaluation.
        speed: step, tokens_per_second, ceiling_share (of the GPU's rate of matrix products, or None), memory_bytes (held) and
            allocated_bytes (in use) of each step.
        left_out: the steps whose rows or update were at fault.
        events: what the rules said (watch.Event).
        sensors: what the sensors gave, summed (telemetry.empty).
        resumed_from: the steps at which a cut-off run went on.
        seconds: of all its processes, up to the last checkpoint.
        joules: of the device in that time, or None.
        why_no_joules: why it is None.
        peak_host_bytes: largest memory of any of its processes.
        peak_gpu_bytes: largest memory reserved on the GPU, or None.
        dry_run_peak_bytes: largest memory of the dry run of any of its processes, of the GPU where there is one.
        shrunk: how less was computed at once where the memory ran out, and from which step on (room.Level).
    """

    step: int = 0
    train: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    speed: list[dict[str, float | None]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    sensors: dict[str, Any] = field(default_factory=telemetry.empty)
    resumed_from: list[int] = field(default_factory=list)
    seconds: float = 0.0
    joules: float | None = 0.0
    why_no_joules: str | None = None
    peak_host_bytes: int = 0
    peak_gpu_bytes: int | None = None
    dry_run_peak_bytes: int | None = None
    shrunk: list[dict[str, Any]] = field(default_factory=list)

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
        plain: the plain path over it.
        fused: the fused path over it, which is then the one taken, or None.
        optimizer: over the adapter's parameters.
        plan: every step of the run.
        micro_batch_tokens: tokens of one forward pass at most.
        rows: training rows.
        validation: validation rows.
        settings: params.yaml's train.
        runtime: params.yaml's runtime.
        seed: of dropout and NEFTune's noise.
        root: where checkpoints go.
        room: what to do when memory runs out.
        tracker: the live log.
        stop: the signals that were caught.
        matmul_rate: of the GPU in FLOP/s (machine.matmul_rate), or None.
        state: where it is.
        best: the adapter of the lowest validation loss, kept where early_stop is set.
    """

    model: "PeftModel"
    plain: PlainModel
    fused: "FusedModel | None"
    optimizer: "torch.optim.Optimizer"
    plan: Sequence[Step]
    micro_batch_tokens: int
    rows: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    settings: "Train"
    runtime: "Runtime"
    seed: int
    root: Path
    room: Room
    tracker: Tracker
    stop: Stop
    matmul_rate: float | None = None
    state: State = field(default_factory=State)
    best: adapter.Tensors | None = None

    def __post_init__(self) -> None:
        """Reads the meters, from which the run's cost is counted, and goes on from the newest whole checkpoint."""
        self.device = self.plain.device
        self.engine: PlainModel | FusedModel = self.plain if self.fused is None else self.fused
        self.batching = self.settings.batching if self.fused is None else "pack"  # the fused path never pads
        self.lengths = [len(row.input_ids) for row in self.rows]
        self.parameters = adapter.trainable(self.model)
        self.watch = Watch(self.settings.watch, self.runtime.watch, self.settings.max_grad_norm)
        self.work = machine.Work.of(self.model, self.model.config)
        self.telemetry = telemetry.Telemetry(self.device, self.root / "telemetry.jsonl", self.runtime.watch.sample_seconds)
        self._starts: deque[float] = deque(maxlen=SLOW_STEPS)
        self._meters = machine.reading(self.device)
        self._saved = -1 if self.settings.watch.spike == "roll_back" else 0  # where a run may go back, its start is a checkpoint too
        folder = checkpoints.newest(self.root)
        if folder is not None:
            self._load(folder)
        self.state.shrunk = self.room.shrunk

    def fit(self) -> str:
        """Trains to the last step of the plan, or until the validation loss stalls.

        Returns:
            `last_step` or `early_stop`.

        Raises:
            Stopped: a signal came; the state is in a checkpoint.
        """
        try:
            with self.telemetry:
                if self._saved < 0:
                    self.save()
                self._evaluate_if_due()
                while self.state.step < len(self.plan) and not self.state.stalled(self.settings.early_stop):
                    self._go_on()
        except Stopped:
            self.save()
            raise
        if self.best is not None:
            adapter.restore(self.model, self.best)
        self._count_cost()
        return "early_stop" if self.state.step < len(self.plan) else "last_step"

    def _go_on(self) -> None:
        """Trains to the end, or until a step has taken the run back."""
        left = self.plan[self.state.step :]
        for step in progress(left, "train", sum(map(self._tokens, left)), "token", self._tokens):
            if self.state.stalled(self.settings.early_stop):
                return
            self._train(step)
            if self.state.step < step.number:
                return
            self._evaluate_if_due()
            if step.number % self.runtime.save_every == 0:
                self.save()

    def _tokens(self, step: Step) -> int:
        return sum(len(self.rows[row].input_ids) for row in step.rows)

    def _train(self, step: Step) -> None:
        """One optimiser step, done again with less at once where the memory runs out; none where a rule leaves it out or goes back."""
        if step.number in self.state.left_out:
            self.state.step = step.number
            return
        start = time.monotonic()
        self._starts.append(start)
        while True:
            try:
                seen = self._attempt(step)
                break
            except OutOfRoom as error:
                failed = error.rows
            self.make_room("train", step.number, failed)  # outside of except: the error holds what the pass allocated
        if seen is None:
            return
        self.state.step = step.number
        seconds = time.monotonic() - start
        flops = self.work.flops([self.rows[row] for row in step.rows])
        speed = {
            "tokens_per_second": self._tokens(step) / seconds,
            "ceiling_share": None if self.matmul_rate is None else flops / seconds / self.matmul_rate,
            "memory_bytes": machine.memory_bytes(self.device),
            "allocated_bytes": machine.allocated_bytes(self.device),
        }
        self.state.train.append({"step": step.number, **seen})
        self.state.speed.append({"step": step.number, **speed})
        if step.number % self.runtime.log_every == 0:
            self.tracker.log(step.number, {**seen, **speed})
        for event in self.watch.after_step(self.state.train, self.state.speed, self.state.events, self._conditions):
            hear(self, event)

    def _conditions(self) -> tuple[telemetry.Sample, telemetry.Sample]:
        """The machine's conditions of the last steps and those of the whole run."""
        return self.telemetry.recent(time.monotonic() - self._starts[0]), self.telemetry.usual()

    def _attempt(self, step: Step) -> Point | None:
        """One optimiser step, or None where its update may not be made; its loss is the mean over the targets of all its micro-batches."""
        import torch

        self.ready("train", step.number)
        torch.manual_seed(_step_seed(self.seed, step.number))
        self.optimizer.zero_grad(set_to_none=True)
        targets = sum(self.rows[row].targets for row in step.rows)
        micro_batches = self.micro_batches(step, step.number)
        shares = []
        for micro_batch in micro_batches:
            self.stop.check()
            with watched(micro_batch):
                share = self.engine.summed_loss([self.rows[row] for row in micro_batch]) / targets
                share.backward()
            shares.append(share.detach())
        with watched(max(micro_batches, key=lambda rows: computed_tokens(rows, self.lengths, self.batching))):
            losses = torch.stack(shares).tolist()  # once a step: the GPU is not waited for in between
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm).item()
            if not approved(self, step, micro_batches, losses, norm):
                return None
            rate = learning_rate(step.number, len(self.plan), self.settings)
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        return {"loss": sum(losses), "grad_norm": norm, "learning_rate": rate}

    def loss_of(self, step: Step) -> float:
        """A step's loss as the model is now, with the step's own dropout; nothing is learnt."""
        import torch

        self.ready("train", step.number)
        torch.manual_seed(_step_seed(self.seed, step.number))
        losses = []
        with torch.no_grad():
            for micro_batch in self.micro_batches(step, step.number):
                with watched(micro_batch):
                    losses.append(self.engine.summed_loss([self.rows[row] for row in micro_batch]))
        return float(sum(torch.stack(losses).tolist())) / sum(self.rows[row].targets for row in step.rows)

    def ready(self, work: str, step: int) -> None:
        """Sets the model up for the training of a step, or for the validation after it."""
        self.model.train(work == "train")
        self.engine.neftune = self.settings.neftune_alpha if work == "train" else None
        level = self.room.level(work, step)
        if work == "train":
            self.engine.kept = level.kept
        if self.fused is not None:
            self.fused.offload, self.fused.mlp_tokens = level.offload, level.mlp_tokens or self.fused.mlp_tokens

    def micro_batches(self, planned: Step, number: int) -> list[tuple[int, ...]]:
        """A step's micro-batches as they are computed at a step: as planned, or cut where the memory ran out before."""
        limit = self.room.level("train", number).micro_batch_tokens
        return cut(planned.micro_batches, self.lengths, limit, self.batching, self.device)

    def validation_batches(self, step: int) -> list[tuple[int, ...]]:
        """The micro-batches of the validation rows after a step."""
        lengths = [len(row.input_ids) for row in self.validation]
        whole = fill(range(len(lengths)), lengths, self.micro_batch_tokens, self.batching, self.device)
        return cut(whole, lengths, self.room.level("validation", step).micro_batch_tokens, self.batching, self.device)

    def make_room(self, work: str, step: int, failed: Sequence[int]) -> None:
        """Takes the next smaller way to compute, after a micro-batch found no memory; without one, a UserError.

        Args:
            work: train | validation.
            step: of the training, or after which it validates.
            failed: the row numbers of the micro-batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        free_cache(self.device)
        rows = self.rows if work == "train" else self.validation
        lengths = [len(row.input_ids) for row in rows]
        longest = max(lengths[row] for row in failed)
        level = self.room.shrink(work, step, len(failed), computed_tokens(failed, lengths, self.batching), longest)
        self.state.shrunk = self.room.shrunk
        where = f"in step {step}" if work == "train" else f"in the validation after step {step}"
        sys.stderr.write(
            f"train: the memory ran out {where} on {len(failed)} rows of up to {longest} tokens; from here on: {told(level)}\n"
        )

    def _evaluate_if_due(self) -> None:
        """Evaluates before the first step, every eval_every steps and after the last, once each."""
        step = self.state.step
        due = step % self.settings.eval_every == 0 or step == len(self.plan)
        if not self.validation or not due or any(point["step"] == step for point in self.state.validation):
            return
        self.state.validation.append({"step": step, "loss": self._validation_loss()})
        if self.settings.early_stop is not None and self.state.best is not None and self.state.best["step"] == step:
            self.best = adapter.copied(self.parameters)
        self.tracker.log_validation(step, self.state.validation[-1]["loss"])
        event = self.watch.after_validation(self.state.validation, self.state.events)
        if event is not None:
            hear(self, event)

    def _validation_loss(self) -> float:
        """The mean loss over the targets of the validation rows, which were never trained on."""
        while True:
            try:
                return self._summed_validation_loss() / sum(row.targets for row in self.validation)
            except OutOfRoom as error:
                failed = error.rows
            self.make_room("validation", self.state.step, failed)

    def _summed_validation_loss(self) -> float:
        import torch

        self.ready("validation", self.state.step)
        losses = []
        with torch.no_grad():
            for micro_batch in self.validation_batches(self.state.step):
                self.stop.check()
                with watched(micro_batch):
                    losses.append(self.engine.summed_loss([self.validation[row] for row in micro_batch]))
        return float(sum(torch.stack(losses).tolist()))

    def save(self) -> None:
        """Writes a checkpoint, unless nothing was done since the last."""
        if self.state.step == self._saved:
            return
        self._count_cost()
        tensors = {"adapter.safetensors": adapter.copied(self.parameters)}
        tensors["optimizer.safetensors"], numbers = optimizer_state(self.optimizer)
        if self.best is not None:
            tensors["best.safetensors"] = self.best
        documents = {"state.json": asdict(self.state), "optimizer.json": numbers}
        checkpoints.write(checkpoints.place(self.root, self.state.step), tensors, documents)
        checkpoints.prune(self.root)
        self._saved = self.state.step

    def _load(self, folder: Path) -> None:
        """Goes on where an earlier process was."""
        self.state = self._restored(folder)
        self.state.resumed_from.append(self.state.step)
        sys.stderr.write(f"train: going on after step {self.state.step} of {len(self.plan)}, from {folder}\n")

    def go_back(self, folder: Path) -> None:
        """Takes the course back to a checkpoint; what it has cost, and what was said of it, stays."""
        then = self._restored(folder)
        self.state = replace(self.state, step=then.step, train=then.train, validation=then.validation, speed=then.speed)

    def _restored(self, folder: Path) -> State:
        from safetensors.torch import load_file

        adapter.restore(self.model, load_file(folder / "adapter.safetensors"))
        restore_optimizer(self.optimizer, load_file(folder / "optimizer.safetensors"), checkpoints.read(folder, "optimizer.json"))
        best = folder / "best.safetensors"
        self.best = load_file(best) if best.is_file() else None
        state = State(**checkpoints.read(folder, "state.json"))
        self._saved = state.step
        return state

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
        self.state.sensors = telemetry.merged(self.state.sensors, self.telemetry.taken())
        self._meters = now


def _step_seed(seed: int, step: int) -> int:
    """The seed of a step's dropout: far apart for neighbouring steps and seeds (Knuth's multiplicative hash)."""
    return (seed * 2654435761 + step * 40503) % 2**63
