"""The OCI images and artifacts of the repository: listing, naming, removing."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from composefsd.digests import OciDigest
from composefsd.errors import (
    AmbiguousImageError,
    ComposefsdError,
    FormatError,
    InUseError,
    InvalidNameError,
    LimitExceededError,
    LockedError,
    NoSuchDocumentError,
    NoSuchImageError,
    NotBootableError,
    UnsupportedError,
)
from composefsd.oci.manifest import ImageConfig
from composefsd.oci.reference import Platform
from composefsd.oci.sealing import by_subject
from composefsd.oci.settling import drop_layers
from composefsd.oci.storage import (
    MANIFEST_PREFIX,
    StoredImage,
    load_image,
    manifest_stream,
    manifests,
)
from composefsd.oci.store import check_tag
from composefsd.operations.build import build_images
from composefsd.operations.deployment_order import DEPLOYMENT_TAG
from composefsd.operations.expected import DOCUMENT as EXPECTED
from composefsd.operations.expected import forget_outcomes, load_outcomes, outcomes_document
from composefsd.operations.facts import Facts, forget_facts, load_facts, load_references, save_facts
from composefsd.operations.firmware import Firmware
from composefsd.operations.generate import imaging_worker, stored_layers
from composefsd.operations.host import Host
from composefsd.operations.model import BootResourceInfo, ImageInfo, Trust
from composefsd.operations.obstacles import obstacles
from composefsd.operations.progress import Silent
from composefsd.operations.trust import Place, judge
from composefsd.repository import Repository, refs
from composefsd.repository.links import Category

_PREFIX_DIGITS: Final = 12
_ALONE_SECONDS: Final = 2.0


async def list_images(host: Host) -> list[ImageInfo]:
    """All images, named or not; one that cannot be read is left to `check` to report."""
    async with host.reading() as repository:
        stored = await asyncio.to_thread(_load_all, repository)
        firmware = await asyncio.to_thread(Firmware.load, host.settings.efivars)
        names, place = _names(repository), Place(repository.metadata.algorithm, repository.verity, firmware)
        artifacts = by_subject(one.content.manifest for one in stored)
        listed = []
        for one in stored:
            facts = await image_facts(host, repository, one)
            outcomes = load_outcomes(host.settings.state, one.digest)
            trust = judge(one, facts, artifacts.get(one.digest, ()), place, outcomes)
            references = load_references(host.settings.state, one.digest)
            listed.append(_info(one, names.get(str(one.digest), ()), facts, trust, references))
        return listed


async def demands_verity(host: Host) -> bool:
    """Whether the repository demands fs-verity of its objects."""
    async with host.reading() as repository:
        return repository.verity


def _load_all(repository: Repository) -> list[StoredImage]:
    found = []
    for digest in sorted(manifests(repository)):
        try:
            found.append(load_image(repository, digest))
        except ComposefsdError:
            continue
    return found


def _names(repository: Repository) -> dict[str, tuple[str, ...]]:
    """Tags by manifest digest."""
    names: dict[str, tuple[str, ...]] = {}
    for tag, stream in sorted(repository.tags().items()):
        if not tag.startswith(DEPLOYMENT_TAG):
            digest = stream.removeprefix(MANIFEST_PREFIX)
            names[digest] = (*names.get(digest, ()), tag)
    return names


async def image_facts(host: Host, repository: Repository, stored: StoredImage) -> Facts:
    """What the image says about itself; found out now if another tool has put it into the repository.

    An image that cannot be looked into has that as its facts; they are kept if the image itself is to blame.  Of an
    artifact there is nothing to be found out.
    """
    kind = stored.content.manifest.artifact_type
    if kind:
        return Facts.unknown(f"an artifact of type {kind} has nothing to boot")
    facts = load_facts(host.settings.state, stored.digest)
    if facts is not None:
        return facts
    try:
        async with imaging_worker(repository) as imager:
            built = await build_images(imager, repository, stored_layers(stored), (), progress=Silent())
        facts = built.facts
    except (FormatError, LimitExceededError, NotBootableError, UnsupportedError) as error:
        facts = Facts.unknown(error.message)
    except ComposefsdError as error:
        return Facts.unknown(error.message)
    save_facts(host.settings.state, stored.digest, facts)
    return facts


def _info(
    stored: StoredImage, names: tuple[str, ...], facts: Facts, trust: Trust, references: tuple[str, ...]
) -> ImageInfo:
    manifest, config = stored.content.manifest, stored.content.config
    platform, created = Platform("", ""), 0
    if isinstance(config, ImageConfig):
        platform, created = config.platform, config.created
    reasons = obstacles(stored, facts)
    return ImageInfo(
        manifest_digest=manifest.digest,
        config_digest=config.digest,
        artifact_type=manifest.artifact_type,
        names=names,
        references=references,
        architecture="/".join(filter(None, (platform.architecture, platform.variant))),
        os=platform.os,
        title=facts.title,
        os_version=facts.os_version,
        created=created,
        size_bytes=manifest.size_bytes,
        layer_count=len(manifest.layers),
        images=stored.images,
        trust=trust,
        bootable=not reasons,
        reasons=reasons,
        boot_resources=tuple(
            BootResourceInfo(one.type, one.path, one.kernel_version, one.details) for one in facts.resources
        ),
    )


def resolve(images: Sequence[ImageInfo], text: str) -> ImageInfo:
    """The image that a tag, a manifest or config digest, or a prefix of at least 12 digits of one names.

    Raises NoSuchImageError or AmbiguousImageError.
    """
    for image in images:
        if text in (*image.names, str(image.manifest_digest), str(image.config_digest)):
            return image
    digits = text.removeprefix("sha256:")
    fitting = [image for image in images if _fits(image, digits)]
    if len(fitting) > 1:
        raise AmbiguousImageError(f"{text!r} fits {len(fitting)} images; give more digits", subject=text)
    if not fitting:
        raise NoSuchImageError(f"no image {text[:300]!r} in the repository", subject=text[:300])
    return fitting[0]


def _fits(image: ImageInfo, digits: str) -> bool:
    return len(digits) >= _PREFIX_DIGITS and (
        image.manifest_digest.hex.startswith(digits) or image.config_digest.hex.startswith(digits)
    )


def check_name(name: str) -> None:
    """Raises InvalidNameError for a name that nobody may give: one that is reserved, or no name at all."""
    refs.check_tag(name)
    if not name.isprintable():
        raise InvalidNameError(f"the name {name[:100]!r} has characters that cannot be printed", subject=name[:100])
    _check_not_reserved(name)


def _check_not_reserved(name: str) -> None:
    if name.startswith(DEPLOYMENT_TAG):
        raise InvalidNameError(f"names under {DEPLOYMENT_TAG!r} are reserved for deployments", subject=name)


async def tag(host: Host, image: OciDigest, name: str, *, replace: bool) -> None:
    """Give an image a name.  Raises InvalidNameError, NameInUseError, NoSuchImageError."""
    check_name(name)
    async with host.writing() as repository, host.naming:
        if repository.stream(manifest_stream(image)) is None:
            raise NoSuchImageError(f"no image {image} in the repository", subject=str(image))
        check_tag(repository, name, image, replace=replace)
        await asyncio.to_thread(_tag, repository, name, image)


def _tag(repository: Repository, name: str, image: OciDigest) -> None:
    repository.tag(name, manifest_stream(image))
    repository.sync()


async def untag(host: Host, name: str, *, missing_ok: bool) -> None:
    """Take a name away.  Raises NoSuchImageError if nothing has it, unless that is fine."""
    _check_not_reserved(name)
    async with host.writing() as repository, host.naming:
        if not await asyncio.to_thread(repository.untag, name) and not missing_ok:
            raise NoSuchImageError(f"no image has the name {name[:300]!r}", subject=name[:300])


async def remove(host: Host, image: OciDigest, *, force: bool) -> list[str]:
    """Take all names of an image away and forget it; its objects go with the next collection.

    Only while nobody else uses the repository can nobody be about to name the image.  If others do, it stays without
    a name until the next collection.  Raises InUseError if it has deployments, or several names and no `force`;
    answers with the names that went.
    """
    async with host.naming:
        async with host.writing() as repository:
            names = _removable_names(repository, image, force=force)
            await asyncio.to_thread(_untag_all, repository, names)
        with suppress(InUseError, LockedError, NoSuchImageError):
            async with host.alone(_ALONE_SECONDS) as (repository, _):
                await asyncio.to_thread(_forget, repository, image)
                forget_facts(host.settings.state, image)
                forget_outcomes(host.settings.state, image)
    return names


def _removable_names(repository: Repository, image: OciDigest, *, force: bool) -> list[str]:
    """The names of an image that may be removed.  Raises NoSuchImageError and InUseError."""
    load_image(repository, image)
    tags = _tags_of(repository, image)
    names = sorted(name for name in tags if not name.startswith(DEPLOYMENT_TAG))
    if len(names) != len(tags):
        raise InUseError(f"image {image} is deployed; remove its deployments first", subject=str(image))
    if len(names) > 1 and not force:
        raise InUseError(f"image {image} has the names {', '.join(names)}", subject=str(image))
    _check_only_tags(repository, image, tags)
    return names


def _tags_of(repository: Repository, image: OciDigest) -> list[str]:
    return [name for name, stream in repository.tags().items() if stream == manifest_stream(image)]


def _untag_all(repository: Repository, names: Sequence[str]) -> None:
    for name in names:
        repository.untag(name)
    repository.sync()


def _check_only_tags(repository: Repository, image: OciDigest, tags: Sequence[str]) -> None:
    """Raises InUseError if something else than our kind of names leads to the image: it would lead nowhere then."""
    known = {f"oci/{refs.encode_tag(name)}" for name in tags}
    others = [
        name for name, stream in repository.refs(Category.STREAMS).items()
        if stream == manifest_stream(image) and name not in known
    ]  # fmt: skip
    if others:
        raise InUseError(f"image {image} is kept by the refs {', '.join(sorted(others))}", subject=str(image))


def _forget(repository: Repository, image: OciDigest) -> None:
    """The manifest's stream, then the layers that only this manifest had.

    Its config and composefs images stay until they are collected: another tool that pulls the image before that takes
    the images that the config records for made.  Raises InUseError if somebody has named it since.
    """
    _check_only_tags(repository, image, ())
    stored = load_image(repository, image)
    repository.unlink_stream(manifest_stream(stored.digest))
    drop_layers(repository, stored.content.config.digest)
    repository.sync()


async def document(host: Host, image: OciDigest, which: str) -> bytes:
    """A document of an image, `manifest` or `config`, byte for byte, or what came of searches for digests.

    Raises NoSuchDocumentError for others, and if nothing was searched for.
    """
    if which == EXPECTED:
        return _outcomes(host, image)
    if which not in ("manifest", "config"):
        known = f"there are manifest, config, dumpfile and {EXPECTED}"
        raise NoSuchDocumentError(f"no document {which[:80]!r}; {known}", subject=which[:80])
    async with host.reading() as repository:
        stored = load_image(repository, image).content
    return stored.manifest.data if which == "manifest" else stored.config.data


def _outcomes(host: Host, image: OciDigest) -> bytes:
    data = outcomes_document(host.settings.state, image)
    if data is None:
        raise NoSuchDocumentError(f"no digest was searched for in image {image}", subject=EXPECTED)
    return data
