"""Generate and compute: the composefs images of an OCI image that is in the repository, stored or only measured."""

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
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
from composefsd.oci.storage import ComposefsImage, ImageKind, StoredImage, load_image
from composefsd.operations.build import (
    IMAGER,
    Built,
    build_images,
    dump_image,
    open_objects,
    reopen_for_reading,
    temporary_files,
)
from composefsd.operations.expected import Hunt, Outcome, in_vain, load_outcomes, require, save_outcomes
from composefsd.operations.facts import has_facts, load_facts, save_facts
from composefsd.operations.host import Host
from composefsd.operations.layers import StoredLayer
from composefsd.operations.model import GenerateRequest
from composefsd.operations.progress import Progress, Stage
from composefsd.operations.variants import ImageOrder, variants
from composefsd.repository import Repository
from composefsd.workers.pool import Worker, worker

STORER: Final = "composefsd.oci.store"


@dataclass(frozen=True, slots=True)
class Made:
    """The images that were asked for, and how many objects are new because of them.

    claimed are other variants of the boot image, which UKIs of the image ask for; outcomes tell of the search for
    them, and for the digest that the caller expects.
    """

    images: tuple[ComposefsImage, ...]
    objects_added: int = 0
    claimed: tuple[ComposefsImage, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


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
        """Make what is missing of `orders`, and what UKIs of the image ask for instead of them, and commit.

        An image that has the digest `expect` takes the place of the one of its kind that `orders` has.  Raises
        DigestMismatchError if no variant has it; the repository has not changed then.
        """
        known = _recorded(self.repository, image)
        hunt = self._hunt(image, orders, expect, known)
        with ExitStack() as keep:
            missing = [order for order in orders if order not in known]
            built, files = await self._build(image, layers, missing, hunt, keep)
            new = dict(zip((*built.images, *built.found), files, strict=True)) if built else {}
            known |= {ImageOrder.of(one): one for one in new}
            outcomes = built.outcomes if built else ()
            if outcomes:
                save_outcomes(self.host.settings.state, image.manifest.digest, outcomes)
            asked = _asked(orders, known, expect, outcomes)
            kept = {one: file for one, file in new.items() if one in asked or ImageOrder.of(one) not in orders}
            await self.imager.end()  # nobody can write to the files any more when they are hashed
            self.progress.stage(Stage.COMMIT)
            async with self.host.naming:
                self.progress.point_of_no_return()
                added = await commit(
                    self.storer, self.repository, image, layers, (*kept,), (*kept.values(),), tag=tag, replace=replace
                )
        claims = self._remember(image, built)
        claimed = (one for one in known.values() if _is_claimed(one, claims) and one not in asked)
        return Made(asked, added, tuple(claimed), outcomes)

    def _hunt(
        self,
        image: OciImage,
        orders: Sequence[ImageOrder],
        expect: ObjectId | None,
        known: Mapping[ImageOrder, ComposefsImage],
    ) -> Hunt | None:
        """What the imager has to search for, as far as that is known before the image was looked into."""
        kinds = {order.kind for order in orders}
        held = {one.digest for one in known.values() if one.kind in kinds}
        if expect in held:
            expect = None
        boot = [order for order in variants(orders) if order.kind is ImageKind.BOOT]
        vain = in_vain(load_outcomes(self.host.settings.state, image.manifest.digest), boot)
        claims = ImageKind.BOOT in kinds
        facts = load_facts(self.host.settings.state, image.manifest.digest)
        if facts is not None and expect is None:
            settled = {one.hex for one in (*held, *vain)}
            claims = claims and not _of_algorithm(facts.claimed_digests, self.repository.algorithm) <= settled
        if expect is None and not claims:
            return None
        return Hunt.of(orders, expect, (*held, *(one for one in vain if one != expect)), claims=claims)

    async def _build(
        self,
        image: OciImage,
        layers: Sequence[StoredLayer],
        orders: Sequence[ImageOrder],
        hunt: Hunt | None,
        keep: ExitStack,
    ) -> tuple[Built | None, tuple[int, ...]]:
        """What the imager made, with the images' files; None if there was nothing to be made, or found out."""
        if not orders and hunt is None and has_facts(self.host.settings.state, image.manifest.digest):
            return None, ()
        with temporary_files(self.repository, len(orders) + (0 if hunt is None else hunt.most)) as files:
            built = await build_images(
                self.imager, self.repository, layers, orders, progress=self.progress, files=files, hunt=hunt
            )
            return built, reopen_for_reading(files[: len(built.images) + len(built.found)], keep)

    def _remember(self, image: OciImage, built: Built | None) -> frozenset[str]:
        """Keep what was found out; answers with what UKIs of the image claim."""
        state, digest = self.host.settings.state, image.manifest.digest
        if built is None:
            facts = load_facts(state, digest)
            return frozenset() if facts is None else facts.claimed_digests
        save_facts(state, digest, built.facts)
        return built.facts.claimed_digests


def _is_claimed(image: ComposefsImage, claims: frozenset[str]) -> bool:
    return image.kind is ImageKind.BOOT and image.digest.hex in claims


def _of_algorithm(claims: Iterable[str], algorithm: Algorithm) -> set[str]:
    """Those of the claims, in hexadecimal, that an image of this algorithm can have."""
    return {claim for claim in claims if len(claim) == 2 * algorithm.digest_bytes}


def _asked(
    orders: Sequence[ImageOrder],
    known: Mapping[ImageOrder, ComposefsImage],
    expect: ObjectId | None,
    outcomes: Sequence[Outcome],
) -> tuple[ComposefsImage, ...]:
    """The images that a caller gets: one for each order.  Raises DigestMismatchError."""
    asked = tuple(known[order] for order in orders)
    if expect is None:
        return asked
    kinds = {order.kind for order in orders}
    found = require(expect, dict.fromkeys((*asked, *(one for one in known.values() if one.kind in kinds))), outcomes)
    return tuple(found if one.kind is found.kind else one for one in asked)


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
    return {ImageOrder.of(one): one for one in stored.images if repository.has_image(one.digest.digest)}


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
    orders = [ImageOrder(kind, version, request.xattrs) for kind in sorted(request.kinds)]
    return [replace(one, profile=request.profile) if one.kind is ImageKind.BOOT else one for one in orders]


def _check_algorithm(expect: ObjectId | None, algorithm: Algorithm) -> None:
    if expect is not None and expect.algorithm is not algorithm:
        message = f"expected {expect}, but the images have {algorithm.value}"
        raise DigestMismatchError(message, expected=str(expect), actual=algorithm.value)


async def make(host: Host, image: OciDigest, request: GenerateRequest, progress: Progress) -> Made:
    """Make and record composefs images of a stored OCI image.

    If the boot image is asked for, and UKIs of the image name another digest, the variant that has it is made, too;
    there may be none.  Raises NoSuchImageError, UnsupportedError for an artifact and for a format or hash that the
    repository does not have, DigestMismatchError if no variant has the digest `expect`, NotBootableError or
    FormatError for an image that has no boot image.
    """
    host.check_format(request.format, request.algorithm)
    async with host.writing() as repository:
        _check_algorithm(request.expect, repository.algorithm)
        stored = load_image(repository, image)
        async with worker(STORER, sandboxed=False) as storer, imaging_worker(repository) as imager:
            maker = ImageMaker(host, repository, storer, imager, progress)
            return await maker.make(
                stored.require_image(), stored_layers(stored), _orders(host, request), tag=None, expect=request.expect
            )


async def generate(
    host: Host, image: OciDigest, request: GenerateRequest, progress: Progress
) -> tuple[ComposefsImage, ...]:
    """As `make`; answers with the images that were asked for, and then those that UKIs of the image ask for."""
    made = await make(host, image, request, progress)
    return (*made.images, *made.claimed)


async def measure(host: Host, image: OciDigest, request: GenerateRequest, progress: Progress) -> Made:
    """What `make` would give, in any format and with any hash; nothing is stored.

    What UKIs of the image ask for is searched only if the request says so.
    """
    orders = _orders(host, request)
    claims = request.claims and ImageKind.BOOT in request.kinds
    hunt = Hunt.of(orders, request.expect, (), claims=claims) if claims or request.expect else None
    async with host.reading() as repository:
        algorithm = request.algorithm or repository.algorithm
        _check_algorithm(request.expect, algorithm)
        stored = load_image(repository, image)
        async with imaging_worker(repository) as imager:
            built = await build_images(
                imager, repository, stored_layers(stored), orders,
                progress=progress, algorithm=algorithm, facts=False, hunt=hunt,
            )  # fmt: skip
    known = {ImageOrder.of(one): one for one in (*built.images, *built.found)}
    asked = _asked(orders, known, request.expect, built.outcomes)
    claimed = (one for one in built.found if claims and one.digest != request.expect)
    return Made(asked, claimed=tuple(claimed), outcomes=built.outcomes)


async def compute_digest(
    host: Host, image: OciDigest, request: GenerateRequest, progress: Progress
) -> tuple[ComposefsImage, ...]:
    """As `measure`; answers with the images that were asked for, and then those that UKIs of the image ask for."""
    made = await measure(host, image, request, progress)
    return (*made.images, *made.claimed)


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
