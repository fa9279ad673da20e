"""A function over many items in several processes, the results in the order of the items, so that no result knows how many there were.

In: a function that a process can import, and items. Out: its results, as they come; few items wait at a time, however many there are.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # items given to each process ahead of the one whose result is awaited


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Applies a function to each item.

    Args:
        function: a module's function, or a partial of one; it must not depend on earlier calls.
        items: read a few at a time.
        workers: how many processes; 1 works in this one.

    Yields:
        Each item's result, in the order of the items.
    """
    if workers == 1:
        yield from map(function, items)
        return
    left = iter(items)
    # spawned, not forked: this process already has threads of pyarrow's
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(left, WAITING * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(left, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
