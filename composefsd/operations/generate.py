"""Generate and compute: the composefs images of an OCI image that is in the repository, stored or only measured."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.errors import (
    CorruptError,
    DigestMismatchError,
    FormatError,
    NoSuchImageError,
    ObjectMissingError,
)
from composefsd.oci.manifest import Content, OciImage
from composefsd.oci.storage import ComposefsImage, StoredImage, load_image
from composefsd.operations.build import (
    IMAGER,
    Built,
    ImageOrder,
    build_images,
    dump_image,
    open_objects,
    reopen_for_reading,
    temporary_files,
)
from composefsd.operations.facts import has_facts, save_facts
from composefsd.operations.host import Host
from composefsd.operations.layers import StoredLayer
from composefsd.operations.model import GenerateRequest
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository
from composefsd.workers.pool import Worker, worker

STORER: Final = "composefsd.oci.store"


@dataclass(frozen=True, slots=True)
class Made:
    """The images that were asked for, and how many objects are new because of them."""

    images: tuple[ComposefsImage, ...]
    objects_added: int


@dataclass(frozen=True, slots=True)
class ImageMaker:
    """Makes an image's composefs images and gives everything its names."""

    host: Host
    repository: Repository
    storer: Worker
    imager: Worker
    progress: Progress

    async def make(
        self,
        image: OciImage,
        layers: Sequence[StoredLayer],
        orders: Sequence[ImageOrder],
        *,
        tag: str | None,
        replace: bool = False,
        expect: ObjectId | None = None,
    ) -> Made:
        """Make what is missing of `orders`, and commit.

        Raises DigestMismatchError if an image has another digest than `expect`; nothing has changed then.
        """
        known = _recorded(self.repository, image)
        missing = [order for order in orders if order not in known]
        with ExitStack() as keep:
            built, files = await self._build(image, layers, missing, keep)
            made = built.images if built else ()
            known |= {_order(one): one for one in made}
            asked = tuple(known[order] for order in orders)
            _check_expected(asked, expect)
            await self.imager.end()  # nobody can write to the files any more when they are hashed
            self.progress.stage(Stage.COMMIT)
            async with self.host.naming:
                self.progress.point_of_no_return()
                added = await commit(
                    self.storer, self.repository, image, layers, made, files, tag=tag, replace=replace
                )
        if built is not None:
            save_facts(self.host.settings.state, image.manifest.digest, built.facts)
        return Made(asked, added)

    async def _build(
        self, image: OciImage, layers: Sequence[StoredLayer], orders: Sequence[ImageOrder], keep: ExitStack
    ) -> tuple[Built | None, tuple[int, ...]]:
        """What the imager made, with the images' files; None if there was nothing to be made, or found out."""
        if not orders and has_facts(self.host.settings.state, image.manifest.digest):
            return None, ()
        with temporary_files(self.repository, len(orders)) as files:
            built = await build_images(
                self.imager, self.repository, layers, orders, progress=self.progress, files=files
            )
            return built, reopen_for_reading(files, keep)


async def commit(
    storer: Worker,
    repository: Repository,
    content: Content,
    layers: Sequence[StoredLayer],
    images: Sequence[ComposefsImage] = (),
    files: Sequence[int] = (),
    *,
    tag: str | None,
    replace: bool,
    repair: bool = False,
) -> int:
    """Have the storer give everything its names; how many objects are new.  `files` hold the `images`.

    With `repair` it compares objects that are there, and goes on beside damage of others.
    """
    manifest, config = content.manifest, content.config
    order: dict[str, Any] = {
        "manifest": manifest.data.decode("latin-1"),
        "manifest_digest": str(manifest.digest),
        "config": config.data.decode("latin-1"),
        "config_digest": str(config.digest),
        "layers": {str(layer.diff_id): layer.stream.hex() for layer in layers},
        "tag": tag,
        "replace": replace,
        "repair": repair,
        "images": [{"reference": one.reference, "digest": one.digest.hex} for one in images],
    }
    answer = await storer.call("commit", order, (repository.fd, *files))
    return int(answer["added"])


def _recorded(repository: Repository, image: OciImage) -> dict[ImageOrder, ComposefsImage]:
    """The composefs images that the repository has for this image already; none if what it has is damaged."""
    try:
        stored = load_image(repository, image.manifest.digest)
    except (CorruptError, FormatError, NoSuchImageError, ObjectMissingError):
        return {}
    return {_order(one): one for one in stored.images if repository.has_image(one.digest.digest)}


def _order(image: ComposefsImage) -> ImageOrder:
    return ImageOrder(image.kind, image.format, image.xattrs)


def _check_expected(images: Sequence[ComposefsImage], expect: ObjectId | None) -> None:
    if expect is not None and expect not in {image.digest for image in images}:
        have = ", ".join(f"{image.kind} {image.format.label} {image.digest}" for image in images)
        raise DigestMismatchError(f"expected {expect}, but the image gives {have}", expected=str(expect), actual=have)


def stored_layers(stored: StoredImage) -> list[StoredLayer]:
    """The layers of an image that is in the repository.  Raises UnsupportedError if it is no container image."""
    return [
        StoredLayer(diff_id, stream)
        for diff_id, stream in zip(stored.require_image().config.diff_ids, stored.layers, strict=True)
    ]


@asynccontextmanager
async def imaging_worker(repository: Repository) -> AsyncIterator[Worker]:
    """An imager that may read this repository's objects."""
    objects = open_objects(repository)
    try:
        async with worker(IMAGER, sandboxed=True, readable=(objects,)) as imager:
            yield imager
    finally:
        os.close(objects)


def _orders(host: Host, request: GenerateRequest) -> list[ImageOrder]:
    version = host.formats[0] if request.format is None else request.format
    return [ImageOrder(kind, version, request.xattrs) for kind in sorted(request.kinds)]


async def generate(
    host: Host, image: OciDigest, request: GenerateRequest, progress: Progress
) -> tuple[ComposefsImage, ...]:
    """Make and record composefs images of a stored OCI image.

    Raises NoSuchImageError, UnsupportedError for an artifact and for a format or hash that the repository does not
    have, DigestMismatchError if `expect` is not among the digests, NotBootableError or FormatError for an image that
    has no boot image.
    """
    host.check_format(request.format, request.algorithm)
    async with host.writing() as repository:
        stored = load_image(repository, image)
        async with worker(STORER, sandboxed=False) as storer, imaging_worker(repository) as imager:
            maker = ImageMaker(host, repository, storer, imager, progress)
            made = await maker.make(
                stored.require_image(), stored_layers(stored), _orders(host, request), tag=None, expect=request.expect
            )
    return made.images


async def compute_digest(
    host: Host, image: OciDigest, request: GenerateRequest, progress: Progress
) -> tuple[ComposefsImage, ...]:
    """The digests that `generate` would give, in any format and with any hash; nothing is stored."""
    async with host.reading() as repository:
        stored = load_image(repository, image)
        async with imaging_worker(repository) as imager:
            built = await build_images(
                imager, repository, stored_layers(stored), _orders(host, request),
                progress=progress, algorithm=request.algorithm, facts=False,
            )  # fmt: skip
    _check_expected(built.images, request.expect)
    return built.images


async def dump(
    host: Host,
    image: OciDigest,
    order: ImageOrder,
    file: int,
    *,
    algorithm: Algorithm | None = None,
    limit_bytes: int | None = None,
) -> None:
    """Write the dumpfile of a composefs image of a stored OCI image into `file`, with digests of any algorithm.

    Raises NoSuchImageError, UnsupportedError for an artifact, LimitExceededError beyond `limit_bytes`, and what
    making the image gives cause for.
    """
    async with host.reading() as repository:
        stored = load_image(repository, image)
        async with imaging_worker(repository) as imager:
            await dump_image(
                imager, repository, stored_layers(stored), order, file, algorithm=algorithm, limit_bytes=limit_bytes
            )
