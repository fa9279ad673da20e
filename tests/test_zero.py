"""zero3 trains as one process does, with the base on the ranks or in host memory. Without DeepSpeed, an extra, the refusal is tested."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import trainable

WITH = importlib.util.find_spec("deepspeed") is not None
# 5 rows a step over two ranks: one of them has a pass more, in which the other takes part without rows
STEPS = {
    "train__max_steps": 4,
    "train__effective_batch": 5,
    "train__micro_batch_tokens": 64,
    "tokenize__max_tokens": 64,
    "numerics__quantization": "none",
}


@pytest.mark.skipif(WITH, reason="DeepSpeed is installed")
def test_without_deepspeed_zero3_says_how_to_get_it(tmp_path: Path, tiny_base: Path) -> None:
    root = trainable.prepare(tmp_path / "root", tiny_base, train__parallel="zero3", runtime__processes=2, **STEPS)
    code, said = trainable.run(root)
    assert code == 1
    assert "needs DeepSpeed" in said
    assert "pip install --no-deps deepspeed" in said


@pytest.mark.skipif(not WITH or Path("/usr/include/libaio.h").exists(), reason="DeepSpeed is not installed, or can read a drive")
def test_a_drive_that_cannot_be_read_is_refused_before_the_base_is(tmp_path: Path, tiny_base: Path) -> None:
    drive = {"train__parallel": "zero3", "runtime__processes": 2, "runtime__zero_offload": str(tmp_path)}
    code, said = trainable.run(trainable.prepare(tmp_path / "root", tiny_base, **drive, **STEPS))
    assert code == 1
    assert "DeepSpeed compiles its async_io, which failed here" in said
    assert "libaio-dev" in said


@pytest.mark.skipif(not WITH, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(("waits", "recompute"), [("gpu", "none"), ("host", "all")])
def test_zero3_trains_as_one_process_does(waits: str, recompute: str, tmp_path: Path, tiny_base: Path) -> None:
    steps = {**STEPS, "train__recompute": recompute}
    alone = trainable.prepare(tmp_path / "alone", tiny_base, **steps)
    several = {"train__parallel": "zero3", "runtime__processes": 2, "runtime__zero_offload": waits}
    split = trainable.prepare(tmp_path / "split", tiny_base, **steps, **several)
    for root in (alone, split):
        code, said = trainable.run(root)
        assert code == 0, said
    expected, found = (load_file(root / "models/adapter/adapter_model.safetensors") for root in (alone, split))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert np.allclose(found[name], tensor, rtol=1e-2, atol=2e-3), name
