"""Authenticode signatures of EFI executables: whether they fit the file, and who made them.

    certificate table        entries, each at a multiple of 8: length with this header (u32), revision (u16, 0x0200),
                             type (u16, 2 for PKCS#7), then one signature (see `pkcs7`), over the digest of the file
                             (see `image_digest`)

Defined by Microsoft ("Windows Authenticode Portable Executable Signature Format") and the UEFI specification, 32.2.4.
A good signature is one that the certificate in it has made for this very file, in a table that EDK II takes
(`DxeImageVerificationLib.c`).  Whether anybody trusts that certificate is for the firmware of a machine to say.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from composefsd.boot import image_digest, pkcs7
from composefsd.boot.pe import PortableExecutable, Signing, Source
from composefsd.boot.pkcs7 import Claim, FlawError, Signature, State, malformed
from composefsd.errors import FormatError

__all__ = ["ENTRIES_LIMIT", "ENTRY_LIMIT_BYTES", "TABLE_LIMIT_BYTES", "Signature", "State", "read"]

TABLE_LIMIT_BYTES: Final = 256 * 1024
ENTRY_LIMIT_BYTES: Final = 64 * 1024
"""Microsoft's own signatures, with their chains and time stamps, have some 14 KiB."""
ENTRIES_LIMIT: Final = 16

_ENTRY: Final = Struct("<IHH")  # length, revision, type
_ALIGNMENT: Final = 8
_REVISION: Final = 0x0200
_PKCS7: Final = 2


def read(source: Source, size_bytes: int, executable: PortableExecutable, limit_bytes: int) -> tuple[Signature, ...]:
    """The signatures of an executable in the order of its table; whatever they are, nothing is raised for it.

    A file of more than `limit_bytes` is not hashed: its signatures are UNSUPPORTED.  What `source` raises passes.
    """
    signing = executable.signing
    if signing is None:
        return ()
    claims = _claims(source, signing, size_bytes)
    wanted = {claim.told.hash_algorithm for claim in claims if claim.told.state is State.GOOD}
    try:
        digests = _digests(source, size_bytes, executable, wanted, limit_bytes)
    except FlawError as error:
        return tuple(claim.flawed(error).told for claim in claims)
    return tuple(_compared(claim, digests) for claim in claims)


def _digests(
    source: Source, size_bytes: int, executable: PortableExecutable, wanted: set[str], limit_bytes: int
) -> dict[str, bytes]:
    if wanted and size_bytes > limit_bytes:
        raise FlawError(State.UNSUPPORTED, f"it was not compared: {size_bytes} bytes are too many to read")
    try:
        return image_digest.compute(source, size_bytes, executable, wanted) if wanted else {}
    except FormatError as error:
        raise malformed(error.message) from error


def _compared(claim: Claim, digests: dict[str, bytes]) -> Signature:
    if claim.told.state is State.GOOD and digests[claim.told.hash_algorithm] != claim.digest:
        claim = claim.flawed(FlawError(State.DOES_NOT_FIT, "it was made for other content than this file has"))
    return claim.told


# The table


def _claims(source: Source, signing: Signing, file_bytes: int) -> list[Claim]:
    """What the entries claim.  If they do not fill the table to its very end, EDK II takes none, so none is good."""
    try:
        table = _table(source, signing, file_bytes)
    except FlawError as error:
        return [pkcs7.UNREAD.flawed(error)]
    if not any(table):
        return []
    claims, spans = [], _spans(table)
    try:
        for number, (start, end) in enumerate(spans):
            if number < ENTRIES_LIMIT:
                claims.append(_claim(table[start:end]))
            elif number == ENTRIES_LIMIT:
                more = FlawError(State.UNSUPPORTED, f"there are more than {ENTRIES_LIMIT} signatures")
                claims.append(pkcs7.UNREAD.flawed(more))
    except FlawError as error:
        return [claim.flawed(error) for claim in (*claims, pkcs7.UNREAD)]
    return claims


def _table(source: Source, signing: Signing, file_bytes: int) -> bytes:
    if signing.offset % _ALIGNMENT:
        raise malformed(f"the certificate table is not at a multiple of {_ALIGNMENT} bytes")
    if signing.offset + signing.size_bytes != file_bytes:
        raise malformed("there is something behind the certificate table")
    if signing.size_bytes > TABLE_LIMIT_BYTES:
        raise FlawError(State.UNSUPPORTED, f"the certificate table has {signing.size_bytes} bytes")
    return bytes(source(signing.offset, signing.size_bytes))


def _spans(table: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each entry without its padding.  Raises a flaw where no entry fits."""
    at = 0
    while at < len(table):
        left = len(table) - at
        length = int.from_bytes(table[at : at + 4], "little")
        if not _ENTRY.size < length <= length + -length % _ALIGNMENT <= left:
            raise malformed("an entry of the certificate table has a length that cannot be")
        yield at, at + length
        at += length + -length % _ALIGNMENT


def _claim(entry: bytes) -> Claim:
    _, revision, kind = _ENTRY.unpack_from(entry)
    data = entry[_ENTRY.size :]
    if revision != _REVISION or kind != _PKCS7:
        problem = f"a certificate table entry of revision {revision:#06x} and type {kind}, which is no PKCS#7"
    elif len(data) > ENTRY_LIMIT_BYTES:
        problem = f"a signature of {len(data)} bytes"
    else:
        return pkcs7.examine(data)
    return pkcs7.UNREAD.flawed(FlawError(State.UNSUPPORTED, problem))
