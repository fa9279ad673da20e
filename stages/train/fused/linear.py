"""Frozen linear layers with LoRA that share their input, as one matrix: `[[W, B], [s A, 0]]`, laid out where it is used, in one launch.

With x beside s x A^T the forward is one product, with the output's gradient g beside g B the backward is one: LoRA costs two thin
products each and never reads or writes the wide results again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.train.fused import ops

ALIGNED = 8  # columns: cuBLAS and Triton load 16 bytes at once


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights in double-quantised NF4, of one layer or of several whose scales lie end to end.

    Attributes:
        rows: of the group's matrix.
        data: `[weights / 2] uint8`.
        code: `[16] float32`, what the four bits stand for.
        scale: `[weights / 64] uint8`.
        scale_code: `[256] float32`, what a scale's eight bits stand for.
        scale_scale: `[weights / 16384] float32`.
        offset: likewise, added to the scales.
        block: bytes that one program of the kernel unpacks.
    """

    rows: slice
    data: torch.Tensor
    code: torch.Tensor
    scale: torch.Tensor
    scale_code: torch.Tensor
    scale_scale: torch.Tensor
    offset: torch.Tensor
    block: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """The LoRA parameters of a group, which are views of these tensors.

    Attributes:
        a: `[adapters * rank, width]`.
        b: `[rows with an adapter, rank]`.
        place: `[height] int32`, the row of b that stands in each row, or -1.
        first: `[height] int32`, the column from which it stands.
        ranks: columns and rows that the matrix has for them, rounded up.
        rank: of one adapter.
        scale: of the products of A and B.
    """

    a: torch.Tensor
    b: torch.Tensor
    place: torch.Tensor
    first: torch.Tensor
    ranks: int
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """A group's matrix in the parts that the products take.

    Attributes:
        outward: `[width + ranks, height]`, (W, B) transposed.
        inward: `[height + ranks, width]`, W above s A.
        a: `[width, ranks]`, s A transposed.
        b: `[height, ranks]`.
    """

    outward: torch.Tensor
    inward: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor


class Group:
    """Linear layers of PEFT (or without an adapter) that read the same input.

    Attributes:
        width: columns of the input.
        height: columns of all outputs.
        rows: the columns of each layer's output.
        ranks: columns that LoRA adds to the input and to the outputs' gradient, rounded up.
        parameters: A and B of each layer that has an adapter, in this order.
    """

    width: int
    height: int
    rows: list[slice]
    ranks: int
    parameters: list[torch.nn.Parameter]

    def __init__(self, layers: Sequence[torch.nn.Module], dtype: torch.dtype, lent: bool = False) -> None:
        """Takes the layers. Their weights, packed or not, and their LoRA parameters become views of one tensor a group.

        Args:
            layers: as they lie in the model.
            dtype: of the activations.
            lent: whether the weights lie end to end in a buffer that holds them only while they are used (stages/train/shards.py).
        """
        bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        weights = [base.weight for base in bases]
        self._dtype, self._device = dtype, weights[0].device
        self.width = bases[0].in_features
        ends = torch.tensor([base.out_features for base in bases]).cumsum(0).tolist()
        self.rows = [slice(end - base.out_features, end) for end, base in zip(ends, bases, strict=True)]
        self.height = ends[-1]
        adapted = [(rows, layer) for rows, base, layer in zip(self.rows, bases, layers, strict=True) if base is not layer]
        self._adapters = _stack(adapted, self.height) if adapted else None
        self.ranks = self._adapters.ranks if self._adapters is not None else 0
        self.parameters = [half for _, layer in adapted for half in _halves(layer)]
        self._adapted = [rows for rows, _ in adapted]
        self.bias = _bias(bases, dtype)
        self._packed: list[Packed] = []
        self._dense: torch.Tensor | None = None
        self._lent: torch.Tensor | None = None
        if hasattr(weights[0], "quant_state"):
            self._packed = _pack(weights, self.rows)
        elif lent:
            self._lent = joined([weight.data for weight in weights]).view(self.height, self.width)
        else:
            self._dense = self._empty()
            for rows, weight in zip(self.rows, weights, strict=True):
                self._dense[rows, : self.width] = weight.data
                weight.data = self._dense[rows, : self.width]

    def _empty(self) -> torch.Tensor:
        return torch.empty(self.height + self.ranks, self.width + self.ranks, dtype=self._dtype, device=self._device)

    def matrix(self) -> Matrix:
        """The matrix with the adapter as it is now; of packed weights a new one, which goes when it is no longer held."""
        if self._dense is not None:
            laid = self._dense
            if self._adapters is not None:
                ops.lay(None, self._adapters, self.width, laid)
        elif self._lent is not None:
            laid = self._empty()
            laid[: self.height, : self.width] = self._lent
            if self._adapters is not None:
                ops.lay(None, self._adapters, self.width, laid)
        else:
            laid = self._empty()
            ops.lay(self._packed[0], self._adapters, self.width, laid)
            for more in self._packed[1:]:
                ops.lay(more, None, self.width, laid[more.rows])
        above = laid[: self.height]
        return Matrix(above.t(), laid[:, : self.width], laid[self.height :, : self.width].t(), above[:, self.width :])

    def room(self, like: torch.Tensor, width: int) -> torch.Tensor:
        """A buffer of as many rows as `like` for `width` columns and LoRA's beside them."""
        return like.new_empty(like.shape[0], width + self.ranks)

    def widen(self, matrix: Matrix, x: torch.Tensor) -> None:
        """Fills the last columns of x, whose first `width` are there, with s x A^T."""
        if self.ranks:
            torch.mm(x[:, : self.width], matrix.a, out=x[:, self.width :])

    def forward(self, matrix: Matrix, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x W^T + s x A^T B^T + bias.

        Args:
            matrix: of this group.
            x: `[tokens, width + ranks]`, as `room` made it; its last columns are written.
            out: `[tokens, height]`.

        Returns:
            out.
        """
        self.widen(matrix, x)
        if self.bias is None:
            return torch.mm(x, matrix.outward, out=out)
        return torch.addmm(self.bias, x, matrix.outward, out=out)

    def add(self, matrix: Matrix, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """As forward, of a group without bias, plus a residual `[tokens, height]`."""
        self.widen(matrix, x)
        return torch.addmm(residual, x, matrix.outward, out=out)

    def narrow(self, matrix: Matrix, grad: torch.Tensor) -> None:
        """Fills the last columns of grad, whose first `height` are there, with grad B."""
        if self.ranks:
            torch.mm(grad[:, : self.height], matrix.b, out=grad[:, self.height :])

    def backward(self, matrix: Matrix, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the input.

        Args:
            matrix: of this group.
            grad: `[tokens, height + ranks]`, the gradient of the output in its first columns; the last ones are written.

        Returns:
            `[tokens, width]`.
        """
        self.narrow(matrix, grad)
        return torch.mm(grad, matrix.inward)

    def gradients(self, grad: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of `parameters`, in their type.

        Args:
            grad: as `backward` or `narrow` left it.
            x: as `forward`, `add` or `widen` left it.

        Returns:
            A tensor for each parameter.
        """
        if self._adapters is None:
            return []
        rank, scale, dtype = self._adapters.rank, self._adapters.scale, self.parameters[0].dtype
        stacked = _product(grad[:, self.height :], x[:, : self.width], dtype).mul_(scale)
        found: list[torch.Tensor] = []
        for number, b in enumerate(self.parameters[1::2]):
            part = slice(number * rank, (number + 1) * rank)
            found += [
                stacked[part],
                _product(grad[:, self._adapted[number]], x[:, self.width + part.start : self.width + part.stop], b.dtype),
            ]
        return found


def _halves(layer: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """A `[rank, in]` and B `[out, rank]` of a layer's one adapter."""
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _stack(adapted: Sequence[tuple[slice, Any]], height: int) -> Adapters:
    """Lays the parameters of the layers' adapters end to end and makes them views of that."""
    halves = [_halves(layer) for _, layer in adapted]
    device = halves[0][0].device
    rank = len(halves[0][0])
    (scale,) = {layer.scaling[name] for _, layer in adapted for name in layer.active_adapters}
    a, b = (torch.cat([parts[side].data for parts in halves]) for side in (0, 1))
    place = torch.full((height,), -1, dtype=torch.int32)
    first = torch.zeros(height, dtype=torch.int32)
    done = 0
    for number, ((rows, _), (a_part, b_part)) in enumerate(zip(adapted, halves, strict=True)):
        place[rows] = torch.arange(done, done + len(b_part), dtype=torch.int32)
        first[rows] = number * rank
        a_part.data, b_part.data = a[number * rank : (number + 1) * rank], b[done : done + len(b_part)]
        done += len(b_part)
    return Adapters(a, b, place.to(device), first.to(device), -(-len(a) // ALIGNED) * ALIGNED, rank, scale)


def _pack(weights: Sequence[Any], rows: Sequence[slice]) -> list[Packed]:
    """The packed weights as one piece where each fills its scales of scales, so that one launch unpacks all, else one by one."""
    if any(weight.numel() * 2 % 16384 for weight in weights):
        return [_piece([weight], part) for weight, part in zip(weights, rows, strict=True)]
    return [_piece(weights, slice(0, rows[-1].stop))]


def _piece(weights: Sequence[Any], rows: slice) -> Packed:
    states = [weight.quant_state for weight in weights]
    data = joined([weight.data for weight in weights])
    scale = joined([state.absmax for state in states])
    scale_scale = torch.cat([state.state2.absmax for state in states])
    offset = torch.cat([state.offset.expand(len(state.state2.absmax)) for state in states])
    for weight, own, own_scale in zip(
        weights, data.split([weight.numel() for weight in weights]), scale.split([len(state.absmax) for state in states]), strict=True
    ):
        weight.data = own.view(weight.shape)
        weight.quant_state.absmax = own_scale
    block = next(size for size in (1024, 512, 256, 128, 64, 32) if data.numel() % size == 0)
    return Packed(rows, data, states[0].code, scale, states[0].state2.code, scale_scale, offset, block)


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors end to end in one dimension: a view where they lie so already, else a copy."""
    first, end = tensors[0], tensors[0].data_ptr()
    storage = first.untyped_storage()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != storage.data_ptr() or tensor.data_ptr() != end:
            return torch.cat([tensor.flatten() for tensor in tensors])
        end += tensor.numel() * tensor.element_size()
    return first.new_empty(0).set_(storage, first.storage_offset(), (sum(tensor.numel() for tensor in tensors),), (1,))


def _bias(bases: Sequence[Any], dtype: torch.dtype) -> torch.Tensor | None:
    """The biases of all layers end to end, zero where one has none; None where all have none."""
    if all(base.bias is None for base in bases):
        return None
    device = bases[0].weight.device
    return torch.cat([torch.zeros(base.out_features, device=device) if base.bias is None else base.bias.data for base in bases]).to(dtype)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left^T right, summed and returned in dtype."""
    if left.is_cuda and dtype is torch.float32:
        return torch.mm(left.t(), right, out_dtype=dtype)
    return torch.mm(left.t(), right).to(dtype)
