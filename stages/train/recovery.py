"""What a training does when a rule speaks: tells it, stops, or leaves a step out. In: a Training. Out: its state changed, or a UserError.

A step is left out before its update is made, so there is nothing to undo, unless the update before it is at fault: then the run goes back
to the newest checkpoint before that one.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.errors import UserError
from stages.core.files import remove
from stages.train import checkpoints, watch
from stages.train.batches import Step
from stages.train.watch import Event

if TYPE_CHECKING:
    from stages.train.sft import Training


def approved(training: "Training", step: Step, micro_batches: Sequence[Sequence[int]], losses: Sequence[float], norm: float) -> bool:
    """Whether a step's update may be made, now that its loss and gradient are known.

    Where not, the step or the one before it was left out and the training is where it goes on; where a rule says stop, that is a UserError.

    Args:
        training: before the update.
        step: the step.
        micro_batches: as they were computed.
        losses: the share of each in the step's loss.
        norm: of the gradient.

    Returns:
        Whether it may.
    """
    event = _fault(training, step, micro_batches, losses, norm)
    if event is None:
        return True
    if event.action != "roll_back":
        hear(training, event)
        return True
    at_fault, folder = step, None
    if event.rule == "spike" and (before := _trained_before(training)) is not None and _raised_by(training, before):
        folder = training.ranks.agreed(_checkpoint_before(training, before) if training.ranks.first else None)
        at_fault = step if folder is None else before
    if len(training.state.left_out) >= watch.ROLL_BACKS:
        message = f"{event.message}; {watch.ROLL_BACKS} steps were left out already, and more is no matter of a few rows"
        hear(training, replace(event, action="stop", message=message))
    why = "" if at_fault is step else ", whose update raised its own rows' loss,"
    hear(training, replace(event, message=f"{event.message}; step {at_fault.number}{why} is left out"))
    training.state.left_out.append(at_fault.number)
    if folder is None:
        training.state.step = step.number
        return False
    if training.ranks.first:
        for later in training.root.glob("step-????????"):
            if later > folder:
                remove(later)
    training.go_back(folder)
    return False


def _fault(training: "Training", step: Step, micro_batches: Sequence[Sequence[int]], losses: Sequence[float], norm: float) -> Event | None:
    """What the rules on loss and gradient say before the update."""
    rules = training.watch
    for loss, rows in zip(losses, micro_batches, strict=True):
        if not math.isfinite(loss):
            return rules.non_finite(step.number, "loss", loss, _ids(training, rows))
    if not math.isfinite(norm):
        return rules.non_finite(step.number, "gradient", norm, _ids(training, step.rows))
    event = rules.spike(
        [point["loss"] for point in training.state.train[-watch.SPIKE_WINDOW :]], step.number, sum(losses), _ids(training, step.rows)
    )
    if event is not None and event.action == "warn" and watch.silent("spike", step.number, training.state.events):
        return None
    return event


def _trained_before(training: "Training") -> Step | None:
    """The last step whose update was made."""
    return training.plan[int(training.state.train[-1]["step"]) - 1] if training.state.train else None


def _raised_by(training: "Training", before: Step) -> bool:
    """Whether the loss of a step's own rows stands far up now that its update is made."""
    earlier = [point["loss"] for point in training.state.train[:-1]]
    return training.watch.spike(earlier, before.number, training.loss_of(before), []) is not None


def _checkpoint_before(training: "Training", step: Step) -> Path | None:
    """The newest whole checkpoint without a step's update."""
    place = checkpoints.place(training.root, step.number)
    older = sorted((folder for folder in training.root.glob("step-????????") if folder < place), reverse=True)
    return next((folder for folder in older if checkpoints.fault(folder) is None), None)


def _ids(training: "Training", rows: Sequence[int]) -> list[str]:
    return [training.rows[row].id for row in rows]


def hear(training: "Training", event: Event) -> None:
    """Writes an event down and says it.

    Args:
        training: where it is.
        event: what a rule found.

    Raises:
        UserError: the rule says stop; of the rules of runtime.watch the work so far is in a checkpoint.
    """
    training.state.events.append(asdict(event))
    said = f"step {event.step}: {event.message}"
    if event.action != "stop":
        sys.stderr.write(f"train: {said}\n")
        return
    if event.rule in ("non_finite", "spike"):
        raise UserError(f"{said}; nothing was published")
    training.save()
    raise UserError(f"{said}; nothing was published (runtime.watch.{event.rule} is stop), the same command goes on after step {event.step}")
