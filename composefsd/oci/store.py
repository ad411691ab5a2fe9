"""The storer: the one kind of worker that writes into the repository.

It takes a layer's plain tar from the shared ring, stores file contents as objects and the tar as a splitstream, and
computes the diff_id itself: nothing gets a name that this process has not hashed.  `commit` then makes an image
visible, in an order that leaves the repository valid wherever it stops: all objects, one `syncfs`, then the names,
the tag last.  The daemon holds the shared lock meanwhile.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from composefsd import verity
from composefsd.digests import DiffId, OciDigest
from composefsd.errors import DigestMismatchError, NameInUseError, NoSpaceError
from composefsd.oci.manifest import ImageConfig, Manifest, OciImage, check_digest
from composefsd.oci.storage import (
    CONFIG_PREFIX,
    MANIFEST_PREFIX,
    composefs_images,
    config_stream,
    layer_stream,
    manifest_stream,
    manifests,
)
from composefsd.repository import Repository
from composefsd.repository.links import Category
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.writer import Writer
from composefsd.workers.ring import RingReader, deliver
from composefsd.workers.serve import Call, Task

_HELD: Final = "composefsd-held"
"""Refs below `streams/refs` that keep a config while its manifests are rewritten."""


class _LayerSink:
    """Objects and a splitstream out of the ring's stream."""

    def __init__(self, repository: Repository, diff_id: DiffId, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes
        self._objects = repository.objects
        self._hash = hashlib.new(diff_id.algorithm)
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


def _write(fd: int, data: bytes | bytearray) -> None:
    view, at = memoryview(data), 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], at)


def store_layer(call: Call) -> dict[str, Any]:
    """Store a layer.  fds: repository, ring, free slots (write), cuts (read), and a memfd for the files' digests.

    args: `diff_id`, `limit` of the tar's bytes.  Answers with `stream`, the digest of the layer's splitstream, which
    has no name yet, `digests`, the bytes written to the memfd: the digests of the files that are stored apart, in the
    tar's order, and `added`, the number of new objects.
    """
    repository_fd, ring_fd, free_fd, cuts_fd, digests_fd = call.fds
    expected = DiffId.parse(call.args["diff_id"])
    with Repository.adopt(os.dup(repository_fd)) as repository:
        sink = _LayerSink(repository, expected, call.args["limit"])
        deliver(RingReader(ring_fd, free_fd, cuts_fd), sink)
        if sink.diff_id != expected:
            raise DigestMismatchError(
                f"a layer unpacks to {sink.diff_id}, but the config promises {expected}",
                expected=str(expected),
                actual=str(sink.diff_id),
            )
        stream = repository.objects.store(sink.stream.finish())
        _write(digests_fd, sink.digests)
        return {"stream": stream.hex(), "digests": len(sink.digests), "added": repository.objects.added}


def name_layer(call: Call) -> dict[str, Any]:
    """Name the splitstream of a layer that is complete, once it is on stable storage.  fds: repository."""
    with Repository.adopt(os.dup(call.fds[0])) as repository:
        repository.sync()
        repository.link_stream(layer_stream(DiffId.parse(call.args["diff_id"])), bytes.fromhex(call.args["stream"]))
    return {}


@dataclass(frozen=True, slots=True)
class _Order:
    """What `commit` is asked to make visible; documents are text in which each character stands for a byte."""

    image: OciImage
    layers: dict[str, bytes]
    tag: str | None
    replace: bool

    @classmethod
    def read(cls, args: dict[str, Any]) -> Self:
        manifest_digest, config_digest = (OciDigest.parse(args[key]) for key in ("manifest_digest", "config_digest"))
        manifest, config = (args[key].encode("latin-1") for key in ("manifest", "config"))
        check_digest(manifest, manifest_digest, "the manifest")
        check_digest(config, config_digest, "the config")
        image = OciImage(Manifest.parse(manifest, manifest_digest), ImageConfig.parse(config, config_digest))
        layers = {str(DiffId.parse(name)): bytes.fromhex(digest) for name, digest in args["layers"].items()}
        return cls(image, layers, args["tag"], args["replace"])


def commit(call: Call) -> dict[str, Any]:
    """Store an image's documents and composefs images and give them their names.

    fds: repository, then an unnamed file for each of `images`, whose `reference` and expected `digest` are told.
    args: `manifest`, `config` and their digests, `layers` (diff_id to stream), `tag` (or None), `replace`, `images`.
    """
    order = _Order.read(call.args)
    with Repository.adopt(os.dup(call.fds[0])) as repository:
        heal(repository)
        if order.tag is not None:
            check_tag(repository, order.tag, order.image.manifest.digest, replace=order.replace)
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
    manifest, config = order.image.manifest, order.image.config
    config_name = config_stream(config.digest)
    references = {**order.layers, **_kept_images(repository, config_name), **images}
    config_id = _store_document(repository, ContentType.OCI_CONFIG, config.data, references)
    references = {_config_key(config.digest): config_id, **order.layers}
    manifest_id = _store_document(repository, ContentType.OCI_MANIFEST, manifest.data, references)
    repository.sync()
    for digest in images.values():
        repository.link_image(digest)
    with _held(repository, config.digest, config_id):
        repository.link_stream(config_name, config_id)
        repository.link_stream(manifest_stream(manifest.digest), manifest_id)
        _refresh_manifests(repository, config.digest, config_id)
    repository.sync()  # a tag, and then a boot entry, must not lead to links that are not on the disk yet
    if order.tag is not None:
        repository.tag(order.tag, manifest_stream(manifest.digest))


def _config_key(config: OciDigest) -> str:
    """The named reference of a manifest's stream that leads to its config's."""
    return f"config:{config}"


def _store_document(repository: Repository, kind: int, data: bytes, references: Mapping[str, bytes]) -> bytes:
    writer = Writer(repository.algorithm, kind)
    writer.external(repository.objects.store(data), len(data))
    for name, digest in references.items():
        writer.add_reference(name, digest)
    return repository.objects.store(writer.finish())


def _kept_images(repository: Repository, config_name: str) -> dict[str, bytes]:
    """The composefs images that the config refers to already and that are still there."""
    if repository.stream(config_name) is None:
        return {}
    stream = repository.read_stream(config_name, ContentType.OCI_CONFIG)
    found = {image.reference: image.digest.digest for image in composefs_images(stream)}
    return {name: digest for name, digest in found.items() if repository.has_image(digest)}


@contextmanager
def _held(repository: Repository, config: OciDigest, config_id: bytes) -> Iterator[None]:
    """Keep a config's stream by a ref of its own while manifests still name the one that it replaces.

    The collector follows a manifest's reference only to a stream that is current.  If the power failed between config
    and manifest, it would find neither the old config nor the new one by the tag.
    """
    if repository.stream(config_stream(config)) in (None, config_id):
        yield
        return
    held = f"{_HELD}/{config.hex}"
    repository.set_ref(Category.STREAMS, held, config_stream(config))
    yield
    repository.sync()
    repository.remove_ref(Category.STREAMS, held)


def heal(repository: Repository) -> None:
    """Finish what a commit that was interrupted has begun: let all manifests name the current config."""
    for name, entry in repository.refs(Category.STREAMS).items():
        if name.startswith(f"{_HELD}/"):
            current = repository.stream(entry)
            if current is not None:
                _refresh_manifests(repository, OciDigest.parse(entry.removeprefix(CONFIG_PREFIX)), current)
            repository.sync()
            repository.remove_ref(Category.STREAMS, name)


def _refresh_manifests(repository: Repository, config: OciDigest, config_id: bytes) -> None:
    """Give every manifest of this config that names an older stream of it a new stream of its own."""
    key = _config_key(config)
    for digest in manifests(repository):
        name = manifest_stream(digest)
        stream = repository.read_stream(name, ContentType.OCI_MANIFEST)
        if stream.named_refs.get(key, config_id) == config_id:
            continue
        writer = Writer(repository.algorithm, ContentType.OCI_MANIFEST)
        writer.external(stream.object_refs[0], stream.size_bytes)
        for reference, target in {**stream.named_refs, key: config_id}.items():
            writer.add_reference(reference, target)
        repository.link_stream(name, repository.objects.store(writer.finish()))


TASKS: Final[dict[str, Task]] = {"store_layer": store_layer, "name_layer": name_layer, "commit": commit}
