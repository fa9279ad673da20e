"""The processes that train together: who this one is, what they sum and what they agree on. In: the environment. Out: Ranks, Gradients.

Every rank holds the same adapter and makes the same update from the same sums, so that only gradients and losses travel, once a step.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
STORE = "LUTHIER_STORE"  # the file over which the ranks of one host meet; without it they meet where torchrun's environment says
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: from 0.
        count: of the processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """What the first rank has for a value."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in their order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def first_of(self, value: T | None) -> T | None:
        """The value of the first rank that has one, on every rank; None where none has."""
        return next((found for found in self.gathered(value) if found is not None), None)

    def summed(self, numbers: "torch.Tensor") -> "torch.Tensor":
        """Adds every rank's numbers up, in place."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(numbers)
        return numbers


def started() -> bool:
    """Whether something has started this process as one of several: the stage itself, or a launcher such as torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def see_own_gpu() -> None:
    """Leaves this rank the one GPU that is its own; call it before CUDA starts."""
    number = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = visible.split(",") if visible else None
    if found is None or len(found) > 1:  # one alone was given to this rank by the launcher
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if found is None else found[number]


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank is gone: NCCL's errors have a class, gloo's only their text."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def join(device: str) -> Ranks:
    """Meets the other ranks.

    Args:
        device: cpu or cuda.

    Returns:
        This process among them.
    """
    import torch.distributed as dist

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = os.environ.get(STORE)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if store is None:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=count)
    return Ranks(rank, count)


class Gradients:
    """The gradients of a step and, behind them in one buffer, the loss of each of its micro-batches and whether it failed.

    With one rank there is no buffer, and a gradient is what autograd makes of it.
    """

    def __init__(self, ranks: Ranks, parameters: "Mapping[str, torch.nn.Parameter]", slots: int) -> None:
        """Makes the buffer.

        Args:
            ranks: that sum.
            parameters: that are trained.
            slots: micro-batches of a step at most.
        """
        import torch

        self._ranks, self._slots = ranks, slots
        self._parameters = list(parameters.values())
        self._views: list[torch.Tensor] = []
        if ranks.count > 1:
            sizes = [parameter.numel() for parameter in self._parameters]
            self._flat = torch.zeros(sum(sizes) + 2 * slots, device=self._parameters[0].device)
            *parts, self._losses, self._failed = self._flat.split([*sizes, slots, slots])
            self._views = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]

    def clear(self) -> None:
        """Makes every gradient none, or zero where it is summed over ranks."""
        for parameter in self._parameters:
            parameter.grad = None
        if self._views:
            self._flat.zero_()
            for parameter, view in zip(self._parameters, self._views, strict=True):
                parameter.grad = view

    def exchange(self, losses: "Sequence[torch.Tensor]", before: int, total: int, failed: int | None) -> tuple[list[float], int | None]:
        """Sums the gradients of all ranks.

        Args:
            losses: of this rank's micro-batches, each scaled to its share in the step's.
            before: micro-batches of the ranks before this one.
            total: micro-batches of all ranks.
            failed: which of this rank's found no memory, or None.

        Returns:
            The loss of every micro-batch of the step, and the first that found no memory, or None.
        """
        import torch

        if not self._views:
            return torch.stack(list(losses)).tolist() if failed is None else [], failed
        if losses:
            self._losses[before : before + len(losses)] = torch.stack(list(losses))
        if failed is not None:
            self._failed[before + failed] = 1
        self._ranks.summed(self._flat)
        found = torch.stack([self._losses, self._failed]).tolist()  # once a step: the GPU is not waited for in between
        return found[0][:total], next((number for number, mark in enumerate(found[1][:total]) if mark), None)
