"""From a reference to the documents of one image: index, platform, manifest, config, each checked by its digest."""

import os

from composefsd.digests import OciDigest
from composefsd.errors import DigestMismatchError, FormatError, SourceNotFoundError, UnsupportedError
from composefsd.oci.manifest import (
    CONFIG_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    OciImage,
    check_digest,
    select,
)
from composefsd.oci.reference import Platform
from composefsd.oci.transport.source import Source, read_document

_NESTED_INDEXES = 1


async def find_image(source: Source, tag: str, platform: Platform, wanted: OciDigest | None) -> OciImage:
    """The image that a tag of a source names for a platform.

    Raises SourceNotFoundError if there is none or several, DigestMismatchError if it is not the `wanted` one,
    FormatError, UnsupportedError or LimitExceededError for documents that cannot be used.
    """
    found = Index.parse(await source.index(), f"{source.name}: index.json").named(tag, source.name)
    image = await _select(source, found, platform, tag)
    if wanted is not None and image.manifest.digest != wanted:
        raise DigestMismatchError(
            f"{source.name} has the image {image.manifest.digest}, but {wanted} is required",
            expected=str(wanted),
            actual=str(image.manifest.digest),
        )
    return image


async def _select(source: Source, descriptors: tuple[Descriptor, ...], platform: Platform, tag: str) -> OciImage:
    for _ in range(_NESTED_INDEXES + 1):
        fitting = select(descriptors, platform)
        if not fitting:
            raise SourceNotFoundError(f"{source.name} has no image for {platform}", subject=source.name)
        if not tag and len(fitting) > 1 and len({one.digest for one in fitting}) > 1:
            raise SourceNotFoundError(f"{source.name} has several images; name one of them", subject=source.name)
        best = fitting[0]
        if best.media_type != INDEX_TYPE:
            return await _load(source, best, platform)
        descriptors = Index.parse(await _read(source, best), f"index {best.digest}").manifests
    raise FormatError(f"{source.name}: indexes are nested too deeply", subject=source.name)


async def _load(source: Source, descriptor: Descriptor, platform: Platform) -> OciImage:
    if descriptor.media_type != MANIFEST_TYPE:
        raise UnsupportedError(
            f"{source.name}: manifest {descriptor.digest} has the media type {descriptor.media_type!r}"
        )
    manifest = Manifest.parse(await _read(source, descriptor), descriptor.digest)
    config = ImageConfig.parse(await _read(source, manifest.config), manifest.config.digest)
    about = config.platform
    if (about.os, about.architecture) != (platform.os, platform.architecture):
        raise SourceNotFoundError(f"{source.name} is an image for {about}, not for {platform}", subject=source.name)
    for layer in manifest.layers:
        layer.compression()
    return OciImage(manifest, config)


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
