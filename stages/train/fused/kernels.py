"""Triton kernels of the fast path. In: CUDA tensors. Out: CUDA tensors; all arithmetic in float32, rounded once to the tensors' own type.

Every kernel takes the strides of its rows, so that results can be written straight into a wider buffer (see `linear.py`).
"""

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from stages.train.fused.linear import Adapters, Packed


@triton.jit
def _rms_norm(x, weight, out, inverse, width, x_stride, out_stride, inner, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    offset = (row % inner) * width + column
    value = tl.load(x + (row // inner) * x_stride + offset, inside, 0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value) / width + eps)
    tl.store(inverse + row, scale)
    normed = (value * scale).to(weight.dtype.element_ty).to(tl.float32)
    tl.store(out + (row // inner) * out_stride + offset, normed * tl.load(weight + column, inside, 0.0).to(tl.float32), inside)


@triton.jit
def _rms_norm_backward(
    grad,
    x,
    weight,
    inverse,
    residual,
    out,
    width,
    grad_stride,
    x_stride,
    residual_stride,
    out_stride,
    inner,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    offset = (row % inner) * width + column
    outer = row // inner
    scale = tl.load(inverse + row)
    normed = tl.load(x + outer * x_stride + offset, inside, 0.0).to(tl.float32) * scale
    pushed = tl.load(grad + outer * grad_stride + offset, inside, 0.0).to(tl.float32) * tl.load(weight + column, inside, 0.0).to(tl.float32)
    result = scale * (pushed - normed * (tl.sum(pushed * normed) / width))
    if ADD:
        result += tl.load(residual + outer * residual_stride + offset, inside, 0.0).to(tl.float32)
    tl.store(out + outer * out_stride + offset, result, inside)


@triton.jit
def _rotate(x, cos, sin, stride, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF)[None, :]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    inside = (head < heads) & (column < half)
    first = x + token * stride + head * (2 * half) + column
    c = tl.load(cos + token * (2 * half) + column, column < half, 0.0).to(tl.float32)
    s = tl.load(sin + token * (2 * half) + column, column < half, 0.0).to(tl.float32)
    low = tl.load(first, inside, 0.0).to(tl.float32)
    high = tl.load(first + half, inside, 0.0).to(tl.float32)
    tl.store(first, low * c - high * s, inside)
    tl.store(first + half, high * c + low * s, inside)


@triton.jit
def _join(q, k, v, cos, sin, out, q_stride, k_stride, v_stride, stride, q_heads, kv_heads, half, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF)[None, :]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    inside = column < half
    is_q = head < q_heads
    is_k = (head >= q_heads) & (head < q_heads + kv_heads)
    is_v = (head >= q_heads + kv_heads) & (head < q_heads + 2 * kv_heads)
    q_first = q + token * q_stride + head * (2 * half) + column
    k_first = k + token * k_stride + (head - q_heads) * (2 * half) + column
    v_first = v + token * v_stride + (head - q_heads - kv_heads) * (2 * half) + column
    low = tl.load(q_first, inside & is_q, 0.0).to(tl.float32) + tl.load(k_first, inside & is_k, 0.0).to(tl.float32)
    low += tl.load(v_first, inside & is_v, 0.0).to(tl.float32)
    high = tl.load(q_first + half, inside & is_q, 0.0).to(tl.float32) + tl.load(k_first + half, inside & is_k, 0.0).to(tl.float32)
    high += tl.load(v_first + half, inside & is_v, 0.0).to(tl.float32)
    c = tl.where(is_v, 1.0, tl.load(cos + token * (2 * half) + column, inside, 0.0).to(tl.float32))
    s = tl.where(is_v, 0.0, tl.load(sin + token * (2 * half) + column, inside, 0.0).to(tl.float32))
    first = out + token * stride + head * (2 * half) + column
    known = inside & (is_q | is_k | is_v)
    tl.store(first, low * c + high * s, known)
    tl.store(first + half, high * c - low * s, known)


@triton.jit
def _swiglu(gate_up, out, width, in_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * in_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + width + column, inside, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, gate * tl.sigmoid(gate) * up, inside)


@triton.jit
def _swiglu_backward(grad, gate_up, grad_gate_up, out, width, grad_stride, in_stride, grad_in_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * in_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + width + column, inside, 0.0).to(tl.float32)
    pushed = tl.load(grad + row * grad_stride + column, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(out + row * out_stride + column, silu * up, inside)
    place = grad_gate_up + row * grad_in_stride + column
    tl.store(place, pushed * up * (sigmoid + silu * (1.0 - sigmoid)), inside)
    tl.store(place + width, pushed * silu, inside)


@triton.jit
def _lay(
    packed,
    code,
    scale,
    scale_code,
    scale_scale,
    offset,
    unpacking,
    width,
    stride,
    out,
    a,
    stacked,
    b,
    place,
    first,
    height,
    ranks,
    rank,
    strength,
    laying,
    ADAPTED: tl.constexpr,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    if program < unpacking:  # W: NF4, two weights a byte, 64 weights a scale, 256 scales a scale of scales
        byte = program.to(tl.int64) * BYTES + tl.arange(0, BYTES)
        block = byte // 32
        absmax = tl.load(scale_code + tl.load(scale + block).to(tl.int32)) * tl.load(scale_scale + block // 256)
        absmax += tl.load(offset + block // 256)
        pair = tl.load(packed + byte).to(tl.int32)
        high = tl.load(code + (pair >> 4)) * absmax
        low = tl.load(code + (pair & 15)) * absmax
        weight = program.to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
        tl.store(out + (weight // width) * stride + weight % width, tl.interleave(high, low))
    elif ADAPTED:
        if program < unpacking + laying:  # B: its rows beside W, in the columns of the layer they belong to
            row = (program - unpacking).to(tl.int64) * ROWS + tl.arange(0, ROWS)
            column = tl.arange(0, RANKS)[None, :]
            index = tl.load(place + row, row < height, -1)[:, None].to(tl.int64)
            inner = column - tl.load(first + row, row < height, 0)[:, None]
            b_value = tl.load(b + index * rank + inner, (index >= 0) & (inner >= 0) & (inner < rank), 0.0)
            tl.store(out + row[:, None] * stride + width + column, b_value, (row < height)[:, None] & (column < ranks))
        else:  # s A: below W
            element = (program - unpacking - laying).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            below = element // width
            a_value = tl.load(a + element, below < stacked, 0.0).to(tl.float32) * strength
            tl.store(out + (height + below) * stride + element % width, a_value, below < ranks)


@triton.jit
def _cross_entropy(logits, targets, losses, vocabulary, stride, GRAD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    largest = -float("inf")
    total = 0.0
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(start + column, column < vocabulary, -float("inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(value))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(value - higher))
        largest = higher
    normaliser = largest + tl.log(total)
    target = tl.load(targets + row)
    tl.store(losses + row, normaliser - tl.load(start + target).to(tl.float32))
    tl.debug_barrier()  # the target's logit is read before any thread overwrites it
    if GRAD:
        for first in range(0, vocabulary, BLOCK):
            column = first + tl.arange(0, BLOCK)
            value = tl.load(start + column, column < vocabulary, -float("inf")).to(tl.float32)
            share = tl.exp(value - normaliser) - tl.where(column == target, 1.0, 0.0)
            tl.store(start + column, share, column < vocabulary)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, inner: int, out: torch.Tensor) -> torch.Tensor:
    width = weight.numel()
    inverse = torch.empty(x.shape[0] * inner, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _rms_norm[(inverse.numel(),)](
        x, weight, out, inverse, width, x.stride(0), out.stride(0), inner, eps, BLOCK=block, num_warps=_warps(block)
    )
    return inverse


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    inner: int,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    width = weight.numel()
    block = triton.next_power_of_2(width)
    add = residual is not None
    other = residual if residual is not None else grad
    _rms_norm_backward[(inverse.numel(),)](
        grad,
        x,
        weight,
        inverse,
        other,
        out,
        width,
        grad.stride(0),
        x.stride(0),
        other.stride(0),
        out.stride(0),
        inner,
        ADD=add,
        BLOCK=block,
        num_warps=_warps(block),
    )


def rotate(x: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = cos.shape[-1] // 2
    together = min(triton.next_power_of_2(heads), 16)
    _rotate[(x.shape[0], triton.cdiv(heads, together))](
        x, cos, sin, x.stride(0), heads, half, HEADS=together, HALF=triton.next_power_of_2(half), num_warps=4
    )


def join(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    half = cos.shape[-1] // 2
    heads = q.shape[1] + 2 * k.shape[1]
    together = min(triton.next_power_of_2(heads), 16)
    strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
    _join[(q.shape[0], triton.cdiv(heads, together))](
        q, k, v, cos, sin, out, *strides, q.shape[1], k.shape[1], half,
        HEADS=together, HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip


def swiglu(gate_up: torch.Tensor, width: int, out: torch.Tensor) -> None:
    _swiglu[(gate_up.shape[0], triton.cdiv(width, 2048))](gate_up, out, width, gate_up.stride(0), out.stride(0), BLOCK=2048, num_warps=4)


def swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, width: int, grad_gate_up: torch.Tensor, out: torch.Tensor) -> None:
    _swiglu_backward[(gate_up.shape[0], triton.cdiv(width, 2048))](
        grad,
        gate_up,
        grad_gate_up,
        out,
        width,
        grad.stride(0),
        gate_up.stride(0),
        grad_gate_up.stride(0),
        out.stride(0),
        BLOCK=2048,
        num_warps=4,
    )


def lay(packed: "Packed | None", adapters: "Adapters | None", width: int, out: torch.Tensor) -> None:
    nothing = out
    nf4: tuple[torch.Tensor, ...] = (nothing,) * 6
    extra: tuple[Any, ...] = (nothing, 0, nothing, nothing, nothing, 0, 0, 1, 1.0)
    unpacking = laying = ranks = 0
    size = 32
    if packed is not None:
        size = packed.block
        unpacking = packed.data.numel() // size
        nf4 = (packed.data, packed.code, packed.scale, packed.scale_code, packed.scale_scale, packed.offset)
    if adapters is not None:
        ranks = adapters.ranks
        laying = triton.cdiv(len(adapters.place), 64)
        extra = (
            adapters.a,
            len(adapters.a),
            adapters.b,
            adapters.place,
            adapters.first,
            len(adapters.place),
            ranks,
            adapters.rank,
            adapters.scale,
        )
    # without fused multiply-add, so that the bits are those of bitsandbytes, which rounds after each operation
    _lay[(unpacking + laying + triton.cdiv(ranks * width, 2048),)](
        *nf4, unpacking, width, out.stride(0), out, *extra, laying,
        ADAPTED=adapters is not None, BYTES=size, ROWS=64, RANKS=max(triton.next_power_of_2(ranks), 1), BLOCK=2048,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, grad: bool) -> torch.Tensor:
    losses = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    _cross_entropy[(len(targets),)](logits, targets, losses, logits.shape[1], logits.stride(0), GRAD=grad, BLOCK=8192, num_warps=16)
    return losses
