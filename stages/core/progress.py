"""One progress bar a stage: tqdm on a terminal, a JSON line at most every ten seconds elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def progress(
    items: Iterable[T], stage: str, total: int | None = None, unit: str = "row", size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Passes items on and shows how many were done, the rate and the time left.

    Args:
        items: what to pass on.
        stage: the name shown.
        total: how many units there are, where `items` has no length or an item is not one unit.
        unit: what is counted.
        size: how many units an item is.

    Yields:
        Each item, unchanged.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        with tqdm(desc=stage, total=total, unit=unit, leave=False) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            line = {"stage": stage, "done": done, "total": total, "unit": unit, "per_second": round(rate, 2)}
            if total is not None:
                line["eta_seconds"] = round((total - done) / rate)
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
