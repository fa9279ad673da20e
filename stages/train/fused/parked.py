"""Layer inputs that wait in host memory from forward to backward, copied beside the computation. In: CUDA tensors. Out: the same."""

import torch

AHEAD = 2  # inputs that may be on their way to the host at once


class Parked:
    """Host memory for one tensor a layer, kept from step to step.

    A copy to the host runs beside the layers that follow, a copy back beside the backward of the layer after.
    """

    def __init__(self) -> None:
        """Takes nothing yet."""
        self._host: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._coming: dict[int, tuple[torch.Tensor, torch.cuda.Event | None]] = {}
        self._leaving: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._stream: torch.cuda.Stream | None = None

    def put(self, number: int, x: torch.Tensor) -> None:
        """Starts the copy of a layer's input to the host.

        The device's memory of x goes back when AHEAD more have been put, and then in the order of the computation: were it given back at
        once, the host, which runs ahead, would take new memory for layer after layer.
        """
        host = self._host.get(number)
        if host is None or host.numel() < x.numel() or host.dtype != x.dtype:
            host = self._host[number] = torch.empty(x.numel(), dtype=x.dtype, pin_memory=x.is_cuda)
        self._shapes[number] = (x.shape, x.dtype, x.device)
        place = host[: x.numel()].view(x.shape)
        if not x.is_cuda:
            place.copy_(x)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        gone = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            place.copy_(x, non_blocking=True)
            gone.record()
        self._leaving.append((x, gone))
        self._let_go(AHEAD)

    def _let_go(self, left: int) -> None:
        """Gives back the memory of all but the last `left` that were put, after their copies."""
        while len(self._leaving) > left:
            _, gone = self._leaving.pop(0)
            torch.cuda.current_stream().wait_event(gone)

    def take(self, number: int) -> torch.Tensor:
        """The input of a layer, back on its device; the one before it is sent for as well."""
        self._let_go(0)
        if number not in self._coming:
            self._fetch(number)
        x, arrived = self._coming.pop(number)
        del self._shapes[number]
        if arrived is not None:
            torch.cuda.current_stream().wait_event(arrived)
        if number - 1 in self._shapes and number - 1 not in self._coming:
            self._fetch(number - 1)
        return x

    def _fetch(self, number: int) -> None:
        shape, dtype, device = self._shapes[number]
        x = torch.empty(shape, dtype=dtype, device=device)
        source = self._host[number][: x.numel()].view(shape)
        if self._stream is None:
            self._coming[number] = (x.copy_(source), None)
            return
        self._stream.wait_stream(torch.cuda.current_stream())  # the memory of x may still be read by work before
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            x.copy_(source, non_blocking=True)
            arrived.record()
        self._coming[number] = (x, arrived)

    def forget(self) -> None:
        """Drops what a broken-off step left behind."""
        self._let_go(0)
        self._shapes.clear()
        self._coming.clear()
