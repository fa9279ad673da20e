"""LoRA's dropout, drawn by the step, the row and the layer: the same whatever a row is computed with, on whichever rank, and again.

In: the rows that a pass computes. Out: PEFT's dropout layers, which draw from that.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.core.batches import TokenRow
from stages.train.neftune import step_seed

if TYPE_CHECKING:
    from peft import PeftModel

    from stages.train.slices import Slices


@dataclass
class Pass:
    """The rows of the pass that is computed, or none.

    Attributes:
        rows: in the order of the batch.
        packed: whether they lie end to end; else each stands in a line, padded to the longest.
        columns: of this rank's part of the batch that have logits, for a layer behind their choice.
        slices: where the ranks have a slice of the tokens each, or None.
    """

    rows: Sequence[TokenRow] = ()
    packed: bool = False
    columns: torch.Tensor | None = None
    slices: "Slices | None" = None

    def places(self) -> list[tuple[int, int, int]]:
        """Line, first column and tokens of each row."""
        lengths = [len(row.input_ids) for row in self.rows]
        if self.packed:
            return [(0, start, length) for start, length in zip(np.cumsum([0, *lengths[:-1]]).tolist(), lengths, strict=True)]
        return [(line, 0, length) for line, length in enumerate(lengths)]


class RowDropout(torch.nn.Dropout):
    """Dropout of a LoRA's input."""

    def __init__(self, share: float, name: str, now: Pass) -> None:
        """Keeps what its draw follows from.

        Args:
            share: of the inputs that are set to zero.
            name: of the layer.
            now: the pass that is computed; changed from pass to pass.
        """
        super().__init__(share)
        self._name, self._now = name, now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input with a share of it at zero and the rest scaled up; padding goes to zero.

        Args:
            x: `[lines, columns, features]`, or with lines and columns as one.

        Returns:
            Of the same shape.
        """
        if not self.training or not self._now.rows:
            return x
        places = self._now.places()
        columns = max(start + length for _, start, length in places)
        kept = torch.zeros(places[-1][0] + 1, columns, x.shape[-1], dtype=torch.bool, device=x.device)
        generator = torch.Generator(x.device)
        for row, (line, start, length) in zip(self._now.rows, places, strict=True):
            generator.manual_seed(step_seed() ^ zlib.crc32(f"{row.id} {self._name}".encode()))
            kept[line, start : start + length].bernoulli_(1 - self.p, generator=generator)
        if self._now.slices is not None:
            kept = self._now.slices.own(kept, 1)
        if kept.numel() != x.numel() and self._now.columns is not None:
            kept = kept[:, self._now.columns.to(x.device)]
        return x * kept.view_as(x) / (1 - self.p)


def by_row(model: "PeftModel", now: Pass) -> None:
    """Has every dropout of a model's LoRA layers drawn by the row.

    Args:
        model: changed in place; without dropout it stays as it is.
        now: the pass that is computed.
    """
    for name, module in list(model.named_modules()):
        drops: Any = getattr(module, "lora_dropout", {})
        for adapter, drop in drops.items():
            if isinstance(drop, torch.nn.Dropout):
                drops[adapter] = RowDropout(drop.p, name, now).train(drop.training)
