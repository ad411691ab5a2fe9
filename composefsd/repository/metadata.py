"""`meta.json`: which hash, features and image formats a repository has.

Defined by composefs-rs (crates/composefs/src/repository.rs).  Whether the repository demands fs-verity is not in the
text: that is the fs-verity state of the file itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from composefsd.digests import Algorithm
from composefsd.document import Document
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError, IncompatibleRepositoryError

NAME: Final = "meta.json"

LIMIT_BYTES: Final = 64 << 10
"""Of a file that takes some 300 bytes."""

_VERSION: Final = 1
_V1_EROFS: Final = "v1_erofs"
"""Keeps writers that only know format 2 from a repository whose default is format 1."""

_KNOWN_READ_ONLY: Final = frozenset({_V1_EROFS})
_KNOWN_INCOMPATIBLE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Features:
    """Flags of a repository; what a reader does about one it does not know depends on the list it is in.

    compatible: nothing; read_only_compatible: it does not write; incompatible: it keeps away.
    """

    compatible: tuple[str, ...] = ()
    read_only_compatible: tuple[str, ...] = ()
    incompatible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of `meta.json`.  `formats` tells which images the repository is for, not the two fields."""

    algorithm: Algorithm
    default_format: FormatVersion = FormatVersion.V2
    extra_formats: frozenset[FormatVersion] = frozenset()
    features: Features = field(default_factory=Features)
    version: int = _VERSION

    @classmethod
    def new(cls, algorithm: Algorithm, formats: Sequence[FormatVersion] = (FormatVersion.V1,)) -> Self:
        """Of a new repository that makes images of these formats, the first being the default."""
        default, *extra = formats
        flags = (_V1_EROFS,) if default is FormatVersion.V1 else ()
        return cls(algorithm, default, frozenset(extra) - {default}, Features(read_only_compatible=flags))

    @property
    def formats(self) -> tuple[FormatVersion, ...]:
        """Image formats of the repository: the default, then the others in ascending order.

        Exactly format 2 is also what stands for a missing list, and then the flag decides.
        """
        if (self.default_format, self.extra_formats) == (FormatVersion.V2, frozenset()):
            legacy = FormatVersion.V1 if _V1_EROFS in self.features.read_only_compatible else FormatVersion.V2
            return (legacy,)
        return (self.default_format, *sorted(self.extra_formats - {self.default_format}))

    @property
    def unknown_read_only_features(self) -> tuple[str, ...]:
        """Features because of which we must not write."""
        return tuple(flag for flag in self.features.read_only_compatible if flag not in _KNOWN_READ_ONLY)

    def same_repository(self, other: Self) -> bool:
        """Whether a repository made with `other` serves where one with this was asked for."""
        return (self.algorithm, self.formats) == (other.algorithm, other.formats)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the text of `meta.json`; unknown keys are ignored.

        Raises FormatError if it is malformed, and IncompatibleRepositoryError for a version, hash, image format or
        incompatible feature of later times.
        """
        top = Document.parse(data, NAME)
        top.refuse_null("features", "erofs_formats")
        version = top.integer("version")
        if version > _VERSION:
            raise IncompatibleRepositoryError(f"{NAME}: repository version {version} is newer than {_VERSION}")
        algorithm = _algorithm(top.text("algorithm"))
        features = _features(top.child("features"))
        formats = top.child("erofs_formats")
        if "erofs_formats" not in top:
            return cls(algorithm, features=features, version=version)
        formats.refuse_null("extra")
        extra = frozenset(map(_format, formats.integers("extra")))
        return cls(algorithm, _format(formats.integer("default")), extra, features, version)

    def serialize(self) -> bytes:
        """As composefs-rs prints it, to the byte."""
        formats: dict[str, object] = {"default": int(self.default_format)}
        if self.extra_formats:
            formats["extra"] = sorted(map(int, self.extra_formats))
        value = {
            "version": self.version,
            "algorithm": self.algorithm.label,
            "features": {
                "compatible": self.features.compatible,
                "read-only-compatible": self.features.read_only_compatible,
                "incompatible": self.features.incompatible,
            },
            "erofs_formats": formats,
        }
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _algorithm(label: str) -> Algorithm:
    try:
        return Algorithm.from_label(label)
    except FormatError as error:
        raise IncompatibleRepositoryError(f"{NAME}: {error.message}") from error


def _format(number: int) -> FormatVersion:
    try:
        return FormatVersion(number)
    except ValueError as error:
        raise IncompatibleRepositoryError(f"{NAME}: unknown image format {number}") from error


def _features(value: Document) -> Features:
    value.refuse_null("compatible", "read-only-compatible", "incompatible")
    features = Features(value.texts("compatible"), value.texts("read-only-compatible"), value.texts("incompatible"))
    unknown = [flag for flag in features.incompatible if flag not in _KNOWN_INCOMPATIBLE]
    if unknown:
        names = ", ".join(repr(flag[:40]) for flag in unknown[:5])
        raise IncompatibleRepositoryError(f"{NAME}: the repository needs features we do not know: {names}")
    return features
