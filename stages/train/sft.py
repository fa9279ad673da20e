"""Supervised fine-tuning: the loop over the plan, token-averaged, resumable. In: model, plan, rows. Out: trained model and State.

What a step does depends on nothing but the state before it and the step's number, so that a run that was cut off and went on ends in
the same bits as one that was not: the learning rate is a function of the step, and random numbers are drawn by it and the row.
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.batches import TokenRow
from stages.core.errors import UserError
from stages.core.progress import progress
from stages.train import adapter, checkpoints, machine, telemetry
from stages.train.batches import Step, computed_tokens, cut, deal, fill
from stages.train.neftune import STEP_SEEDS
from stages.train.optimizer import learning_rate, optimizer_state, restore_optimizer, set_learning_rate
from stages.train.passes import MicroBatch, passes, summed
from stages.train.plain import PlainModel
from stages.train.ranks import Gradients, Ranks
from stages.train.recovery import approved, hear
from stages.train.room import OutOfRoom, Room, free_cache, is_out_of_memory, told
from stages.train.state import Point, State
from stages.train.stop import Stop, Stopped
from stages.train.tracking import Tracker
from stages.train.watch import SLOW_STEPS, Watch

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from stages.core.params import Runtime, Train
    from stages.train.fused.model import FusedModel
    from stages.train.shards import Shards
    from stages.train.slices import Slices
    from stages.train.zero import Zero


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
        ranks: this process among those that train together.
        shards: that hold the base's layers in part, or None.
        slices: where each rank computes its slice of every micro-batch, or None.
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
    ranks: Ranks = field(default_factory=Ranks)
    shards: "Shards | Zero | None" = None
    slices: "Slices | None" = None
    state: State = field(default_factory=State)
    best: adapter.Tensors | None = None

    def __post_init__(self) -> None:
        """Reads the meters, from which the run's cost is counted, and goes on from the newest whole checkpoint."""
        self.device = self.plain.device
        self.engine: PlainModel | FusedModel = self.plain if self.fused is None else self.fused
        self.batching = self.settings.batching if self.fused is None else "pack"  # the fused path never pads
        self.lengths = [len(row.input_ids) for row in self.rows]
        self.parameters = adapter.trainable(self.model)
        self.gradients = Gradients(self.ranks, self.parameters, self.settings.effective_batch)
        self.watch = Watch(self.settings.watch, self.runtime.watch, self.settings.max_grad_norm)
        self.work = machine.Work.of(self.model, self.model.config)
        sampled = self.runtime.watch.sample_seconds if self.ranks.first else None
        self.telemetry = telemetry.Telemetry(self.device, self.root / "telemetry.jsonl", sampled)
        self._starts: deque[float] = deque(maxlen=SLOW_STEPS)
        self._gpus = self.ranks.gathered(machine.gpu_uuid()) if self.device == "cuda" else []
        self._meters = machine.reading(self.device, self._gpus)
        self._saved = -1 if self.settings.watch.spike == "roll_back" else 0  # where a run may go back, its start is a checkpoint too
        folder = self.ranks.agreed(checkpoints.newest(self.root) if self.ranks.first else None)
        if folder is not None:
            self._load(folder)
        # the rows of a step are dealt to the ranks, unless each has its slice of them all
        self._dealt, self.place = (self.ranks.count, self.ranks.rank) if self.slices is None else (1, 0)
        self.state.go_on_with(self._dealt)
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
            "ceiling_share": None if self.matmul_rate is None else flops / seconds / self.matmul_rate / self.ranks.count,
            "memory_bytes": machine.memory_bytes(self.device),
            "allocated_bytes": machine.allocated_bytes(self.device),
        }
        self.state.train.append({"step": step.number, **seen})
        self.state.speed.append({"step": step.number, **speed})
        if step.number % self.runtime.log_every == 0:
            self.tracker.log(step.number, {**seen, **speed})
        if self.ranks.first:  # what it stops is a matter of this process: the others end with it
            for event in self.watch.after_step(self.state.train, self.state.speed, self.state.events, self._conditions):
                hear(self, event)

    def _conditions(self) -> tuple[telemetry.Sample, telemetry.Sample]:
        """The machine's conditions of the last steps and those of the whole run."""
        return self.telemetry.recent(time.monotonic() - self._starts[0]), self.telemetry.usual()

    def _attempt(self, step: Step) -> Point | None:
        """One optimiser step, or None where its update may not be made; its loss is the mean over the targets of all its micro-batches."""
        import torch

        self.ready("train", step.number)
        self._seed(step.number)
        self.gradients.clear()
        targets = sum(self.rows[row].targets for row in step.rows)
        shares = self.shares(step, step.number)
        micro_batches = [micro_batch for share in shares for micro_batch in share]
        largest = max(micro_batches, key=lambda rows: computed_tokens(rows, self.lengths, self.batching))
        found, failed = passes(self, shares, self.rows, targets)
        with self._alone(step, largest):
            losses, failed = self.gradients.exchange(found, sum(map(len, shares[: self.place])), len(micro_batches), failed)
        if failed is not None:
            raise OutOfRoom(micro_batches[failed])
        with self._alone(step, largest):
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm).item()
            if not approved(self, step, micro_batches, losses, norm):
                return None
            rate = learning_rate(step.number, len(self.plan), self.settings)
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        return {"loss": sum(losses), "grad_norm": norm, "learning_rate": rate}

    @contextlib.contextmanager
    def _alone(self, step: Step, rows: MicroBatch) -> Iterator[None]:
        """What is done between the passes: one process can do it again with less, of several one that finds no memory ends them."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.ranks.count == 1:
                raise OutOfRoom(rows) from error
            resumed = "; nothing was published, and the same command goes on from the last checkpoint" if self.ranks.first else ""
            raise UserError(
                f"the memory ran out in the update of step {step.number}, which no rank can do again alone; lower train.micro_batch_tokens "
                f"or train.rank, take train.optimizer paged_adamw_8bit, or close other programs on the GPU{resumed}"
            ) from error

    def _seed(self, step: int) -> None:
        """Seeds a step's dropout: far apart for neighbouring steps and seeds (Knuth's multiplicative hash), another on every rank."""
        import torch

        torch.manual_seed((self.seed * 2654435761 + step * 40503) % STEP_SEEDS + self.ranks.rank * STEP_SEEDS)

    def loss_of(self, step: Step) -> float:
        """A step's loss as the model is now, with the step's own dropout; nothing is learnt."""
        self.ready("train", step.number)
        self._seed(step.number)
        return summed(self, self.shares(step, step.number), self.rows) / sum(self.rows[row].targets for row in step.rows)

    def ready(self, work: str, step: int) -> None:
        """Sets the model up for the training of a step, or for the validation after it."""
        self.model.train(work == "train")
        self.engine.neftune = self.settings.neftune_alpha if work == "train" else None
        level = self.room.level(work, step)
        if work == "train":
            self.engine.kept = level.kept
        if self.fused is not None:
            self.fused.offload, self.fused.mlp_tokens = level.offload, level.mlp_tokens or self.fused.mlp_tokens

    def micro_batches(self, planned: Step, number: int) -> list[MicroBatch]:
        """A step's micro-batches as they are computed at a step, those of the first rank first."""
        return [micro_batch for share in self.shares(planned, number) for micro_batch in share]

    def shares(self, planned: Step, number: int) -> list[list[MicroBatch]]:
        """Each rank's micro-batches of a step: as planned or dealt to the ranks, and cut where the memory ran out before."""
        ranks, limit = self.state.ranks_at(number), self.room.level("train", number).micro_batch_tokens
        planned_shares: list[Sequence[MicroBatch]] = [planned.micro_batches]
        if ranks > 1:
            dealt = deal(planned.rows, self.lengths, ranks)
            planned_shares = [fill(rows, self.lengths, self.micro_batch_tokens, self.batching, self.device) for rows in dealt]
        return [cut(share, self.lengths, limit, self.batching, self.device) for share in planned_shares]

    def validation_batches(self, step: int) -> list[MicroBatch]:
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
        self.gradients.clear()
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
        self.ready("validation", self.state.step)
        micro_batches = self.validation_batches(self.state.step)
        return summed(self, [micro_batches[place :: self._dealt] for place in range(self._dealt)], self.validation)

    def save(self) -> None:
        """Writes a checkpoint, unless nothing was done since the last."""
        if self.state.step == self._saved:
            return
        if not self.ranks.first:
            self._saved = self.state.step
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
        self.state.go_on_with(self._dealt)

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
        now, before = machine.reading(self.device, self._gpus), self._meters
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
