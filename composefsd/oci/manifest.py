"""Indexes, manifests and configs of the OCI image specification, as far as a pull needs them.

The bytes that were received are the document: they are kept and hashed, never written anew.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final, Self

from composefsd.digests import DiffId, OciDigest
from composefsd.document import Document
from composefsd.errors import DigestMismatchError, FormatError, SourceNotFoundError, UnsupportedError
from composefsd.oci.reference import Platform

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
DELTA_TYPE: Final = "application/vnd.io.github.containers.oci-delta.v1"
REF_NAME: Final = "org.opencontainers.image.ref.name"

_LAYER_TYPE: Final = re.compile(
    r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?"
)
_ANY_PLATFORM: Final = ("unknown", "")
_MEDIA_TYPE: Final = re.compile(r"[!-~][ -~]{0,254}")


class Compression(Enum):
    """How a layer blob wraps its tar."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class LayerForm(Enum):
    """What a layer is, how it is stored, and of what its digest is."""

    TAR = "tar"
    """Cut into files; the digest is that of the plain tar."""

    PACKED = "packed"
    """Of an artifact, a packed tar: cut into files, as composefs-rs does it; the digest is that of the blob."""

    RAW = "raw"
    """Of an artifact, anything else: kept as it is; the digest is that of the blob."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob: its media type, digest and size in bytes, and for an index's entry the platform."""

    media_type: str
    digest: OciDigest
    size_bytes: int
    annotations: dict[str, str]
    platform: Platform | None = None

    @classmethod
    def read(cls, document: Document) -> Self:
        """Raises FormatError."""
        platform = None
        if "platform" in document:
            about = document.child("platform")
            platform = Platform(about.text("os", ""), about.text("architecture", ""), about.text("variant", ""))
        return cls(
            document.text("mediaType", ""),
            document.digest("digest"),
            document.integer("size"),
            document.mapping("annotations"),
            platform,
        )

    @property
    def form_in_artifact(self) -> LayerForm:
        """How this layer is stored if it belongs to an artifact, whose layers may be anything."""
        if _LAYER_TYPE.fullmatch(self.media_type) is None:
            return LayerForm.RAW
        return LayerForm.TAR if self.compression() is Compression.NONE else LayerForm.PACKED

    def compression(self) -> Compression:
        """How this layer is compressed.  Raises UnsupportedError for a media type that is no tar layer."""
        match = _LAYER_TYPE.fullmatch(self.media_type)
        if match is None:
            raise UnsupportedError(
                f"layer {self.digest} has the media type {self.media_type!r}, which is no tar layer"
            )
        return Compression(match[1] or "none")


def check_digest(data: bytes, digest: OciDigest, name: str) -> None:
    """Raises DigestMismatchError unless `data` hashes to `digest`."""
    actual = hashlib.new(digest.algorithm, data).hexdigest()
    if actual != digest.hex:
        raise DigestMismatchError(
            f"{name} should be {digest}, but is {digest.algorithm}:{actual}",
            expected=str(digest),
            actual=f"{digest.algorithm}:{actual}",
        )


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, for platforms or under names."""

    manifests: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Raises FormatError or LimitExceededError."""
        document = Document.parse(data, name)
        if document.integer("schemaVersion") != 2:
            raise FormatError(f"{name} is not of schema version 2", subject=name)
        return cls(tuple(Descriptor.read(child) for child in document.children("manifests")))

    def named(self, tag: str, place: str) -> tuple[Descriptor, ...]:
        """The descriptors that carry a name; all of them for no name.  Raises SourceNotFoundError if none does."""
        found = tuple(one for one in self.manifests if not tag or one.annotations.get(REF_NAME) == tag)
        if not found:
            names = sorted({one.annotations[REF_NAME] for one in self.manifests if REF_NAME in one.annotations})
            have = f"; it has {', '.join(map(repr, names[:10]))}" if names else ""
            raise SourceNotFoundError(f"{place} has no image {tag!r}{have}", subject=place)
        return found


def select(descriptors: Sequence[Descriptor], platform: Platform) -> list[Descriptor]:
    """The descriptors that this platform may run, best first; those that tell no platform come last."""
    variants = platform.choices()
    fitting: list[tuple[int, Descriptor]] = []
    for one in descriptors:
        about = one.platform
        if about is None or (about.os in _ANY_PLATFORM and about.architecture in _ANY_PLATFORM):
            if about is None:
                fitting.append((len(variants), one))
        elif (about.os, about.architecture) == (platform.os, platform.architecture) and about.variant in variants:
            fitting.append((variants.index(about.variant), one))
    return [one for _, one in sorted(fitting, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest with the bytes it was parsed from.

    artifact_type tells what an artifact is, as the specification's guidance for artifacts has it: by a member of that
    name, else by the config's media type.  It is empty for a container image.  subject is the digest of the manifest
    that this one is about.
    """

    data: bytes
    digest: OciDigest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]
    artifact_type: str = ""
    subject: OciDigest | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all layer blobs, as compressed."""
        return sum(layer.size_bytes for layer in self.layers)

    @classmethod
    def parse(cls, data: bytes, digest: OciDigest) -> Self:
        """Raises FormatError, LimitExceededError, or UnsupportedError for a manifest of another media type."""
        name = f"manifest {digest}"
        document = Document.parse(data, name)
        if document.integer("schemaVersion") != 2:
            raise FormatError(f"{name} is not of schema version 2", subject=name)
        if "manifests" in document:
            raise FormatError(f"{name} is an index and a manifest at once", subject=name)
        media_type = document.text("mediaType", MANIFEST_TYPE)
        if media_type != MANIFEST_TYPE:
            raise UnsupportedError(f"{name} has the media type {media_type!r}", subject=name)
        config = Descriptor.read(document.child("config"))
        layers = tuple(Descriptor.read(child) for child in document.children("layers"))
        kind = "" if config.media_type == CONFIG_TYPE else _artifact_type(document)
        subject = document.child("subject").digest("digest") if "subject" in document else None
        return cls(data, digest, config, layers, document.mapping("annotations"), kind, subject)


def _artifact_type(document: Document) -> str:
    told = document.text("artifactType", "")
    if told:
        return document.text("artifactType", form=_MEDIA_TYPE)
    return document.child("config").text("mediaType", form=_MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image config with the bytes it was parsed from; created is in seconds since the epoch, 0 if untold."""

    data: bytes
    digest: OciDigest
    platform: Platform
    created: int
    diff_ids: tuple[DiffId, ...]
    labels: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, digest: OciDigest) -> Self:
        """Raises FormatError or LimitExceededError."""
        document = Document.parse(data, f"config {digest}")
        rootfs = document.child("rootfs")
        return cls(
            data,
            digest,
            Platform(document.text("os", ""), document.text("architecture", ""), document.text("variant", "")),
            _seconds(document.text("created", "")),
            tuple(DiffId.parse(text) for text in rootfs.texts("diff_ids")),
            document.child("config").mapping("Labels"),
        )


def _seconds(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time; 0 for what is none, since nothing depends on it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp()))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blob, and the digest that its stream is named after: what the digest is of depends on `form`."""

    blob: Descriptor
    diff_id: DiffId
    form: LayerForm = LayerForm.TAR


@dataclass(frozen=True, slots=True)
class OciImage:
    """A manifest with its config, checked against each other."""

    manifest: Manifest
    config: ImageConfig

    def __post_init__(self) -> None:
        have, told = len(self.manifest.layers), len(self.config.diff_ids)
        if have != told:
            raise FormatError(f"manifest {self.manifest.digest} has {have} layers, but its config {told} diff_ids")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, bottom first."""
        return tuple(map(Layer, self.manifest.layers, self.config.diff_ids))


@dataclass(frozen=True, slots=True)
class ArtifactConfig:
    """The config of an artifact: bytes that only those who made the artifact can read."""

    data: bytes
    digest: OciDigest


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest of something that is no container image, with its config: files for others, under a digest."""

    manifest: Manifest
    config: ArtifactConfig

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers in order; each goes by the digest of its blob, since there are no diff_ids."""
        return tuple(
            Layer(blob, DiffId(blob.digest.algorithm, blob.digest.hex), blob.form_in_artifact)
            for blob in self.manifest.layers
        )


Content = OciImage | Artifact
"""What a manifest and its config are the documents of."""


def read_content(manifest: Manifest, config: bytes) -> Content:
    """What a manifest describes, with the bytes of its config.  Raises FormatError or LimitExceededError."""
    digest = manifest.config.digest
    if manifest.artifact_type:
        return Artifact(manifest, ArtifactConfig(config, digest))
    return OciImage(manifest, ImageConfig.parse(config, digest))
