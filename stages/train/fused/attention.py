"""Causal attention over rows laid end to end: PyTorch's FlashAttention on CUDA, matrix products row by row elsewhere.

The operators are those behind torch.nn.attention.varlen and scaled_dot_product_attention, which have no way to hand out what their
backward needs. Rows of one length go to cuDNN where `cudnn_takes` says so: on a Hopper card it takes 0.6 of FlashAttention-2's time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stages.train.slices import Slices

CUDNN_TOKENS, CUDNN_MULTIPLE = 512, 64  # of a row: so that rows of any length do not ask for a plan each
CUDNN_HEADS = (64, 128)
HOPPER = 9  # compute capability; on others it was not measured


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a micro-batch lie.

    Attributes:
        bounds: `[rows + 1] int32`, on the device: where each begins, and the end of the last.
        lengths: tokens of each.
        cos: `[tokens, head_dim]`, of the rotary embedding.
        sin: `[tokens, head_dim]`.
        cudnn: whether cuDNN attends.
        slices: that the ranks have of the tokens, or None where this process has all; cos and sin are of its own slice.
    """

    bounds: torch.Tensor
    lengths: tuple[int, ...]
    cos: torch.Tensor
    sin: torch.Tensor
    cudnn: bool
    slices: "Slices | None" = None


def cudnn_takes(lengths: tuple[int, ...], head_dim: int, device: torch.device) -> bool:
    """Whether rows go to cuDNN: it makes a plan for each shape (0.1 to 1 s), and its backward sums in no fixed order."""
    return (
        len(set(lengths)) == 1
        and lengths[0] >= CUDNN_TOKENS
        and lengths[0] % CUDNN_MULTIPLE == 0
        and head_dim in CUDNN_HEADS
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] == HOPPER
        and not torch.are_deterministic_algorithms_enabled()
    )


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, scale: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Causal attention inside each row (FlashAttention-2, arXiv 2307.08691).

    Args:
        q: `[tokens, heads, head_dim]`.
        k: `[tokens, kv_heads, head_dim]`.
        v: `[tokens, kv_heads, head_dim]`.
        rows: where the rows lie.
        scale: of the products of q and k.

    Returns:
        `[tokens, heads, head_dim]`, and what the backward needs beside it.
    """
    if rows.cudnn:
        given = (_apart(tensor, rows) for tensor in (q, k, v))
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(*given, None, True, 0.0, True, False, scale=scale)
        return found[0].transpose(1, 2).reshape(q.shape), [found[1], found[6], found[7]]
    if q.is_cuda:
        longest = max(rows.lengths)
        out, *rest = torch.ops.aten._flash_attention_forward(
            q, k, v, rows.bounds, rows.bounds, longest, longest, 0.0, True, False, scale=scale
        )
        return out, list(rest[:3])
    out = torch.cat([_weights(q, k, scale) @ _repeat(v, q) for q, k, v in _each(rows, q, k, v)], 1)
    return out.transpose(0, 1).contiguous(), []


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    rest: list[torch.Tensor],
    rows: Rows,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """The gradients of q, k and v.

    Args:
        grad: of out.
        q: as forward was given it.
        k: likewise.
        v: likewise.
        out: as forward gave it.
        rest: likewise.
        rows: as forward was given them.
        scale: likewise.

    Returns:
        Three tensors shaped as q, k and v.
    """
    if rows.cudnn:
        given = (_apart(tensor, rows) for tensor in (grad, q, k, v, out))
        ends = (None, None, None, rows.lengths[0], rows.lengths[0], 0.0, True)
        found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(*given, *rest, *ends, scale=scale)
        return tuple(one.transpose(1, 2).reshape(like.shape) for one, like in zip(found, (q, k, v), strict=True))
    if q.is_cuda:
        longest = max(rows.lengths)
        gradients: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, rest[0], rows.bounds, rows.bounds, longest, longest, 0.0, True, rest[1], rest[2], scale=scale
        )
        return gradients
    parts = []
    for g, q_row, k_row, v_row, o in _each(rows, grad, q, k, v, out):
        weights = _weights(q_row, k_row, scale)
        pushed = g @ _repeat(v_row, q_row).transpose(1, 2)
        scores = weights * (pushed - (g * o).sum(-1, keepdim=True)) * scale
        groups = (len(k_row), -1)
        parts.append(
            (
                scores @ _repeat(k_row, q_row),
                (scores.transpose(1, 2) @ q_row).unflatten(0, groups).sum(1),
                (weights.transpose(1, 2) @ g).unflatten(0, groups).sum(1),
            )
        )
    return tuple(torch.cat(one, 1).transpose(0, 1) for one in zip(*parts, strict=True))


def _apart(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Rows of one length as `[rows, heads, tokens of a row, head_dim]`."""
    return x.unflatten(0, (len(rows.lengths), -1)).transpose(1, 2)


def _each(rows: Rows, *tensors: torch.Tensor) -> Any:
    """Each row's part of the tensors, `[heads, tokens, head_dim]`."""
    return zip(*(tensor.transpose(0, 1).split(rows.lengths, 1) for tensor in tensors), strict=True)


def _repeat(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Keys or values once for every query head of their group."""
    return x.repeat_interleave(len(q) // len(x), 0)


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """The attention weights of one row, `[heads, tokens, tokens]`."""
    scores = q @ _repeat(k, q).transpose(1, 2) * scale
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)
