"""Reading a part of a file, all of it."""

import os


def pread_all(fd: int, count: int, offset: int) -> bytes:
    """`count` bytes from `offset`, fewer only where the file ends.

    A single read stops short of a block that the kernel cannot read or does not believe, without an error, and what
    it gave would pass for a shorter file; it also stops at 2 GiB.  Raises OSError as it comes.
    """
    data = os.pread(fd, count, offset)
    while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data
