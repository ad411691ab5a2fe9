"""Writing all of something: a single write may take less."""

import os

from composefsd.verity import Buffer


def write_all(fd: int, data: Buffer) -> None:
    """All of `data`, at the file's position.  Raises OSError as it comes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
