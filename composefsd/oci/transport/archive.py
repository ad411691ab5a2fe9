"""`oci-archive:` an OCI layout in an uncompressed tar file.

The tar is hostile, so its table of contents is made by an unpacker; this process only reads at the offsets it is
told, and bounds them by the file's size.
"""

import os
from pathlib import Path
from typing import Self

from composefsd.errors import FormatError, SourceNotFoundError
from composefsd.oci.manifest import Descriptor
from composefsd.oci.transport.source import Blob, check_size, document_size, open_regular, read_document
from composefsd.workers.pool import worker


class ArchiveSource:
    """An OCI archive; `members` maps names to offset and size in bytes."""

    def __init__(self, path: Path, fd: int, members: dict[str, tuple[int, int]]) -> None:
        self.name = f"oci-archive:{path}"
        self._fd = fd
        self._members = members

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises SourceNotFoundError, FormatError, LimitExceededError, or UnsupportedError if it is compressed."""
        fd = open_regular(path, f"oci-archive:{path}")
        try:
            async with worker("composefsd.oci.unpack", sandboxed=True) as unpacker:
                answer = await unpacker.call("list_archive", {}, (fd,))
            return cls(path, fd, _bounded(answer.get("members"), document_size(fd), path))
        except BaseException:
            os.close(fd)
            raise

    async def index(self) -> bytes:
        offset, size_bytes = self._member("index.json")
        return read_document(self._fd, offset, size_bytes, f"{self.name}: index.json")

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        offset, size_bytes = self._member(f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}")
        check_size(descriptor, size_bytes, self.name)
        return Blob(os.dup(self._fd), offset)

    def close(self) -> None:
        os.close(self._fd)

    def _member(self, name: str) -> tuple[int, int]:
        try:
            return self._members[name]
        except KeyError as error:
            raise SourceNotFoundError(f"{self.name} has no {name}", subject=self.name) from error


def _bounded(members: object, end: int, path: Path) -> dict[str, tuple[int, int]]:
    """What the unpacker told, checked: it has read hostile bytes."""
    if not isinstance(members, dict):
        raise FormatError(f"{path} has no table of contents")
    checked = {}
    for name, place in members.items():
        match place:
            case [int(offset), int(size)] if 0 <= offset <= end and 0 <= size <= end - offset:
                checked[str(name)] = (offset, size)
            case _:
                raise FormatError(f"{path}: the member {name!r} lies outside of the file", subject=str(path))
    return checked
