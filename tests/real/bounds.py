"""Bounds of time and memory on what reads hostile input: beyond them a test fails, and says with which case."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Raises TimeoutError if the block takes longer; in the main thread only."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {limit} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def growth(limit_bytes: int) -> Iterator[None]:
    """Raises MemoryError if the process has taken more memory than this and than ever before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown_bytes > limit_bytes:
        raise MemoryError(f"{grown_bytes} bytes more than before")
