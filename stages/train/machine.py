"""What a training costs: seconds, memory, energy. Read from the machine; nothing here is compared by bytes."""

import time
from dataclasses import dataclass
from typing import Any


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


def reading(device: str) -> Reading:
    """Reads clock and energy counter.

    Args:
        device: cpu or cuda.

    Returns:
        The reading.
    """
    joules, why = _joules(device)
    return Reading(time.monotonic(), joules, why)


def _joules(device: str) -> tuple[float | None, str | None]:
    """The GPU's energy since its driver was loaded, or None and why."""
    if device != "cuda":
        return None, "a processor's energy counter is readable by root only"
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # PyTorch numbers the visible devices, NVML all of them: the UUID is the same
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except Exception as error:  # a meter never ends a training
        return None, f"NVML gives no energy here ({type(error).__name__}: {error})"
    return millijoules / 1000, None


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


def gpu_name(device: str) -> str | None:
    """The GPU's name, or None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(0)
