"""EROFS as composefs-rs writes it: versions, headers, inodes.  Little-endian; offsets from the start of the image."""

from enum import IntEnum
from typing import Self

from composefsd.errors import FormatError


class FormatVersion(IntEnum):
    """The `composefs_version` of an image; V0 and V1 have the layout of C composefs, V2 that of old composefs-rs."""

    V0 = 0
    V1 = 1
    V2 = 2

    @property
    def label(self) -> str:
        """As options and messages spell it: `v1`."""
        return f"v{self.value}"

    @property
    def c_compatible(self) -> bool:
        """Of the layout that C composefs has, too."""
        return self is not FormatVersion.V2

    @classmethod
    def from_label(cls, label: str) -> Self:
        """Raises FormatError for anything but a label that `label` gives."""
        for version in cls:
            if version.label == label:
                return version
        raise FormatError(f"unknown image format {label!r}", subject=label[:20])
