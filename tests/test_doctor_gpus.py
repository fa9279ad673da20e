"""`luthier doctor` on several GPUs: the links in words, and an all-reduce that measures, fails in a sentence, and never hangs."""

import re

import pytest

from stages.cli import doctor_gpus
from stages.core.planner_links import Pair
from tests.test_cli import luthier
from tests.tiny import ROOT


def test_like_links_are_one_line_with_what_to_expect_and_slow_ones_a_warning() -> None:
    fast = [Pair(first, second, 450, True, 63, "across processors") for first, second in ((0, 1), (0, 2), (1, 2))]
    slow = Pair(0, 3, 0, False, 31.5, "under one host bridge")
    said = dict(reversed(line) for line in doctor_gpus.told([*fast, slow]))
    assert sorted(said.values()) == ["ok", "warn"]
    by_grade = {grade: text for text, grade in said.items()}
    assert "GPUs 0-1, 0-2, 1-2: NVLink, 450 GB/s one way (P2P possible" in by_grade["ok"]
    assert "expect about 360 GB/s" in by_grade["ok"]
    assert (
        "GPUs 0-3: PCIe without P2P, through host memory, 15.8 GB/s one way (P2P not possible, under one host bridge)" in by_grade["warn"]
    )


def test_a_slot_that_a_virtual_machine_hides_is_told_as_unknown() -> None:
    ((grade, text),) = doctor_gpus.told([Pair(0, 1, 0, True, None, "in one NUMA node")])
    assert (grade, "unknown width" in text, "--nccl" in text) == ("warn", True, True)


def test_the_bus_bandwidth_is_that_of_a_ring() -> None:
    assert doctor_gpus.bus_bandwidth(10**9, 1.0, 2) == pytest.approx(1.0)
    assert doctor_gpus.bus_bandwidth(10**9, 0.5, 4) == pytest.approx(3.0)


def test_the_all_reduce_states_its_bandwidth_by_message_size() -> None:
    """On a machine without GPUs two processes do it over gloo."""
    done = luthier(ROOT, "doctor", "--nccl")
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = re.findall(r"all-reduce of +(\d+) MiB: +[\d.]+ ms, bus bandwidth +[\d.]+ GB/s", done.stdout)
    assert len(sizes) >= 2
    assert "python" not in done.stdout  # the other checks are not run


def test_an_all_reduce_that_does_not_end_is_ended_with_a_sentence() -> None:
    said = doctor_gpus.all_reduce(2, False, [doctor_gpus.MIB], seconds=0.2)
    assert isinstance(said, str)
    assert re.fullmatch(r"no end after 0\.2 s \(rank 0 was starting; rank 1 was starting\), so the processes were ended", said)


def test_a_rank_that_fails_ends_all_with_what_it_was_at() -> None:
    said = doctor_gpus.all_reduce(2, False, [doctor_gpus.MIB, 2**62], seconds=60)
    assert isinstance(said, str)
    assert re.match(r"rank [01] failed while summing \d+ MiB: \w*Error: ", said)
