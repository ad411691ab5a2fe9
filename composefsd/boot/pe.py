"""PE/COFF executables, as far as it takes to find the sections of a UKI.  Little-endian; offsets from the start.

    DOS header, 64 bytes     `MZ`; at 0x3C the offset of
    PE header, 24 bytes      `PE\\0\\0`, machine, number of sections, …, size of the optional header at 20
    optional header          magic 0x10B (PE32) or 0x20B (PE32+); at 60 the size of all headers, at 64 a checksum;
                             data directories, the fifth of them the certificates: an offset, not an address
    section table            40 bytes each: name, virtual size, address, raw size, raw offset, …

Defined by Microsoft's PE format specification.  Nothing but these headers is read, and every offset in them is
checked against the size of the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import Final, Self

from composefsd.errors import FormatError, LimitExceededError

Source = Callable[[int, int], bytes | memoryview]
"""Offset and count -> so many bytes of the file, fewer where it ends."""

SECTION_LIMIT: Final = 1024
"""More than Windows loads (96), since a UKI may have a section for every device tree."""

_DOS: Final = Struct("<2s58xI")  # magic, offset of the PE header
_COFF: Final = Struct("<4sHH12xHH")  # magic, machine, sections, size of the optional header, characteristics
_SECTION: Final = Struct("<8sIIII16x")  # name, virtual size, address, raw size, raw offset
_DIRECTORY: Final = Struct("<II")  # offset, size
_MAGIC_BYTES: Final = 2
_CERTIFICATES: Final = 4  # index of the data directory
_HEADERS_BYTES_AT: Final = 60
_CHECKSUM_AT: Final = 64

# Where an optional header of a magic has the number of data directories, after which they come.
_DIRECTORY_COUNT_AT: Final = {0x10B: 92, 0x20B: 108}


class Architecture(StrEnum):
    """Machine types of UEFI, by the names that UEFI and the Boot Loader Specification give them."""

    IA32 = "ia32"
    X64 = "x64"
    ARM = "arm"
    AA64 = "aa64"
    RISCV32 = "riscv32"
    RISCV64 = "riscv64"
    LOONGARCH32 = "loongarch32"
    LOONGARCH64 = "loongarch64"


_MACHINES: Final = {
    0x014C: Architecture.IA32,
    0x8664: Architecture.X64,
    0x01C2: Architecture.ARM,
    0x01C4: Architecture.ARM,
    0xAA64: Architecture.AA64,
    0x5032: Architecture.RISCV32,
    0x5064: Architecture.RISCV64,
    0x6232: Architecture.LOONGARCH32,
    0x6264: Architecture.LOONGARCH64,
}


@dataclass(frozen=True, slots=True)
class Section:
    """A section by its name, cut at the first NUL; size_bytes is what comes from the file.

    A section is loaded with its virtual size; a smaller raw size is filled up with zeros, a larger one is padding,
    which may reach beyond the end of the file: raw_bytes is as it stands in the table.
    """

    name: bytes
    offset: int
    size_bytes: int
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class Signing:
    """Where an executable has what its signatures do not cover: four bytes of checksum, eight of `directory_at`.

    The certificate table lies at `offset`; headers_bytes, as the file has it, is the size of all headers.
    """

    checksum_at: int
    directory_at: int
    headers_bytes: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PortableExecutable:
    """The sections in the order of the table; signing is None if there is no certificate table."""

    architecture: Architecture
    sections: tuple[Section, ...]
    signing: Signing | None

    @property
    def signed(self) -> bool:
        """Whether there are certificates; not what they are worth."""
        return self.signing is not None

    @classmethod
    def parse(cls, source: Source, size_bytes: int) -> Self:
        """Raises FormatError for what is no executable for UEFI, or points outside of the file."""
        at, machine, count, optional_bytes = _headers(source)
        architecture = _MACHINES.get(machine)
        if architecture is None:
            raise FormatError(f"unknown machine type {machine:#06x} in a PE header", offset=at + 4)
        if count > SECTION_LIMIT:
            raise LimitExceededError(f"a PE file of {count} sections", limit=SECTION_LIMIT)
        start = at + _COFF.size
        optional = _exactly(source, start, optional_bytes, "optional header")
        table = _exactly(source, start + optional_bytes, count * _SECTION.size, "section table")
        sections = tuple(
            _section(name, min(virtual, raw), raw, offset, size_bytes)
            for name, virtual, _address, raw, offset in _SECTION.iter_unpack(table)
        )
        return cls(architecture, sections, _signing(optional, start, size_bytes))


def _exactly(source: Source, offset: int, count: int, what: str) -> memoryview:
    data = memoryview(source(offset, count))
    if len(data) != count:
        raise FormatError(f"the {what} of a PE file is cut short", offset=offset + len(data))
    return data


def _headers(source: Source) -> tuple[int, int, int, int]:
    """Offset of the PE header, machine, number of sections, size of the optional header."""
    magic, at = _DOS.unpack(_exactly(source, 0, _DOS.size, "DOS header"))
    if magic != b"MZ" or at < _DOS.size:
        raise FormatError("not a PE file", offset=0)
    magic, machine, count, optional_bytes, _ = _COFF.unpack(_exactly(source, at, _COFF.size, "PE header"))
    if magic != b"PE\0\0":
        raise FormatError("not a PE file: no PE header where the DOS header has it", offset=at)
    return at, machine, count, optional_bytes


def _section(padded: bytes, size: int, raw: int, offset: int, file_bytes: int) -> Section:
    name = padded.partition(b"\0")[0]
    if size and offset + size > file_bytes:
        raise FormatError(f"PE section {name!r} reaches beyond the end of the file", offset=offset)
    return Section(name, offset, size, raw)


def _signing(optional: memoryview, at: int, file_bytes: int) -> Signing | None:
    """Where the data directories list a certificate table; `at` is the offset of the optional header."""
    magic = int.from_bytes(optional[:_MAGIC_BYTES], "little")
    count_at = _DIRECTORY_COUNT_AT.get(magic)
    if len(optional) < _MAGIC_BYTES or count_at is None:
        raise FormatError("a PE file without an optional header of a known kind", offset=at)
    first = count_at + 4
    entry_at = first + _CERTIFICATES * _DIRECTORY.size
    count = int.from_bytes(optional[count_at:first], "little")
    if count <= _CERTIFICATES or entry_at + _DIRECTORY.size > len(optional):
        return None
    offset, size = _DIRECTORY.unpack_from(optional, entry_at)
    if offset + size > file_bytes:
        raise FormatError("the certificate table of a PE file reaches beyond its end", offset=at + entry_at)
    headers_bytes = int.from_bytes(optional[_HEADERS_BYTES_AT : _HEADERS_BYTES_AT + 4], "little")
    return Signing(at + _CHECKSUM_AT, at + entry_at, headers_bytes, offset, size) if size else None
