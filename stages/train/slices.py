"""Sequence parallelism: a rank has a slice of each micro-batch's tokens, and for attention all tokens of its part of the heads.

In: ranks, the lengths of a micro-batch's rows. Out: this rank's slices, and tensors exchanged (DeepSpeed-Ulysses, arXiv 2309.14509,
section 3). Everything but attention looks at one token alone, so nothing else has to know (docs/decisions/sequences-split-by-heads.md).
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from stages.core.batches import Batch
from stages.core.errors import UserError
from stages.core.planner_parallel import why_not_sliced
from stages.core.planner_shape import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.train.ranks import Ranks

ATTENTION = "luthier_slices"  # the name under which transformers' layers find `attend`


class Slices:
    """The tokens of a micro-batch, of which each rank has an equal slice.

    Attributes:
        layers: decoder layers that a pass has.
        lengths: tokens of each row that lies end to end, the padding as one more row; None where rows lie beside each other.
    """

    layers: int
    lengths: tuple[int, ...] | None

    def __init__(self, ranks: "Ranks", model: "PreTrainedModel", dtype: torch.dtype, longest: int) -> None:
        """Has a base's attention exchange heads for tokens wherever it is given slices.

        Args:
            ranks: that have a slice each.
            model: the base, without an adapter.
            dtype: of its activations.
            longest: tokens of the longest row.

        Raises:
            UserError: the heads cannot be dealt to so many ranks, or the base's attention is not such as can be split.
        """
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        config = model.config.to_dict()
        why = why_not_sliced(config, ranks.count, longest)
        if why is not None:
            raise UserError(f"train.parallel is sequence, but {why}; take ddp or fsdp")
        shape = shape_of(config)
        self._ranks, self._dtype, self._device = ranks, dtype, model.device
        self.layers, self._heads, self._head_dim = shape.layers, shape.heads, shape.q // shape.heads
        kv_heads = shape.kv // self._head_dim
        self._copies = max(1, ranks.count // kv_heads)  # of keys and values, where there are more ranks than heads of theirs
        self._kv_heads = kv_heads * self._copies
        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
        self.lay([1], True)

    def lay(self, lengths: Sequence[int], packed: bool) -> None:
        """A pass over a micro-batch begins.

        Args:
            lengths: tokens of each of its rows.
            packed: whether they lie end to end, or beside each other, padded to the longest.
        """
        tokens = sum(lengths) if packed else max(lengths)
        padding = -tokens % self._ranks.count
        self.lengths = (*lengths, *[padding] * bool(padding)) if packed else None
        self._tokens = (tokens + padding) // self._ranks.count
        self._width = self._head_dim * (1 if packed else len(lengths))
        self._exchanges = 0

    def own(self, whole: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This rank's slice of what there is of every token; of tokens that pad the last slice, zeros."""
        tokens = whole.shape[dim]
        start, end = (min(tokens, self._tokens * rank) for rank in (self._ranks.rank, self._ranks.rank + 1))
        part = whole.narrow(dim, start, end - start)
        if end - start == self._tokens:
            return part.clone()
        shape = [*part.shape[:dim], self._tokens - (end - start), *part.shape[dim + 1 :]]
        return torch.cat([part, part.new_zeros(shape)], dim)

    def part(self, batch: Batch) -> Batch:
        """What of a batch lies in this rank's slice; its targets were shifted before."""
        tokens = batch.input_ids.shape[1]
        positions = torch.arange(tokens)[None] if batch.position_ids is None else batch.position_ids
        start = self._tokens * self._ranks.rank
        mine = (batch.columns >= start) & (batch.columns < start + self._tokens)
        return Batch(self.own(batch.input_ids, 1), self.own(positions, 1), batch.columns[mine] - start, batch.targets[:, mine])

    def repeated(self, kv: torch.Tensor) -> torch.Tensor:
        """Keys or values `[tokens, kv_heads, width]`, each head as often as ranks need it."""
        return kv if self._copies == 1 else kv.repeat_interleave(self._copies, 1)

    def summed(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of `repeated`'s argument."""
        return grad if self._copies == 1 else grad.unflatten(1, (-1, self._copies)).sum(2)

    def to_heads(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """This rank's part of the heads, of all tokens.

        Args:
            *tensors: `[tokens of a slice, heads, width]`, of one width; each has heads for every rank.

        Returns:
            As many, `[all tokens, heads / ranks, width]`.
        """
        count = self._ranks.count
        parts = [tensor.shape[1] // count for tensor in tensors]
        sent = tensors[0].new_empty(count, len(tensors[0]), sum(parts), tensors[0].shape[2])
        for tensor, place in zip(tensors, sent.split(parts, 2), strict=True):
            place.copy_(tensor.unflatten(1, (count, -1)).transpose(0, 1))
        return self._exchanged(sent).flatten(0, 1).split(parts, 1)

    def to_tokens(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The inverse of `to_heads`: all heads of this rank's tokens.

        Args:
            tensors: `[all tokens, heads / ranks, width]`; the list is emptied, so that their memory is free while they travel.

        Returns:
            As many, `[tokens of a slice, heads, width]`.
        """
        parts = [tensor.shape[1] for tensor in tensors]
        sent = torch.cat(tensors, 1) if len(tensors) > 1 else tensors[0].contiguous()
        tensors.clear()
        got = self._exchanged(sent.unflatten(0, (self._ranks.count, -1)))
        del sent
        return tuple(piece.transpose(0, 1).flatten(1, 2) for piece in got.split(parts, 2))

    def _exchanged(self, sent: torch.Tensor) -> torch.Tensor:
        """What each rank has sent to this one, `[ranks, tokens of a slice, heads of a rank, width]`."""
        got = torch.empty_like(sent)
        self._exchanges += 1
        dist.all_to_all_single(got, sent)
        return got

    def finish(self, kept: int, backward: bool) -> None:
        """Takes part, with zeros, in what the other ranks exchange for the rest of a pass that found no memory here.

        Args:
            kept: layers, the last ones, that keep their activations for the backward.
            backward: whether the pass has one.
        """
        into, back = self._heads + 2 * self._kv_heads, self._heads
        sizes = [into, back] * self.layers
        if backward:
            sizes += [back, into] * kept + [into, back, back, into] * (self.layers - kept)
        for heads in sizes[self._exchanges :]:
            shape = (self._ranks.count, self._tokens, heads // self._ranks.count, self._width)
            self._exchanged(torch.zeros(shape, dtype=self._dtype, device=self._device))


class ToHeads(torch.autograd.Function):
    """`Slices.to_heads` for autograd."""

    @staticmethod
    def forward(ctx: Any, slices: Slices, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All tokens of this rank's heads.

        Args:
            ctx: autograd's.
            slices: that exchange them.
            *tensors: as of to_heads.

        Returns:
            As of to_heads.
        """
        ctx.slices = slices
        return tuple(tensor.clone() for tensor in slices.to_heads(*tensors))  # autograd takes no views of one tensor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """The gradients, all heads of this rank's tokens.

        Args:
            ctx: autograd's.
            *gradients: of the result.

        Returns:
            One for each argument of forward.
        """
        return None, *ctx.slices.to_tokens(list(gradients))


class ToTokens(torch.autograd.Function):
    """`Slices.to_tokens` of one tensor for autograd."""

    @staticmethod
    def forward(ctx: Any, slices: Slices, tensor: torch.Tensor) -> torch.Tensor:
        """All heads of this rank's tokens.

        Args:
            ctx: autograd's.
            slices: that exchange them.
            tensor: as of to_tokens.

        Returns:
            As of to_tokens.
        """
        ctx.slices = slices
        return slices.to_tokens([tensor])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """The gradient, all tokens of this rank's heads.

        Args:
            ctx: autograd's.
            *gradients: of the result.

        Returns:
            One for each argument of forward.
        """
        return None, ctx.slices.to_heads(*gradients)[0]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slices: Slices | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' layers: over slices where they are given, else as sdpa.

    Args:
        module: transformers' attention.
        query: `[rows, heads, tokens, head_dim]`.
        key: `[rows, kv_heads, tokens, head_dim]`.
        value: likewise.
        attention_mask: transformers'; not for slices, whose rows are known.
        slices: that this pass is over, or None.
        **given: transformers' other arguments.

    Returns:
        `[rows, tokens, heads, head_dim]`, and None for the weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if slices is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    rows = len(query)
    q, k, v = (tensor.permute(2, 1, 0, 3).flatten(2) for tensor in (query, key, value))
    parts = ToHeads.apply(slices, q, slices.repeated(k), slices.repeated(v))
    q, k, v = (part.unflatten(2, (rows, -1)).permute(2, 1, 0, 3) for part in parts)
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    lengths = slices.lengths or (q.shape[2],)
    pieces = zip(*(part.split(lengths, 2) for part in (q, k, v)), strict=True)
    scale, dropout = given["scaling"], given.get("dropout", 0.0)
    causal = partial(torch.nn.functional.scaled_dot_product_attention, dropout_p=dropout, is_causal=True, scale=scale)
    attended = [causal(*piece) for piece in pieces]
    out = torch.cat(attended, 2).permute(2, 1, 0, 3).flatten(2)
    found: torch.Tensor = ToTokens.apply(slices, out)
    return found.unflatten(2, (rows, -1)).permute(2, 0, 1, 3), None
