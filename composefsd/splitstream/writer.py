"""Writing a splitstream: inline bytes and object references go in, the bytes of the file come out."""

from typing import Final

import zstandard

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.splitstream.format import CHUNK, HEADER_BYTES, INFO_BYTES, Header, Info, Range
from composefsd.verity import Buffer

LEVEL: Final = 3
"""What composefs-rs's level 0 stands for.  No digest outside of a repository depends on it."""

INLINE_LIMIT_BYTES: Final = 256 << 20
"""The longest run of inline bytes.  Its length stands before it, so the run is held in memory until it ends."""

_BATCH_BYTES: Final = 256 << 10


class Writer:
    """A splitstream under construction.

    Adjacent inline bytes become one chunk, which readers of tar layers count on.
    """

    def __init__(self, algorithm: Algorithm, content_type: int) -> None:
        self.size_bytes = 0
        self._algorithm = algorithm
        self._content_type = content_type
        self._objects: dict[bytes, int] = {}
        self._streams: dict[bytes, int] = {}
        self._names: dict[str, int] = {}
        self._inline = bytearray()
        self._batch = bytearray()
        self._compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        self._compressed: list[bytes] = []

    def inline(self, data: Buffer) -> None:
        """The next bytes of the stream, kept in the splitstream itself.

        Raises LimitExceededError if no reference breaks up a run of `INLINE_LIMIT_BYTES`.
        """
        self._inline += data
        self.size_bytes += len(data)
        if len(self._inline) > INLINE_LIMIT_BYTES:
            raise LimitExceededError(f"splitstream: more than {INLINE_LIMIT_BYTES} inline bytes in a row")

    def external(self, digest: bytes, size_bytes: int) -> None:
        """The next `size_bytes` of the stream are the content of the object `digest` (raw)."""
        if self._inline:
            self._end_inline()
        self._batch += CHUNK.pack(self._objects.setdefault(digest, len(self._objects)))
        self.size_bytes += size_bytes
        if len(self._batch) >= _BATCH_BYTES:
            self._compress()

    def add_reference(self, name: str, digest: bytes) -> None:
        """Name the splitstream or image `digest` (raw); a later reference of the same name replaces this one.

        Raises FormatError for a name that the format cannot hold.
        """
        if "\0" in name or not _encodable(name):
            raise FormatError(f"a named reference cannot be called {name!r}", subject=name)
        self._names[name] = self._streams.setdefault(digest, len(self._streams))

    def finish(self) -> bytes:
        """The whole file; the writer cannot be used afterwards."""
        if self._inline:
            self._end_inline()
        self._compress()
        data = [*self._compressed, self._compressor.flush()]
        sections = [b"".join(self._streams), b"".join(self._objects), self._named_refs(), b"".join(data)]
        ranges = _lay_out(HEADER_BYTES + INFO_BYTES, [len(section) for section in sections])
        streams, objects, named, chunks = ranges
        info = Info(streams, objects, chunks, named, self._content_type, self.size_bytes)
        header = Header(self._algorithm, Range(HEADER_BYTES, HEADER_BYTES + INFO_BYTES))
        return b"".join((header.serialize(), info.serialize(), *sections))

    def _end_inline(self) -> None:
        self._batch += CHUNK.pack(-len(self._inline))
        self._batch += self._inline
        self._inline.clear()
        if len(self._batch) >= _BATCH_BYTES:
            self._compress()

    def _compress(self) -> None:
        """Many small calls would cost more than the compression itself, hence the batch."""
        self._compressed.append(self._compressor.compress(self._batch))
        self._batch.clear()

    def _named_refs(self) -> bytes:
        entries = sorted((name.encode(), index) for name, index in self._names.items())
        text = b"".join(b"%d:%b\0" % (index, name) for name, index in entries)
        compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        return compressor.compress(text) + compressor.flush()


def _lay_out(start: int, sizes: list[int]) -> list[Range]:
    """Ranges of these sizes one after the other."""
    ranges = []
    for size in sizes:
        ranges.append(Range(start, start + size))
        start += size
    return ranges


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
