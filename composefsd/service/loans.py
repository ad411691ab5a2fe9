"""Files in memory that clients have got: whose memory is the daemon's until they let go of them.

Anybody may ask for one, close the connection, and keep the descriptor, so it is the files that are counted.  Whether
somebody still has one open or mapped, the kernel tells: it grants a write lease on no file that others have open
(fcntl(2), F_SETLEASE).
"""

import asyncio
import fcntl
import os
from contextlib import ExitStack
from typing import Final

from composefsd.errors import LimitExceededError

_LOOK_SECONDS: Final = 2.0
"""How long the memory of a file may outlive its last reader."""

_LEAST_BYTES: Final = 64 << 10
"""What the smallest file counts as: each takes a descriptor of ours, too."""


class Loans:
    """Files that are lent; `what` names them in errors, `limit_bytes` is for all of them together."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        self._what = what
        self._limit_bytes = limit_bytes
        self._lent: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def require(self, size_bytes: int) -> None:
        """Raises LimitExceededError if that much more cannot be lent."""
        self._settle()
        if sum(self._lent.values()) + _counted(size_bytes) > self._limit_bytes:
            raise LimitExceededError(f"{self._what}: clients keep too much of them open; try again later")

    def lend(self, descriptor: int) -> int:
        """A descriptor for reading of a sealed file, at its start, for a client; ours is taken and kept track of."""
        path = f"/proc/self/fd/{descriptor}"
        with ExitStack() as failed:
            failed.callback(os.close, descriptor)
            kept = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a lease is only for one that is open for reading
            failed.callback(os.close, kept)
            given = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            failed.pop_all()
        os.close(descriptor)
        self._lent[kept] = _counted(os.fstat(kept).st_size)
        self._look_later()
        return given

    def close(self) -> None:
        """Lose track of all; readers keep what they have."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kept in self._lent:
            os.close(kept)
        self._lent = {}

    def _look_later(self) -> None:
        if self._timer is None and self._lent:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._settle()
        self._look_later()

    def _settle(self) -> None:
        """Let go of what nobody else has any more."""
        for kept in [one for one in self._lent if not _is_held(one)]:
            os.close(kept)
            del self._lent[kept]


def _counted(size_bytes: int) -> int:
    return max(size_bytes, _LEAST_BYTES)


def _is_held(descriptor: int) -> bool:
    """Whether anybody else has the file open."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    except OSError:  # a kernel that leases no files in memory: then nothing can be known
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
