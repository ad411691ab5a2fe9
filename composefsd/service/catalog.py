"""The images and deployments that the bus shows.

Reading them takes a moment and a lock, so they are remembered, read anew after every job that changes them, and when
somebody asks and the memory is old, or names have come or gone meanwhile: other tools write to the same repository.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from composefsd.deploy.partitions import BootPartitions
from composefsd.deploy.state import Deployment
from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError, EspNotFoundError, NoSuchDeploymentError
from composefsd.operations.deploy import list_deployments, partitions
from composefsd.operations.enforcement import Enforcement, enforcement
from composefsd.operations.host import Host
from composefsd.operations.images import demands_verity, list_images, resolve
from composefsd.operations.model import ImageInfo
from composefsd.service import names
from composefsd.service.export import ObjectTree, View

log = logging.getLogger(__name__)

_FRESH_SECONDS: Final = 1.0
_FRESH_TIMES: Final = 20
"""What took long to read is fresh for that many times as long: looking must not keep the daemon busy."""

_STALE_SECONDS: Final = 30.0

_PATIENCE_SECONDS: Final = 3.0
"""How long a caller waits for what is read anew before it gets what is remembered: a collection may hold the lock."""

_PREFIX_DIGITS: Final = 12

_NAMES: Final = ("images", "streams", "streams/refs/oci")
"""The directories of a repository in which the names of images come and go."""


F = TypeVar("F")
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image, and the paths of its Deployment objects."""

    info: ImageInfo
    deployments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """A deployment; the path of its Image object and that image's trust, or `/` and nothing if it is gone."""

    info: Deployment
    image: str
    trust: str
    enforcement: Enforcement


@dataclass(frozen=True, slots=True)
class Makers:
    """Who makes the objects."""

    image: Callable[[ImageFacts], View[ImageFacts]]
    deployment: Callable[[DeploymentFacts], View[DeploymentFacts]]


class Catalog:
    """What is in the repository and on the boot partition, as objects of the tree."""

    def __init__(self, host: Host, tree: ObjectTree) -> None:
        self._host = host
        self._tree = tree
        self._lock = asyncio.Lock()
        self._fresh_until = float("-inf")
        self._seen: tuple[int, ...] = ()
        self._reading: asyncio.Task[None] | None = None
        self._images: dict[OciDigest, View[ImageFacts]] = {}
        self._deployments: dict[str, View[DeploymentFacts]] = {}
        self._makers: Makers | None = None
        self.partitions: BootPartitions | None = None

    def show_with(self, makers: Makers) -> None:
        """Make objects with these; to be called before the first `refresh`."""
        self._makers = makers

    @property
    def images(self) -> Sequence[View[ImageFacts]]:
        """The images that are shown, by digest."""
        return tuple(self._images.values())

    @property
    def deployments(self) -> Sequence[View[DeploymentFacts]]:
        """The deployments that are shown, in boot order."""
        return tuple(self._deployments.values())

    async def refresh(self) -> None:
        """Read everything anew, and announce what has changed.  What cannot be read stays as it was."""
        async with self._lock:
            started_at, self._seen = time.monotonic(), _glance(self._host)
            try:
                images = await list_images(self._host)
                deployments = await list_deployments(self._host)
                verity = await demands_verity(self._host)
                found = await asyncio.to_thread(_find_partitions, self._host)
            except ComposefsdError as error:
                log.warning("images and deployments cannot be read: %s", error)
            else:
                self._show(images, deployments, verity=verity)
                if found != self.partitions:
                    self.partitions = found
                    self._tree.changed(names.ROOT_PATH, names.BOOT, "Esp", "Xbootldr")
            now = time.monotonic()
            self._fresh_until = now + min(max(_FRESH_SECONDS, _FRESH_TIMES * (now - started_at)), _STALE_SECONDS)

    async def update(self) -> None:
        """Read everything anew if that was not done just now, but do not wait long for it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for _ in range(2):  # what is being read already may miss what has changed since
            if self._is_fresh():
                return
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self.refresh())
            await asyncio.wait({self._reading}, timeout=max(0, deadline - time.monotonic()))

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._fresh_until and self._seen == _glance(self._host)

    async def find_image(self, text: str) -> ImageInfo:
        """The image that a name, digest or prefix stands for.  Raises NoSuchImageError or AmbiguousImageError."""
        await self.update()
        return resolve([image.facts.info for image in self.images], text)

    async def find_deployment(self, text: str) -> View[DeploymentFacts]:
        """The deployment of an id, a unique prefix of it, or the words booted and default.

        Raises NoSuchDeploymentError.
        """
        await self.update()
        found = [one for one in self.deployments if _is_called(one.facts.info, text)]
        if len(found) != 1:
            which = f"{text[:140]!r} fits {len(found)} deployments" if found else f"no deployment {text[:140]!r}"
            raise NoSuchDeploymentError(which, subject=text[:140])
        return found[0]

    async def stop(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    def _show(self, images: Sequence[ImageInfo], deployments: Sequence[Deployment], *, verity: bool) -> None:
        assert self._makers is not None
        count = len(self._images)
        known = {info.manifest_digest: info for info in sorted(images, key=lambda info: info.manifest_digest)}
        wanted = {digest: ImageFacts(info, _paths(deployments, digest)) for digest, info in known.items()}
        self._images, added, removed = self._synchronize(self._images, wanted, self._makers.image)
        states = {info.id: _deployment_facts(info, known, verity=verity) for info in deployments}
        self._deployments, _, _ = self._synchronize(self._deployments, states, self._makers.deployment)
        for signal, digests in (("ImageRemoved", removed), ("ImageAdded", added)):
            for digest in digests:
                path = names.image_path(digest)
                self._tree.emit(names.ROOT_PATH, names.MANAGER, signal, str(digest), path)
        if len(self._images) != count:
            self._tree.changed(names.ROOT_PATH, names.REPOSITORY, "ImageCount")

    def _synchronize(
        self, shown: dict[K, View[F]], wanted: Mapping[K, F], make: Callable[[F], View[F]]
    ) -> tuple[dict[K, View[F]], list[K], list[K]]:
        """The objects for what is wanted, in its order; and what came and went."""
        removed = [key for key in shown if key not in wanted]
        added = [key for key in wanted if key not in shown]
        for key in removed:
            self._tree.remove(shown[key].path)
        views = {key: shown[key] if key in shown else make(facts) for key, facts in wanted.items()}
        for key, view in views.items():
            if key in shown:
                view.update(wanted[key])
            else:
                self._tree.export(view)
        return views, added, removed


def _glance(host: Host) -> tuple[int, ...]:
    """When names of images last came or went, for each directory of them in nanoseconds; 0 if it is not there."""
    times = []
    for name in _NAMES:
        try:
            times.append((host.settings.repository / name).stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


def _find_partitions(host: Host) -> BootPartitions | None:
    try:
        return partitions(host)
    except EspNotFoundError:
        return None


def _paths(deployments: Sequence[Deployment], image: OciDigest) -> tuple[str, ...]:
    return tuple(names.deployment_path(info.id) for info in deployments if info.manifest_digest == image)


def _deployment_facts(info: Deployment, images: Mapping[OciDigest, ImageInfo], *, verity: bool) -> DeploymentFacts:
    image = images.get(info.manifest_digest) if info.manifest_digest is not None else None
    enforced = enforcement(info, image, verity=verity)
    if image is None:
        return DeploymentFacts(info, names.NO_OBJECT, "", enforced)
    return DeploymentFacts(info, names.image_path(image.manifest_digest), image.trust.state, enforced)


def _is_called(info: Deployment, text: str) -> bool:
    words = {"booted": info.booted, "default": info.default}
    is_prefix = len(text) >= _PREFIX_DIGITS and info.id.startswith(text)
    return words.get(text, False) or text == info.id or is_prefix
