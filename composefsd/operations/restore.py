"""Bringing OCI images back: documents and layers from where they came from, composefs images from the layers.

Whatever is fetched is verified as by any pull, and no object counts as there by its name alone.  A layer whose stream
is replaced is kept by a ref of its own until everything that names it is written anew.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

from composefsd.digests import DiffId
from composefsd.document import DOCUMENT_BYTES
from composefsd.errors import ComposefsdError, NoSuchObjectError
from composefsd.oci.image_state import ImageState, LayerState
from composefsd.oci.manifest import Content, Layer, Manifest, read_content
from composefsd.oci.reference import Reference
from composefsd.oci.resolve import find_again
from composefsd.oci.storage import ComposefsImage, layer_stream, manifest_stream, parse_reference
from composefsd.oci.transport import open_source
from composefsd.oci.transport.source import Source
from composefsd.operations.build import ImageOrder, build_images, reopen_for_reading, temporary_files
from composefsd.operations.facts import load_references
from composefsd.operations.generate import STORER, commit, imaging_worker
from composefsd.operations.host import Host
from composefsd.operations.layers import LayerFetcher, StoredLayer, Tally
from composefsd.operations.progress import Progress, Stage
from composefsd.operations.repair_notes import Notes
from composefsd.repository import Repository
from composefsd.repository.links import Category
from composefsd.workers.pool import worker


@dataclass(slots=True)
class Restorer:
    """Brings images back, one after another."""

    host: Host
    repository: Repository
    progress: Progress
    notes: Notes
    _fetched: dict[DiffId, bytes] = field(default_factory=dict)

    async def attempt(self, state: ImageState) -> bool:
        """Bring back what can be brought back of an image; whether everything of it could."""
        key = str(state.digest)
        try:
            whole = await self._restore(state)
        except ComposefsdError as error:
            self.notes.failed[key] = error.message
            return False
        if whole:
            self.notes.succeed(key, self.notes.done.get(key, "written anew"))
        return whole

    async def end(self) -> None:
        """Let go of layers that were kept until all images name their new streams."""
        async with self.host.naming, worker(STORER, sandboxed=False) as storer:
            await storer.call("end_repair", {}, (self.repository.fd,))

    async def _restore(self, state: ImageState) -> bool:
        content = await self._content(state)
        layers = await self._layers(state, content)
        lost = _lost(state)
        sound = all(str(layer.diff_id) not in self.notes.failed for layer in content.layers)
        with ExitStack() as keep:
            images, files = await self._images(layers, lost, keep) if lost and sound else ([], [])
            self.progress.stage(Stage.COMMIT)
            async with self.host.naming, worker(STORER, sandboxed=False) as storer:
                await commit(
                    storer, self.repository, content, layers, images, files, tag=None, replace=False, repair=True
                )
        for one in images:
            self.notes.succeed(f"{Category.IMAGES}/{one.digest.hex}", "made again from its layers")
        return sound and len(images) == len(lost)

    # Documents

    async def _content(self, state: ImageState) -> Content:
        """Manifest and config: from the repository, or else from a source.  Raises NoSuchObjectError."""
        manifest = None
        if state.manifest is not None:
            data = self.repository.objects.read(state.manifest, DOCUMENT_BYTES)
            manifest = Manifest.parse(data, state.digest)
            if state.config is not None:
                return read_content(manifest, self.repository.objects.read(state.config, DOCUMENT_BYTES))
        reasons: list[str] = []
        for reference in load_references(self.host.settings.state, state.digest):
            try:
                async with open_source(Reference.parse(reference)) as source:
                    content = await find_again(source, state.digest, manifest)
            except ComposefsdError as error:
                reasons.append(f"{reference}: {error.message}")
                continue
            self.notes.done |= dict.fromkeys(
                (str(state.digest), str(content.manifest.config.digest)), f"fetched again from {reference}"
            )
            return content
        what = "its manifest" if manifest is None else "its config"
        raise NoSuchObjectError(f"{what} is damaged; {_nowhere(reasons)}", subject=manifest_stream(state.digest))

    # Layers

    async def _layers(self, state: ImageState, content: Content) -> list[StoredLayer]:
        """The streams of all layers, damaged ones fetched again where that is possible.

        Raises NoSuchObjectError if there is a layer of which there is no stream at all.
        """
        known = {one.diff_id: one for one in state.layers}
        wanted = [layer for layer in content.layers if self._is_damaged(known.get(layer.diff_id), layer)]
        if wanted:
            await self._fetch(state, list({layer.diff_id: layer for layer in wanted}.values()))
        found: list[StoredLayer] = []
        for layer in content.layers:
            stream = self._fetched.get(layer.diff_id) or self._stream(known.get(layer.diff_id), layer)
            if stream is None:
                why = self.notes.failed[str(layer.diff_id)]
                raise NoSuchObjectError(f"its layer {layer.diff_id} is missing; {why}", subject=str(layer.diff_id))
            found.append(StoredLayer(layer.diff_id, stream))
        return found

    def _is_damaged(self, known: LayerState | None, layer: Layer) -> bool:
        if layer.diff_id in self._fetched:
            return False
        if known is not None:
            return not known.sound
        return self._stream(None, layer) is None  # its config was lost: the next round looks at it closely

    def _stream(self, known: LayerState | None, layer: Layer) -> bytes | None:
        if known is not None:
            return known.stream
        try:
            return self.repository.stream(layer_stream(layer.diff_id))
        except ComposefsdError:
            return None

    async def _fetch(self, state: ImageState, wanted: list[Layer]) -> None:
        """Fetch layers from the first source that has them as they ought to be; whatever fails is noted."""
        reasons: dict[DiffId, list[str]] = {layer.diff_id: [] for layer in wanted}
        for reference in load_references(self.host.settings.state, state.digest):
            missing = [layer for layer in wanted if layer.diff_id not in self._fetched]
            if not missing:
                break
            try:
                async with open_source(Reference.parse(reference)) as source:
                    await self._fetch_from(source, reference, missing, reasons)
            except ComposefsdError as error:
                for layer in missing:
                    reasons[layer.diff_id].append(f"{reference}: {error.message}")
        for layer in wanted:
            if layer.diff_id not in self._fetched:
                self.notes.failed[str(layer.diff_id)] = _nowhere(reasons[layer.diff_id])

    async def _fetch_from(
        self, source: Source, reference: str, missing: list[Layer], reasons: dict[DiffId, list[str]]
    ) -> None:
        self.progress.stage(Stage.FETCH)
        tally = Tally(sum(layer.blob.size_bytes for layer in missing))
        again = frozenset(layer.diff_id for layer in missing)
        for done, layer in enumerate(missing):
            self.progress.items(done=done, total=len(missing))
            with ExitStack() as keep:
                try:
                    async with worker(STORER, sandboxed=False) as storer:
                        fetcher = LayerFetcher(
                            self.repository, source, None, storer, self.progress, self.host.room_bytes(), keep,
                            tally, again,
                        )  # fmt: skip
                        self._fetched[layer.diff_id] = await fetcher.fetch_again(layer)
                except ComposefsdError as error:
                    reasons[layer.diff_id].append(f"{reference}: {error.message}")
                    continue
            self.notes.succeed(str(layer.diff_id), f"fetched again from {reference}")
        self.progress.items(done=len(missing), total=len(missing))

    # Composefs images

    async def _images(
        self, layers: list[StoredLayer], lost: list[ComposefsImage], keep: ExitStack
    ) -> tuple[list[ComposefsImage], list[int]]:
        """Make images again; those that come out as they were, and their files."""
        orders = [ImageOrder.of(one) for one in lost]
        async with imaging_worker(self.repository) as imager:
            with temporary_files(self.repository, len(orders)) as files:
                built = await build_images(
                    imager, self.repository, layers, orders, progress=self.progress, files=files, facts=False
                )
                reopened = reopen_for_reading(files, keep)
            await imager.end()  # nobody can write to the files any more when they are hashed
        made = []
        for was, now, file in zip(lost, built.images, reopened, strict=True):
            if was.digest == now.digest:
                made.append((was, file))
                continue
            why = f"its layers give {now.digest}, so it was not made of them, or by other rules"
            self.notes.failed[f"{Category.IMAGES}/{was.digest.hex}"] = why
        return [one for one, _ in made], [file for _, file in made]


def _lost(state: ImageState) -> list[ComposefsImage]:
    """The recorded composefs images that have to be made again."""
    found = (parse_reference(one.reference, one.digest.digest) for one in state.images if not one.sound)
    return [one for one in found if one is not None]


def _nowhere(reasons: list[str]) -> str:
    if not reasons:
        return "it is not known where the image was pulled from; pull it again"
    return f"it cannot be fetched again: {'; '.join(reasons)}"
