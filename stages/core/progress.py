"""One progress bar a stage: tqdm on a terminal, a JSON line at most every ten seconds elsewhere."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[T], stage: str, total: int | None = None, unit: str = "row") -> Iterator[T]:
    """Passes items on and shows how many were done, the rate and the time left.

    Args:
        items: what to pass on.
        stage: the name shown.
        total: how many items there are, where `items` has no length.
        unit: what one item is.

    Yields:
        Each item, unchanged.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=stage, total=total, unit=unit, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            line = {"stage": stage, "done": done, "total": total, "unit": unit, "per_second": round(rate, 2)}
            if total is not None:
                line["eta_seconds"] = round((total - done) / rate)
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
