"""Splitstream, format version 0: a byte stream cut into inline bytes and references to objects.

Little-endian; offsets in bytes from the start of the file.

    header, 32 bytes at offset 0: magic, version, flags, fs-verity algorithm and block size, range of the info section
    info section, 80 bytes or more: ranges of the four sections below, content type, size of the reassembled stream
    stream references, object references: digests, concatenated
    named references: a zstd frame of `INDEX:NAME` and a zero byte for each, INDEX into the stream references
    data: a zstd frame of chunks; each is a signed number n, and if it is negative -n inline bytes, else the whole
        content of object reference n

A range is start and end, exclusive.  Writers up to bootc 1.15 laid the header out in another order; the rest of the
file is the same.

Defined by composefs-rs (its splitstream format document); tests/vectors/splitstream was written by it.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, Self

from composefsd.digests import BLOCK_BITS, Algorithm
from composefsd.errors import FormatError

MAGIC: Final = b"SplitStream"

CHUNK: Final = Struct("<q")
"""What every chunk of the data begins with."""

_HEADER: Final = Struct("<11sBHBB2Q")  # magic, version, flags, algorithm, lg_blocksize, info
_OLD_HEADER: Final = Struct("<2QH11sBBB")  # info, flags, magic, version, algorithm, lg_blocksize
_INFO: Final = Struct("<10Q")  # stream refs, object refs, data, named refs; content type, size

HEADER_BYTES: Final = _HEADER.size
INFO_BYTES: Final = _INFO.size


class ContentType(IntEnum):
    """What a splitstream reassembles to; mostly eight letters, which can be read in the file."""

    OCI_MANIFEST = int.from_bytes(b"ocimanif", "little")
    OCI_CONFIG = int.from_bytes(b"ociconfg", "little")
    OCI_LAYER = int.from_bytes(b"ocilayer", "little")
    OCI_BLOB = int.from_bytes(b"oci_blob", "little")
    OSTREE_COMMIT = 0xAFE1_38C1_8C46_3EF1
    OSTREE_SUMMARY = 0x7972_616D_6D75_736F


class Range(NamedTuple):
    """Part of a file, `end` exclusive."""

    start: int
    end: int

    def check(self, what: str, size_bytes: int) -> Self:
        """Raises FormatError if the range runs backwards or leaves a file of `size_bytes`."""
        if not self.start <= self.end <= size_bytes:
            raise FormatError(f"splitstream: {what} lies outside of the file", offset=self.start)
        return self


@dataclass(frozen=True, slots=True)
class Header:
    """The first 32 bytes of a splitstream."""

    algorithm: Algorithm
    info: Range

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """From the start of a splitstream, in either layout.

        Raises FormatError if `data` is short, of another version, or of a hash or block size that composefs lacks.
        """
        if len(data) < HEADER_BYTES:
            raise FormatError("splitstream: the header is cut short", offset=len(data))
        magic, version, _, number, block_bits, start, end = _HEADER.unpack_from(data)
        if magic != MAGIC:
            start, end, _, magic, version, number, block_bits = _OLD_HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FormatError("not a splitstream: the magic is missing", offset=0)
        if (version, block_bits) != (0, BLOCK_BITS):
            raise FormatError(f"splitstream of version {version} with blocks of 2^{block_bits} bytes", offset=0)
        return cls(Algorithm.from_kernel_number(number), Range(start, end))

    def serialize(self) -> bytes:
        return _HEADER.pack(MAGIC, 0, 0, self.algorithm.kernel_number, BLOCK_BITS, *self.info)


@dataclass(frozen=True, slots=True)
class Info:
    """Where the sections are, and what the whole is; size_bytes counts inline bytes and the objects' content."""

    stream_refs: Range
    object_refs: Range
    data: Range
    named_refs: Range
    content_type: int
    size_bytes: int

    @classmethod
    def parse(cls, section: bytes | memoryview) -> Self:
        """Raises FormatError if the section is too short; what follows the 80 bytes belongs to later versions."""
        if len(section) < INFO_BYTES:
            raise FormatError(f"splitstream: the info section has {len(section)} bytes, not {INFO_BYTES}")
        numbers = _INFO.unpack_from(section)
        streams, objects, data, names = (Range(*numbers[at : at + 2]) for at in range(0, 8, 2))
        return cls(streams, objects, data, names, *numbers[8:])

    def serialize(self) -> bytes:
        ranges = (*self.stream_refs, *self.object_refs, *self.data, *self.named_refs)
        return _INFO.pack(*ranges, self.content_type, self.size_bytes)
