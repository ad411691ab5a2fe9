"""Advisory whole-file locks: flock(2), shared or exclusive, as a `with` block.

A lock belongs to an open file description: whoever inherited or duplicated the descriptor holds it too, and releases
it for all.  Two descriptions of one file are two owners, even within one process: while one holds the lock shared,
the other never gets it exclusively.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from composefsd.errors import LockedError
from composefsd.linux.oserrors import translate

_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.1


@contextmanager
def shared(fd: int, *, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock of `fd` together with others.

    Waits for `timeout` seconds, for ever if it is None, not at all if it is 0; then raises LockedError.
    """
    yield from _held(fd, fcntl.LOCK_SH, timeout)


@contextmanager
def exclusive(fd: int, *, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock of `fd` alone; `timeout` as for `shared`."""
    yield from _held(fd, fcntl.LOCK_EX, timeout)


def _held(fd: int, operation: int, timeout: float | None) -> Iterator[None]:
    if timeout is None:
        _flock(fd, operation)
    else:
        _poll(fd, operation, timeout)
    try:
        yield
    finally:
        _flock(fd, fcntl.LOCK_UN)


def _poll(fd: int, operation: int, timeout: float) -> None:
    """flock has no timeout of its own, and a signal to end it would be the whole process's affair."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    while not _try(fd, operation):
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockedError(f"another process holds the lock; gave up after {timeout:g} s")
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _try(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise translate(error, "locking") from error
    return True


def _flock(fd: int, operation: int) -> None:
    try:
        fcntl.flock(fd, operation)
    except OSError as error:
        raise translate(error, "locking") from error
