"""Making composefs images of layers that are in the repository: the imager's side as the daemon sees it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError
from composefsd.oci.storage import ComposefsImage, ImageKind
from composefsd.operations.facts import Facts
from composefsd.operations.layers import StoredLayer
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository
from composefsd.repository.links import ensure_directory
from composefsd.tree.normative import XattrMode
from composefsd.workers.pool import Event, Worker, number

IMAGER = "composefsd.operations.imaging"


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """A composefs image that is to be made."""

    kind: ImageKind
    format: FormatVersion
    xattrs: XattrMode

    def made(self, digest: ObjectId) -> ComposefsImage:
        """The image, once it has a digest."""
        return ComposefsImage(self.kind, self.format, self.xattrs, digest)

    def values(self) -> dict[str, Any]:
        """The order as the imager reads it."""
        return {"kind": self.kind.value, "format": self.format.value, "xattrs": self.xattrs.value}


@dataclass(frozen=True, slots=True)
class Built:
    """What an imager made."""

    images: tuple[ComposefsImage, ...]
    facts: Facts


def open_objects(repository: Repository) -> int:
    """A descriptor of `objects/`, all that an imager gets of a repository."""
    return ensure_directory(repository.fd, "objects")


@contextmanager
def temporary_files(repository: Repository, count: int) -> Iterator[tuple[int, ...]]:
    """Unnamed files in the object store, open for writing during the block."""
    with ExitStack() as stack:
        files = []
        for _ in range(count):
            fd = repository.objects.temporary()
            stack.callback(repository.objects.discard, fd)
            files.append(fd)
        yield tuple(files)


def reopen_for_reading(files: Sequence[int], keep: ExitStack) -> tuple[int, ...]:
    """The same files, as long as `keep` lasts: fs-verity wants that nobody can write to what it seals."""
    reopened = []
    for fd in files:
        reopened.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
        keep.callback(os.close, reopened[-1])
    return tuple(reopened)


def _request(repository: Repository, layers: Sequence[StoredLayer], orders: Sequence[ImageOrder]) -> dict[str, Any]:
    return {
        "repository_algorithm": repository.algorithm.value,
        "algorithm": repository.algorithm.value,
        "layers": [layer.for_imager() for layer in layers],
        "images": [order.values() for order in orders],
    }


async def build_images(
    imager: Worker,
    repository: Repository,
    layers: Sequence[StoredLayer],
    orders: Sequence[ImageOrder],
    *,
    progress: Progress,
    files: tuple[int, ...] = (),
    algorithm: Algorithm | None = None,
    facts: bool = True,
) -> Built:
    """Have images made, into `files` if there are any, else only measured; `algorithm` if not the repository's."""
    algorithm = algorithm or repository.algorithm
    request = _request(repository, layers, orders) | {
        "algorithm": algorithm.value,
        "write": bool(files),
        "facts": facts,
    }

    def tell(event: Event) -> None:
        progress.items(done=number(event, "layers"), total=len(layers))

    progress.stage(Stage.GENERATE)
    objects = open_objects(repository)
    try:
        passed = [fd for layer in layers for fd in layer.descriptors()]
        answer = await imager.call("build", request, (objects, *passed, *files), tell)
    finally:
        os.close(objects)
    digests = answer.get("digests")
    if not isinstance(digests, list) or len(digests) != len(orders):
        raise FormatError("the imager did not make the images that it was asked for")
    images = (order.made(ObjectId.parse(str(hexes), algorithm)) for order, hexes in zip(orders, digests, strict=True))
    return Built(tuple(images), Facts.from_wire(answer.get("facts")) if facts else Facts())


async def dump_image(
    imager: Worker,
    repository: Repository,
    layers: Sequence[StoredLayer],
    order: ImageOrder,
    file: int,
    *,
    algorithm: Algorithm | None = None,
    limit_bytes: int | None = None,
) -> None:
    """Have the dumpfile of an image written into `file`; `algorithm` if not the repository's."""
    request = _request(repository, layers, [order]) | {
        "algorithm": (algorithm or repository.algorithm).value,
        "limit_bytes": limit_bytes,
    }
    objects = open_objects(repository)
    try:
        passed = [fd for layer in layers for fd in layer.descriptors()]
        await imager.call("dump", request, (objects, *passed, file))
    finally:
        os.close(objects)
