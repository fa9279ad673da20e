"""The passes of one rank beside those of the others. In: every rank's micro-batches. Out: losses, or what found no memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.core.batches import TokenRow
from stages.train.room import OutOfRoom, watched

if TYPE_CHECKING:
    import torch

    from stages.train.sft import Training

MicroBatch = tuple[int, ...]


def passes(
    training: "Training", shares: Sequence[Sequence[MicroBatch]], rows: Sequence[TokenRow], of: float
) -> "tuple[list[torch.Tensor], int | None]":
    """The forward passes of this rank's micro-batches, each with its backward where gradients are on.

    Args:
        training: whose model computes them.
        shares: every rank's micro-batches.
        rows: that they number.
        of: what each summed loss is divided by.

    Returns:
        Their losses, and the number of the micro-batch that found no memory, after which nothing more was computed, or None.
    """
    import torch

    losses: list[torch.Tensor] = []
    failed: int | None = None
    own = shares[training.place]
    for number in range(len(own) if training.shards is None else max(map(len, shares))):
        training.stop.check()
        if training.shards is not None:
            training.shards.begin()
        if failed is None and number < len(own):
            try:
                with watched(own[number]):
                    loss = training.engine.summed_loss([rows[row] for row in own[number]], slices=training.slices) / of
                    if torch.is_grad_enabled():
                        loss.backward()
                losses.append(loss.detach())
                continue
            except OutOfRoom:
                failed = number
        if training.slices is not None:  # this rank has no memory: the others exchange with what is none of its tokens
            if number != failed:
                training.slices.lay([len(rows[row].input_ids) for row in own[number]], training.batching == "pack")
            training.slices.finish(training.engine.kept, torch.is_grad_enabled())
            continue
        if training.shards is None:
            break
        training.plain.now.rows = ()  # what may be computed in their stead has no row
        training.shards.finish(torch.is_grad_enabled())  # this rank has no pass, or no more: the others gather with its part
    return losses, failed


def summed(training: "Training", shares: Sequence[Sequence[MicroBatch]], rows: Sequence[TokenRow]) -> float:
    """The loss of all ranks' micro-batches together, to the bit the same whoever computed them."""
    import torch

    place = training.place
    with torch.no_grad():
        found, failed = passes(training, shares, rows, 1.0)
    agreed = training.ranks.first_of(None if failed is None else shares[place][failed])
    if agreed is not None:
        raise OutOfRoom(agreed)
    losses = torch.zeros(len(shares) * max(map(len, shares)), dtype=torch.float64, device=training.model.device)
    if found:
        losses[place :: len(shares)][: len(found)] = torch.stack(found).double()
    return float(sum(training.ranks.summed(losses).tolist()))
