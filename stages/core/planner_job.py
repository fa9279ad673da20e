"""A whole training from its plan: hours, energy, disk, and reasons to hesitate. In: shape, Choice, params. Out: Job, warnings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.core import planner
from stages.core.params import Params, Train
from stages.core.planner import GIB, Choice
from stages.core.planner_cards import Card
from stages.core.planner_memory import BF16, FLOAT32, NF4
from stages.core.planner_shape import Shape

FEW_ROWS = 200
SMALL_CARD_BYTES = 16.5 * GIB  # a 16 GB card says a little less or more
SLOW_HOURS, TOO_LONG_HOURS = 24, 14 * 24
KEPT_CHECKPOINTS = 3  # two, and one more before the oldest goes
BYTES_OF_WEIGHT = {"merged": 2.0, "f16": 2.0, "q8_0": 34 / 32, "q4_k_m": 0.7}  # of the exported forms
EVALUATION_SHARE = 1 / 3  # of a training token's cost: the forward alone


@dataclass(frozen=True, slots=True)
class Job:
    """What a training takes.

    Attributes:
        steps: optimizer steps.
        tokens: trained on, each as often as it is seen.
        hours: of training and its evaluations, not of the rest of the pipeline.
        kilowatt_hours: of the card.
        checkpoint_bytes: all that lie there at once.
        adapter_bytes: the published adapter.
        base_bytes: of the base in the user-level cache, in bfloat16.
        export_bytes: of the forms in export.forms.
    """

    steps: int
    tokens: int
    hours: float
    kilowatt_hours: float
    checkpoint_bytes: int
    adapter_bytes: int
    base_bytes: int
    export_bytes: int

    @property
    def new_bytes(self) -> int:
        """What is written here: checkpoints, adapter and merged model, the last two once more in DVC's cache."""
        return self.checkpoint_bytes + 2 * (self.adapter_bytes + self.export_bytes)


def course(train: Train, lengths: Sequence[int]) -> tuple[int, int]:
    """Optimizer steps of a training, and the tokens it trains on, each as often as it is seen.

    Args:
        train: epochs, max_steps, effective_batch.
        lengths: tokens of each training row.

    Returns:
        Both.
    """
    an_epoch = math.ceil(len(lengths) / train.effective_batch)
    steps = min(math.ceil(round(train.epochs * an_epoch, 6)), train.max_steps or 10**12)
    return steps, round(sum(lengths) * steps / an_epoch)


def job(shape: Shape, choice: Choice, card: Card, params: Params, lengths: Sequence[int], validation: Sequence[int]) -> Job:
    """The training that params.yaml asks for, as planned.

    Args:
        shape: of the base.
        choice: the plan.
        card: that it runs on.
        params: train and export are read.
        lengths: tokens of each training row.
        validation: tokens of each validation row.

    Returns:
        Its time, energy and disk.
    """
    train = params.train
    steps, tokens = course(train, lengths)
    evaluations = 1 + math.ceil(steps / train.eval_every) if validation else 0
    seconds = (tokens + EVALUATION_SHARE * evaluations * sum(validation)) / choice.tokens_per_second
    adapter = shape.adapter_parameters(train.rank, train.target_modules) * FLOAT32
    copies = 3 + (train.early_stop is not None)  # the adapter and two moments, and the best adapter
    watts = card.watts * planner.constants()["power_share"]
    return Job(
        steps=steps,
        tokens=tokens,
        hours=seconds / 3600,
        kilowatt_hours=seconds / 3600 * watts / 1000,
        checkpoint_bytes=KEPT_CHECKPOINTS * copies * adapter,
        adapter_bytes=adapter,
        base_bytes=shape.parameters * BF16,
        export_bytes=round(shape.parameters * sum(BYTES_OF_WEIGHT[form] for form in params.export.forms)),
    )


def warnings(
    job: Job, shape: Shape, card: Card, params: Params, rows: int, free_bytes: int, free_cache_bytes: int, base_is_here: bool
) -> list[str]:
    """Why this training might disappoint, each with its reason and remedy.

    Args:
        job: the training.
        shape: of the base.
        card: that it runs on.
        params: of the pipeline.
        rows: to train on.
        free_bytes: of the disk here.
        free_cache_bytes: of the disk with the user-level cache.
        base_is_here: whether the base is in that cache already.

    Returns:
        A sentence each.
    """
    said = []
    if card.memory_bytes <= SMALL_CARD_BYTES:
        most = (card.memory_bytes - 5 * GIB) / (NF4 * 1e9)
        said.append(
            f"one card of {card.memory_bytes / GIB:.0f} GiB: bases above about {most:.0f}B parameters or long rows will not fit, "
            f"and a screen or another program on the card can end the run; for more, take a 24 GiB card"
        )
    if not card.known:
        said.append(f"{card.name} is not in the planner's table: speed, time and energy are those of a like card, and may be far off")
    if rows < FEW_ROWS:
        said.append(
            f"{rows} training rows, below {FEW_ROWS}: the model is likely to learn them by heart, and the test rows are too few to prove a "
            f"gain; collect more, or try prompting with examples first"
        )
    if params.evaluate.few_shot == 0 and params.evaluate.base_prompt.strip() == "{text}":
        said.append(
            "no prompting baseline: evaluate.few_shot is 0 and evaluate.base_prompt is the bare text, so a gain could be had by prompting "
            "alone and nobody would see it; set evaluate.few_shot: 5 and a prompt that names the task"
        )
    if job.new_bytes > free_bytes:
        said.append(
            f"no room on disk: checkpoints, adapter and exported forms take {job.new_bytes / GIB:.1f} GiB with DVC's copies, and "
            f"{free_bytes / GIB:.1f} GiB are free here; free some, or shorten export.forms"
        )
    if not base_is_here and job.base_bytes > free_cache_bytes:
        said.append(
            f"no room on disk: the base takes {job.base_bytes / GIB:.1f} GiB of the user-level cache, and {free_cache_bytes / GIB:.1f} GiB "
            f"are free there; free some, or set LUTHIER_CACHE to another disk"
        )
    if job.hours > SLOW_HOURS:
        said.append(
            f"{job.hours / 24:.1f} days of training: a power cut or a driver's update is to be expected in that time (a killed run goes on "
            f"from its last checkpoint); fewer epochs, shorter rows or a base of less than {shape.parameters / 1e9:.1f}B are the remedies"
        )
    return said


def should_not(job: Job) -> str | None:
    """Why the job should not be done on this machine although it fits, or None."""
    if job.hours > TOO_LONG_HOURS:
        return f"it would take {job.hours / 24:.0f} days; rent a larger card, train on a sample of the rows, or take a smaller base"
    return None
