"""Files in memory that a client gets as a descriptor, and that nobody can change any more."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@contextmanager
def memory_file(name: str) -> Iterator[int]:
    """An empty file, open for reading and writing; it is closed if the block fails, else the caller closes it."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield descriptor
    except BaseException:
        os.close(descriptor)
        raise


def seal(descriptor: int) -> int:
    """End the changing of a file in memory, and go to its start; the same descriptor."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def sealed(name: str, data: bytes) -> int:
    """A sealed file with this content."""
    with memory_file(name) as descriptor:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        return seal(descriptor)
