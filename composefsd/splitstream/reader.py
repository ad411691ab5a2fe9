"""Reading a splitstream.  The input may be hostile: memory is bounded by the file's size and the limits below."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

import zstandard

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.splitstream.format import CHUNK, Header, Info, Range

NAMED_REFS_LIMIT_BYTES: Final = 4 << 20
"""Of the decompressed table; an OCI manifest of 4 MiB, the most that registries take, cannot name more layers."""

NAMED_REFS_LIMIT: Final = 1 << 16

_WINDOW_LIMIT_BYTES: Final = 128 << 20
"""libzstd's own default: what composefs-rs accepts."""

_STEP_BYTES: Final = 256
"""How much is decompressed at once: at most 8 MiB come out, as a block of 128 KiB takes 4 bytes at least."""


@dataclass(frozen=True, slots=True)
class Splitstream:
    """A parsed splitstream; digests are raw and as wide as those of `algorithm`.

    object_refs are the objects whose content the stream has in it, in order of first use; stream_refs what
    `named_refs` leads to.  size_bytes is what the writer said, and nobody has checked.
    """

    algorithm: Algorithm
    content_type: int
    size_bytes: int
    stream_refs: tuple[bytes, ...]
    object_refs: tuple[bytes, ...]
    named_refs: dict[str, bytes]
    _data: memoryview = field(repr=False)

    @classmethod
    def parse(cls, data: bytes | memoryview, algorithm: Algorithm, content_type: int | None = None) -> Self:
        """Take `data` as a splitstream of `algorithm`, and of `content_type` if that is given.

        The chunks are not looked at before `chunks` is iterated.  Raises FormatError if something contradicts the
        format, and LimitExceededError for named references beyond all reason.
        """
        view = memoryview(data)
        header = Header.parse(view)
        if header.algorithm is not algorithm:
            raise FormatError(f"splitstream with {header.algorithm.value} digests, not {algorithm.value}", offset=14)
        info = Info.parse(_section(view, header.info, "the info section"))
        _require(info.content_type, content_type)
        streams = _digests(_section(view, info.stream_refs, "the table of streams"), algorithm)
        objects = _digests(_section(view, info.object_refs, "the table of objects"), algorithm)
        names = _named_refs(_section(view, info.named_refs, "the table of names"), streams)
        chunks = _section(view, info.data, "the data")
        return cls(algorithm, info.content_type, info.size_bytes, streams, objects, names, chunks)

    def require(self, content_type: int | None) -> None:
        """Raises FormatError if the stream is not of `content_type`; None stands for any."""
        _require(self.content_type, content_type)

    def chunks(self) -> Iterator[bytes | int]:
        """The stream from its start: inline bytes, or the index of an object reference.

        Long inline chunks come in pieces, so consecutive bytes belong together.  Raises FormatError if the data ends
        early, names an object that is not in the table, or has more inline bytes than `size_bytes`.
        """
        pieces, room, objects = _decompress(self._data), self.size_bytes, len(self.object_refs)
        buffer, at = b"", 0
        while True:
            if len(buffer) - at < CHUNK.size:
                buffer, at = _number(buffer[at:], pieces), 0
                if not buffer:
                    return
            (number,) = CHUNK.unpack_from(buffer, at)
            at += CHUNK.size
            if number >= 0:
                if number >= objects:
                    raise FormatError(f"splitstream: object {number} of {objects} is referred to")
                yield number
                continue
            room += number
            if room < 0:
                raise FormatError(f"splitstream: more inline bytes than the {self.size_bytes} of the whole stream")
            while number:
                if at == len(buffer):
                    buffer, at = next(pieces, b""), 0
                    if not buffer:
                        raise FormatError("splitstream: the data ends within an inline chunk")
                inline = buffer[at : at - number]
                at += len(inline)
                number += len(inline)
                yield inline


def _number(rest: bytes, pieces: Iterator[bytes]) -> bytes:
    """`rest` and as much of what follows as the number of a chunk needs; nothing if the data ends here."""
    while len(rest) < CHUNK.size:
        piece = next(pieces, b"")
        if not piece:
            if rest:
                raise FormatError("splitstream: the data ends within the number of a chunk")
            break
        rest += piece
    return rest


def _section(view: memoryview, place: Range, what: str) -> memoryview:
    start, end = place.check(what, len(view))
    return view[start:end]


def _require(content_type: int, wanted: int | None) -> None:
    if wanted is not None and content_type != wanted:
        raise FormatError(f"splitstream holds {_letters(content_type)}, not {_letters(wanted)}")


def _letters(content_type: int) -> str:
    text = content_type.to_bytes(8, "little")
    return text.decode() if text.isascii() and text.decode().isprintable() else f"{content_type:#x}"


def _digests(section: memoryview, algorithm: Algorithm) -> tuple[bytes, ...]:
    width, table = algorithm.digest_bytes, bytes(section)
    if len(table) % width:
        raise FormatError(f"splitstream: a table of {len(table)} bytes is not made of digests of {width}")
    return tuple([table[at : at + width] for at in range(0, len(table), width)])


def _named_refs(section: memoryview, streams: tuple[bytes, ...]) -> dict[str, bytes]:
    text = bytearray()
    for piece in _decompress(section):
        text += piece
        if len(text) > NAMED_REFS_LIMIT_BYTES:
            raise LimitExceededError(f"splitstream: more than {NAMED_REFS_LIMIT_BYTES} bytes of named references")
    if text.count(b"\0") > NAMED_REFS_LIMIT:
        raise LimitExceededError(f"splitstream: more than {NAMED_REFS_LIMIT} named references")
    *entries, rest = text.split(b"\0")
    if rest:
        raise FormatError("splitstream: the last named reference has no end")
    return dict(_named_ref(bytes(entry), streams) for entry in entries)


def _named_ref(entry: bytes, streams: tuple[bytes, ...]) -> tuple[str, bytes]:
    index, colon, name = entry.partition(b":")
    # isdigit() of bytes knows ASCII only; an index of more than 20 digits cannot be a 64-bit number
    if not colon or not index.isdigit() or len(index) > 20 or int(index) >= len(streams):
        raise FormatError(f"splitstream: not a named reference: {entry[:100]!r}")
    try:
        return name.decode(), streams[int(index)]
    except UnicodeDecodeError as error:
        raise FormatError(f"splitstream: the name of a reference is not UTF-8: {entry[:100]!r}") from error


def _decompress(section: memoryview) -> Iterator[bytes]:
    """The content of zstd frames, in pieces of at most 8 MiB that are not empty.

    There is one frame, says the format; composefs-rs's reader takes several, so we do.  A section that ends within
    a frame raises FormatError, which is why this is not zstandard's `stream_reader`: that ends quietly.
    """
    source = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT_BYTES)
    frame, left = source.decompressobj(), b""
    if not section:
        raise FormatError("splitstream: a compressed section is empty")
    for start in range(0, len(section), _STEP_BYTES):
        left = bytes(section[start : start + _STEP_BYTES])
        while left:
            if frame.eof:
                frame = source.decompressobj()
            try:
                piece = frame.decompress(left)
            except zstandard.ZstdError as error:
                raise FormatError(f"splitstream: damaged zstd data: {error}") from error
            if piece:
                yield piece
            left = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise FormatError("splitstream: the zstd data is cut short")
