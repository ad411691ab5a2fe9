"""The unpacker: decompression and tar parsing, in a process that may do nothing else.

A blob goes in through a descriptor; out come the plain tar through the shared ring, cut into what stands inline and
what is stored apart, and the layer's columns in a memfd.  The SHA-256 of the blob is computed on the way; that of the
tar is not, since the process that names things by it computes it itself.
"""

import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, cast

import zstandard
from isal import isal_zlib

from composefsd.errors import FormatError, LimitExceededError, UnsupportedError
from composefsd.oci.blob import READ_BYTES, BlobReader
from composefsd.oci.manifest import Compression
from composefsd.tree.tar import parse_layer
from composefsd.workers.ring import RingWriter
from composefsd.workers.serve import Call, Task

_CHUNK_BYTES: Final = 1 << 20
_ARCHIVE_MEMBERS: Final = 20_000
_WINDOW_BYTES: Final = 128 << 20
"""The largest zstd window that is allowed to ask for memory, as the zstd tool's own default limit."""

_GZIP_ERROR: Final = cast("type[Exception]", isal_zlib.error)  # typed as an instance in its stubs


def _plain(blob: BlobReader) -> Iterator[bytes]:
    while data := blob.read():
        yield data


def _gunzip(blob: BlobReader) -> Iterator[bytes]:
    """All members of a gzip file; trailing zeros are allowed, as gzip(1) allows them."""
    data = blob.read()
    while data:
        member = isal_zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not member.eof:
            data = data or blob.read()
            out = member.decompress(data, _CHUNK_BYTES)
            if not (out or data or member.eof):  # the decoder may still hold output when its input has ended
                raise FormatError("the gzip stream is cut short")
            data = member.unconsumed_tail
            if out:
                yield out
        data = member.unused_data
        while not data.strip(b"\0") and (more := blob.read()):
            data = more
        data = data.lstrip(b"\0")


def _unzstd(blob: BlobReader) -> Iterator[bytes]:
    """All frames of a zstd file, skippable ones passed over."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    with decompressor.stream_reader(
        cast("BinaryIO", blob), read_size=READ_BYTES, read_across_frames=True, closefd=False
    ) as reader:
        while data := reader.read(_CHUNK_BYTES):
            yield data


_DECOMPRESSORS: Final = {Compression.NONE: _plain, Compression.GZIP: _gunzip, Compression.ZSTD: _unzstd}


def decompress(blob: BlobReader, compression: Compression) -> Iterator[bytes]:
    """The plain bytes of a blob in chunks of at most 1 MiB.  Raises FormatError for a broken stream."""
    try:
        yield from _DECOMPRESSORS[compression](blob)
    except (_GZIP_ERROR, zstandard.ZstdError, EOFError) as error:
        raise FormatError(f"the blob is no valid {compression.value} stream: {error}") from error


class _Tar:
    """The plain tar on its way into the ring: the tar parser's LayerStream."""

    def __init__(self, chunks: Iterator[bytes], ring: RingWriter) -> None:
        self._chunks = chunks
        self._ring = ring
        self._chunk = memoryview(b"")

    def inline(self, count: int) -> bytes:
        data = bytes(self._chunk[:count])
        self._chunk = self._chunk[count:]
        while len(data) < count and self._more():
            piece = self._chunk[: count - len(data)]
            data += piece
            self._chunk = self._chunk[len(piece) :]
        self._ring.inline(data)
        return data

    def external(self, size: int) -> None:
        self._ring.begin_file(size)
        left = size
        while left:
            if not self._chunk and not self._more():
                raise FormatError(f"the tar ends {left} bytes before the end of a file of {size}")
            piece = self._chunk[:left]
            self._ring.content(piece)
            self._chunk = self._chunk[len(piece) :]
            left -= len(piece)

    def rest(self) -> None:
        self._ring.inline(self._chunk)
        while self._more():
            self._ring.inline(self._chunk)

    def _more(self) -> bool:
        chunk = next(self._chunks, b"")
        self._chunk = memoryview(chunk)
        return bool(chunk)


def unpack(call: Call) -> dict[str, Any]:
    """Unpack a layer.  fds: blob, ring, free slots (read), cuts (write), columns.

    args: `compression`, `algorithm`, `hex` and `size` of the blob, `offset` (None to read a pipe).  Answers
    with `columns`, their size in bytes; reports `bytes` of the blob as it goes.
    """
    blob_fd, ring_fd, free_fd, cuts_fd, columns_fd = call.fds
    blob = BlobReader(call, blob_fd)
    ring = RingWriter(ring_fd, free_fd, cuts_fd)
    chunks = decompress(blob, Compression(call.args["compression"]))
    layer = parse_layer(_Tar(chunks, ring))
    blob.check()
    ring.close()
    columns = memoryview(layer.serialize())
    written = 0
    while written < len(columns):
        written += os.pwrite(columns_fd, columns[written:], written)
    return {"columns": len(columns)}


def _forward(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, as long as each lies behind the one before: a size may lead back."""
    last = -1
    for count, member in enumerate(archive):
        if count == _ARCHIVE_MEMBERS:
            raise LimitExceededError(f"the archive has more than {_ARCHIVE_MEMBERS} members")
        if member.size < 0 or member.offset <= last:
            raise FormatError(f"the archive has a member at {member.offset} that leads back")
        last = member.offset
        yield member


def list_archive(call: Call) -> dict[str, Any]:
    """The regular files of an uncompressed tar, as `members`: name to [offset, size].  fds: the archive."""
    members: dict[str, tuple[int, int]] = {}
    with os.fdopen(os.dup(call.fds[0]), "rb") as file:
        magic = file.read(6)
        if magic.startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")):
            raise UnsupportedError("the archive is compressed; decompress it first")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in _forward(archive):
                    if member.isreg():
                        members[member.name.removeprefix("./")] = (member.offset_data, member.size)
        except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError, OSError) as error:
            raise FormatError(f"the archive is no valid tar: {error}") from error
    return {"members": members}


TASKS: Final[dict[str, Task]] = {"unpack": unpack, "list_archive": list_archive}
