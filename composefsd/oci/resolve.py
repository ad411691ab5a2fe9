"""From a reference to the documents of one image: index, platform, manifest, config, each checked by its digest."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Final

from composefsd.digests import OciDigest
from composefsd.errors import (
    DigestMismatchError,
    FormatError,
    LimitExceededError,
    SourceNotFoundError,
    UnsupportedError,
)
from composefsd.oci.manifest import (
    CONFIG_TYPE,
    DELTA_TYPE,
    DOCKER_CONFIG_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Artifact,
    Content,
    Descriptor,
    Index,
    Manifest,
    OciImage,
    check_digest,
    read_content,
    select,
)
from composefsd.oci.reference import Platform
from composefsd.oci.transport.source import Source, read_document

_NESTED_INDEXES: Final = 1

_DOCUMENTS: Final = 16
"""How many manifests and indexes are read to find the one that is meant: where the index tells no platform, only an
image's config does."""

_TOLD: Final = 3


async def find_image(source: Source, tag: str, platform: Platform, wanted: OciDigest | None) -> Content:
    """The image or artifact that a tag of a source names for a platform.

    Raises SourceNotFoundError if there is none or several, DigestMismatchError if it is not the `wanted` one,
    FormatError, UnsupportedError or LimitExceededError for documents that cannot be used.
    """
    listed = Index.parse(await source.index(), f"{source.name}: index.json").named(tag, source.name)
    search = _Search(source, platform)
    found = await search.walk(listed, _NESTED_INDEXES, is_first_enough=bool(tag))
    if not found:
        why = f": {'; '.join(search.others[:_TOLD])}" if search.others else ""
        raise SourceNotFoundError(f"{source.name} has no image for {platform}{why}", subject=source.name)
    if len({one.manifest.digest for one in found}) > 1:
        raise SourceNotFoundError(f"{source.name} has several images; name one of them", subject=source.name)
    content = found[0]
    if wanted is not None and content.manifest.digest != wanted:
        raise DigestMismatchError(
            f"{source.name} has the image {content.manifest.digest}, but {wanted} is required",
            expected=str(wanted),
            actual=str(content.manifest.digest),
        )
    _check_supported(content)
    return content


@dataclass(slots=True)
class _Search:
    """What fits a platform among descriptors; `others` tells of what was looked at and does not."""

    source: Source
    platform: Platform
    others: list[str] = field(default_factory=list, init=False)
    _looked_at: int = field(default=0, init=False)

    async def walk(self, descriptors: tuple[Descriptor, ...], depth: int, *, is_first_enough: bool) -> list[Content]:
        """What these lead to, best first, or the best alone; within an index the best one is meant."""
        found: list[Content] = []
        is_sole = len({one.digest for one in descriptors}) == 1
        for one in select(descriptors, self.platform):
            if one.media_type == INDEX_TYPE:
                found += await self.walk(await self._open(one, depth), depth - 1, is_first_enough=True)
            elif content := await self._look(one, is_sole=is_sole):
                found.append(content)
            if found and is_first_enough:
                break
        return found

    async def _open(self, descriptor: Descriptor, depth: int) -> tuple[Descriptor, ...]:
        if not depth:
            raise FormatError(f"{self.source.name}: indexes are nested too deeply", subject=self.source.name)
        return Index.parse(await self._next(descriptor), f"index {descriptor.digest}").manifests

    async def _look(self, descriptor: Descriptor, *, is_sole: bool) -> Content | None:
        if descriptor.media_type != MANIFEST_TYPE:
            raise UnsupportedError(
                f"{self.source.name}: manifest {descriptor.digest} has the media type {descriptor.media_type!r}"
            )
        manifest = Manifest.parse(await self._next(descriptor), descriptor.digest)
        content = read_content(manifest, await _read(self.source, manifest.config))
        objection = _objection(content, self.platform, descriptor.platform, is_sole=is_sole)
        if not objection:
            return content
        self.others.append(f"{manifest.digest} is {objection}")
        return None

    async def _next(self, descriptor: Descriptor) -> bytes:
        """A document more; few, since the daemon answers nobody while it parses one."""
        if self._looked_at == _DOCUMENTS:
            raise LimitExceededError(f"{self.source.name}: more than {_DOCUMENTS} manifests may be meant")
        self._looked_at += 1
        await asyncio.sleep(0)
        return await _read(self.source, descriptor)


def _objection(content: Content, platform: Platform, told: Platform | None, *, is_sole: bool) -> str:
    """What this is, if it is not what was asked for; an image's config decides, not what an index tells of it.

    composefs-rs takes an artifact only by the platform in its descriptor.  Hardly any has one there, so we take one
    without if there is nothing else that could be meant: beside it there may be an image of another platform.
    """
    if isinstance(content, Artifact):
        return "" if told is not None or is_sole else "an artifact, of which nothing tells the platform"
    about = content.config.platform
    is_ours = (about.os, about.architecture) == (platform.os, platform.architecture)
    return "" if is_ours else f"an image for {about}"


def _check_supported(content: Content) -> None:
    """Raises UnsupportedError for an image that cannot be made into a tree, also if it looks like an artifact."""
    manifest = content.manifest
    if isinstance(content, OciImage):
        for layer in manifest.layers:
            layer.compression()
    elif manifest.config.media_type == DOCKER_CONFIG_TYPE:
        raise UnsupportedError(
            f"manifest {manifest.digest} is a Docker image, of which no tree can be made; convert it to OCI",
            subject=str(manifest.digest),
        )
    elif manifest.artifact_type == DELTA_TYPE:
        raise UnsupportedError(
            f"manifest {manifest.digest} is an OCI delta; pull the image that it leads to",
            subject=str(manifest.digest),
        )


async def find_again(source: Source, digest: OciDigest, manifest: Manifest | None = None) -> Content:
    """The image or artifact of a manifest's digest: for whatever platform, under whatever name.

    With its `manifest` only the config is read.  Raises as `find_image`, SourceNotFoundError if it is not there.
    """
    if manifest is None:
        manifest = Manifest.parse(await _find_manifest(source, digest), digest)
    return read_content(manifest, await _read(source, manifest.config))


async def _find_manifest(source: Source, digest: OciDigest) -> bytes:
    inner: list[Descriptor] = []
    for one in Index.parse(await source.index(), f"{source.name}: index.json").manifests:
        if one.digest == digest:
            return await _read(source, one)
        if one.media_type == INDEX_TYPE:
            inner.append(one)
    for one in inner[:_DOCUMENTS]:
        for nested in Index.parse(await _read(source, one), f"index {one.digest}").manifests:
            if nested.digest == digest:
                return await _read(source, nested)
    raise SourceNotFoundError(f"{source.name} has no image {digest} any more", subject=source.name)


async def _read(source: Source, descriptor: Descriptor) -> bytes:
    blob = await source.open_blob(descriptor)
    try:
        name = f"{source.name}: {_KINDS.get(descriptor.media_type, 'blob')} {descriptor.digest}"
        data = read_document(blob.fd, blob.offset or 0, descriptor.size_bytes, name)
    finally:
        os.close(blob.fd)
    check_digest(data, descriptor.digest, name)
    return data


_KINDS = {INDEX_TYPE: "index", MANIFEST_TYPE: "manifest", CONFIG_TYPE: "config"}
