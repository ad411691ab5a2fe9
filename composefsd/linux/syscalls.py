"""System calls that the standard library lacks."""

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syncfs.argtypes = [ctypes.c_int]


def syncfs(fd: int) -> None:
    """Write out the filesystem that holds `fd`, data and metadata; raises OSError like a function of `os`."""
    if _LIBC.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
