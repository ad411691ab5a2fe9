"""`oci:` an OCI image layout in a directory (the image-layout page of the OCI image specification)."""

import os
from pathlib import Path

from composefsd.errors import FormatError, SourceNotFoundError
from composefsd.oci.manifest import Descriptor
from composefsd.oci.transport.source import Blob, check_size, document_size, open_regular, read_document


class LayoutSource:
    """An OCI layout, held by a descriptor of its directory: the path is resolved once."""

    def __init__(self, path: Path) -> None:
        """Raises SourceNotFoundError if there is no such directory."""
        self.name = f"oci:{path}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceNotFoundError(f"{path} is no OCI layout: {error.strerror}", subject=str(path)) from error

    async def index(self) -> bytes:
        fd = open_regular("index.json", self.name, self._fd)
        try:
            return read_document(fd, 0, document_size(fd), f"{self.name}: index.json")
        finally:
            os.close(fd)

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        digest = descriptor.digest
        directory = self._fd
        try:
            for name in ("blobs", digest.algorithm):
                inner = self._enter(directory, name)
                if directory != self._fd:
                    os.close(directory)
                directory = inner
            fd = open_regular(digest.hex, f"{self.name}: blobs/{digest.algorithm}", directory)
        finally:
            if directory != self._fd:
                os.close(directory)
        try:
            check_size(descriptor, document_size(fd), self.name)
        except FormatError:
            os.close(fd)
            raise
        return Blob(fd, 0)

    def close(self) -> None:
        os.close(self._fd)

    def _enter(self, directory: int, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            raise SourceNotFoundError(f"{self.name} has no directory {name}: {error.strerror}") from error
