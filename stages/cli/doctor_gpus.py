"""What `luthier doctor` says of several GPUs: how they are linked, and with --nccl what an all-reduce over them reaches.

In: NVML, PyTorch. Out: findings. Without GPUs two processes on the CPU (gloo) do the same, so that the way there can be tried anywhere.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from multiprocessing.connection import Connection, wait
from typing import Any

from stages.core.planner_links import REACHED, Link, Pair, pairs

MIB = 2**20
GPU_SIZES = (
    MIB,
    16 * MIB,
    256 * MIB,
    1024 * MIB,
)  # bytes of a message: small ones cost what starting costs, large ones what the link gives
CPU_SIZES = (MIB, 16 * MIB)
CPU_RANKS = 2
WARM, TIMED = 3, 10  # operations: the first ones also connect
LOW_SHARE = 0.5  # of what the link should give, below which something is wrong with it
HANGS = (
    "; a common cause is P2P through an IOMMU or PCIe ACS that a virtual machine or the BIOS has on: NCCL_P2P_DISABLE=1 goes around it; "
    "NCCL_DEBUG=INFO says what NCCL does"
)
Measured = tuple[int, float]  # bytes of a message, seconds of an all-reduce


def links() -> Iterator[tuple[str, str]]:
    """A finding for each kind of link between the GPUs that PyTorch sees, and NCCL's version; nothing with fewer than two."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return
    uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
    found = [replace(pair, p2p=torch.cuda.can_device_access_peer(pair.first, pair.second)) for pair in pairs(uuids)]
    if found:
        yield from told(found)
    else:
        yield "warn", f"{count} GPUs, and NVML does not tell how they are linked"
    yield "ok", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def told(found: Sequence[Pair]) -> Iterator[tuple[str, str]]:
    """Pairs of GPUs as findings, like ones together.

    Args:
        found: the pairs.

    Yields:
        ok | warn, and the link in words with what to expect of it.
    """

    def alike(pair: Pair) -> tuple[Any, ...]:
        return pair.kind, pair.bandwidth or 0.0, pair.ancestor, pair.p2p

    for _, group in groupby(sorted(found, key=alike), alike):
        like = list(group)
        pair = like[0]
        which = ", ".join(f"{pair.first}-{pair.second}" for pair in like)
        way = f"P2P {'possible' if pair.p2p else 'not possible'}, {pair.ancestor}"
        if pair.bandwidth is None:
            yield "warn", f"GPUs {which}: PCIe of unknown width, {way}; luthier doctor --nccl measures it"
            continue
        link = Link(pair.kind, round(pair.bandwidth, 1))
        hope = f"expect about {link.bandwidth * REACHED:.0f} GB/s of a collective operation"
        if pair.kind == "host":
            yield "warn", f"GPUs {which}: {link.told} ({way}); {hope}: enough for ddp, and fsdp wants large micro-batches"
        else:
            yield "ok", f"GPUs {which}: {link.told} ({way}); {hope}"


def nccl(seconds: float) -> Iterator[tuple[str, str]]:
    """Findings of an all-reduce over all GPUs, or over two processes on the CPU.

    Args:
        seconds: after which it is taken for hung.

    Yields:
        ok | warn | error, and what was measured or what went wrong.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 1:
        yield "warn", "one GPU has nobody to exchange with"
        return
    ranks, sizes = (gpus, GPU_SIZES) if gpus else (CPU_RANKS, CPU_SIZES)
    who = f"{gpus} GPUs (NCCL)" if gpus else f"no GPU here, so {CPU_RANKS} processes on the CPU (gloo), which says nothing of a GPU's link"
    measured = all_reduce(ranks, gpus > 0, sizes, seconds)
    if isinstance(measured, str):
        yield "error", f"{who}: {measured}{HANGS if gpus else ''}"
        return
    yield "ok", who
    bandwidth = 0.0
    for size, took in measured:
        bandwidth = bus_bandwidth(size, took, ranks)
        yield "ok", f"all-reduce of {size // MIB:>5} MiB: {1000 * took:>8.2f} ms, bus bandwidth {bandwidth:>6.1f} GB/s"
    slowest = min((pair.bandwidth for pair in pairs() if pair.bandwidth is not None), default=None) if gpus else None
    if slowest is not None:
        share = bandwidth / (slowest * REACHED)
        hope = f"{bandwidth:.0f} GB/s are {share:.0%} of the {slowest * REACHED:.0f} GB/s to expect of the slowest link"
        low = "; look at the slots' width and at NCCL_DEBUG=INFO" if share < LOW_SHARE else ""
        yield "warn" if low else "ok", hope + low


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """GB/s that each link carried one way: of a ring, 2 (n - 1) / n of the message (nccl-tests, doc/PERFORMANCE.md)."""
    return size / seconds * 2 * (ranks - 1) / ranks / 1e9


def all_reduce(ranks: int, cuda: bool, sizes: Sequence[int], seconds: float) -> list[Measured] | str:
    """Sums messages over processes of their own, one a GPU.

    Args:
        ranks: how many.
        cuda: whether each has a GPU (NCCL), or all share the CPU (gloo).
        sizes: of the messages, in bytes.
        seconds: for all of it; then the processes are ended.

    Returns:
        Each size with the seconds of the slowest rank, or a sentence that says what went wrong.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="luthier-nccl-") as folder:
        processes, ends = [], []
        for rank in range(ranks):
            here, there = context.Pipe(duplex=False)
            arguments = (rank, ranks, cuda, tuple(sizes), seconds, f"{folder}/store", there)
            processes.append(context.Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
            there.close()
            ends.append(here)
        try:
            return _answers(ends, time.monotonic() + seconds, seconds)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _answers(ends: Sequence[Connection], deadline: float, seconds: float) -> list[Measured] | str:
    """What the ranks found, or what went wrong, at the latest at the deadline."""
    answers: dict[int, list[Measured]] = {}
    at: dict[int, str] = dict.fromkeys(range(len(ends)), "starting")
    while len(answers) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in answers], max(0.0, deadline - time.monotonic()))
        if not ready:
            stuck = "; ".join(f"rank {rank} was {doing}" for rank, doing in at.items() if rank not in answers)
            return f"no end after {seconds:g} s ({stuck}), so the processes were ended"
        for end in ready:
            rank = next(place for place, mine in enumerate(ends) if mine is end)
            try:
                kind, value = ends[rank].recv()
            except EOFError:
                return f"rank {rank} died without a word while {at[rank]}; dmesg may say why (no memory left, or an error of the driver)"
            if kind == "error":
                return f"rank {rank} failed while {at[rank]}: {value}"
            if kind == "at":
                at[rank] = value
            else:
                answers[rank] = value
    return [(size, max(answer[place][1] for answer in answers.values())) for place, (size, _) in enumerate(answers[0])]


def _rank(rank: int, ranks: int, cuda: bool, sizes: Sequence[int], seconds: float, store: str, end: Connection) -> None:
    """One process: tells what it is at, then what it measured or what ended it."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # no port is opened to others
    try:
        import torch
        import torch.distributed as dist

        if cuda:
            torch.cuda.set_device(rank)
        device = torch.device("cuda", rank) if cuda else torch.device("cpu")
        end.send(("at", "waiting for the others"))
        limit = timedelta(seconds=seconds)
        dist.init_process_group("nccl" if cuda else "gloo", f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
        found = []
        for size in sizes:
            end.send(("at", f"summing {size // MIB} MiB"))
            message = torch.empty(size // 4, dtype=torch.float32, device=device)
            for _ in range(WARM):
                message.fill_(rank + 1)
                dist.all_reduce(message)
            expected = ranks * (ranks + 1) / 2
            if not bool((message == expected).all()):
                raise RuntimeError("a sum over the GPUs is wrong, so what travels between them does not arrive as it was sent")
            _settle(cuda)
            start = time.perf_counter()
            for _ in range(TIMED):
                dist.all_reduce(message)
            _settle(cuda)
            found.append((size, (time.perf_counter() - start) / TIMED))
        end.send(("done", found))
    except Exception as error:  # whatever it is, the parent says it in a sentence
        end.send(("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"))


def _settle(cuda: bool) -> None:
    if cuda:
        import torch

        torch.cuda.synchronize()
