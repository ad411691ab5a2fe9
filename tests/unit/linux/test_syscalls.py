"""System calls through ctypes."""

import errno
import os
from pathlib import Path

import pytest

from composefsd.linux.syscalls import syncfs


def test_syncfs_syncs_the_filesystem_of_a_descriptor(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        syncfs(fd)
    assert caught.value.errno == errno.EBADF
