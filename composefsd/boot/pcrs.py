"""What a UKI brings for TPMs: `.pcrsig`, signatures of what the PCRs will hold, and `.pcrpkey`, the key they fit.

`.pcrsig` is JSON, as systemd-measure(1) writes it: by the name of a bank (`sha256`) a list of objects, each with
`pcrs` (numbers), `pkfp` (the SHA-256 of the public key that signed), `pol` (digest of the TPM policy that the PCRs
must fulfil) and `sig` (base64).  `.pcrpkey` is a public key in PEM.  Nothing here is verified: it takes the TPM.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from asn1crypto import keys, pem

from composefsd.document import Document
from composefsd.errors import FormatError, LimitExceededError

SIGNATURES_LIMIT: Final = 200
_BANKS: Final = ("sha1", "sha256", "sha384", "sha512")
_PCRS: Final = 24
_DIGEST: Final = re.compile(r"(?:[0-9a-fA-F]{2}){1,64}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=]{4,8192}")


@dataclass(frozen=True, slots=True)
class PcrSignature:
    """A signature for one bank: which PCRs, the digest of the policy, the SHA-256 of the key; both in hexadecimal."""

    bank: str
    pcrs: tuple[int, ...]
    policy: str
    key: str


@dataclass(frozen=True, slots=True)
class PcrKey:
    """A public key: the SHA-256 of its SubjectPublicKeyInfo, and of the key alone, by which `.pcrsig` names it."""

    fingerprint: str
    short: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises FormatError for what is no public key in PEM."""
        try:
            kind, _, encoded = pem.unarmor(data)
            info = keys.PublicKeyInfo.load(encoded, strict=True)
            bits = bytes(info["public_key"])
            _ = info["algorithm"]["algorithm"].native
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise FormatError(".pcrpkey is no public key in PEM", subject=".pcrpkey") from error
        if kind != "PUBLIC KEY":
            raise FormatError(".pcrpkey is no public key in PEM", subject=".pcrpkey")
        return cls(hashlib.sha256(encoded).hexdigest(), hashlib.sha256(bits).hexdigest())


def parse_signatures(data: bytes) -> tuple[PcrSignature, ...]:
    """The signatures of all banks that are known.  Raises FormatError, and LimitExceededError for too many."""
    document = Document.parse(data, ".pcrsig")
    found = tuple(signature for bank in _BANKS for signature in _of_bank(document, bank))
    if len(found) > SIGNATURES_LIMIT:
        raise LimitExceededError(f".pcrsig has {len(found)} signatures", limit=SIGNATURES_LIMIT)
    return found


def _of_bank(document: Document, bank: str) -> Iterator[PcrSignature]:
    for one in document.children(bank):
        pcrs = one.integers("pcrs")
        if not pcrs or max(pcrs) >= _PCRS or len(pcrs) > _PCRS:
            raise FormatError(f".pcrsig names no PCRs of the bank {bank}", subject=".pcrsig")
        one.text("sig", form=_BASE64)
        policy, key = one.text("pol", form=_DIGEST), one.text("pkfp", form=_DIGEST)
        yield PcrSignature(bank, pcrs, policy.lower(), key.lower())
