"""Frozen linear layers with LoRA that share their input, as one matrix: `[[W, s B], [A, 0]]`, unpacked where it is used.

With x beside x A^T the forward is one product, with the output's gradient g beside g s B the backward is one: LoRA costs two thin products each
and never reads or writes the wide results again.
"""

from collections.abc import Sequence
from typing import Any

import torch

from stages.train.fused import ops

ALIGNED = 8  # columns: cuBLAS and Triton load 16 bytes at once


class Group:
    """Linear layers of PEFT (or without an adapter) that read the same input.

    Attributes:
        width: columns of the input.
        height: columns of all outputs.
        ranks: columns that LoRA adds to the input and to the outputs' gradient, rounded up.
        parameters: A and B of each layer that has an adapter, in this order.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], dtype: torch.dtype) -> None:
        """Takes the layers; unquantised weights are laid into one matrix, of which they become views.

        Args:
            layers: as they lie in the model.
            dtype: of the activations.
        """
        self.dtype = dtype
        bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.width: int = bases[0].in_features
        self.rows = [slice(0, 0)]
        self.columns = [slice(0, 0)]
        self.parameters: list[torch.nn.Parameter] = []
        self._adapters: list[tuple[slice, slice, float]] = []
        height = ranks = 0
        for layer, base in zip(layers, bases, strict=True):
            self.rows.append(slice(height, height + base.out_features))
            height += base.out_features
            if base is not layer:
                (name,) = layer.active_adapters
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                self._adapters.append((self.rows[-1], slice(ranks, ranks + len(a)), layer.scaling[name]))
                self.parameters += [a, b]
                ranks += len(a)
        self.rows = self.rows[1:]
        self.height = height
        self.ranks = -(-ranks // ALIGNED) * ALIGNED
        self.bias = self._bias(bases)
        self._weights = [base.weight for base in bases]
        self._matrix: torch.Tensor | None = None
        if not hasattr(self._weights[0], "quant_state"):
            self._matrix = self._empty(self._weights[0].device)
            for rows, weight in zip(self.rows, self._weights, strict=True):
                self._matrix[rows, : self.width] = weight.data
                weight.data = self._matrix[rows, : self.width]

    def _bias(self, bases: Sequence[Any]) -> torch.Tensor | None:
        if all(base.bias is None for base in bases):
            return None
        zero = [torch.zeros(base.out_features, dtype=self.dtype, device=base.weight.device) if base.bias is None else base.bias.data for base in bases]
        return torch.cat(zero).to(self.dtype)

    def _empty(self, device: torch.device) -> torch.Tensor:
        return torch.empty(self.height + self.ranks, self.width + self.ranks, dtype=self.dtype, device=device)

    def matrix(self) -> torch.Tensor:
        """`[[W, s B], [A, 0]]`, `[height + ranks, width + ranks]`, with the adapter as it is now; the corner is not filled."""
        made = self._matrix
        if made is None:
            made = self._empty(self._weights[0].device)
            for rows, weight in zip(self.rows, self._weights, strict=True):
                ops.unpack_nf4(weight, made[rows, : self.width])
        if self.ranks:
            made[: self.height, self.width :].zero_()
            made[self.height :, : self.width].zero_()
        for (rows, ranks, scale), a, b in zip(self._adapters, self.parameters[::2], self.parameters[1::2], strict=True):
            made[self.height + ranks.start : self.height + ranks.stop, : self.width] = a.data
            torch.mul(b.data, scale, out=made[rows, self.width + ranks.start : self.width + ranks.stop])
        return made

    def room(self, like: torch.Tensor, width: int) -> torch.Tensor:
        """A buffer of as many rows as `like` for `width` columns and LoRA's beside them."""
        return like.new_empty(len(like), width + self.ranks)

    def widen(self, matrix: torch.Tensor, x: torch.Tensor) -> None:
        """Fills the last columns of x, whose first `width` are there, with x A^T."""
        if self.ranks:
            torch.mm(x[:, : self.width], matrix[self.height :, : self.width].t(), out=x[:, self.width :])

    def forward(self, matrix: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x W^T + s (x A^T) B^T + bias.

        Args:
            matrix: of this group.
            x: `[tokens, width + ranks]`, as `room` made it; its last columns are written.
            out: `[tokens, height]`.

        Returns:
            out.
        """
        self.widen(matrix, x)
        if self.bias is None:
            return torch.mm(x, matrix[: self.height].t(), out=out)
        return torch.addmm(self.bias, x, matrix[: self.height].t(), out=out)

    def add(self, matrix: torch.Tensor, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """As forward, of a group without bias, plus a residual `[tokens, height]`."""
        self.widen(matrix, x)
        return torch.addmm(residual, x, matrix[: self.height].t(), out=out)

    def backward(self, matrix: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the input.

        Args:
            matrix: of this group.
            grad: `[tokens, height + ranks]`, the gradient of the output in its first columns; the last ones are written.

        Returns:
            `[tokens, width]`.
        """
        self.narrow(matrix, grad)
        return torch.mm(grad, matrix[:, : self.width])

    def narrow(self, matrix: torch.Tensor, grad: torch.Tensor) -> None:
        """Fills the last columns of grad, whose first `height` are there, with grad s B."""
        if self.ranks:
            torch.mm(grad[:, : self.height], matrix[: self.height, self.width :], out=grad[:, self.height :])

    def gradients(self, grad: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of `parameters`, in their type.

        Args:
            grad: as `backward` or `narrow` left it.
            x: as `forward`, `add` or `widen` left it.

        Returns:
            A tensor for each parameter.
        """
        found = []
        for (rows, ranks, scale), a, b in zip(self._adapters, self.parameters[::2], self.parameters[1::2], strict=True):
            thin = slice(self.height + ranks.start, self.height + ranks.stop)
            found.append(_product(grad[:, thin], x[:, : self.width], a.dtype))
            thin = slice(self.width + ranks.start, self.width + ranks.stop)
            found.append(_product(grad[:, rows], x[:, thin], b.dtype).mul_(scale))
        return found


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left^T right, summed and returned in dtype."""
    if left.is_cuda and dtype is torch.float32:
        return torch.mm(left.t(), right, out_dtype=dtype)
    return torch.mm(left.t(), right).to(dtype)
