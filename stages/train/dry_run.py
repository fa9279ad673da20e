"""A dry run on the worst real micro-batches before the first step, so that memory runs out now or never. In: a Training. Out: its peak.

The training's state is afterwards as it was: the adapter and the optimizer's state are put back from copies, bit by bit.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.core.batches import TokenRow
from stages.train import adapter, machine
from stages.train.batches import computed_tokens
from stages.train.optimizer import optimizer_state, restore_optimizer
from stages.train.room import OutOfRoom, free_cache, watched

if TYPE_CHECKING:
    from stages.train.sft import Training

MicroBatch = tuple[int, ...]


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
    training.optimizer.zero_grad(set_to_none=True)
    adapter.restore(training.model, saved)
    restore_optimizer(training.optimizer, tensors, numbers)
    free = machine.free_bytes(training.device)
    free_cache(training.device)
    machine.reset_peak(training.device)
    training.state.dry_run_peak_bytes = max(seen, training.state.dry_run_peak_bytes or 0)
    sys.stderr.write(f"train: the dry run on {tried} took {seen / 2**30:.2f} GiB at most and left {free / 2**30:.2f} GiB free\n")


def _attempt(training: "Training") -> str:
    """One pass over what is worst, as the training is to compute it now; in words, what that was."""
    import torch

    step = training.state.step + 1
    batches = [micro_batch for planned in training.plan for micro_batch in training.micro_batches(planned, step)]
    chosen = worst(batches, training.rows, training.batching)
    training.ready("train", step)
    with watched(chosen[0]):
        for parameter in training.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()  # makes the moments, which stay from the first step on
    for micro_batch in chosen:
        training.stop.check()
        with watched(micro_batch):
            training.engine.summed_loss([training.rows[row] for row in micro_batch]).backward()
    with watched(chosen[0]):
        torch.nn.utils.clip_grad_norm_(training.parameters.values(), training.settings.max_grad_norm)
        training.optimizer.step()
    tokens = max(computed_tokens(micro_batch, training.lengths, training.batching) for micro_batch in chosen)
    words = f"the {len(chosen)} worst of {len(batches)} micro-batches (up to {tokens:,} tokens)"
    if training.validation:
        training.ready("validation", training.state.step)
        largest = worst(training.validation_batches(training.state.step), training.validation, training.batching)[0]
        with watched(largest), torch.no_grad():
            training.engine.summed_loss([training.validation[row] for row in largest]).item()
        words += " and the worst of the validation"
    return words
