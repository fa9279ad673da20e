"""What a training costs and what its device can do: seconds, memory, energy, FLOPs. Read from the machine; nothing is compared by bytes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from stages.core.batches import TokenRow

SIDE = 8192  # of the square matrices whose product is timed
PRODUCT_SECONDS = 0.1
LAUNCHES, LAUNCH_BATCHES = 400, 9  # a GPU's queue holds about a thousand


@dataclass(frozen=True, slots=True)
class Reading:
    """The meters at one moment.

    Attributes:
        seconds: of a clock that only runs forward.
        joules: the device's energy counter, or None.
        why_no_joules: why it is None.
    """

    seconds: float
    joules: float | None
    why_no_joules: str | None


def reading(device: str, uuids: Sequence[str] = ()) -> Reading:
    """Reads clock and energy counters.

    Args:
        device: cpu or cuda.
        uuids: of the GPUs that train together (`gpu_uuid`); none takes this process's.

    Returns:
        The reading.
    """
    joules, why = _joules(device, uuids)
    return Reading(time.monotonic(), joules, why)


def _joules(device: str, uuids: Sequence[str]) -> tuple[float | None, str | None]:
    """The GPUs' energy since their driver was loaded, or None and why: of one on another host, NVML knows nothing."""
    if device != "cuda":
        return None, "a processor's energy counter is readable by root only"
    try:
        import pynvml

        handles = [gpu_handle(uuid) for uuid in uuids or [gpu_uuid()]]
        millijoules = sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))
    except Exception as error:  # a meter never ends a training
        return None, f"NVML gives no energy here ({type(error).__name__}: {error})"
    return millijoules / 1000, None


def gpu_uuid() -> str:
    """The name of the GPU that PyTorch calls the first: PyTorch numbers the visible devices, NVML all of them."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def gpu_handle(uuid: str) -> Any:
    """NVML's handle of a GPU."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(uuid)


@dataclass(frozen=True, slots=True)
class Work:
    """The floating-point operations that one optimiser step needs, whatever the engine computes a second time.

    A frozen weight takes 4 a token (forward, gradient of its input), a trained one 6 (its own gradient too); causal attention takes 6 a
    pair of tokens, head dimension, head and layer (two products forward, four backward, half of the square). The output layer is
    counted on the tokens that are learnt from alone. Embeddings, norms and activations are not counted.

    Attributes:
        token: operations a token.
        target: operations a token that is learnt from.
        square: operations a squared length of a row.
    """

    token: int
    target: int
    square: int

    @classmethod
    def of(cls, model: "nn.Module", config: "PreTrainedConfig") -> "Work":
        """Counts the linear layers of a model.

        Args:
            model: the base with its adapter.
            config: of the base.

        Returns:
            The work.
        """
        import torch

        token = target = 0
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear):
                continue
            operations = (6 if module.weight.requires_grad else 4) * module.in_features * module.out_features
            if "lm_head" in name:
                target += operations
            else:
                token += operations
        text = config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(token, target, 6 * text.num_hidden_layers * heads * size)

    def flops(self, rows: "Sequence[TokenRow]") -> float:
        """The operations of one step over some rows."""
        lengths = [len(row.input_ids) for row in rows]
        targets = sum(row.targets for row in rows)
        return float(self.token * sum(lengths) + self.target * targets + self.square * sum(length**2 for length in lengths))


def launch_seconds() -> float:
    """Seconds that the host takes to launch one small product on the GPU: what the planner scales the measured host's time by.

    Returns:
        The median over batches that the GPU's queue has room for.
    """
    import torch

    one, out = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16), torch.empty(64, 64, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(LAUNCH_BATCHES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            torch.mm(one, one, out=out)
        times.append((time.perf_counter() - start) / LAUNCHES)
    torch.cuda.synchronize()
    return statistics.median(times[1:])


def matmul_rate(device: str) -> float | None:
    """The rate of bfloat16 matrix products on this GPU, now, in FLOP/s: the ceiling of a training; None on a CPU.

    Call it before the base is loaded: it needs 0.4 GiB for about a third of a second, and gives them back.
    """
    if device != "cuda":
        return None
    import torch

    try:
        generator = torch.Generator("cuda").manual_seed(0)  # not zeros, which take less power and so run faster
        one, other = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(2))
        out = torch.empty_like(one)
        seconds = _seconds_of(lambda: torch.mm(one, other, out=out), 2)  # the first product also loads the library
        rate = 2 * SIDE**3 / _seconds_of(lambda: torch.mm(one, other, out=out), max(1, min(50, int(PRODUCT_SECONDS / seconds))))
    except torch.OutOfMemoryError:  # another process holds the card: not worth ending a training
        return None
    finally:
        one = other = out = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return rate


def _seconds_of(product: Callable[[], object], times: int) -> float:
    """The mean duration of a call on the GPU."""
    import torch

    product()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        product()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / times


def allocated_bytes(device: str) -> int:
    """Memory in use now: of the process on a CPU, of PyTorch's tensors on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return memory_bytes(device)


def memory_bytes(device: str) -> int:
    """Memory held now: of the process on a CPU, reserved by PyTorch on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_reserved()
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory(device: str) -> dict[str, Any]:
    """The largest memory of this process: `host_bytes`, and `gpu_bytes` (reserved by PyTorch) or None."""
    import resource

    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.max_memory_reserved()
    return {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "gpu_bytes": gpu}


def reset_peak(device: str) -> None:
    """Lets the GPU's largest memory be counted from now; a process's own cannot be."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def cap_memory(gib: float | None) -> None:
    """Holds this process to a part of the GPU's memory.

    Args:
        gib: runtime.gpu_memory_gib; None, or more than there is, caps nothing.
    """
    if gib is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / torch.cuda.get_device_properties(0).total_memory))


def free_bytes(device: str) -> int:
    """Memory that is still to be had: on the GPU within this process's cap, and on a CPU from the system."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        cap = round(torch.cuda.get_per_process_memory_fraction() * total)
        return min(free, cap - torch.cuda.memory_reserved())
    import psutil

    return int(psutil.virtual_memory().available)


def gpu_name(device: str) -> str | None:
    """The GPU's name, or None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(0)
