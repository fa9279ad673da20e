"""The plan of a training: which rows are in which micro-batch of which optimiser step. In: row lengths and params. Out: steps.

It is made before the first step, in plain Python, so that it can be tested, counted and resumed at any step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.batches import PASS_TOKENS, bucket, longest_first
from stages.core.packing import first_fit


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step.

    Attributes:
        number: counted from 1.
        micro_batches: row numbers, one tuple a forward pass.
    """

    number: int
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[int]:
        """The row numbers of all its micro-batches."""
        return [row for micro_batch in self.micro_batches for row in micro_batch]


def plan(
    lengths: Sequence[int],
    epochs: float,
    max_steps: int | None,
    effective_batch: int,
    micro_batch_tokens: int,
    batching: str,
    device: str,
    seed: int,
) -> list[Step]:
    """Deals the rows out to optimiser steps: a fresh shuffle every epoch, each row once an epoch.

    Args:
        lengths: tokens of each row.
        epochs: passes over the rows; of a broken one, the first steps.
        max_steps: the plan is cut there, or None.
        effective_batch: rows of a step; the last of an epoch may have fewer.
        micro_batch_tokens: tokens of one forward pass at most, padding included.
        batching: bucket | pack.
        device: cpu or cuda; which rows a step sees does not depend on it.
        seed: of the shuffles.

    Returns:
        The steps.
    """
    an_epoch = math.ceil(len(lengths) / effective_batch)
    total = math.ceil(round(epochs * an_epoch, 6))
    total = total if max_steps is None else min(total, max_steps)
    steps: list[Step] = []
    for epoch in range(math.ceil(total / an_epoch)):
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        for start in range(0, len(order), effective_batch):
            rows = order[start : start + effective_batch]
            steps.append(Step(len(steps) + 1, tuple(fill(rows, lengths, micro_batch_tokens, batching, device))))
    return steps[:total]


def deal(rows: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Rows for each rank, of about as many tokens: the longest first, each to the rank that has the fewest.

    Args:
        rows: row numbers.
        lengths: tokens of each row of the data.
        ranks: how many.

    Returns:
        Row numbers by rank; a rank may have none.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for row in longest_first(rows, lengths):
        least = tokens.index(min(tokens))
        dealt[least].append(row)
        tokens[least] += lengths[row]
    return dealt


def fill(rows: Sequence[int], lengths: Sequence[int], limit: int, batching: str, device: str) -> list[tuple[int, ...]]:
    """Micro-batches of some rows, by `bucket` or `pack`."""
    return pack(rows, lengths, limit) if batching == "pack" else bucket(rows, lengths, limit, PASS_TOKENS[device])


def computed_tokens(micro_batch: Sequence[int], lengths: Sequence[int], batching: str) -> int:
    """Tokens of one forward pass, padding included."""
    found = [lengths[row] for row in micro_batch]
    return sum(found) if batching == "pack" else len(found) * max(found)


def cut(
    micro_batches: Sequence[tuple[int, ...]], lengths: Sequence[int], limit: int | None, batching: str, device: str
) -> list[tuple[int, ...]]:
    """Deals the rows of micro-batches above a limit to smaller ones; the others stay as they are.

    Args:
        micro_batches: of row numbers.
        lengths: tokens of each row of the data.
        limit: computed tokens of one micro-batch, or None; a single row above it stays.
        batching: bucket | pack.
        device: cpu or cuda.

    Returns:
        The micro-batches.
    """
    if limit is None:
        return list(micro_batches)
    parts: list[tuple[int, ...]] = []
    for whole in micro_batches:
        parts += fill(whole, lengths, limit, batching, device) if computed_tokens(whole, lengths, batching) > limit else [whole]
    return parts


def pack(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Rows laid end to end, each in the first micro-batch with room (first fit, longest first).

    Args:
        rows: row numbers.
        lengths: tokens of each row of the data.
        limit: tokens of one micro-batch; a single row above it is a micro-batch of its own.

    Returns:
        Micro-batches of row numbers.
    """
    order = longest_first(rows, lengths)
    return [tuple(order[place] for place in places) for places in first_fit([lengths[row] for row in order], limit)]
