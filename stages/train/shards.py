"""The frozen weights of a base, a part on every rank. In: layers and embeddings as they are loaded. Out: each whole where it is used.

The weights of a layer are bytes end to end, packed NF4 as well as bfloat16. Two layers are whole at a time, in two buffers: while one is
computed the next is gathered, forwards and backwards. The output layer is whole while the loss is computed, and the input's table waits in
host memory, from which a pass takes its tokens' rows. docs/decisions/the-base-is-split-as-bytes.md says why this is not FSDP2.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from stages.core.batches import sent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.train.ranks import Ranks

ALIGNED = 16  # bytes: what Triton and cuBLAS load at once
gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # PyTorch 2.13 has it under another name


class Shards:
    """The weights of all decoder layers and of the output layer, of which this rank keeps a part."""

    def __init__(self, ranks: "Ranks") -> None:
        """Holds nothing yet.

        Args:
            ranks: among which a layer is split.
        """
        self._ranks = ranks
        self._own: list[torch.Tensor] = []
        self._buffers: list[torch.Tensor] = []
        self._whole: list[int | None] = [None, None]
        self._coming: list[Any] = [None, None]
        self._at = (-1, 1)  # the layer in use, and which way the pass goes; the output layer is the one after the last
        self._own_head: torch.Tensor | None = None

    @property
    def layers(self) -> int:
        """How many were taken."""
        return len(self._own)

    @property
    def saved_bytes(self) -> int:
        """What this rank does not hold of the layers."""
        return sum(map(len, self._own)) * (self._ranks.count - 1) - sum(map(len, self._buffers))

    def take(self, number: int, layer: torch.nn.Module) -> None:
        """Takes a layer's linear weights, of which this rank keeps its part; they are views of a buffer from here on.

        Args:
            number: of the layer; they come in order.
            layer: loaded, and without an adapter.
        """
        assert number == len(self._own)
        weights: list[Any] = [module.weight for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        states = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
        views = self._place(number, [*(weight.data for weight in weights), *(state.absmax for state in states)])
        for weight, view in zip(weights, views, strict=False):
            weight.data = view
        for state, view in zip(states, views[len(weights) :], strict=True):
            state.absmax = view

    def _place(self, number: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        unit = ALIGNED * self._ranks.count
        total = -(-sum(-(-size // ALIGNED) * ALIGNED for size in sizes) // unit) * unit
        if not self._buffers:
            self._buffers = [torch.zeros(total, dtype=torch.uint8, device=tensors[0].device) for _ in range(2)]
        buffer = self._buffers[number % 2]
        assert len(buffer) == total, "every layer of a model is alike"
        views, start = [], 0
        for tensor, size in zip(tensors, sizes, strict=True):
            # .data: a gather writes into the buffer, and autograd must not take that for a change of the weight it has saved
            view = buffer[start : start + size].view(tensor.dtype).view(tensor.shape).data
            views.append(view.copy_(tensor))
            start += -(-size // ALIGNED) * ALIGNED
        part = total // self._ranks.count
        self._own.append(buffer[self._ranks.rank * part :][:part].clone())
        self._whole[number % 2] = number
        return views

    def take_ends(self, model: "PreTrainedModel") -> None:
        """Takes the embeddings: the input's table goes to host memory, and of the output layer's weights this rank keeps its part.

        Args:
            model: with its embeddings loaded and no adapter on them.
        """
        head = model.get_output_embeddings()
        weight = head.weight.data
        table: Any = model.get_input_embeddings().weight
        model.set_input_embeddings(HostTable(table.data))
        del head.weight  # a tensor from here on, and no parameter: autograd saves what was gathered, and not the place where it stood
        head.weight = weight.new_empty(0)
        self._head_shape, self._head_dtype = weight.shape, weight.dtype
        total = weight.numel() * weight.element_size()
        part = -(-total // (ALIGNED * self._ranks.count)) * ALIGNED
        flat = weight.new_zeros(part * self._ranks.count, dtype=torch.uint8)
        flat[:total] = weight.flatten().view(torch.uint8)
        self._own_head = flat[self._ranks.rank * part :][:part].clone()

        def lend(module: Any, inputs: Any) -> None:
            module.weight = self.head()

        def give_back(module: Any, inputs: Any, output: Any) -> None:
            module.weight = module.weight.new_empty(0)

        head.register_forward_pre_hook(lend)
        head.register_forward_hook(give_back)

    @property
    def splits_ends(self) -> bool:
        """Whether the embeddings were taken."""
        return self._own_head is not None

    def head(self) -> torch.Tensor:
        """The output layer's weights, whole for as long as they are held."""
        assert self._own_head is not None
        whole = self._own_head.new_empty(len(self._own_head) * self._ranks.count)
        gather(whole, self._own_head)
        self._at = (self.layers, 1)
        return whole[: self._head_shape.numel() * self._head_dtype.itemsize].view(self._head_dtype).view(self._head_shape)

    def watch(self, layers: Sequence[torch.nn.Module]) -> None:
        """Has transformers' layers gathered before they are computed, forwards and backwards; the fused path asks for itself."""
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda module, inputs, number=number: self._forward(number))
            layer.register_forward_hook(lambda module, inputs, output, number=number: self._marked(number, output))

    def _forward(self, number: int) -> None:
        if self._at != (number, -1):  # else the backward computes it again
            self.need(number, 1)

    def _marked(self, number: int, output: Any) -> Any:
        if isinstance(output, tuple):
            return (Backward.apply(output[0], self, number), *output[1:])
        return Backward.apply(output, self, number)

    def need(self, number: int, ahead: int) -> None:
        """Has a layer whole before what is computed next, and the next one under way.

        The collectives follow from the order of these calls alone, which is the same on every rank.

        Args:
            number: of the layer.
            ahead: 1 forwards, -1 backwards.
        """
        self._at = (number, ahead)
        self._fetch(number)
        coming = self._coming[number % 2]
        if coming is not None:
            coming.wait()
            self._coming[number % 2] = None
        if 0 <= number + ahead < self.layers:
            self._fetch(number + ahead)

    def _fetch(self, number: int) -> None:
        """Starts to gather a layer, after all that was put on the GPU before: the layer that stood in its buffer is done with."""
        place = number % 2
        if self._whole[place] != number:
            self._whole[place] = number
            self._coming[place] = gather(self._buffers[place], self._own[number], async_op=True)

    def begin(self) -> None:
        """A pass begins."""
        self._at = (-1, 1)

    def finish(self, backward: bool) -> None:
        """Takes part in what the other ranks gather for the rest of a pass that found no memory here.

        Args:
            backward: whether the pass has one.
        """
        number, ahead = self._at
        if ahead == 1:
            for later in range(number + 1, self.layers):
                self.need(later, 1)
            if number < self.layers and self.splits_ends:
                self.head()
            number = self.layers
        if backward:
            for earlier in reversed(range(number)):
                self.need(earlier, -1)


class HostTable(torch.nn.Module):
    """An input embedding whose table waits in host memory."""

    def __init__(self, table: torch.Tensor) -> None:
        """Copies the table to the host.

        Args:
            table: `[vocabulary, hidden]`.
        """
        super().__init__()
        # none of it is here, but transformers takes a model's device and type for those of its first parameter
        self.weight = torch.nn.Parameter(table.new_empty(0), requires_grad=False)
        self._table = table.cpu()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of some tokens, on the model's device.

        Args:
            ids: `[rows, tokens] int64`; on the host, if the GPU is not to be waited for.

        Returns:
            `[rows, tokens, hidden]`.
        """
        return sent(torch.nn.functional.embedding(ids.cpu(), self._table), self.weight.device)


class Backward(torch.autograd.Function):
    """A layer's output as it is; in the backward the layer is gathered first."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, shards: Shards, number: int) -> torch.Tensor:
        """The output.

        Args:
            ctx: autograd's.
            output: of the layer.
            shards: that gather it.
            number: of the layer.

        Returns:
            The output.
        """
        ctx.shards, ctx.number = shards, number
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """The gradient as it is.

        Args:
            ctx: autograd's.
            *gradients: of the output.

        Returns:
            One for each argument of forward.
        """
        ctx.shards.need(ctx.number, -1)
        return gradients[0], None, None
