"""The digests that composefsd tells apart, none of which is a `str`.

`ObjectId` is an fs-verity digest and names an object; `OciDigest` is the hash of a blob as it was transferred;
`DiffId` is the hash of a layer's plain tar.  Text forms are strict: lower-case hexadecimal of the exact width.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from composefsd.errors import FormatError

BLOCK_BITS: Final = 12
"""log2 of the only fs-verity block size that composefs uses."""

_HEX: Final = re.compile(r"[0-9a-f]+")
_OCI_WIDTHS: Final = {"sha256": 64, "sha512": 128}


class Algorithm(Enum):
    """A hash that fs-verity can use; the value is the name as it stands before a colon."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def kernel_number(self) -> int:
        """FS_VERITY_HASH_ALG_* of linux/fsverity.h."""
        return 1 if self is Algorithm.SHA256 else 2

    @property
    def digest_bytes(self) -> int:
        """Width of a digest in bytes."""
        return 32 if self is Algorithm.SHA256 else 64

    @property
    def label(self) -> str:
        """The name in `meta.json`, with log2 of the block size: `fsverity-sha512-12`."""
        return f"fsverity-{self.value}-{BLOCK_BITS}"

    @classmethod
    def from_label(cls, label: str) -> Self:
        """Raises FormatError for anything but a label that `label` gives."""
        for algorithm in cls:
            if algorithm.label == label:
                return algorithm
        raise FormatError(f"unknown fs-verity algorithm {label!r}", subject=label)

    @classmethod
    def from_kernel_number(cls, number: int) -> Self:
        """Raises FormatError for a number that linux/fsverity.h does not give."""
        for algorithm in cls:
            if algorithm.kernel_number == number:
                return algorithm
        raise FormatError(f"unknown fs-verity hash algorithm number {number}")


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """An fs-verity digest: the name of an object in a repository of the same algorithm."""

    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) not in (32, 64):
            raise FormatError(f"an object id has 32 or 64 bytes, not {len(self.digest)}")

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.SHA256 if len(self.digest) == 32 else Algorithm.SHA512

    @property
    def hex(self) -> str:
        return self.digest.hex()

    @property
    def path(self) -> str:
        """`XX/REST`, relative to `objects/`."""
        text = self.digest.hex()
        return f"{text[:2]}/{text[2:]}"

    def __str__(self) -> str:
        """With the algorithm, as on the bus: `sha512:…`."""
        return f"{self.algorithm.value}:{self.hex}"

    @classmethod
    def parse(cls, text: str, algorithm: Algorithm | None = None) -> Self:
        """From bare hexadecimal.  Raises FormatError if it is not, or not of the width of `algorithm`."""
        widths = (64, 128) if algorithm is None else (2 * algorithm.digest_bytes,)
        if len(text) not in widths or not _HEX.fullmatch(text):
            raise FormatError(f"not an fs-verity digest: {text[:140]!r}", subject=text[:140])
        return cls(bytes.fromhex(text))


@dataclass(frozen=True, slots=True, order=True)
class OciDigest:
    """The digest of a blob as transferred: `sha256:…` or `sha512:…`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises FormatError unless `text` is an algorithm of the OCI specification and digits of its width."""
        algorithm, _, digits = text.partition(":")
        if len(digits) != _OCI_WIDTHS.get(algorithm) or not _HEX.fullmatch(digits):
            raise FormatError(f"not an OCI digest: {text[:140]!r}", subject=text[:140])
        return cls(algorithm, digits)


@dataclass(frozen=True, slots=True, order=True)
class DiffId:
    """The digest of a layer's uncompressed tar, as an image's config lists it."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises FormatError like `OciDigest.parse`."""
        digest = OciDigest.parse(text)
        return cls(digest.algorithm, digest.hex)
