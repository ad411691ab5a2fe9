"""Getting an image's layers into the repository: an unpacker and a storer, and between them the ring.

The layers of an artifact take the same way if they are tars, since composefs-rs stores those so.  All others go to
the storer as they are.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from composefsd.digests import DiffId
from composefsd.errors import JobInterruptedError, UnsupportedError
from composefsd.oci.manifest import Content, Layer, LayerForm, OciImage
from composefsd.oci.storage import content_type, layer_stream
from composefsd.oci.transport.source import Blob, Source
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository
from composefsd.splitstream.format import ContentType
from composefsd.workers.pool import Event, Worker, number, worker
from composefsd.workers.ring import create_ring

UNPACKER: Final = "composefsd.oci.unpack"

_PASSED_LAYERS: Final = 90
"""How many layers can be handed to the imager as columns; more would not fit into one message."""

_GRACE_SECONDS: Final = 5.0

Answer = Coroutine[Any, Any, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Columns:
    """A layer's columns and its files' digests, in memfds, with their sizes in bytes."""

    columns_fd: int
    columns_bytes: int
    digests_fd: int
    digests_bytes: int


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer whose stream is in the repository; fresh ones come with their columns."""

    diff_id: DiffId
    stream: bytes
    columns: Columns | None = None

    def for_imager(self) -> dict[str, Any]:
        """How the imager is told about this layer."""
        if self.columns is None:
            return {"stream": self.stream.hex()}
        return {"columns": self.columns.columns_bytes, "digests": self.columns.digests_bytes}

    def descriptors(self) -> tuple[int, ...]:
        """What goes along."""
        return () if self.columns is None else (self.columns.columns_fd, self.columns.digests_fd)


@dataclass(slots=True)
class Tally:
    """Bytes of blobs and objects that a pull has dealt with."""

    total: int
    reused: int = 0
    done: int = 0
    objects_added: int = 0


@dataclass(slots=True)
class LayerFetcher:
    """Fetches the layers of one image, one after another; the memfds it makes live as long as `keep`.

    Without an unpacker that serves all layers, each that needs one gets one of its own.  The layers of `again` are
    read even if the repository has them: they are damaged, so no object of theirs counts as there by its name alone.
    """

    repository: Repository
    source: Source
    unpacker: Worker | None
    storer: Worker
    progress: Progress
    limit_bytes: int
    keep: ExitStack
    tally: Tally
    again: frozenset[DiffId] = frozenset()
    _passed: int = field(default=0, init=False)

    async def fetch(self, image: Content) -> list[StoredLayer]:
        """All layers, bottom first; those that the repository has are not read again."""
        self.progress.stage(Stage.FETCH)
        known: dict[DiffId, StoredLayer] = {}
        for done, layer in enumerate(image.layers):
            self.progress.items(done=done, total=len(image.layers))
            self._tell(0)
            if layer.diff_id in known:
                self.tally.reused += layer.blob.size_bytes
            else:
                known[layer.diff_id] = await self._fetch(layer, for_tree=isinstance(image, OciImage))
        self._tell(0)
        self.progress.items(done=len(image.layers), total=len(image.layers))
        found, columns = [], set[DiffId]()
        for layer in image.layers:  # the same layer a second time is read from its stream: columns go once
            again = layer.diff_id in columns
            columns.add(layer.diff_id)
            found.append(replace(known[layer.diff_id], columns=None) if again else known[layer.diff_id])
        return found

    async def _fetch(self, layer: Layer, *, for_tree: bool) -> StoredLayer:
        is_wanted = layer.diff_id in self.again
        stream = None if is_wanted else self.repository.stream(layer_stream(layer.diff_id))
        if stream is not None:
            if for_tree:
                self._check_form(layer, stream)
            self.tally.reused += layer.blob.size_bytes
            return StoredLayer(layer.diff_id, stream)
        blob = await self.source.open_blob(layer.blob)
        ways = {
            LayerForm.TAR: self._unpack,
            LayerForm.PACKED: self._unpack_copy,
            LayerForm.RAW: self._store,
        }
        stored = await ways[layer.form](layer, blob)
        self.tally.done += layer.blob.size_bytes
        return stored

    def _check_form(self, layer: Layer, stream: bytes) -> None:
        """Raises UnsupportedError if an artifact has taken the name of an image's layer: no tree is made of a blob.

        The other way round does no harm: whoever wants an artifact's blob gets the same bytes from the layer.
        """
        if content_type(self.repository, stream) == ContentType.OCI_BLOB:
            name = layer_stream(layer.diff_id)
            raise UnsupportedError(
                f"{name} is stored as a blob of an artifact, not as a layer of files; remove the artifact, collect "
                "garbage, and try again",
                subject=name,
            )

    async def _store(self, layer: Layer, blob: Blob) -> StoredLayer:
        """Have the storer keep a blob as it is: nobody has to look into it."""
        args = _blob_args(layer, blob.offset) | {"limit": self.limit_bytes} | self._repair(layer)
        with _closing(blob.fd):
            stored = await self.storer.call("store_blob", args, (self.repository.fd, blob.fd), self._on_bytes)
        await self._name(layer, stored)
        return StoredLayer(layer.diff_id, bytes.fromhex(stored["stream"]))

    async def _unpack_copy(self, layer: Layer, blob: Blob) -> StoredLayer:
        """Unpack a packed tar of an artifact, of which only the blob has a digest.

        The storer cannot check what it gets against that digest.  So it checks the blob while it makes a copy, and an
        unpacker that has seen no other blob unpacks the copy: then nothing else than this blob decides what it is.
        """
        args = _blob_args(layer, blob.offset) | {"limit": self.limit_bytes}
        with ExitStack() as stack:
            with _closing(blob.fd):
                copy = self.repository.objects.temporary()
                stack.callback(self.repository.objects.discard, copy)
                await self.storer.call("copy_blob", args, (blob.fd, copy))
            return await self._unpack(layer, Blob(os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC), 0))

    async def _unpack(self, layer: Layer, blob: Blob) -> StoredLayer:
        with ExitStack() as stack, ExitStack() as ours:
            ours.callback(os.close, blob.fd)
            columns_fd, digests_fd = (_memfd(name, stack) for name in ("columns", "digests"))
            stored, columns = await self._transfer(layer, blob, columns_fd, digests_fd, ours)
            if self._passed < _PASSED_LAYERS:
                self._passed += 1
                self.keep.push(stack.pop_all())
                return StoredLayer(layer.diff_id, stored, columns)
        return StoredLayer(layer.diff_id, stored)

    async def _transfer(
        self, layer: Layer, blob: Blob, columns_fd: int, digests_fd: int, ours: ExitStack
    ) -> tuple[bytes, Columns]:
        """Unpack, store and name a layer; answers with its stream, and with what lies in the memfds.

        `ours` closes what is the workers' alone once they have it.
        """
        unpack = _blob_args(layer, blob.offset) | {"compression": layer.blob.compression().value}
        promised = None if layer.form is LayerForm.PACKED else str(layer.diff_id)
        store = {"diff_id": promised, "limit": self.limit_bytes} | self._repair(layer)
        async with self._unpacker(layer) as unpacker:
            writing, reading = ours.enter_context(_ring())
            await unpacker.start("unpack", unpack, (blob.fd, *writing, columns_fd))
            await self.storer.start("store_layer", store, (self.repository.fd, *reading, digests_fd))
            ours.close()
            # Our copies of the ring are closed, so that either worker notices if the other one dies.
            unpacked, stored = await _both(unpacker.finish(self._on_event), self.storer.finish())
        await self._name(layer, stored)
        columns = Columns(columns_fd, number(unpacked, "columns"), digests_fd, int(stored["digests"]))
        return bytes.fromhex(stored["stream"]), columns

    @asynccontextmanager
    async def _unpacker(self, layer: Layer) -> AsyncIterator[Worker]:
        if self.unpacker is not None and layer.form is not LayerForm.PACKED:
            yield self.unpacker
            return
        async with worker(UNPACKER, sandboxed=True) as unpacker:
            yield unpacker

    async def _name(self, layer: Layer, stored: dict[str, Any]) -> None:
        """Give a layer that is complete its name."""
        name = {"diff_id": str(layer.diff_id), "stream": stored["stream"]} | self._repair(layer)
        await self.storer.call("name_layer", name, (self.repository.fd,))
        self.tally.objects_added += int(stored["added"])

    def _repair(self, layer: Layer) -> dict[str, Any]:
        return {"repair": layer.diff_id in self.again}

    async def fetch_again(self, layer: Layer) -> bytes:
        """Fetch one layer of `again`; its stream."""
        return (await self._fetch(layer, for_tree=False)).stream

    def _on_event(self, event: Event) -> None:
        self.progress.stage(Stage.UNPACK)
        self._on_bytes(event)

    def _on_bytes(self, event: Event) -> None:
        self._tell(number(event, "bytes"))

    def _tell(self, more_bytes: int) -> None:
        tally = self.tally
        done = min(tally.done + more_bytes, tally.total - tally.reused)
        self.progress.bytes(reused=tally.reused, done=done, total=tally.total)


def _blob_args(layer: Layer, offset: int | None) -> dict[str, Any]:
    """How a worker is told about a layer's blob."""
    blob = layer.blob
    return {
        "algorithm": blob.digest.algorithm,
        "hex": blob.digest.hex,
        "size": blob.size_bytes,
        "offset": offset,
    }


def _memfd(name: str, stack: ExitStack) -> int:
    fd = os.memfd_create(f"composefsd-{name}", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


@contextmanager
def _ring() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A ring's descriptors: those of the unpacker, and those of the storer."""
    with ExitStack() as stack:
        memory = create_ring()
        (free_read, free_write), (cuts_read, cuts_write) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        for fd in (memory, free_read, free_write, cuts_read, cuts_write):
            stack.callback(os.close, fd)
        yield (memory, free_read, cuts_write), (memory, free_write, cuts_read)


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


async def _both(unpack: Answer, store: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of both workers.

    A worker that fails makes the other one fail for want of a partner; that second error says nothing, so the one
    that is no JobInterruptedError is raised.
    """
    tasks = [asyncio.ensure_future(unpack), asyncio.ensure_future(store)]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:  # one has failed: the other one sees that its partner is gone, or is not to be waited for
            await asyncio.wait(pending, timeout=_GRACE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    for failure in sorted(failures, key=lambda one: isinstance(one, JobInterruptedError)):
        raise failure
    return tasks[0].result(), tasks[1].result()
