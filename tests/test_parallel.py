"""Work shared among processes comes back in order, is read a few items at a time, and ends with the process that asked for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stages.core.parallel import WAITING, in_batches, in_order


def squared(number: int) -> int:
    time.sleep(0.02 if number % 5 == 0 else 0)  # some overtake others
    return number * number


def failing(number: int) -> int:
    raise ValueError(f"item {number}")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items_and_few_items_wait(workers: int) -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(40):
            read += 1
            yield number

    for done, result in enumerate(in_order(squared, items(), workers)):
        assert result == done**2
        assert read <= done + 1 + WAITING * workers


def test_an_error_in_a_process_is_raised_where_its_result_is_awaited() -> None:
    with pytest.raises(ValueError, match="item 0"):
        list(in_order(failing, range(3), 2))


def test_batches_hold_every_item_once() -> None:
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_the_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import itertools, time\nfrom stages.core.parallel import in_order\n"
        "if __name__ == '__main__':\n    for _ in in_order(time.sleep, itertools.repeat(0.1), 2):\n        print('.', flush=True)\n"
    )
    started = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()
    children = psutil.Process(started.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
