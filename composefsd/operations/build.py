"""Making composefs images of layers that are in the repository: the imager's side as the daemon sees it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import FormatError
from composefsd.oci.storage import ComposefsImage
from composefsd.operations.expected import Hunt, Outcome
from composefsd.operations.facts import Facts
from composefsd.operations.layers import StoredLayer
from composefsd.operations.progress import Progress, Stage
from composefsd.operations.search import MAX_WANTED
from composefsd.operations.variants import ImageOrder
from composefsd.repository import Repository
from composefsd.repository.links import ensure_directory
from composefsd.workers.pool import Event, Worker, number

IMAGER = "composefsd.operations.imaging"


@dataclass(frozen=True, slots=True)
class Built:
    """What an imager made, and what came of the search for expected digests."""

    images: tuple[ComposefsImage, ...]
    facts: Facts
    outcomes: tuple[Outcome, ...] = ()

    @property
    def found(self) -> tuple[ComposefsImage, ...]:
        """The images that the search has found, in the order of their files, which follow those of `images`."""
        return tuple(outcome.image for outcome in self.outcomes if outcome.image is not None)


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
    hunt: Hunt | None = None,
) -> Built:
    """Have images made, into `files` if there are any, else only measured; `algorithm` if not the repository's.

    With a hunt `files` has as many more as the hunt may need.
    """
    algorithm = algorithm or repository.algorithm
    request = _request(repository, layers, orders) | {
        "algorithm": algorithm.value,
        "write": bool(files),
        "facts": facts,
        "hunt": None if hunt is None else hunt.to_wire(),
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
    outcomes = _outcomes(answer.get("outcomes"), algorithm)
    built = Built(tuple(images), Facts.from_wire(answer.get("facts")) if facts else Facts(), outcomes)
    if len(built.found) > (0 if hunt is None else hunt.most):
        raise FormatError("the imager has found more than it was to search for")
    return built


def _outcomes(value: object, algorithm: Algorithm) -> tuple[Outcome, ...]:
    """What the imager says about its search.  Raises FormatError, LimitExceededError."""
    if not isinstance(value, list) or len(value) > MAX_WANTED:
        raise FormatError("the imager does not say what came of its search")
    outcomes = tuple(map(Outcome.from_wire, value))
    if any(one.wanted.algorithm is not algorithm for one in outcomes):
        raise FormatError("the imager has searched for a digest of another hash")
    return outcomes


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
