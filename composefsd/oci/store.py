"""The storer: the one kind of worker that writes into the repository.

It takes a layer's plain tar from the shared ring, stores file contents as objects and the tar as a splitstream, and
computes the diff_id itself: nothing gets a name that this process has not hashed.  An artifact's blobs it reads as
they are, and looks into none.  `commit` then makes an image or artifact visible, in an order that leaves the
repository valid wherever it stops: all objects, one `syncfs`, then the names, the tag last.  The daemon holds the
shared lock meanwhile.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from composefsd import verity
from composefsd.digests import DiffId, OciDigest
from composefsd.errors import (
    CorruptError,
    DigestMismatchError,
    FormatError,
    InvalidNameError,
    LimitExceededError,
    NameInUseError,
    NoSpaceError,
    NoSuchObjectError,
    ObjectMissingError,
)
from composefsd.oci.blob import BlobReader
from composefsd.oci.manifest import Content, Manifest, check_digest, read_content
from composefsd.oci.storage import (
    CONFIG_PREFIX,
    MANIFEST_PREFIX,
    REPAIR_REFS,
    composefs_images,
    config_stream,
    layer_stream,
    manifest_stream,
    manifests,
)
from composefsd.repository import Repository, links
from composefsd.repository.links import Category
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.reader import Splitstream
from composefsd.splitstream.writer import Writer
from composefsd.workers.ring import RingReader, deliver
from composefsd.workers.serve import Call, Task

log = logging.getLogger(__name__)

_CONFIG_KEY: Final = "config:"

HELD: Final = "composefsd-held"
"""Refs below `streams/refs` that keep a config while its manifests are rewritten."""

_REFS: Final = f"{Category.STREAMS}/{links.REFS}/"


class _LayerSink:
    """Objects and a splitstream out of the ring's stream."""

    def __init__(self, repository: Repository, algorithm: str, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes
        self._objects = repository.objects
        self._hash = hashlib.new(algorithm)
        self.stream = Writer(repository.algorithm, ContentType.OCI_LAYER)
        self.digests = bytearray()
        self.inline = self.stream.inline

    @property
    def diff_id(self) -> DiffId:
        return DiffId(self._hash.name, self._hash.hexdigest())

    def slot(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise NoSpaceError(
                f"the layer unpacks to more than the {self._limit} bytes that there is room for",
                partition="repository",
                free_bytes=self._limit,
            )
        self._hash.update(data)

    def file(self, data: memoryview) -> None:
        self._external(self._objects.store(data), len(data))

    def begin(self, size_bytes: int) -> None:
        self._writer, self._size_bytes = self._objects.writer(size_bytes), size_bytes

    def piece(self, data: memoryview) -> None:
        self._writer.write(data)

    def end(self) -> None:
        self._external(self._writer.commit(), self._size_bytes)

    def _external(self, digest: bytes, size_bytes: int) -> None:
        self.stream.external(digest, size_bytes)
        self.digests += digest


def _open(call: Call) -> Repository:
    """The repository of a request.  With the arg `repair`, no object counts as there by its name alone."""
    repository = Repository.adopt(os.dup(call.fds[0]))
    repository.objects.distrusts = bool(call.args.get("repair"))
    return repository


def _write(fd: int, data: bytes | bytearray) -> None:
    view, at = memoryview(data), 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], at)


def store_layer(call: Call) -> dict[str, Any]:
    """Store a layer.  fds: repository, ring, free slots (write), cuts (read), and a memfd for the files' digests.

    args: `diff_id` (None if nobody has promised one), `limit` of the tar's bytes.  Answers with `stream`, the digest
    of the layer's splitstream, which has no name yet, `digests`, the bytes written to the memfd: the digests of the
    files that are stored apart, in the tar's order, and `added`, the number of new objects.
    """
    _, ring_fd, free_fd, cuts_fd, digests_fd = call.fds
    expected = None if call.args["diff_id"] is None else DiffId.parse(call.args["diff_id"])
    with _open(call) as repository:
        sink = _LayerSink(repository, expected.algorithm if expected else "sha256", call.args["limit"])
        deliver(RingReader(ring_fd, free_fd, cuts_fd), sink)
        if expected is not None and sink.diff_id != expected:
            raise DigestMismatchError(
                f"a layer unpacks to {sink.diff_id}, but the config promises {expected}",
                expected=str(expected),
                actual=str(sink.diff_id),
            )
        stream = repository.objects.store(sink.stream.finish())
        _write(digests_fd, sink.digests)
        return {"stream": stream.hex(), "digests": len(sink.digests), "added": repository.objects.added}


def _check_room(call: Call) -> None:
    """Raises NoSpaceError for a blob that is larger than the room there is."""
    size_bytes, limit_bytes = int(call.args["size"]), int(call.args["limit"])
    if size_bytes > limit_bytes:
        raise NoSpaceError(
            f"the blob {call.args['algorithm']}:{call.args['hex']} has {size_bytes} bytes; there is room for "
            f"{limit_bytes}",
            partition="repository",
            needed_bytes=size_bytes,
            free_bytes=limit_bytes,
        )


def store_blob(call: Call) -> dict[str, Any]:
    """Store a blob of an artifact as it is: an object, and a splitstream of it.  fds: repository, blob.

    args: `algorithm`, `hex` and `size` of the blob, `offset` (None to read a pipe), `limit` of its bytes.  Answers
    with `stream`, which has no name yet, and `added`; reports `bytes` as it goes.
    """
    blob_fd = call.fds[1]
    _check_room(call)
    blob, size_bytes = BlobReader(call, blob_fd), int(call.args["size"])
    with _open(call) as repository:
        with repository.objects.writer(size_bytes) as writer:
            while data := blob.read():
                writer.write(data)
            blob.check()
            digest = writer.commit()
        stream = Writer(repository.algorithm, ContentType.OCI_BLOB)
        stream.external(digest, size_bytes)
        return {"stream": repository.objects.store(stream.finish()).hex(), "added": repository.objects.added}


def copy_blob(call: Call) -> dict[str, Any]:
    """Copy a blob into a file and check it on the way.  fds: blob, file.  args: as for `store_blob`.

    Whoever unpacks the copy reads the bytes that were hashed here, not what their owner has made of them since.
    """
    blob_fd, file_fd = call.fds
    _check_room(call)
    blob = BlobReader(call, blob_fd)
    while data := blob.read():
        view = memoryview(data)
        while view:
            view = view[os.write(file_fd, view) :]
    blob.check()
    return {}


def name_layer(call: Call) -> dict[str, Any]:
    """Name the splitstream of a layer that is complete, once it is on stable storage.  fds: repository.

    With the arg `repair` it takes the place of one that others may name: then a ref of its own keeps it until these
    are written anew, as the collector goes by their references only to streams that are current.
    """
    diff_id = DiffId.parse(call.args["diff_id"])
    name, stream = layer_stream(diff_id), bytes.fromhex(call.args["stream"])
    with _open(call) as repository:
        repository.sync()
        if call.args.get("repair"):
            if links.read(repository.fd, f"{Category.STREAMS}/{name}") is None:
                repository.link_stream(name, stream)
            repository.set_ref(Category.STREAMS, f"{REPAIR_REFS}/{diff_id.hex}", name)
        repository.link_stream(name, stream)
    return {}


def end_repair(call: Call) -> dict[str, Any]:
    """Let go of layers that `name_layer` has kept, now that everything names them.  fds: repository."""
    with _open(call) as repository:
        repository.sync()
        for path, _ in list(links.refs(repository.fd, Category.STREAMS, REPAIR_REFS)):
            repository.remove_ref(Category.STREAMS, path.removeprefix(_REFS))
    return {}


@dataclass(frozen=True, slots=True)
class _Order:
    """What `commit` is asked to make visible; documents are text in which each character stands for a byte."""

    content: Content
    layers: dict[str, bytes]
    tag: str | None
    replace: bool
    repair: bool

    @classmethod
    def read(cls, args: dict[str, Any]) -> Self:
        manifest_digest, config_digest = (OciDigest.parse(args[key]) for key in ("manifest_digest", "config_digest"))
        manifest, config = (args[key].encode("latin-1") for key in ("manifest", "config"))
        check_digest(manifest, manifest_digest, "the manifest")
        check_digest(config, config_digest, "the config")
        content = read_content(Manifest.parse(manifest, manifest_digest), config)
        layers = {str(DiffId.parse(name)): bytes.fromhex(digest) for name, digest in args["layers"].items()}
        return cls(content, layers, args["tag"], args["replace"], bool(args.get("repair")))


def commit(call: Call) -> dict[str, Any]:
    """Store the documents of an image or artifact, and an image's composefs images, and give them their names.

    fds: repository, then an unnamed file for each of `images`, whose `reference` and expected `digest` are told.
    args: `manifest`, `config` and their digests, `layers` (their digests to streams), `tag` (or None), `replace`,
    `images`; with `repair` damage in other streams does not stop it, and no recorded image is dropped for its own.
    """
    order = _Order.read(call.args)
    with _open(call) as repository:
        heal(repository)
        if order.tag is not None:
            check_tag(repository, order.tag, order.content.manifest.digest, replace=order.replace)
        images = {
            one["reference"]: _adopt(repository, fd, one["digest"])
            for one, fd in zip(call.args["images"], call.fds[1:], strict=True)
        }
        _publish(repository, order, images)
        return {"added": repository.objects.added}


def check_tag(repository: Repository, tag: str, image: OciDigest, *, replace: bool) -> None:
    """Raises NameInUseError if the tag names another image and may not be moved."""
    holder = repository.tags().get(tag)
    if holder is not None and holder != manifest_stream(image) and not replace:
        raise NameInUseError(f"the name {tag!r} is taken by {holder.removeprefix(MANIFEST_PREFIX)}", subject=tag)


def _adopt(repository: Repository, fd: int, promised: str) -> bytes:
    """Take in an image that a sandboxed process wrote, under the digest that we compute ourselves."""
    digest = verity.compute_file(fd, repository.algorithm)
    if digest.hex != promised:
        raise DigestMismatchError(
            f"the imager wrote an image of {digest} and called it {promised}", expected=promised, actual=digest.hex
        )
    repository.objects.adopt(os.dup(fd), digest.digest)
    return digest.digest


def _publish(repository: Repository, order: _Order, images: Mapping[str, bytes]) -> None:
    """All objects, one `syncfs`, then names from the bottom up: images, config, manifests, tag."""
    manifest, config = order.content.manifest, order.content.config
    config_name = config_stream(config.digest)
    others = _layers_of_manifests(repository, config.digest)
    layers = {**order.layers, **{name: layer for name, layer in others.items() if name not in order.layers}}
    kept = _kept_images(repository, config_name, is_repair=order.repair)
    references = {**layers, **kept, **images}
    config_id = _store_document(repository, ContentType.OCI_CONFIG, config.data, references)
    references = {_config_key(config.digest): config_id, **order.layers}
    manifest_id = _store_document(repository, ContentType.OCI_MANIFEST, manifest.data, references)
    repository.sync()
    for digest in images.values():
        repository.link_image(digest)
    with _held(repository, config.digest, config_id):
        repository.link_stream(config_name, config_id)
        repository.link_stream(manifest_stream(manifest.digest), manifest_id)
        settle(repository, config.digest)
    repository.sync()  # a tag, and then a boot entry, must not lead to links that are not on the disk yet
    if order.tag is not None:
        repository.tag(order.tag, manifest_stream(manifest.digest))


def _config_key(config: OciDigest) -> str:
    """The named reference of a manifest's stream that leads to its config's."""
    return f"{_CONFIG_KEY}{config}"


def _store_document(repository: Repository, kind: int, data: bytes, references: Mapping[str, bytes]) -> bytes:
    writer = Writer(repository.algorithm, kind)
    writer.external(repository.objects.store(data), len(data))
    for name, digest in references.items():
        writer.add_reference(name, digest)
    return repository.objects.store(writer.finish())


def _read(repository: Repository, name: str, kind: int) -> Splitstream | None:
    """A stream; None if it is damaged, or not there: fsck tells about it, and nothing else shall fail for it."""
    try:
        return repository.read_stream(name, kind)
    except (CorruptError, FormatError, LimitExceededError, NoSuchObjectError, ObjectMissingError) as error:
        if not isinstance(error, NoSuchObjectError):
            log.warning("stream %s cannot be read: %s", name, error.message)
        return None


def _kept_images(repository: Repository, config_name: str, *, is_repair: bool) -> dict[str, bytes]:
    """The composefs images that the config refers to already and that are still there, or may be made again."""
    stream = _read(repository, config_name, ContentType.OCI_CONFIG)
    found = {image.reference: image.digest.digest for image in composefs_images(stream)} if stream else {}
    return {name: digest for name, digest in found.items() if is_repair or repository.has_image(digest)}


def _layers_of_manifests(repository: Repository, config: OciDigest) -> dict[str, bytes]:
    """The layers of all manifests that have this config.

    An image's config is that of its layers alone, but most artifacts have one and the same config, `{}`.  Whoever
    pulls one of them again looks for its layers there: composefs-rs fails if it finds others.
    """
    key, found = _config_key(config), dict[str, bytes]()
    for digest in manifests(repository):
        stream = _read(repository, manifest_stream(digest), ContentType.OCI_MANIFEST)
        if stream is not None and key in stream.named_refs:
            found |= {name: layer for name, layer in stream.named_refs.items() if name != key}
    return found


def drop_layers(repository: Repository, config: OciDigest) -> None:
    """Let a config go without layers that none of its manifests has any more: they would never be collected."""
    name, layers = config_stream(config), _layers_of_manifests(repository, config)
    if repository.stream(name) is None:
        return
    stream = repository.read_stream(name, ContentType.OCI_CONFIG)
    kept = {key: target for key, target in stream.named_refs.items() if key in layers or not _is_layer(key)}
    if not layers or kept == stream.named_refs:  # nobody has the config: it is collected as a whole
        return
    config_id = repository.objects.store(_rewritten(repository, stream, kept))
    repository.sync()
    with _held(repository, config, config_id):
        repository.link_stream(name, config_id)
        settle(repository, config)


def _is_layer(reference: str) -> bool:
    """Whether a config's named reference is a layer: those go by digests, composefs images by words."""
    return ":" in reference


@contextmanager
def _held(repository: Repository, config: OciDigest, config_id: bytes) -> Iterator[None]:
    """Keep a config's stream by a ref of its own while manifests still name the one that it replaces.

    The collector follows a manifest's reference only to a stream that is current.  If the power failed between config
    and manifest, it would find neither the old config nor the new one by the tag.
    """
    if _current(repository, config_stream(config)) in (None, config_id):
        yield
        return
    held = f"{HELD}/{config.hex}"
    repository.set_ref(Category.STREAMS, held, config_stream(config))
    yield
    repository.sync()
    repository.remove_ref(Category.STREAMS, held)


def _current(repository: Repository, name: str) -> bytes | None:
    """What the link of a stream names; None if there is none, or one that names no object and keeps nothing.

    The name may be from a stream that somebody else wrote: nothing has one that is impossible.
    """
    try:
        return repository.stream(name)
    except (CorruptError, InvalidNameError):
        return None


def heal(repository: Repository) -> None:
    """Finish what a commit that was interrupted has begun: let all manifests name the current config."""
    for path, text in list(links.refs(repository.fd, Category.STREAMS, HELD)):
        entry = links.last_component(text) or ""
        with suppress(FormatError):  # whatever it is, it holds no config
            settle(repository, OciDigest.parse(entry.removeprefix(CONFIG_PREFIX)))
        repository.sync()
        repository.remove_ref(Category.STREAMS, path.removeprefix(_REFS))


def settle(repository: Repository, config: OciDigest | None = None) -> None:
    """Let every manifest, or every one of this config, name the current stream of its config.

    One that names another stream keeps that, but not what the current one names, nor the config's document if that
    belongs to nobody else: composefs-rs writes a config anew for one of its manifests only.

    Without `config` this comes before a collection, which would take what the named stream leads to as nobody's.  So
    it raises CorruptError if that stream is sound and the current one is damaged or gone: a repair can put it back.
    """
    rewritten = {}
    for one in _unsettled(repository, config):
        data = _rewritten(repository, one.stream, {**one.stream.named_refs, one.key: one.current})
        rewritten[one.name] = repository.objects.store(data)
    for name, digest in rewritten.items():  # all at the end: the first link makes all of them durable
        repository.link_stream(name, digest)


def unsettled_configs(repository: Repository) -> set[str]:
    """The streams of configs that `settle` would let manifests name."""
    return {f"{CONFIG_PREFIX}{one.key.removeprefix(_CONFIG_KEY)}" for one in _unsettled(repository)}


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """A manifest whose stream, `name`, has not the `current` stream of its config under `key`."""

    name: str
    stream: Splitstream
    key: str
    current: bytes


def _unsettled(repository: Repository, config: OciDigest | None = None) -> Iterator[_Unsettled]:
    for digest in manifests(repository):
        name = manifest_stream(digest)
        stream = _read(repository, name, ContentType.OCI_MANIFEST)
        if stream is None or not _is_document(repository, stream):  # fsck tells about it
            continue
        for key, named in stream.named_refs.items():
            if not key.startswith(_CONFIG_KEY) or (config is not None and key != _config_key(config)):
                continue
            config_name = f"{CONFIG_PREFIX}{key.removeprefix(_CONFIG_KEY)}"
            current = _current(repository, config_name)
            if current == named:
                continue
            if current is not None and (_is_config(repository, current) or not _is_config(repository, named)):
                yield _Unsettled(name, stream, key, current)
            elif config is None and _is_config(repository, named):
                raise CorruptError(
                    f"stream {config_name} is damaged, and {name} has another one that is not; repair the repository",
                    subject=config_name,
                )


def _is_config(repository: Repository, digest: bytes) -> bool:
    """Whether this is the stream of a config, and has its document."""
    try:
        return _is_document(repository, repository.read_stream_object(digest, ContentType.OCI_CONFIG))
    except (CorruptError, FormatError, LimitExceededError, ObjectMissingError):
        return False


def _is_document(repository: Repository, stream: Splitstream) -> bool:
    """Whether a stream is of one object, and that is there."""
    return len(stream.object_refs) == 1 and repository.objects.has(stream.object_refs[0])


def _rewritten(repository: Repository, stream: Splitstream, references: Mapping[str, bytes]) -> bytes:
    """The stream of a document with other named references."""
    writer = Writer(repository.algorithm, stream.content_type)
    writer.external(stream.object_refs[0], stream.size_bytes)
    for name, target in references.items():
        writer.add_reference(name, target)
    return writer.finish()


TASKS: Final[dict[str, Task]] = {
    "store_layer": store_layer,
    "store_blob": store_blob,
    "copy_blob": copy_blob,
    "name_layer": name_layer,
    "commit": commit,
    "end_repair": end_repair,
}
