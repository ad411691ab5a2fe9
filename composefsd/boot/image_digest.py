"""The digest of an EFI executable that a signature is made for.

It is of the file without its checksum, the directory entry of the certificate table, and the table: the headers, then
the sections in the order of their offsets, then what is left, as EDK II counts it (`DxeImageVerificationLib.c`).
Defined by Microsoft ("Windows Authenticode Portable Executable Signature Format").
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from composefsd.boot.pe import PortableExecutable, Section, Source
from composefsd.errors import FormatError

_CHUNK_BYTES: Final = 1 << 20


def compute(
    source: Source, size_bytes: int, executable: PortableExecutable, algorithms: Collection[str]
) -> dict[str, bytes]:
    """The digests of a signed executable by the names of their algorithms, from one reading of it.

    Raises FormatError if it cannot be hashed: tables and sections overlap, or reach beyond its end.
    """
    hashers = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    for start, end in _ranges(executable, size_bytes):
        for at in range(start, end, _CHUNK_BYTES):
            piece = source(at, min(_CHUNK_BYTES, end - at))
            for hasher in hashers.values():
                hasher.update(piece)
    return {name: hasher.digest() for name, hasher in hashers.items()}


def _ranges(executable: PortableExecutable, size_bytes: int) -> Iterator[tuple[int, int]]:
    """What is hashed, in order, as starts and ends; all of it lies in the file, and none much more than twice."""
    signing = executable.signing
    if signing is None:
        raise FormatError("there is no certificate table")
    if not signing.directory_at + 8 <= signing.headers_bytes <= signing.offset:
        raise FormatError("the headers of the PE file have a size that cannot be")
    yield 0, signing.checksum_at
    yield signing.checksum_at + 4, signing.directory_at
    yield signing.directory_at + 8, signing.headers_bytes
    counted = end = signing.headers_bytes
    for section in _loaded(executable.sections):
        if not end <= section.offset <= section.offset + section.raw_bytes <= signing.offset:
            raise FormatError("the sections of the PE file overlap, or reach into its certificate table")
        end = section.offset + section.raw_bytes
        yield section.offset, end
        counted += section.raw_bytes
    yield counted, size_bytes - signing.size_bytes


def _loaded(sections: Iterable[Section]) -> list[Section]:
    """Those with content, in the order of the file."""
    return sorted((section for section in sections if section.raw_bytes), key=lambda section: section.offset)
