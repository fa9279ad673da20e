"""The sensors' thread: it samples, sums and writes, costs next to nothing, and never ends what it watches."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from stages.core.params import load_params
from stages.train import adapter, machine, telemetry
from stages.train.telemetry import Telemetry
from tests import trainable
from tests.tiny import ROOT

Samples = list[tuple[float, dict[str, float]]]
SAMPLES = st.lists(
    st.tuples(st.floats(0.1, 10), st.dictionaries(st.sampled_from(["power_watts", "throttled"]), st.floats(0, 500))), max_size=12
)


def wait_for_lines(file: Path, count: int) -> list[dict[str, Any]]:
    """The samples written, once there are so many."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        lines = file.read_text().splitlines() if file.is_file() else []
        if len(lines) >= count:
            return [json.loads(line) for line in lines[:count]]
        time.sleep(0.01)
    raise AssertionError("no sample came")


def summed(samples: Samples) -> dict[str, Any]:
    """Their sums."""
    sums = telemetry.empty()
    for seconds, sample in samples:
        telemetry.add(sums, seconds, sample, 0.001)
    return sums


def test_a_processor_is_sampled_into_a_file_and_into_means(tmp_path: Path) -> None:
    file = tmp_path / "new" / "telemetry.jsonl"
    with Telemetry("cpu", file, 0.02) as found:
        lines = wait_for_lines(file, 3)
        recent, usual, taken = found.recent(60), found.usual(), found.taken()
    for sample in lines:
        assert {"time", "load", "cores", "own_cores", "others_cores"} <= sample.keys()
        assert sample["own_cores"] >= 0
    assert recent.keys() == usual.keys()
    assert usual["cores"] >= 1
    assert taken["samples"] >= 3
    assert taken["cost_seconds"] < taken["seconds"]
    assert found.taken()["samples"] <= 1 + taken["samples"]


def test_no_sample_is_taken_where_none_is_wanted(tmp_path: Path) -> None:
    with Telemetry("cpu", tmp_path / "telemetry.jsonl", None) as found:
        assert found.recent(10) == found.usual() == {}
    assert list(tmp_path.iterdir()) == []
    assert telemetry.told(found.taken())["hottest_c"] is None


def test_a_machine_without_nvml_is_told_once_and_the_host_is_sampled_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has NVML")
    with Telemetry("cuda", tmp_path / "telemetry.jsonl", 0.01):
        (sample, _) = wait_for_lines(tmp_path / "telemetry.jsonl", 2)
    assert "temperature_c" not in sample
    assert "load" in sample
    assert capsys.readouterr().err.count("no sensor of the GPU is read") == 1


def test_a_file_that_cannot_be_written_ends_the_sampling_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    with Telemetry("cpu", tmp_path / "file" / "telemetry.jsonl", 0.01) as found:
        assert found._thread is not None
        found._thread.join(10)
    assert "the sensors are read no more" in capsys.readouterr().err


@given(SAMPLES, SAMPLES)
def test_the_sums_of_two_processes_are_those_of_one(first: Samples, second: Samples) -> None:
    both, whole = telemetry.merged(summed(first), summed(second)), summed(first + second)
    assert both["samples"] == whole["samples"]
    assert both["sensors"].keys() == whole["sensors"].keys()
    for name, mean in telemetry.means(whole).items():
        assert telemetry.means(both)[name] == pytest.approx(mean)
        assert both["sensors"][name]["most"] == whole["sensors"][name]["most"]


def test_throttled_time_and_heat_reach_the_report() -> None:
    hot = {"temperature_c": 83.0, "power_watts": 300.0, **telemetry.throttles(0x20)}
    cool = {"temperature_c": 60.0, "power_watts": 200.0, **telemetry.throttles(0x1)}
    told = telemetry.told(summed([(2.0, hot), (6.0, cool)]))
    assert told["hottest_c"] == 83.0
    assert told["mean"]["power_watts"] == pytest.approx(225)
    assert told["throttled_seconds"] == {"throttled": 2.0, "throttled_power": 0.0, "throttled_heat": 2.0, "throttled_hardware": 0.0}


@pytest.mark.parametrize(("reasons", "kinds"), [(0x0, []), (0x1, []), (0x4, ["power"]), (0x80, ["power"]), (0x68, ["heat", "hardware"])])
def test_nvmls_reasons_are_sorted_by_what_helps(reasons: int, kinds: list[str]) -> None:
    found = telemetry.throttles(reasons)
    assert [name.removeprefix("throttled_") for name in telemetry.THROTTLES if found[name]] == kinds
    assert found["throttled"] == float(bool(kinds))


def test_the_work_of_a_step_is_that_of_its_matrix_products(tiny_base: Path) -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    layer = 32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48
    assert machine.Work.of(model, config) == machine.Work(4 * 3 * layer, 4 * 32 * 100, 6 * 3 * 4 * 16)
    rank = trainable.training(tiny_base, tiny_base.parent / "unused", rank=4, target_modules=["q_proj"])
    trained = sum(parameter.numel() for parameter in adapter.trainable(rank.model).values())
    frozen = trainable.training(tiny_base, tiny_base.parent / "unused", rank=4, target_modules=["q_proj"])
    for parameter in adapter.trainable(frozen.model).values():
        parameter.requires_grad_(False)
    both = [machine.Work.of(found.model, found.model.config).token for found in (rank, frozen)]
    assert both[0] - both[1] == 2 * trained  # the gradient of the weights themselves


def test_the_work_grows_with_tokens_targets_and_squared_lengths() -> None:
    rows = trainable.in_memory([("a", [3] * 10, [False] * 8 + [True] * 2), ("b", [3] * 4, [False] * 3 + [True])])
    assert machine.Work(5, 7, 11).flops(rows) == 5 * 14 + 7 * 3 + 11 * (100 + 16)


def test_a_processor_has_no_measured_ceiling() -> None:
    assert machine.matmul_rate("cpu") is None


def test_the_sensors_are_read_every_second_by_default() -> None:
    assert load_params(ROOT / "params.yaml").runtime.watch.sample_seconds == 1.0
