"""Mutated files: whatever the bytes, the readers give rows, named rejections or one sentence, and lose and hang on nothing."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_readers
from stages.fetch_data.sources import PACKED, SUFFIXES


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_a_mutated_example_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    fuzz_readers.check(tmp_path, *fuzz_readers.made(rng, rng.choice(fuzz_readers.samples())))


PIECES = st.sampled_from([piece for piece in fuzz_readers.PIECES if len(piece) < 100]) | st.binary(max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, max_size=30), suffix=st.sampled_from(SUFFIXES), packing=st.sampled_from(["", *PACKED]))
def test_any_bytes_are_read_or_refused(pieces: list[bytes], suffix: str, packing: str, tmp_path: Path) -> None:
    content = b"".join(pieces)
    fuzz_readers.check(tmp_path, f"a{suffix}{packing}", fuzz_readers.PACK[packing](content) if packing else content)


@pytest.mark.parametrize("number", [10552, 230805])
def test_what_fuzzing_found_once_is_refused(number: int, tmp_path: Path) -> None:
    """Of seed 1: a column's name with a line break in it, and a Parquet row group of -4458 rows, which ended the process."""
    rng = random.Random(f"1:{number}")
    assert fuzz_readers.check(tmp_path, *fuzz_readers.made(rng, rng.choice(fuzz_readers.samples()))) == "refused"


def test_an_input_that_breaks_its_process_or_hangs_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "_work", _breaks)
    counts, failures, _ = fuzz_readers.fuzz(3, 1)
    assert counts["json rows"] > 1
    assert failures[3] == "a.json ended the process"


def _breaks(seed: int, first: int, until: float, results) -> None:
    """Stands for the worker: the fourth input ends the process, the tenth is the last."""
    import os

    for number in range(first, 10):
        results.send(("begin", number, "a.json"))
        if number == 3:
            os._exit(1)
        results.send(("end", "rows", 1))
    results.send(("over", 0, 0))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_mutated_files_break_nothing() -> None:
    counts, failures, peak = fuzz_readers.fuzz(600, seed=1)
    print(f"{counts.total()} inputs, {peak >> 20} MiB resident at most")
    assert failures == {}
