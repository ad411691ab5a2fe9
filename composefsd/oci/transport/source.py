"""What every transport offers: an image's documents, and its blobs.

A source opens blobs and never interprets one.  All it hands out is hostile until its digest was checked, which
`find_image` does for documents, and the unpacker, or the storer of an artifact's blobs, for layers.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from composefsd.document import DOCUMENT_BYTES
from composefsd.errors import DeviceError, FormatError, LimitExceededError, SourceNotFoundError
from composefsd.oci.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to be read from `fd`, which the receiver closes.

    It lies `offset` bytes into a regular file; None stands for a pipe or socket that is read from where it is.
    """

    fd: int
    offset: int | None


class Source(Protocol):
    """A place that holds images."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    async def index(self) -> bytes:
        """The bytes of the place's index.  Raises SourceNotFoundError, FormatError or LimitExceededError."""

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        """A blob, unread and unchecked.  Raises SourceNotFoundError if it is not there."""

    def close(self) -> None:
        """Let go of the place."""


def open_regular(path: Path | str, place: str, directory_fd: int | None = None) -> int:
    """A regular file, opened for reading without following a link or waiting for a fifo's other end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(f"{place} has no {path}", subject=place) from error
    except OSError as error:
        raise SourceNotFoundError(f"{place}: {path} cannot be opened: {error.strerror}", subject=place) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError(f"{place}: {path} is no regular file", subject=place)
    return fd


def read_document(fd: int, offset: int, size_bytes: int, place: str) -> bytes:
    """A document of a file.  Raises LimitExceededError over 4 MiB, FormatError if the file is too short."""
    if size_bytes > DOCUMENT_BYTES:
        raise LimitExceededError(f"{place} has {size_bytes} bytes; {DOCUMENT_BYTES} are allowed", subject=place)
    try:
        data = os.pread(fd, size_bytes, offset)
    except OSError as error:
        raise DeviceError(f"{place} cannot be read: {error.strerror}", subject=place) from error
    if len(data) != size_bytes:
        raise FormatError(f"{place} ends {size_bytes - len(data)} bytes early", subject=place)
    return data


def check_size(descriptor: Descriptor, size_bytes: int, place: str) -> None:
    """Raises FormatError unless a blob is as long as its descriptor says."""
    if size_bytes != descriptor.size_bytes:
        raise FormatError(
            f"{place}: blob {descriptor.digest} has {size_bytes} bytes instead of {descriptor.size_bytes}",
            subject=str(descriptor.digest),
        )


def document_size(fd: int) -> int:
    """The size of an open file in bytes."""
    return os.fstat(fd).st_size
