"""SIGTERM and SIGINT as a flag that the training looks at between forward passes. In: signals. Out: Stopped."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """A signal asked the training to stop; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """The last signal caught, if any."""

    def __init__(self) -> None:
        """Nothing was caught yet."""
        self.number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self.number = number

    def check(self) -> None:
        """Raises Stopped once a signal was caught."""
        if self.number is not None:
            raise Stopped(self.number)


@contextlib.contextmanager
def caught() -> Iterator[Stop]:
    """Catches both signals until the block ends; it yields what they are noted in."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
