"""How the repository holds an OCI image: which streams, which named references, which names.

A manifest, a config and every layer are streams named after their digest.  The config's stream carries a named
reference for each layer and one for each composefs image; the manifest's stream one for the config and each layer.
A layer of an artifact goes by the digest of its blob, and is a stream of one object unless it is a tar; an artifact
has no composefs images.
Defined by composefs-rs (its OCI crate); `reference names` such as `composefs.image.boot.v1` are part of the format.
Ours alone is `.profile=` in the name of a boot image made by rules of an earlier version: composefs-rs 0.9.4 looks
for none of these, and keeps all references that start with `composefs.image.boot` when it writes a config anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from composefsd.digests import DiffId, ObjectId, OciDigest
from composefsd.document import DOCUMENT_BYTES
from composefsd.erofs.format import FormatVersion
from composefsd.errors import CorruptError, FormatError, NoSuchImageError, UnsupportedError
from composefsd.oci.manifest import Artifact, Content, Manifest, OciImage, check_digest, read_content
from composefsd.repository import Repository, links
from composefsd.repository.links import Category
from composefsd.repository.refs import MANIFEST_PREFIX
from composefsd.splitstream.format import HEADER_BYTES, INFO_BYTES, ContentType, Header, Info
from composefsd.splitstream.reader import Splitstream
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

STREAM_BYTES: Final = 1 << 30
"""The largest splitstream of a layer that is read back: small files, headers and a digest for each object."""

CONFIG_PREFIX: Final = "oci-config-"
LAYER_PREFIX: Final = "oci-layer-"

REPAIR_REFS: Final = "composefsd-repair"
"""Refs below `streams/refs` that keep a layer whose stream was replaced until all that name it were written anew."""

_IMAGE: Final = "composefs.image"
_BOOT: Final = ".boot"
_PROFILE: Final = ".profile="
_XATTRS: Final = ".xattrs="


class ImageKind(StrEnum):
    """The two composefs images of an OCI image."""

    NORMATIVE = "normative"
    BOOT = "boot"


@dataclass(frozen=True, slots=True)
class ComposefsImage:
    """One EROFS image of an OCI image: held by the repository, or only computed."""

    kind: ImageKind
    format: FormatVersion
    xattrs: XattrMode
    digest: ObjectId
    profile: Profile = Profile.CURRENT  # of a boot image

    @property
    def reference(self) -> str:
        """The named reference of the config's stream that keeps it; one for V1 ends in `.v1`, V2 has no suffix."""
        boot = _BOOT if self.kind is ImageKind.BOOT else ""
        version = ".v1" if self.format.c_compatible else ""
        profile = "" if self.profile is Profile.CURRENT else _PROFILE + self.profile
        mode = "" if self.xattrs is XattrMode.ALLOWLIST_ONLY else _XATTRS + self.xattrs
        return f"{_IMAGE}{boot}{version}{profile}{mode}"


def parse_reference(name: str, digest: bytes) -> ComposefsImage | None:
    """The image behind a named reference of a config, None for any other reference."""
    if not name.startswith(_IMAGE):
        return None
    rest, _, mode = name.removeprefix(_IMAGE).partition(_XATTRS)
    rest, _, profile = rest.partition(_PROFILE)
    kind = ImageKind.BOOT if rest.startswith(_BOOT) else ImageKind.NORMATIVE
    version = {"": FormatVersion.V2, ".v1": FormatVersion.V1}.get(rest.removeprefix(_BOOT))
    if version is None or (mode and mode not in set(XattrMode)) or (profile and profile not in set(Profile)):
        return None
    return ComposefsImage(
        kind,
        version,
        XattrMode(mode or XattrMode.ALLOWLIST_ONLY),
        ObjectId(digest),
        Profile(profile or Profile.CURRENT),
    )


def manifest_stream(digest: OciDigest) -> str:
    """The stream of a manifest."""
    return f"{MANIFEST_PREFIX}{digest}"


def config_stream(digest: OciDigest) -> str:
    """The stream of a config."""
    return f"{CONFIG_PREFIX}{digest}"


def layer_stream(diff_id: DiffId) -> str:
    """The stream of a layer: an image's by its diff_id, an artifact's by the digest of its blob."""
    return f"{LAYER_PREFIX}{diff_id}"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An OCI image or artifact of the repository; layers are the stream of each layer, bottom first."""

    content: Content
    layers: tuple[bytes, ...]
    images: tuple[ComposefsImage, ...]

    @property
    def digest(self) -> OciDigest:
        return self.content.manifest.digest

    def require_image(self) -> OciImage:
        """The container image that this is.  Raises UnsupportedError if it is none."""
        if isinstance(self.content, Artifact):
            kind = self.content.manifest.artifact_type
            raise UnsupportedError(
                f"{self.digest} is an artifact of type {kind}, not a container image", subject=str(self.digest)
            )
        return self.content


def _document(repository: Repository, stream: Splitstream, name: str, digest: OciDigest) -> bytes:
    """The JSON document that is the only object of a stream, checked against its digest."""
    if len(stream.object_refs) != 1:
        raise CorruptError(f"stream {name} has {len(stream.object_refs)} objects instead of one", subject=name)
    data = repository.objects.read(stream.object_refs[0], DOCUMENT_BYTES)
    check_digest(data, digest, f"the document of stream {name}")
    return data


def content_type(repository: Repository, stream: bytes) -> int:
    """What a splitstream is, by its first bytes: a layer's may be large.

    Raises ObjectMissingError, CorruptError, FormatError, DeviceError.
    """
    header = Header.parse(repository.objects.read_part(stream, 0, HEADER_BYTES))
    return Info.parse(repository.objects.read_part(stream, header.info.start, INFO_BYTES)).content_type


def load_image(repository: Repository, digest: OciDigest) -> StoredImage:
    """An image or artifact by its manifest digest.

    Raises NoSuchImageError, or CorruptError, FormatError and their like if the repository's copy is broken.
    """
    name = manifest_stream(digest)
    if repository.stream(name) is None:
        raise NoSuchImageError(f"no image {digest} in the repository", subject=str(digest))
    listed = repository.read_stream(name, ContentType.OCI_MANIFEST)
    manifest = Manifest.parse(_document(repository, listed, name, digest), digest)
    name = config_stream(manifest.config.digest)
    if repository.stream(name) is None:
        raise CorruptError(f"image {digest} has lost its config {manifest.config.digest}", subject=name)
    stream = repository.read_stream(name, ContentType.OCI_CONFIG)
    content = read_content(manifest, _document(repository, stream, name, manifest.config.digest))
    if isinstance(content, Artifact):
        return StoredImage(content, _named_layers(content, listed), ())
    return StoredImage(content, _layers(repository, content, stream), composefs_images(stream))


def _named_layers(artifact: Artifact, manifest: Splitstream) -> tuple[bytes, ...]:
    """The layers of an artifact by its manifest's stream: its config may be that of many others, too."""
    for layer in artifact.layers:
        if str(layer.diff_id) not in manifest.named_refs:
            digest = artifact.manifest.digest
            raise CorruptError(f"artifact {digest} has lost its layer {layer.diff_id}", subject=str(layer.diff_id))
    return tuple(manifest.named_refs[str(layer.diff_id)] for layer in artifact.layers)


def _layers(repository: Repository, image: OciImage, stream: Splitstream) -> tuple[bytes, ...]:
    found = []
    for diff_id in image.config.diff_ids:
        digest = stream.named_refs.get(str(diff_id)) or repository.stream(layer_stream(diff_id))
        if digest is None:
            raise CorruptError(f"image {image.manifest.digest} has lost its layer {diff_id}", subject=str(diff_id))
        found.append(digest)
    return tuple(found)


def composefs_images(config: Splitstream) -> tuple[ComposefsImage, ...]:
    """The composefs images that a config's stream refers to, in the order of their reference names."""
    found = (parse_reference(name, digest) for name, digest in sorted(config.named_refs.items()))
    return tuple(image for image in found if image is not None)


def manifests(repository: Repository) -> Iterator[OciDigest]:
    """The manifest digests of all images of the repository, named or not."""
    for name, is_link, _ in links.listing(repository.fd, Category.STREAMS.value):
        if is_link and name.startswith(MANIFEST_PREFIX):
            try:
                yield OciDigest.parse(name.removeprefix(MANIFEST_PREFIX))
            except FormatError:  # fsck tells about it; a listing goes on
                continue
