"""NEFTune's noise on the input embeddings (arXiv 2310.05914). In: a row, the embeddings it is for. Out: noise of their shape.

It is drawn from the step's seed and the row's id, so that it does not depend on what the row is computed with, nor on which rank.
"""

import math
import zlib
from typing import TYPE_CHECKING

STEP_SEEDS = 2**55  # a seed's remainder is the step's, its quotient the rank's

if TYPE_CHECKING:
    import torch

    from stages.core.batches import TokenRow


def step_seed() -> int:
    """The seed of the step that is computed, the same on every rank."""
    import torch

    return torch.initial_seed() % STEP_SEEDS


def noise(row: "TokenRow", alpha: float, embedded: "torch.Tensor") -> "torch.Tensor":
    """Uniform in ±alpha / sqrt(tokens of the row * hidden).

    Args:
        row: whose embeddings they are.
        alpha: NEFTune's.
        embedded: `[tokens of the row, hidden]`.

    Returns:
        `[tokens of the row, hidden]`, of the same type.
    """
    import torch

    generator = torch.Generator(embedded.device).manual_seed(step_seed() ^ zlib.crc32(row.id.encode()))
    drawn = torch.empty_like(embedded).uniform_(-1, 1, generator=generator)
    return drawn.mul_(alpha / math.sqrt(embedded.numel()))
