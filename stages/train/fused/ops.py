"""The operations around the matrix products: Triton on CUDA, PyTorch elsewhere (any floating-point type; the reference of the kernels).

Sums and exponentials are taken in float32 at least. `out` may be a view whose rows lie further apart than they are wide.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stages.train.fused.linear import Adapters, Packed


def _kernels() -> Any:
    from stages.train.fused import kernels

    return kernels


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def lay(packed: "Packed | None", adapters: "Adapters | None", width: int, out: torch.Tensor) -> None:
    """Lays `[[W, B], [s A, 0]]`: W where it is packed, B and A where there are adapters; the corner stays as it is.

    Args:
        packed: weights in double-quantised NF4 (arXiv 2305.14314), unpacked bit for bit as bitsandbytes does; on CUDA only, since on a CPU
            a base is unpacked when it is loaded.
        adapters: of the group.
        width: columns of W.
        out: `[height + ranks, width + ranks]`, or the rows of W alone where there are no adapters; written.
    """
    if out.is_cuda:
        _kernels().lay(packed, adapters, width, out)
    elif adapters is not None:
        height, stacked = len(adapters.place), len(adapters.a)
        out[:height, width:].zero_()
        out[height:, :width].zero_()
        out[height : height + stacked, :width] = adapters.a * adapters.scale
        rows = (adapters.place >= 0).nonzero()
        out[rows, width + adapters.first[rows] + torch.arange(adapters.rank)] = adapters.b[adapters.place[rows[:, 0]]].to(out.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, inner: int = 1) -> torch.Tensor:
    """Root-mean-square norm (arXiv 1910.07467) over pieces of each row.

    Args:
        x: `[rows, inner * width]`.
        weight: `[width]`.
        eps: added to the mean square.
        out: as x; the result.
        inner: pieces of a row, each normalised by itself.

    Returns:
        1 / root mean square, `[rows * inner]`, for the backward.
    """
    if x.is_cuda:
        return _kernels().rms_norm(x, weight, eps, inner, out)
    pieces = _wide(x.unflatten(1, (inner, -1)))
    inverse = torch.rsqrt(pieces.square().mean(-1) + eps)
    out.unflatten(1, (inner, -1)).copy_((pieces * inverse[..., None]).to(x.dtype) * weight)
    return inverse.flatten()


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    out: torch.Tensor,
    inner: int = 1,
    residual: torch.Tensor | None = None,
) -> None:
    """The gradient of rms_norm's x, plus a residual's.

    Args:
        grad: of rms_norm's out, `[rows, inner * width]`.
        x: as rms_norm was given it.
        weight: `[width]`; it is frozen.
        inverse: as rms_norm gave it.
        out: `[rows, inner * width]`; the result; may be grad itself.
        inner: as rms_norm was given it.
        residual: added to the result, `[rows, inner * width]`, or None.
    """
    if x.is_cuda:
        _kernels().rms_norm_backward(grad, x, weight, inverse, inner, residual, out)
        return
    scale = inverse.view(len(x), inner, 1)
    normed = _wide(x.unflatten(1, (inner, -1))) * scale
    pushed = _wide(grad.unflatten(1, (inner, -1))) * weight
    result = (scale * (pushed - normed * (pushed * normed).mean(-1, keepdim=True))).flatten(1)
    out.copy_(result if residual is None else result + residual)


def rotate(x: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary position embedding (arXiv 2104.09864) in place, halves of a head paired as transformers does.

    Args:
        x: `[tokens, at least heads * head_dim]`.
        heads: how many heads of each row are turned.
        cos: `[tokens, head_dim]`, both halves alike, as transformers makes them.
        sin: likewise.
    """
    if x.is_cuda:
        _kernels().rotate(x, heads, cos, sin)
        return
    pieces = x[:, : heads * cos.shape[1]].unflatten(1, (heads, -1))
    low, high = pieces.chunk(2, -1)
    pieces.copy_(pieces * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None])


def join(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """The gradients of queries, keys and values side by side, those of queries and keys turned back as `rotate` turned them.

    Args:
        q: `[tokens, heads, head_dim]`.
        k: `[tokens, kv_heads, head_dim]`.
        v: likewise.
        cos: as rotate was given it.
        sin: likewise.
        out: `[tokens, at least (heads + 2 kv_heads) * head_dim]`; its first columns are written.
    """
    if out.is_cuda:
        _kernels().join(q, k, v, cos, sin, out)
        return
    together = torch.cat((q, k), 1)
    low, high = together.chunk(2, -1)
    turned = together * cos[:, None] + torch.cat((high, -low), -1) * sin[:, None]
    out[:, : turned[0].numel() + v[0].numel()] = torch.cat((turned, v), 1).flatten(1)


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """silu(gate) * up (arXiv 2002.05202).

    Args:
        gate_up: `[tokens, 2 * width]`, gate first.
        out: `[tokens, width]`; the result.
    """
    if out.is_cuda:
        _kernels().swiglu(gate_up, out.shape[1], out)
        return
    gate, up = gate_up.chunk(2, 1)
    out.copy_(torch.nn.functional.silu(_wide(gate)) * up)


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, grad_gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """The gradients of gate and up, and swiglu's result once more.

    Args:
        grad: `[tokens, width]`.
        gate_up: `[tokens, 2 * width]`.
        grad_gate_up: `[tokens, 2 * width]`; the gradients; may be gate_up itself.
        out: `[tokens, width]`; silu(gate) * up.
    """
    if out.is_cuda:
        _kernels().swiglu_backward(grad, gate_up, out.shape[1], grad_gate_up, out)
        return
    gate, up = (_wide(half) for half in gate_up.chunk(2, 1))
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out.copy_(silu * up)
    grad_gate_up.copy_(torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), 1))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, grad: bool) -> torch.Tensor:
    """The cross-entropy of each row; the logits become its gradient.

    Args:
        logits: `[rows, vocabulary]`; overwritten where grad is set.
        targets: `[rows] int64`.
        grad: whether the gradient is wanted.

    Returns:
        `[rows]`, nats, float32 at least.
    """
    if logits.is_cuda:
        return _kernels().cross_entropy(logits, targets, grad)
    wide = _wide(logits)
    losses = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    if grad:
        share = wide.softmax(1)
        share[torch.arange(len(targets)), targets] -= 1
        logits.copy_(share)
    return losses
