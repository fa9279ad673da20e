"""Tokenised rows and the tensors of one forward pass over some of them. In: what tokenize wrote. Out: rows, micro-batches, a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.core.errors import UserError

if TYPE_CHECKING:
    import torch

# What a forward and backward pass costs beside its tokens, in tokens: reading the weights on a CPU, starting thousands of kernels on a GPU
# (docs/decisions/a-training-loop-of-our-own.md has the measurements).
PASS_TOKENS = {"cpu": 64, "cuda": 8192}
IGNORED = -100  # torch's cross_entropy leaves these targets out


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """A row as tokenize wrote it.

    Attributes:
        id: the row's id.
        input_ids: `[tokens] int64`.
        trained: `[tokens] bool`, the tokens to learn.
    """

    id: str
    input_ids: np.ndarray
    trained: np.ndarray

    @property
    def targets(self) -> int:
        """How many tokens are learnt: the first has nothing before it that could predict it."""
        return int(self.trained[1:].sum())


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one forward pass, on the CPU.

    Attributes:
        input_ids: `[rows, tokens] int64`; packed rows lie end to end in one row.
        position_ids: `[1, tokens] int64`, from 0 in every packed row, or None where rows are padded on the right.
        columns: `[kept] int64`, the columns in which any row has a target: logits of the others are not computed.
        targets: `[rows, kept] int64`, the next token, or -100.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor | None"
    columns: "torch.Tensor"
    targets: "torch.Tensor"


def read_tokens(path: Path) -> list[TokenRow]:
    """Reads what tokenize wrote.

    Args:
        path: a Parquet file of id, input_ids, trained.

    Returns:
        The rows.

    Raises:
        UserError: a row has no token to learn.
    """
    import pyarrow.parquet as pq

    rows = [
        TokenRow(record["id"], np.array(record["input_ids"], dtype=np.int64), np.array(record["trained"], dtype=bool))
        for record in pq.read_table(path).to_pylist()
    ]
    for row in rows:
        if not row.targets:
            raise UserError(f"{path}: row {row.id} has no token to learn, so no loss; tokenise again: dvc repro -f -s tokenize")
    return rows


def bucket(rows: Sequence[int], lengths: Sequence[int], limit: int, pass_tokens: int) -> list[tuple[int, ...]]:
    """Rows of like length together, so that rows times the longest stays within the limit and as little as possible is computed.

    The rows are sorted by length and cut where the sum of padded tokens, with pass_tokens for each pass, is least (dynamic
    programming over the cuts; taking as many rows as fit into each pass computes a third more on short rows of mixed length).

    Args:
        rows: row numbers.
        lengths: tokens of each row of the data.
        limit: tokens of one micro-batch, padding included; a single row above it is a micro-batch of its own.
        pass_tokens: what one more pass costs, in tokens.

    Returns:
        Micro-batches of row numbers, longest rows first.
    """
    order = longest_first(rows, lengths)
    least, begin = [0.0], [0]  # of the first n rows: the least cost, and where their last micro-batch begins
    for end in range(1, len(order) + 1):
        least.append(math.inf)
        begin.append(end)
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * lengths[order[start]]
            if tokens > limit and end - start > 1:
                break
            if least[start] + tokens + pass_tokens < least[end]:
                least[end], begin[end] = least[start] + tokens + pass_tokens, start
    filled: list[tuple[int, ...]] = []
    end = len(order)
    while end:
        filled.insert(0, tuple(order[begin[end] : end]))
        end = begin[end]
    return filled


def longest_first(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Row numbers by falling length; rows of one length stay in order."""
    return sorted(rows, key=lambda row: -lengths[row])


def collate(rows: Sequence[TokenRow], batching: str, pad: int) -> Batch:
    """The tensors of one micro-batch.

    Padding stands on the right and needs no attention mask: under causal attention no token sees what follows it. Packed rows need
    none either: transformers keeps them apart by the position ids, which start again at every row.

    Args:
        rows: the micro-batch.
        batching: bucket | pack.
        pad: the token to pad with; it is neither seen nor learnt.

    Returns:
        The batch.
    """
    import torch

    following = [np.append(np.where(row.trained[1:], row.input_ids[1:], IGNORED), IGNORED) for row in rows]
    if batching == "pack":
        input_ids = np.concatenate([row.input_ids for row in rows])[None]
        targets = np.concatenate(following)[None]
        position_ids = torch.from_numpy(np.concatenate([np.arange(len(row.input_ids)) for row in rows])[None])
    else:
        shape = (len(rows), max(len(row.input_ids) for row in rows))
        input_ids, targets = np.full(shape, pad), np.full(shape, IGNORED)
        for number, row in enumerate(rows):
            input_ids[number, : len(row.input_ids)] = row.input_ids
            targets[number, : len(row.input_ids)] = following[number]
        position_ids = None
    columns = np.flatnonzero((targets != IGNORED).any(0))
    return Batch(torch.from_numpy(input_ids), position_ids, torch.from_numpy(columns), torch.from_numpy(targets[:, columns]))


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor of the host on a device; a GPU gets it in the order of its work, without the host waiting for that."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
