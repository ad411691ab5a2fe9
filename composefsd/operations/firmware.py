"""What the firmware of this machine says about Secure Boot: whether it is on, and which certificates it trusts.

Read from efivarfs, where a variable is a file NAME-GUID of four bytes of attributes and the value (the kernel's
Documentation/filesystems/efivarfs.rst).  `SecureBoot` is one byte; `db` and `dbx` are signature lists.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.boot import signature_list
from composefsd.errors import ComposefsdError

_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""EFI_GLOBAL_VARIABLE."""

_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
"""EFI_IMAGE_SECURITY_DATABASE_GUID."""

_ATTRIBUTES_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Firmware:
    """What is known of Secure Boot.

    secure_boot is None if that is not known, and `why` tells why.  trusted and revoked are the certificates of db and
    dbx by the SHA-256 of their DER in hexadecimal; None if they cannot be read.  Without dbx nothing is revoked.
    """

    secure_boot: bool | None = None
    trusted: frozenset[str] | None = None
    revoked: frozenset[str] | None = None
    why: str = ""

    @classmethod
    def load(cls, efivars: Path | None) -> "Firmware":
        """From efivarfs; what cannot be read is not known.  None stands for the machine being another one."""
        if efivars is None:
            return cls(why="the system is not the one that runs here, so its firmware cannot be asked")
        state = _read(efivars / f"SecureBoot-{_GLOBAL}")
        if state is None or len(state) != 1:
            return cls(why=f"there is no EFI variable SecureBoot in {efivars}")
        trusted = _read(efivars / f"db-{_SECURITY}")
        revoked = _read(efivars / f"dbx-{_SECURITY}", absent=b"")
        return cls(state == b"\1", _fingerprints(trusted), _fingerprints(revoked))


def _read(path: Path, absent: bytes | None = None) -> bytes | None:
    """The value of a variable, `absent` if there is none; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_ATTRIBUTES_BYTES + signature_list.LIMIT_BYTES + 1)[_ATTRIBUTES_BYTES:]
    except FileNotFoundError:
        return absent
    except OSError:
        return None


def _fingerprints(variable: bytes | None) -> frozenset[str] | None:
    if variable is None:
        return None
    try:
        return frozenset(hashlib.sha256(der).hexdigest() for der in signature_list.certificates(variable))
    except ComposefsdError:
        return None
