"""The rules that watch a training: pure functions over its series. In: the course so far, the machine's conditions. Out: Events.

A rule looks only at what the state holds, so that a run that went on after a cut decides as one that was not cut off. docs/watching.md
lists the rules.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.core.params_model import RunWatch, TrainWatch

Point = Mapping[str, float | None]
Conditions = Mapping[str, float]  # the mean of each sensor over some time, by the names of stages/train/telemetry.py

ROLL_BACKS = 3  # a run that needs more has another fault than a few rows
QUIET_STEPS = 100  # a rule that spoke is silent for so long

SPIKE_WINDOW = 50
SPIKE_LEAST = 20  # losses from which median and MAD can be told
NORMAL_MAD = 1.4826  # makes the MAD of a normal distribution its standard deviation (Rousseeuw and Croux 1993)
LEAST_SCALE = 0.05  # nats: below, the scatter of a learnt task would make every harder batch a spike

CLIPPED_STEPS, CLIPPED_SHARE = 100, 0.95
SLOW_STEPS, SPEED_LEAST = 10, 30
SPEED_SAMPLE = 500  # steps from which the median speed of a long run is taken
GROWTH_WINDOW, GROWTH_WINDOWS, WARM_UP = 25, 4, 20
GROWTH_SHARE, GROWTH_BYTES = 0.05, 64 * 2**20
RISES, RISE_SHARE = 3, 0.01

THROTTLES = {"throttled_power": "the power limit", "throttled_heat": "heat", "throttled_hardware": "a hardware slowdown"}
IDLE = 0.75  # of its usual share of work
OTHERS_BYTES = 512 * 2**20  # less may be this process's own libraries'


@dataclass(frozen=True)
class Event:
    """What a rule found.

    Attributes:
        step: the optimiser step.
        rule: its name in params.yaml.
        action: warn | stop | roll_back.
        message: what, in which numbers, and what to do.
    """

    step: int
    rule: str
    action: str
    message: str


@dataclass(frozen=True)
class Watch:
    """The rules with their actions.

    Attributes:
        train: params.yaml's train.watch.
        runtime: params.yaml's runtime.watch.
        max_grad_norm: params.yaml's train.max_grad_norm.
    """

    train: "TrainWatch"
    runtime: "RunWatch"
    max_grad_norm: float

    def non_finite(self, step: int, what: str, value: float, rows: Sequence[str]) -> Event:
        """The event of a loss or gradient that is no number.

        Args:
            step: the step.
            what: loss | gradient.
            value: what it is.
            rows: ids of the rows it was computed on.

        Returns:
            The event.
        """
        remedy = "look at these rows (luthier show), or lower train.learning_rate"
        return Event(step, "non_finite", self.train.non_finite, f"the {what} is {value} on the rows {', '.join(rows)}; {remedy}")

    def spike(self, losses: Sequence[float], step: int, loss: float, rows: Sequence[str]) -> Event | None:
        """Whether a step's loss, known before its update, stands far above the losses before it.

        Args:
            losses: of the steps before, in nats a target.
            step: the step.
            loss: its loss.
            rows: ids of its rows.

        Returns:
            The event, or None.
        """
        score = robust_score(losses[-SPIKE_WINDOW:], loss)
        if score is None or score < self.train.spike_score:
            return None
        usual = statistics.median(losses[-SPIKE_WINDOW:])
        message = (
            f"the loss jumped to {loss:.3g} from a median of {usual:.3g} ({score:.1f} robust standard deviations) on the rows "
            f"{', '.join(rows)}; look at these rows (luthier show), or lower train.learning_rate"
        )
        return Event(step, "spike", self.train.spike, message)

    def after_step(
        self,
        train: Sequence[Point],
        speed: Sequence[Point],
        events: Sequence[Mapping[str, object]],
        conditions: Callable[[], tuple[Conditions, Conditions]],
    ) -> list[Event]:
        """What the rules on gradient norm, throughput, memory and plateau find after a step.

        Args:
            train: step, loss, grad_norm of each step.
            speed: step, tokens_per_second, allocated_bytes of each step.
            events: those of the run so far.
            conditions: gives the machine's conditions of the last steps and those of the whole run.

        Returns:
            The events.
        """
        step = int(train[-1]["step"] or 0)
        found = [
            ("gradient_norm", self.runtime.gradient_norm, lambda: clipped_for_long(train, self.max_grad_norm)),
            ("throughput", self.runtime.throughput, lambda: slower(speed, self.runtime.throughput_drop, conditions)),
            ("memory_growth", self.runtime.memory_growth, lambda: growing(speed)),
            ("plateau", self.runtime.plateau, lambda: flat(train, self.runtime.plateau_steps)),
        ]
        heard = [(rule, action, told()) for rule, action, told in found if not silent(rule, step, events)]
        return [Event(step, rule, action, message) for rule, action, message in heard if message is not None]

    def after_validation(self, validation: Sequence[Point], events: Sequence[Mapping[str, object]]) -> Event | None:
        """Whether the validation loss has risen several times in a row.

        Args:
            validation: step and loss of each evaluation.
            events: those of the run so far.

        Returns:
            The event, or None.
        """
        step = int(validation[-1]["step"] or 0)
        message = None if silent("validation_rising", step, events) else rising(validation)
        return None if message is None else Event(step, "validation_rising", self.runtime.validation_rising, message)


def silent(rule: str, step: int, events: Sequence[Mapping[str, object]]) -> bool:
    """Whether a rule spoke so recently that it has nothing new to say."""
    return any(event["rule"] == rule and step - QUIET_STEPS < int(str(event["step"])) <= step for event in reversed(events))


def robust_score(values: Sequence[float], value: float) -> float | None:
    """How many robust standard deviations (by the median absolute deviation) a value is above the median; None for too few values."""
    if len(values) < SPIKE_LEAST:
        return None
    median = statistics.median(values)
    deviation = statistics.median(abs(each - median) for each in values)
    return (value - median) / max(NORMAL_MAD * deviation, LEAST_SCALE)


def clipped_for_long(train: Sequence[Point], limit: float) -> str | None:
    """Tells a gradient norm that was above the clip in nearly all of the last steps."""
    norms = _column(train[-CLIPPED_STEPS:], "grad_norm")
    above = sum(norm > limit for norm in norms)
    if len(norms) < CLIPPED_STEPS or above < CLIPPED_SHARE * len(norms):
        return None
    return (
        f"the gradient norm was above train.max_grad_norm ({limit:g}) in {above} of the last {len(norms)} steps (median "
        f"{statistics.median(norms):.3g}); clipping shapes every step: raise train.max_grad_norm or lower train.learning_rate"
    )


def slower(speed: Sequence[Point], drop: float, conditions: Callable[[], tuple[Conditions, Conditions]]) -> str | None:
    """Tells a throughput of the last steps below the run's own median, and why.

    Args:
        speed: tokens_per_second of each step.
        drop: the share of the median that must be lost.
        conditions: gives the machine's conditions of the last steps and those of the whole run.

    Returns:
        The sentence, or None.
    """
    if len(speed) < SPEED_LEAST:
        return None
    recent = statistics.median(_column(speed[-SLOW_STEPS:], "tokens_per_second"))
    median = statistics.median(_column(speed[:: -(-len(speed) // SPEED_SAMPLE)], "tokens_per_second"))
    if recent >= (1 - drop) * median:
        return None
    now, usual = conditions()
    unknown = "no cause was seen: no throttling, no other process, no waiting" if now else "the cause is unknown, since no sensor was read"
    found = "; ".join(causes(now, usual)) or f"{unknown}; look at the machine (luthier doctor)"
    return f"the last {SLOW_STEPS} steps made {recent:,.0f} tokens a second, the run's median is {median:,.0f}; {found}"


def causes(now: Conditions, usual: Conditions) -> list[str]:
    """What differs between the last steps and the whole run that slows a training, each with what to do.

    Args:
        now: the conditions of the last steps.
        usual: those of the whole run.

    Returns:
        Sentences, the likeliest cause first.
    """
    told = []
    for name, reason in THROTTLES.items():
        if now.get(name, 0) >= 0.5 and now[name] >= usual.get(name, 0) + 0.25:
            told.append(
                f"the device's clock was held down by {reason} for {now[name]:.0%} of that time: look at its cooling and power limit"
            )
    for name, device in (("sm_mhz", "the GPU's"), ("cpu_mhz", "the processor's")):
        if not told and name in now and name in usual and now[name] < 0.85 * usual[name]:
            told.append(f"{device} clock fell to {now[name]:,.0f} from {usual[name]:,.0f} MHz: look at its cooling and power limit")
    grown = now.get("others_bytes", 0) - usual.get("others_bytes", 0)
    if grown >= OTHERS_BYTES:
        told.append(f"another process took {grown / 2**30:.1f} GiB of the GPU's memory: stop it, or wait for it")
    more = now.get("others_cores", 0) - usual.get("others_cores", 0)
    if more >= max(0.5, 0.1 * now.get("cores", 0)):
        told.append(f"other processes use {now['others_cores']:.1f} cores, {more:.1f} more than before: stop them, or wait for them")
    starved = "it waited for the host (rows, disk, swap): look at its memory, raise micro_batch_tokens"
    if not told and now.get("busy", 1.0) < IDLE * usual.get("busy", 0.0):
        told.append(f"the GPU was at work in {now['busy']:.0%} of that time, in {usual['busy']:.0%} before; {starved}")
    elif not told and now.get("own_cores", math.inf) < IDLE * usual.get("own_cores", 0.0):
        told.append(f"this process had {now['own_cores']:.2g} cores at work, {usual['own_cores']:.2g} before; {starved}")
    return told


def growing(speed: Sequence[Point]) -> str | None:
    """Tells memory whose low-water mark rose from window to window, as a leak's does."""
    held = _column(speed[WARM_UP:][-GROWTH_WINDOW * GROWTH_WINDOWS :], "allocated_bytes")
    if len(held) < GROWTH_WINDOW * GROWTH_WINDOWS:
        return None
    lows = [min(held[start : start + GROWTH_WINDOW]) for start in range(0, len(held), GROWTH_WINDOW)]
    grown = lows[-1] - lows[0]
    if any(later <= earlier for earlier, later in pairwise(lows)) or grown < max(GROWTH_BYTES, GROWTH_SHARE * lows[0]):
        return None
    return (
        f"memory held between steps grew from {lows[0] / 2**30:.2f} to {lows[-1] / 2**30:.2f} GiB in {len(held)} steps; "
        f"something keeps it: stop (Ctrl-C keeps the work) and start again, which goes on where it was"
    )


def flat(train: Sequence[Point], window: int) -> str | None:
    """Tells a mean loss of the last steps that is not below that of as many steps before by more than its standard error."""
    losses = _column(train[-2 * window :], "loss")
    if len(losses) < 2 * window:
        return None
    before, last = losses[:window], losses[window:]
    mean_before, mean_last = statistics.fmean(before), statistics.fmean(last)
    squares = sum((loss - mean_before) ** 2 for loss in before) + sum((loss - mean_last) ** 2 for loss in last)
    error = squares**0.5 / window  # of the difference of the two means
    if mean_before - mean_last > error:
        return None
    return (
        f"the mean loss of the last {window} steps is {mean_last:.4g}, of the {window} before {mean_before:.4g}: no progress beyond the "
        f"noise ({error:.2g}); fewer train.epochs may do, or another train.learning_rate"
    )


def rising(validation: Sequence[Point]) -> str | None:
    """Tells a validation loss that rose at each of the last evaluations."""
    losses = _column(validation[-RISES - 1 :], "loss")
    if len(losses) <= RISES or any(later <= earlier for earlier, later in pairwise(losses)):
        return None
    if losses[-1] < (1 + RISE_SHARE) * losses[0]:
        return None
    return (
        f"the validation loss rose {RISES} times in a row, from {losses[0]:.4g} to {losses[-1]:.4g}; the run learns its rows by heart: "
        f"set train.early_stop, which publishes the best adapter, or lower train.epochs"
    )


def _column(points: Sequence[Point], name: str) -> list[float]:
    """The values of a column that were measured."""
    return [value for point in points if (value := point.get(name)) is not None]
