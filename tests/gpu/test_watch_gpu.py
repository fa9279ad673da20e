"""The GPU's sensors and its measured ceiling, read from a real card. `make test-gpu` runs it."""

import statistics
import time
from pathlib import Path

import pytest

from stages.train import machine
from stages.train.telemetry import Sensors, Telemetry

pytestmark = pytest.mark.gpu


def test_the_rate_of_matrix_products_is_repeatable_quick_and_gives_its_memory_back() -> None:
    import torch

    machine.matmul_rate("cuda")  # CUDA and cuBLAS are loaded
    held, start = torch.cuda.memory_reserved(), time.monotonic()
    rates = [machine.matmul_rate("cuda") for _ in range(3)]
    assert (time.monotonic() - start) / 3 < 0.5
    assert all(rate is not None and rate > 1e12 for rate in rates)
    assert max(rates) < 1.2 * min(rates)  # type: ignore[type-var,operator]
    assert torch.cuda.memory_reserved() <= held


def test_a_launch_takes_microseconds_and_alike_each_time() -> None:
    times = [machine.launch_seconds() for _ in range(5)]
    assert 1e-6 < min(times) < 1e-4
    assert max(times) < 1.5 * min(times)


def test_a_card_is_sampled_with_plausible_values(tmp_path: Path) -> None:
    import torch

    with Telemetry("cuda", tmp_path / "telemetry.jsonl", 0.05) as found:
        end, one = time.monotonic() + 3, torch.ones(2048, 2048, device="cuda")
        while time.monotonic() < end:
            one = (one @ one).clamp_(0, 1)
        torch.cuda.synchronize()
        usual = found.usual()
    assert 10 < usual["temperature_c"] < 100
    assert 5 < usual["power_watts"] < 2000
    assert 100 < usual["sm_mhz"] < 4000
    assert 100 < usual["memory_mhz"] < 20000
    assert 0 < usual["busy"] <= 1
    assert usual["others_bytes"] >= 0
    assert 0 <= usual["throttled"] <= 1


def test_one_reading_takes_less_than_a_hundredth_of_the_second_between_two() -> None:
    sensors = Sensors("cuda")
    spent = []
    for _ in range(20):
        start = time.thread_time()  # what it keeps from the training: the processor, not the wait for the driver
        sensors.read()
        spent.append(time.thread_time() - start)
    assert statistics.median(spent) < 0.01
