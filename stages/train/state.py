"""Where a training is and what it has seen: what a checkpoint holds beside the tensors. In: numbers. Out: a dataclass of JSON values."""

from dataclasses import dataclass, field
from typing import Any

from stages.train import telemetry

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
        ranks: among how many processes the rows of a step were dealt, and from which step on; one where nothing is said.
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
    ranks: list[dict[str, int]] = field(default_factory=list)

    @property
    def best(self) -> Point | None:
        """The lowest validation loss of a trained adapter, the earliest of equals; None before the first."""
        return min((point for point in self.validation if point["step"] > 0), key=lambda point: point["loss"], default=None)

    def stalled(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row brought no better validation loss."""
        if patience is None or self.best is None:
            return False
        return sum(point["step"] > self.best["step"] for point in self.validation) >= patience

    def ranks_at(self, step: int) -> int:
        """Among how many processes the rows of a step are dealt."""
        return next((entry["ranks"] for entry in reversed(self.ranks) if entry["step"] <= step), 1)

    def go_on_with(self, ranks: int) -> None:
        """Notes how many processes train from the next step on."""
        self.ranks = [entry for entry in self.ranks if entry["step"] <= self.step]
        if self.ranks_at(self.step + 1) != ranks:
            self.ranks.append({"step": self.step + 1, "ranks": ranks})
