"""A dry run on the worst real micro-batches before the first step, so that memory runs out now or never. In: a Training. Out: its peak.

The training's state is afterwards as it was: the adapter and the optimizer's state are put back from copies, bit by bit.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stages.core.batches import TokenRow
from stages.train import adapter, machine
from stages.train.batches import computed_tokens
from stages.train.optimizer import optimizer_state, restore_optimizer
from stages.train.passes import MicroBatch, passes
from stages.train.room import OutOfRoom, free_cache, watched

if TYPE_CHECKING:
    from stages.train.sft import Training


def worst(micro_batches: Sequence[MicroBatch], rows: Sequence[TokenRow], batching: str) -> list[MicroBatch]:
    """The micro-batches with the most computed tokens, the largest attention matrices and the most logits, each once.

    Args:
        micro_batches: of row numbers.
        rows: the rows.
        batching: bucket | pack.

    Returns:
        Up to three.
    """
    lengths = [len(row.input_ids) for row in rows]
    firsts = [int(row.trained[1:].argmax()) for row in rows]  # the first column with a target

    def squares(micro_batch: MicroBatch) -> int:
        found = [lengths[row] ** 2 for row in micro_batch]
        return sum(found) if batching == "pack" else len(found) * max(found)

    def logits(micro_batch: MicroBatch) -> int:
        if batching == "pack":
            return sum(rows[row].targets for row in micro_batch)
        # of padded rows every row has the columns in which any has a target
        return len(micro_batch) * (max(lengths[row] for row in micro_batch) - min(firsts[row] for row in micro_batch))

    measures = (lambda micro_batch: computed_tokens(micro_batch, lengths, batching), squares, logits)
    return list(dict.fromkeys(max(micro_batches, key=measure) for measure in measures))


def rehearse(training: "Training") -> None:
    """Trains on the worst micro-batches and validates on the worst, with less at once until it fits, and puts everything back.

    Where not even the least fits, that is a UserError.

    Args:
        training: before its first step, or where it goes on; its state's dry_run_peak_bytes is set.
    """
    saved = adapter.copied(training.parameters)
    tensors, numbers = optimizer_state(training.optimizer)
    tensors = adapter.copied(tensors)
    machine.reset_peak(training.device)
    while True:
        try:
            tried = _attempt(training)
            break
        except OutOfRoom as error:
            work, failed = ("train" if training.model.training else "validation"), error.rows
        training.make_room(work, training.state.step + (work == "train"), failed)
    peak = machine.peak_memory(training.device)
    seen = peak["host_bytes"] if peak["gpu_bytes"] is None else peak["gpu_bytes"]
    training.gradients.clear()
    adapter.restore(training.model, saved)
    restore_optimizer(training.optimizer, tensors, numbers)
    free = machine.free_bytes(training.device)
    free_cache(training.device)
    machine.reset_peak(training.device)
    training.state.dry_run_peak_bytes = max(*training.ranks.gathered(seen), training.state.dry_run_peak_bytes or 0)
    sys.stderr.write(f"train: the dry run on {tried} took {seen / 2**30:.2f} GiB at most and left {free / 2**30:.2f} GiB free\n")


def _attempt(training: "Training") -> str:
    """One pass over what is worst, as the training is to compute it now; in words, what that was."""
    import torch

    step = training.state.step + 1
    batches = [micro_batch for planned in training.plan for micro_batch in training.micro_batches(planned, step)]
    chosen = worst(batches, training.rows, training.batching)
    training.ready("train", step)
    training.gradients.clear()

    def make_moments() -> None:  # which stay from the first step on
        for parameter in training.parameters.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        training.optimizer.step()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(training.parameters.values(), training.settings.max_grad_norm)
        training.optimizer.step()

    _together(training, chosen[0], make_moments)
    _passed(training, chosen, training.rows)
    _together(training, chosen[0], update)
    tokens = max(computed_tokens(micro_batch, training.lengths, training.batching) for micro_batch in chosen)
    words = f"the {len(chosen)} worst of {len(batches)} micro-batches (up to {tokens:,} tokens)"
    if training.validation:
        training.ready("validation", training.state.step)
        largest = worst(training.validation_batches(training.state.step), training.validation, training.batching)[0]
        with torch.no_grad():
            _passed(training, [largest], training.validation)
        words += " and the worst of the validation"
    return words


def _passed(training: "Training", micro_batches: Sequence[MicroBatch], rows: Sequence[TokenRow]) -> None:
    """The same passes on every rank, so that each finds out whether they fit it."""
    _, failed = passes(training, [micro_batches] * training.ranks.count, rows, 1.0)
    _agree(training, None if failed is None else micro_batches[failed])


def _together(training: "Training", largest: MicroBatch, work: Callable[[], None]) -> None:
    """Something without a pass of its own; where it finds no memory, a smaller pass may help."""
    failed = None
    try:
        with watched(largest):
            work()
    except OutOfRoom as error:
        failed = tuple(error.rows)
    _agree(training, failed)


def _agree(training: "Training", failed: MicroBatch | None) -> None:
    """Raises OutOfRoom on every rank where one found no memory."""
    agreed = training.ranks.first_of(failed)
    if agreed is not None:
        raise OutOfRoom(agreed)
