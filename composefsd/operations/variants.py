"""The variants of a composefs image: all that can be made of one OCI image and have another digest each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final, Self

from composefsd.digests import ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ComposefsImage, ImageKind
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

_FORMATS: Final = (FormatVersion.V1, FormatVersion.V2)
"""Those of boot images: composefs-rs makes none of V0."""


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """A composefs image that is to be made; a profile that is not the current one is for boot images."""

    kind: ImageKind
    format: FormatVersion
    xattrs: XattrMode
    profile: Profile = Profile.CURRENT

    @classmethod
    def of(cls, image: ComposefsImage) -> Self:
        """What would have to be ordered to get an image again."""
        return cls(image.kind, image.format, image.xattrs, image.profile)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From what `values` gave; raises ValueError or KeyError for anything else."""
        return cls(
            ImageKind(values["kind"]),
            FormatVersion(values["format"]),
            XattrMode(values["xattrs"]),
            Profile(values["profile"]),
        )

    def values(self) -> dict[str, Any]:
        """The order as the imager reads it."""
        return {
            "kind": self.kind.value,
            "format": self.format.value,
            "xattrs": self.xattrs.value,
            "profile": self.profile.value,
        }

    def made(self, digest: ObjectId) -> ComposefsImage:
        """The image, once it has a digest."""
        return ComposefsImage(self.kind, self.format, self.xattrs, digest, self.profile)

    @property
    def words(self) -> str:
        """What is special about it, for people: `boot v1, keep-user-xattrs, composefs-rs up to 0.9.2`."""
        parts = [f"{self.kind} {self.format.label}"]
        if self.xattrs is not XattrMode.ALLOWLIST_ONLY:
            parts.append(self.xattrs)
        if self.profile is not Profile.CURRENT:
            parts.append(self.profile.words)
        return ", ".join(parts)


def variants(first: Iterable[ImageOrder]) -> tuple[ImageOrder, ...]:
    """What a digest is searched among: these, then all others of their kinds, the likely ones first.

    Left out is what cannot differ from a variant that is there: V2 stores no nanoseconds, which is all that is
    special about the images up to 0.9.2, and 0.7.0 had one way to treat extended attributes.
    """
    first = tuple(first)
    current = [
        replace(order, format=version, xattrs=mode, profile=Profile.CURRENT)
        for order in first
        for mode, version in product(XattrMode, _FORMATS)
    ]
    boot = [order for order in first if order.kind is ImageKind.BOOT]
    v1 = FormatVersion.V1
    past = [ImageOrder(ImageKind.BOOT, v1, mode, Profile.UP_TO_0_9_2) for mode in XattrMode]
    past += [ImageOrder(ImageKind.BOOT, one, XattrMode.ALLOWLIST_ONLY, Profile.V0_7_0) for one in _FORMATS]
    return tuple(dict.fromkeys((*first, *current, *(past if boot else ()))))
