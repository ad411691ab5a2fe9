"""Pull: from a reference to a named OCI image with its composefs images, or to a named artifact."""

from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

from composefsd.oci.manifest import Artifact, OciImage
from composefsd.oci.reference import Platform
from composefsd.oci.resolve import find_image
from composefsd.oci.store import check_tag
from composefsd.oci.transport import open_source
from composefsd.oci.transport.source import Source
from composefsd.operations.facts import add_reference
from composefsd.operations.generate import STORER, ImageMaker, Made, commit, imaging_worker
from composefsd.operations.host import Host
from composefsd.operations.images import check_name
from composefsd.operations.layers import UNPACKER, LayerFetcher, Tally
from composefsd.operations.model import PullRequest, PullResult
from composefsd.operations.progress import Progress, Stage
from composefsd.operations.variants import ImageOrder
from composefsd.repository import Repository
from composefsd.tree.normative import XattrMode
from composefsd.workers.pool import Worker, worker


async def pull(host: Host, request: PullRequest, progress: Progress) -> PullResult:
    """Pull an image and make its composefs images, or pull an artifact, which has none.

    If the boot image is asked for, and UKIs of the image name another digest, the variant that has it is made, too.
    That there is none does not make the pull fail.

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
        content = await find_image(source, request.reference.tag, platform, request.require_digest)
        check_tag(repository, name, content.manifest.digest, replace=request.replace)
        storer = await stack.enter_async_context(worker(STORER, sandboxed=False))
        tally = Tally(content.manifest.size_bytes)
        taker = _Taker(host, repository, source, storer, progress, tally, name, request.replace)
        made = await (taker.artifact(content) if isinstance(content, Artifact) else taker.image(content, orders))
        add_reference(host.settings.state, content.manifest.digest, str(request.reference))
    return PullResult(
        content.manifest.digest, content.config.digest, name, made.images,
        bytes_fetched=tally.done, bytes_reused=tally.reused, objects_added=tally.objects_added + made.objects_added,
        notes=tuple(one.text() for one in made.outcomes),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Taker:
    """Takes in what a pull has found, under a name."""

    host: Host
    repository: Repository
    source: Source
    storer: Worker
    progress: Progress
    tally: Tally
    name: str
    replace: bool

    async def image(self, image: OciImage, orders: Sequence[ImageOrder]) -> Made:
        """One crew for all its layers and images."""
        async with worker(UNPACKER, sandboxed=True) as unpacker, imaging_worker(self.repository) as imager:
            with ExitStack() as keep:
                layers = await self._fetcher(unpacker, keep).fetch(image)
                maker = ImageMaker(self.host, self.repository, self.storer, imager, self.progress)
                return await maker.make(image, layers, orders, tag=self.name, replace=self.replace)

    async def artifact(self, artifact: Artifact) -> Made:
        """The layers, and then the names: there is nothing to be made of it."""
        with ExitStack() as keep:
            layers = await self._fetcher(None, keep).fetch(artifact)
        self.progress.stage(Stage.COMMIT)
        async with self.host.naming:
            self.progress.point_of_no_return()
            added = await commit(self.storer, self.repository, artifact, layers, tag=self.name, replace=self.replace)
        return Made((), added)

    def _fetcher(self, unpacker: Worker | None, keep: ExitStack) -> LayerFetcher:
        room_bytes = self.host.room_bytes()
        return LayerFetcher(
            self.repository, self.source, unpacker, self.storer, self.progress, room_bytes, keep, self.tally
        )
