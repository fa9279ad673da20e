"""The links between the GPUs of this host, as NVML and PyTorch tell them, and what an all-reduce over them reaches."""

import pytest
import torch

from stages.cli import doctor_gpus
from stages.core.planner_links import pairs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


def test_every_two_gpus_have_a_link_that_the_driver_tells() -> None:
    count = torch.cuda.device_count()
    found = pairs()
    assert len(found) >= count * (count - 1) // 2
    assert all(pair.bandwidth is None or pair.bandwidth > 1 for pair in found)
    assert [grade for grade, _ in doctor_gpus.links()]


def test_an_all_reduce_over_the_gpus_states_what_it_reaches() -> None:
    found = dict(reversed(finding) for finding in doctor_gpus.nccl(60.0))
    assert "error" not in found.values()
    assert sum("bus bandwidth" in text for text in found) == len(doctor_gpus.GPU_SIZES)
