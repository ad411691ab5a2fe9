"""The lists of keys in the EFI variables `db` and `dbx`.  Little-endian.

    EFI_SIGNATURE_LIST    type (GUID, 16 bytes), size of the list, of its header, of each signature (4 bytes each);
                          the header; then signatures
    EFI_SIGNATURE_DATA    owner (GUID, 16 bytes), data: of the type X.509 a certificate as DER

Defined by the UEFI specification 2.10, section 32.4.1.
"""

import uuid
from collections.abc import Iterator
from struct import Struct
from typing import Final

from composefsd.errors import FormatError, LimitExceededError

LIMIT_BYTES: Final = 1 << 20
"""Of one variable; firmware has some 64 KiB for all of them."""

X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
"""EFI_CERT_X509_GUID."""

_LIST: Final = Struct("<16sIII")
_OWNER_BYTES: Final = 16


def certificates(data: bytes) -> Iterator[bytes]:
    """The X.509 certificates of a variable as DER, in order.

    Raises FormatError for sizes that do not fit, LimitExceededError for more than 1 MiB.
    """
    if len(data) > LIMIT_BYTES:
        raise LimitExceededError("an EFI signature database of more than 1 MiB", limit=LIMIT_BYTES)
    at = 0
    while at < len(data):
        if len(data) - at < _LIST.size:
            raise FormatError("an EFI signature list is cut short", offset=at)
        kind, list_bytes, header_bytes, each_bytes = _LIST.unpack_from(data, at)
        start, end = at + _LIST.size + header_bytes, at + list_bytes
        if not start <= end <= len(data) or each_bytes <= _OWNER_BYTES or (end - start) % each_bytes:
            raise FormatError("an EFI signature list whose sizes do not fit", offset=at)
        if uuid.UUID(bytes_le=kind) == X509:
            yield from (data[one + _OWNER_BYTES : one + each_bytes] for one in range(start, end, each_bytes))
        at = end
