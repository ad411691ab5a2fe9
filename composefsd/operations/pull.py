"""Pull: from a reference to a named OCI image with its composefs images."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Final

from composefsd.oci.reference import Platform
from composefsd.oci.resolve import find_image
from composefsd.oci.store import check_tag
from composefsd.oci.transport import open_source
from composefsd.operations.build import ImageOrder
from composefsd.operations.facts import add_reference
from composefsd.operations.generate import STORER, ImageMaker, imaging_worker
from composefsd.operations.host import Host
from composefsd.operations.images import check_name
from composefsd.operations.layers import LayerFetcher, Tally
from composefsd.operations.model import PullRequest, PullResult
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository
from composefsd.tree.normative import XattrMode
from composefsd.workers.pool import Worker, worker

UNPACKER: Final = "composefsd.oci.unpack"


async def pull(host: Host, request: PullRequest, progress: Progress) -> PullResult:
    """Pull an image and make its composefs images.

    A layer gets its name as soon as it is complete, so that an attempt after a failure does not read it again; the
    image gets its names at the end.  Raises the errors of the source, of its formats and of the repository.
    """
    version = host.check_format(request.format)
    name = request.name or str(request.reference)
    check_name(name)
    orders = [ImageOrder(kind, version, XattrMode.ALLOWLIST_ONLY) for kind in sorted(request.kinds)]
    progress.stage(Stage.RESOLVE)
    async with AsyncExitStack() as stack:
        repository = await stack.enter_async_context(host.writing())
        source = await stack.enter_async_context(open_source(request.reference))
        platform = request.platform or Platform.host()
        image = await find_image(source, request.reference.tag, platform, request.require_digest)
        check_tag(repository, name, image.manifest.digest, replace=request.replace)
        unpacker, storer, imager = await stack.enter_async_context(_crew(repository))
        tally = Tally(image.manifest.size_bytes)
        keep = stack.enter_context(ExitStack())
        fetcher = LayerFetcher(repository, source, unpacker, storer, progress, host.room_bytes(), keep, tally)
        layers = await fetcher.fetch(image)
        maker = ImageMaker(host, repository, storer, imager, progress)
        made = await maker.make(image, layers, orders, tag=name, replace=request.replace)
        add_reference(host.settings.state, image.manifest.digest, str(request.reference))
    return PullResult(
        image.manifest.digest, image.config.digest, name, made.images,
        bytes_fetched=tally.done, bytes_reused=tally.reused, objects_added=tally.objects_added + made.objects_added,
    )  # fmt: skip


@asynccontextmanager
async def _crew(repository: Repository) -> AsyncIterator[tuple[Worker, Worker, Worker]]:
    """An unpacker, a storer and an imager for one pull."""
    async with (
        worker(UNPACKER, sandboxed=True) as unpacker,
        worker(STORER, sandboxed=False) as storer,
        imaging_worker(repository) as imager,
    ):
        yield unpacker, storer, imager
