"""Image references, `transport:path[:tag]`, and the platform that an image is wanted for.

The grammar follows containers-transports(5): the path of an `oci:` or `oci-archive:` reference ends at its first
colon.
"""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from composefsd.errors import InvalidReferenceError

_REFERENCE_BYTES: Final = 4096
_PART: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")

_ARCHITECTURES: Final = {  # uname -m to GOARCH and variant
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_COMPATIBLE: Final = {"arm": ("v8", "v7", "v6", "v5"), "arm64": ("v8",)}
"""Variants of an architecture, each of which runs those behind it."""


class Transport(StrEnum):
    """Where a reference points to."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"


@dataclass(frozen=True, slots=True)
class Reference:
    """A place that holds an image; `tag` is empty where the only image of a layout is meant."""

    transport: Transport
    path: Path
    tag: str = ""

    def __str__(self) -> str:
        suffix = f":{self.tag}" if self.tag else ""
        return f"{self.transport}:{self.path}{suffix}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidReferenceError, which names the transports that exist."""
        name, colon, rest = text.partition(":")
        transports = {transport.value: transport for transport in Transport}
        if not colon or name not in transports:
            known = ", ".join(f"{transport}:" for transport in Transport)
            raise InvalidReferenceError(
                f"{text[:200]!r} does not start with a transport that is supported ({known})", subject=text[:200]
            )
        if len(text) > _REFERENCE_BYTES or not text.isprintable():
            raise InvalidReferenceError(f"{text[:80]!r}… is too long, or has control characters")
        path, _, tag = rest.partition(":")
        if not path:
            raise InvalidReferenceError(f"{text!r} has no path", subject=text)
        return cls(transports[name], Path(path), tag)


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant in Go's words, as OCI uses them; variant may be empty."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `linux/arm64` or `linux/arm64/v8`.  Raises InvalidReferenceError."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidReferenceError(f"{text[:80]!r} is no platform such as linux/amd64", subject=text[:80])
        return cls(*parts)

    @classmethod
    def host(cls) -> Self:
        """The platform of this machine."""
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    def choices(self) -> tuple[str, ...]:
        """The variants that this platform runs, best first, as containers/image walks them."""
        known = _COMPATIBLE.get(self.architecture, ())
        if not self.variant:
            return ("", *known)
        if self.variant in known:
            return (*known[known.index(self.variant) :], "")
        return (self.variant, "")
