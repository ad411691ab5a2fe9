"""EFI variables through efivarfs: a file NAME-GUID of four bytes of attributes and the value.

The kernel marks most variables immutable; the flag is taken off for the write (the kernel's
Documentation/filesystems/efivarfs.rst).  Loader variables hold UTF-16LE with a NUL (systemd's Boot Loader Interface).
A machine may have no variables, or refuse to change them: everything has to work without.
"""

import fcntl
import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.errors import FormatError, UnsupportedError
from composefsd.linux.oserrors import translated

LOADER: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""The vendor of the Boot Loader Interface."""

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""EFI_GLOBAL_VARIABLE."""

_ATTRIBUTES: Final = struct.Struct("<I")
_LASTING: Final = 0x7  # non-volatile, at boot time and at run time
_LIMIT_BYTES: Final = 64 << 10
_NAME: Final = re.compile(r"[A-Za-z0-9]{1,100}")
_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS, linux/fs.h
_SET_FLAGS: Final = 0x40086602
_IMMUTABLE: Final = 0x10


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of this machine; `directory` is where efivarfs is mounted."""

    directory: Path

    def _path(self, name: str, vendor: str) -> Path:
        assert _NAME.fullmatch(name), name
        return self.directory / f"{name}-{vendor}"

    def read(self, name: str, vendor: str = LOADER) -> bytes | None:
        """The value; None if there is no such variable, or it cannot be read."""
        try:
            with self._path(name, vendor).open("rb") as file:
                data = file.read(_LIMIT_BYTES + 1)
        except OSError:
            return None
        return data[_ATTRIBUTES.size :] if _ATTRIBUTES.size <= len(data) <= _LIMIT_BYTES else None

    def text(self, name: str, vendor: str = LOADER) -> str | None:
        """A value that is text; None also for what is no text."""
        value = self.read(name, vendor)
        if value is None:
            return None
        try:
            return value.decode("utf-16-le").partition("\0")[0]
        except UnicodeDecodeError:
            return None

    def write(self, name: str, value: bytes, vendor: str = LOADER) -> None:
        """Set a variable for good.

        Raises ReadOnlyError where variables cannot be changed, UnsupportedError where there are none, and what the
        firmware's refusal comes to.
        """
        if not self.directory.is_dir():
            raise UnsupportedError("this machine has no EFI variables", subject=name)
        path = self._path(name, vendor)
        with translated(f"setting the EFI variable {name}"):
            _make_mutable(path)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, _ATTRIBUTES.pack(_LASTING) + value)  # in one write, as efivarfs wants it
            finally:
                os.close(fd)

    def write_text(self, name: str, text: str, vendor: str = LOADER) -> None:
        """Set a variable to text.  Raises FormatError for text with NUL, and as `write`."""
        if "\0" in text:
            raise FormatError(f"a NUL in the EFI variable {name}", subject=name)
        self.write(name, f"{text}\0".encode("utf-16-le"), vendor)

    def remove(self, name: str, vendor: str = LOADER) -> bool:
        """Remove a variable; whether there was one.  Raises as `write`."""
        path = self._path(name, vendor)
        with translated(f"removing the EFI variable {name}"):
            _make_mutable(path)
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True


def _make_mutable(path: Path) -> None:
    """Take the immutable flag off, where there is one: outside efivarfs there is none."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, struct.pack("l", 0)))[0]
            if flags & _IMMUTABLE:
                fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags & ~_IMMUTABLE))
        finally:
            os.close(fd)
