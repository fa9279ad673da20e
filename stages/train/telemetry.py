"""A thread that reads the device's sensors every second while a training runs. In: the device. Out: means and peaks, telemetry.jsonl.

Nothing here can end a training or change its result: a sensor that is missing is left out, a fault is told once.
"""

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from stages.train import machine

Sample = dict[str, float]

KEPT_SAMPLES = 120
# NVML's clock event reasons (nvml.h, nvmlClocksEventReason*) that hold the clock below what the load asks for
THROTTLES = {"throttled_power": 0x4 | 0x80, "throttled_heat": 0x20 | 0x40, "throttled_hardware": 0x8}


class Telemetry:
    """Samples while its block runs.

    A sample has these keys, as far as the machine tells them. Of a GPU: `temperature_c`, `power_watts`, `sm_mhz`, `memory_mhz`, `busy`
    (share of the time in which a kernel ran), `others_bytes` (memory that other processes hold), `throttled` and its kinds (0 or 1).
    Of the host: `load`, `cores`, `own_cores` and `others_cores` (in use); on a CPU device `cpu_mhz` and `temperature_c` as well.
    """

    def __init__(self, device: str, file: Path, every_seconds: float | None) -> None:
        """Prepares it; nothing is read yet.

        Args:
            device: cpu or cuda.
            file: where each sample is appended as a line of JSON.
            every_seconds: between two samples; None takes none.
        """
        self._device = device
        self._file = file
        self._every = every_seconds
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, Sample]] = deque(maxlen=KEPT_SAMPLES)
        self._sums: dict[str, Any] = empty()
        self._untaken: dict[str, Any] = empty()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Telemetry":
        """Starts the thread."""
        if self._every is not None:
            self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends it; a sensor that hangs is not waited for."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        assert self._every is not None
        try:
            sensors = Sensors(self._device)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", buffering=1) as file:
                before = time.monotonic()
                while not self._done.wait(self._every):
                    start = time.monotonic()
                    sample = sensors.read()
                    self._add(start, start - before, sample, time.monotonic() - start)
                    before = start
                    file.write(json.dumps({"time": round(time.time(), 1), **sample}) + "\n")
        except Exception as error:  # a full disk, say
            sys.stderr.write(f"train: the sensors are read no more ({type(error).__name__}: {error}); the training goes on\n")

    def _add(self, moment: float, seconds: float, sample: Sample, cost: float) -> None:
        with self._lock:
            self._recent.append((moment, sample))
            for sums in (self._sums, self._untaken):
                add(sums, seconds, sample, cost)

    def recent(self, seconds: float) -> Sample:
        """The mean of each sensor over the last seconds (of the last sample, where they hold none)."""
        with self._lock:
            kept = list(self._recent)
        after = time.monotonic() - seconds
        sums = empty()
        for moment, sample in kept:
            if moment >= after or moment == kept[-1][0]:
                add(sums, 1.0, sample, 0.0)
        return means(sums)

    def usual(self) -> Sample:
        """The mean of each sensor since the start."""
        with self._lock:
            return means(self._sums)

    def taken(self) -> dict[str, Any]:
        """What was summed since the last call, to be merged into the run's own sums."""
        with self._lock:
            sums, self._untaken = self._untaken, empty()
        return sums


def empty() -> dict[str, Any]:
    """Sums of no sample: `samples`, `seconds`, `cost_seconds` spent on reading; by sensor `time`, `sum` (value x seconds) and `most`."""
    return {"samples": 0, "seconds": 0.0, "cost_seconds": 0.0, "sensors": {}}


def add(sums: dict[str, Any], seconds: float, sample: Mapping[str, float], cost: float) -> None:
    """Adds a sample that stands for the seconds before it."""
    sums["samples"] += 1
    sums["seconds"] += seconds
    sums["cost_seconds"] += cost
    for name, value in sample.items():
        found = sums["sensors"].setdefault(name, {"time": 0.0, "sum": 0.0, "most": value})
        found["time"] += seconds
        found["sum"] += value * seconds
        found["most"] = max(found["most"], value)


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of two stretches of time together."""
    sensors = {name: dict(found) for name, found in one["sensors"].items()}
    for name, found in other["sensors"].items():
        had = sensors.setdefault(name, {"time": 0.0, "sum": 0.0, "most": found["most"]})
        sensors[name] = {"time": had["time"] + found["time"], "sum": had["sum"] + found["sum"], "most": max(had["most"], found["most"])}
    plain = {name: one[name] + other[name] for name in ("samples", "seconds", "cost_seconds")}
    return {**plain, "sensors": sensors}


def means(sums: Mapping[str, Any]) -> Sample:
    """The mean of each sensor over time."""
    return {name: found["sum"] / found["time"] for name, found in sums["sensors"].items() if found["time"] > 0}


def told(sums: Mapping[str, Any]) -> dict[str, Any]:
    """What the report tells of the sensors; None where none was read.

    Args:
        sums: as `merged` gives them.

    Returns:
        `sampled_seconds`, `sampling_share` (of the time, spent on reading), `mean` and `most` by sensor, `hottest_c`, `throttled_seconds`.
    """
    sensors, mean = sums["sensors"], means(sums)
    return {
        "sampled_seconds": sums["seconds"],
        "sampling_share": sums["cost_seconds"] / sums["seconds"] if sums["seconds"] else None,
        "mean": mean,
        "most": {name: found["most"] for name, found in sensors.items()},
        "hottest_c": sensors["temperature_c"]["most"] if "temperature_c" in sensors else None,
        "throttled_seconds": {name: sensors[name]["sum"] for name in ("throttled", *THROTTLES)} if "throttled" in sensors else None,
    }


class Sensors:
    """What can be read on this machine."""

    def __init__(self, device: str) -> None:
        """Opens the GPU's sensors and notes the host's counters."""
        import psutil

        self._device = device
        self._process = psutil.Process()
        self._handle: Any = None
        if device == "cuda":
            try:
                self._handle = machine.gpu_handle(machine.gpu_uuid())
            except Exception as error:
                sys.stderr.write(f"train: no sensor of the GPU is read ({type(error).__name__}: {error}); the training goes on\n")
        self._least_gap = math.inf
        self._counters = self._busy()

    def read(self) -> Sample:
        """One sample."""
        sample = self._host()
        if self._device == "cpu":
            sample |= self._processor()
        if self._handle is not None:
            sample |= self._gpu()
        return sample

    def _busy(self) -> tuple[float, float, float]:
        """Moment, and the processor seconds that this process and the whole machine have used."""
        import psutil

        own = self._process.cpu_times()
        whole = psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        guests = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)  # counted in user and nice as well
        return time.monotonic(), own.user + own.system, sum(whole) - idle - guests

    def _host(self) -> Sample:
        now, before = self._busy(), self._counters
        self._counters = now
        seconds = max(now[0] - before[0], 1e-3)
        own, whole = (now[1] - before[1]) / seconds, (now[2] - before[2]) / seconds
        return {
            "load": round(os.getloadavg()[0], 2),
            "cores": float(os.cpu_count() or 1),
            "own_cores": round(own, 3),
            "others_cores": round(max(0.0, whole - own), 3),
        }

    def _processor(self) -> Sample:
        """Clock and temperature, where the system tells them (containers and virtual machines seldom do)."""
        import psutil

        sample: Sample = {}
        frequency = psutil.cpu_freq()
        if frequency is not None and frequency.current:
            sample["cpu_mhz"] = round(frequency.current, 1)
        found = [sensor.current for group in psutil.sensors_temperatures().values() for sensor in group if sensor.current]
        if found:
            sample["temperature_c"] = max(found)
        return sample

    def _gpu(self) -> Sample:
        import pynvml as nvml

        handle, sample = self._handle, Sample()
        for name, read in {
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "busy": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "others_bytes": self._others,
        }.items():
            with contextlib.suppress(nvml.NVMLError):  # this card does not tell it
                sample[name] = float(read())
        with contextlib.suppress(nvml.NVMLError):
            sample |= throttles(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        return sample

    def _others(self) -> float:
        """Memory of the GPU that other processes hold.

        Where NVML does not know this process (in a container), it is what PyTorch did not reserve, above the least seen of it: that least
        is this process's context and what was there before.
        """
        import pynvml as nvml
        import torch

        held = {process.pid: process.usedGpuMemory for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        if os.getpid() in held:
            return float(sum(used for pid, used in held.items() if pid != os.getpid() and used is not None))
        gap = float(nvml.nvmlDeviceGetMemoryInfo(self._handle).used - torch.cuda.memory_reserved())
        self._least_gap = min(self._least_gap, gap)
        return gap - self._least_gap


def throttles(reasons: int) -> Sample:
    """The kinds of throttling in NVML's bit mask of clock event reasons, each 0 or 1, and whether there is any."""
    found = {name: float(bool(reasons & mask)) for name, mask in THROTTLES.items()}
    return {"throttled": max(found.values()), **found}
