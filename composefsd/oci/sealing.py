"""The digests by which OCI documents claim what composefs images an OCI image has.

    label        containers.composefs.fsverity                                    normative image; tells no format
    annotation   composefs.merged.erofs.vN.fsverity-ALG-BITS                       normative image
                 composefs.merged.bootable.erofs.vN.fsverity-ALG-BITS              boot image
                 composefs.layer.erofs.vN.fsverity-ALG-BITS                        image of one layer, at the layer
                 composefs.config.fsverity-ALG-BITS                                the config's JSON, at the config
                 composefs.manifest.fsverity-ALG-BITS                              the manifest's JSON
    .sig         after any of these keys: a PKCS#7 signature of that digest, in base64

A metadata artifact has the annotations at its layers, and its `subject` is the manifest that it is about.  Its layers
are PKCS#7 signatures of the digests.  Values are lower-case hexadecimal.  Defined by composefs-rs 0.9.4
(`composefs-oci/src/sealing_spec.rs`; the label is read in `oci_image.rs`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError
from composefsd.oci.manifest import Manifest

LABEL: Final = "containers.composefs.fsverity"
ARTIFACT_TYPE: Final = "application/vnd.composefs.metadata.v1"
SIGNATURE_TYPE: Final = "application/vnd.composefs.signature.v1+pkcs7"

CLAIMS: Final = 32
"""The most claims of one document that are kept: there are four roles, two hashes and two formats."""

_SCHEME: Final = r"fsverity-[a-z0-9]{1,20}-[0-9]{1,3}"
_KEY: Final = re.compile(
    rf"composefs\.(?:(merged|merged\.bootable|layer)\.erofs\.(v[0-9]{{1,3}})|(config|manifest))\.({_SCHEME})"
)
_SIGNATURE: Final = ".sig"
_VALUE_CHARACTERS: Final = 140


class Role(StrEnum):
    """What a claimed digest is of."""

    NORMATIVE = "merged"
    BOOT = "merged.bootable"
    LAYER = "layer"
    CONFIG = "config"
    MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class Claim:
    """A digest that a document claims.

    format is such as `v1`, empty for JSON; scheme is hash and block size, such as `fsverity-sha512-12`; value is what
    stands there, cut to 140 characters.  signed tells that there is a signature of it, not that it is good.
    """

    role: Role
    format: str
    scheme: str
    value: str
    signed: bool = False

    @property
    def key(self) -> str:
        """The key of its annotation."""
        return f"composefs.{self.role}.{f'erofs.{self.format}.' if self.format else ''}{self.scheme}"

    def is_in(self, algorithm: Algorithm) -> bool:
        """Whether its hash and block size are those of a repository of `algorithm`."""
        return self.scheme == algorithm.label

    def is_of(self, version: FormatVersion) -> bool:
        """Whether it is about an image of a format."""
        return self.format == version.label

    @property
    def digest(self) -> ObjectId | None:
        """None for a value that is no digest of the scheme, or a scheme that we do not know."""
        try:
            return ObjectId.parse(self.value, Algorithm.from_label(self.scheme))
        except FormatError:
            return None


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a document, at most CLAIMS.

    layers counts those about single layers, which are not kept; left_out those that found no room.
    """

    found: tuple[Claim, ...]
    layers: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, claims: Iterable[Claim]) -> "Claims":
        """Keep what there is room for."""
        kept: list[Claim] = []
        layers = left_out = 0
        for claim in claims:
            if claim.role is Role.LAYER:
                layers += 1
            elif len(kept) == CLAIMS:
                left_out += 1
            else:
                kept.append(claim)
        return cls(tuple(kept), layers, left_out)


def of_manifest(manifest: Manifest) -> Claims:
    """What the annotations of an image's own manifest claim."""
    places = (manifest.annotations, manifest.config.annotations, *(layer.annotations for layer in manifest.layers))
    return Claims.of(claim for place in places for claim in _claims(place))


def of_artifact(artifact: Manifest) -> Claims:
    """What a metadata artifact claims about its subject."""
    return Claims.of(
        claim
        for layer in artifact.layers
        for claim in _claims(layer.annotations, signed=layer.media_type == SIGNATURE_TYPE)
    )


def by_subject(manifests: Iterable[Manifest]) -> dict[OciDigest, list[Manifest]]:
    """The metadata artifacts among manifests, by the image that they are about."""
    found: dict[OciDigest, list[Manifest]] = {}
    for one in manifests:
        if one.artifact_type == ARTIFACT_TYPE and one.subject is not None:
            found.setdefault(one.subject, []).append(one)
    return found


def _claims(annotations: Mapping[str, str], *, signed: bool = False) -> Iterator[Claim]:
    for key in sorted(annotations):
        match = _KEY.fullmatch(key)
        if match is not None:
            erofs, version, document, scheme = match.groups()
            has_signature = signed or key + _SIGNATURE in annotations
            value = annotations[key][:_VALUE_CHARACTERS]
            yield Claim(Role(erofs or document), version or "", scheme, value, has_signature)
