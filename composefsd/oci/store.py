"""The storer: the one kind of worker that writes into the repository.

It takes a layer's plain tar from the shared ring, stores file contents as objects and the tar as a splitstream, and
computes the diff_id itself: nothing gets a name that this process has not hashed.  An artifact's blobs it reads as
they are, and looks into none.  `commit` then makes an image or artifact visible, in an order that leaves the
repository valid wherever it stops: all objects, one `syncfs`, then the names, the tag last.  The daemon holds the
shared lock meanwhile.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from composefsd import verity
from composefsd.digests import DiffId, OciDigest
from composefsd.errors import (
    DigestMismatchError,
    NameInUseError,
    NoSpaceError,
)
from composefsd.oci.blob import BlobReader
from composefsd.oci.manifest import Content, Manifest, check_digest, read_content
from composefsd.oci.settling import config_key, heal, held, layers_of_manifests, read_stream, settle
from composefsd.oci.storage import (
    MANIFEST_PREFIX,
    REPAIR_REFS,
    composefs_images,
    config_stream,
    layer_stream,
    manifest_stream,
)
from composefsd.repository import Repository, links
from composefsd.repository.links import Category
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.writer import Writer
from composefsd.workers.ring import RingReader, deliver
from composefsd.workers.serve import Call, Task

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
    others = layers_of_manifests(repository, config.digest)
    layers = {**order.layers, **{name: layer for name, layer in others.items() if name not in order.layers}}
    kept = _kept_images(repository, config_name, is_repair=order.repair)
    references = {**layers, **kept, **images}
    config_id = _store_document(repository, ContentType.OCI_CONFIG, config.data, references)
    references = {config_key(config.digest): config_id, **order.layers}
    manifest_id = _store_document(repository, ContentType.OCI_MANIFEST, manifest.data, references)
    repository.sync()
    for digest in images.values():
        repository.link_image(digest)
    with held(repository, config.digest, config_id):
        repository.link_stream(config_name, config_id)
        repository.link_stream(manifest_stream(manifest.digest), manifest_id)
        settle(repository, config.digest)
    repository.sync()  # a tag, and then a boot entry, must not lead to links that are not on the disk yet
    if order.tag is not None:
        repository.tag(order.tag, manifest_stream(manifest.digest))


def _store_document(repository: Repository, kind: int, data: bytes, references: Mapping[str, bytes]) -> bytes:
    writer = Writer(repository.algorithm, kind)
    writer.external(repository.objects.store(data), len(data))
    for name, digest in references.items():
        writer.add_reference(name, digest)
    return repository.objects.store(writer.finish())


def _kept_images(repository: Repository, config_name: str, *, is_repair: bool) -> dict[str, bytes]:
    """The composefs images that the config refers to already and that are still there, or may be made again."""
    stream = read_stream(repository, config_name, ContentType.OCI_CONFIG)
    found = {image.reference: image.digest.digest for image in composefs_images(stream)} if stream else {}
    return {name: digest for name, digest in found.items() if is_repair or repository.has_image(digest)}


TASKS: Final[dict[str, Task]] = {
    "store_layer": store_layer,
    "store_blob": store_blob,
    "copy_blob": copy_blob,
    "name_layer": name_layer,
    "commit": commit,
    "end_repair": end_repair,
}
