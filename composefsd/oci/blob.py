"""Reading a blob that nobody has checked: bounded by its promised size, and hashed as it passes."""

import hashlib
import os
from typing import Final

from composefsd.errors import DigestMismatchError, FormatError
from composefsd.workers.serve import Call

READ_BYTES: Final = 256 << 10
_TICK_BYTES: Final = 8 << 20


class BlobReader:
    """A blob's bytes: at most `size` of them from `offset` of a file, or from a pipe, hashed as they pass.

    `read` never gives more than the descriptor promised; `check` compares what came with what was promised.
    """

    def __init__(self, call: Call, fd: int) -> None:
        args = call.args
        self._fd = fd
        self._left = int(args["size"])
        self._offset = args["offset"]
        self._expected = (args["algorithm"], args["hex"])
        self._hash = hashlib.new(args["algorithm"])
        self._report = call.report
        self._done = self._told = 0

    def read(self, count: int = -1) -> bytes:
        """The next bytes, none at the end."""
        count = min(self._left, READ_BYTES if count < 0 else count)
        if self._offset is None:
            data = os.read(self._fd, count)
        else:
            data = os.pread(self._fd, count, self._offset)
            self._offset += len(data)
        self._left -= len(data)
        self._hash.update(data)
        self._done += len(data)
        if self._done - self._told >= _TICK_BYTES:
            self._told = self._done
            self._report({"bytes": self._done})
        return data

    def check(self) -> None:
        """Read what the decompressor did not want, and raise unless size and digest are as promised."""
        while self.read():
            pass
        algorithm, digits = self._expected
        if self._left:
            raise FormatError(
                f"blob {algorithm}:{digits} ends {self._left} bytes early", subject=f"{algorithm}:{digits}"
            )
        if self._hash.hexdigest() != digits:
            actual = f"{algorithm}:{self._hash.hexdigest()}"
            raise DigestMismatchError(
                f"blob {algorithm}:{digits} has the digest {actual}", expected=f"{algorithm}:{digits}", actual=actual
            )
