"""Files that get their name last: nobody sees one before it is complete."""

import errno
import os
import secrets
import string
from typing import Final, Self

from composefsd.linux import fsverity
from composefsd.verity import Buffer

MODE: Final = 0o644

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC
_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR)
"""How filesystems say that they do not have O_TMPFILE, and how kernels did before 3.11."""

_LETTERS: Final = string.ascii_letters + string.digits
_SUFFIX_LETTERS: Final = 12


def temporary_name(prefix: str) -> str:
    """`prefix` and twelve random letters or digits, as composefs-rs makes such names."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(_SUFFIX_LETTERS))


def is_temporary(name: str, prefix: str) -> bool:
    """Whether `temporary_name` could have made `name`."""
    suffix = name.removeprefix(prefix)
    return name.startswith(prefix) and len(suffix) == _SUFFIX_LETTERS and suffix.isascii() and suffix.isalnum()


def remove_temporaries(directory: int, prefix: str) -> int:
    """Remove the files that dead processes left in the directory open at `directory`; how many.

    Raises OSError as it comes.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if is_temporary(entry.name, prefix)]
    for name in names:
        os.unlink(name, dir_fd=directory)
    return len(names)


class Draft:
    """An open file without a name, or with a temporary one where the filesystem lacks O_TMPFILE.

    Raises OSError as it comes; callers know what they were about.  Close it in any case: that removes the temporary
    name, too, and leaves alone what was linked.
    """

    __slots__ = ("_fallback", "_name", "fd")

    def __init__(self, fd: int, fallback: int = -1, name: str | None = None) -> None:
        self.fd = fd
        self._fallback = fallback
        self._name = name

    @classmethod
    def open(cls, directory: int, fallback: int, prefix: str) -> Self:
        """In the directory open at `directory`; a temporary name would go to `fallback`, of the same filesystem."""
        try:
            fd = os.open(".", _FLAGS | os.O_TMPFILE, MODE, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            name = temporary_name(prefix)
            fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, MODE, dir_fd=fallback)
            return cls(fd, fallback, name)
        return cls(fd)

    def write(self, data: Buffer) -> None:
        """All of `data`, at the file's position."""
        written = os.write(self.fd, data)
        if written != len(data):  # a file in one piece up to 2 GiB, unless the disk is full
            view = memoryview(data)
            while written < len(view):
                written += os.write(self.fd, view[written:])

    def freeze(self) -> None:
        """Set the mode, whatever the umask, and open the file for reading only, as fs-verity demands."""
        os.fchmod(self.fd, MODE)
        self.fd = fsverity.reopen_for_reading(self.fd)

    def link(self, directory: int, name: str) -> bool:
        """Give the file its name; False if there is a file of that name already."""
        try:
            if self._name is None:
                os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            else:
                os.link(self._name, name, src_dir_fd=self._fallback, dst_dir_fd=directory)
        except FileExistsError:
            return False
        return True

    def swap(self, other: Self) -> None:
        """Trade places with another draft."""
        self.fd, other.fd = other.fd, self.fd
        self._fallback, other._fallback = other._fallback, self._fallback
        self._name, other._name = other._name, self._name

    def close(self) -> None:
        """Let go of the file, and of its temporary name."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        name, self._name = self._name, None
        if name is not None:
            os.unlink(name, dir_fd=self._fallback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
