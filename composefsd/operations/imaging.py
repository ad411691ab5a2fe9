"""The imager: from layers to composefs images, in a process that may only read objects.

Layers come as the columns that the unpacker has just made, or are read back from their splitstreams.  One merge
serves all images that are asked for: each is a fork of the merged tree, written front to back into a file that the
daemon opened.  Whoever takes such a file in computes its digest again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from composefsd import verity
from composefsd.boot.resources import ResourceType
from composefsd.digests import Algorithm
from composefsd.erofs import writer
from composefsd.errors import FormatError, LimitExceededError, ObjectMissingError
from composefsd.linux.reading import pread_all
from composefsd.linux.writing import write_all
from composefsd.oci.storage import STREAM_BYTES
from composefsd.operations.facts import gather
from composefsd.operations.search import MAX_WANTED, Claim, Search
from composefsd.operations.transformed import BOOT, NORMATIVE, Trees
from composefsd.operations.variants import ImageOrder
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.reader import Splitstream
from composefsd.tree import dumpfile
from composefsd.tree.layer import LayerTable
from composefsd.tree.merge import apply_layer
from composefsd.tree.table import Tree
from composefsd.tree.tar import parse_layer
from composefsd.workers.serve import Call, Task

_COLUMNS_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Objects:
    """The object store, to read from: `objects/` as a directory descriptor."""

    fd: int
    algorithm: Algorithm

    def translate(self, digests: bytes | bytearray) -> bytes:
        """The digests as they are: the tree has those of the repository."""
        return bytes(digests)

    def open(self, digest: bytes) -> int:
        """An object.  Raises ObjectMissingError."""
        text = digest.hex()
        try:
            return os.open(f"{text[:2]}/{text[2:]}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError as error:
            raise ObjectMissingError(f"object {text} is missing", object=text) from error

    def size(self, digest: bytes) -> int:
        """The size of an object in bytes.  Raises ObjectMissingError."""
        text = digest.hex()
        try:
            return os.stat(f"{text[:2]}/{text[2:]}", dir_fd=self.fd, follow_symlinks=False).st_size
        except FileNotFoundError as error:
            raise ObjectMissingError(f"object {text} is missing", object=text) from error

    def read(self, digest: bytes, limit_bytes: int) -> bytes:
        """A whole object.  Raises LimitExceededError if it is larger than the limit."""
        fd = self.open(digest)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes > limit_bytes:
                raise LimitExceededError(f"object {digest.hex()} has {size_bytes} bytes; {limit_bytes} are allowed")
            return pread_all(fd, size_bytes, 0)
        finally:
            os.close(fd)

    def read_range(self, digest: bytes, offset: int, count: int) -> bytes:
        """Up to `count` bytes of an object."""
        fd = self.open(digest)
        try:
            return pread_all(fd, count, offset)
        finally:
            os.close(fd)


class _StoredTar:
    """A layer's tar as its splitstream has it: the tar parser's LayerStream."""

    def __init__(self, objects: Objects, stream: Splitstream) -> None:
        self._objects = objects
        self._refs = stream.object_refs
        self._chunks = stream.chunks()
        self._inline = b""
        self._next: int | None = None
        self.digests = bytearray()

    def inline(self, count: int) -> bytes:
        while len(self._inline) < count and self._more():
            pass
        if len(self._inline) < count and self._next is not None:
            raise FormatError("the layer's stream has an object where its tar has a header")
        data, self._inline = self._inline[:count], self._inline[count:]
        return data

    def external(self, size: int) -> None:
        if not self._inline:
            self._more()
        if self._inline or self._next is None:
            raise FormatError(f"the layer's stream has no object where its tar has a file of {size} bytes")
        digest = self._refs[self._next]
        if self._objects.size(digest) != size:  # whoever cut the stream was not who hashed it
            raise FormatError(f"object {digest.hex()} has not the {size} bytes of the file that it stands for")
        self.digests += digest
        self._next = None

    def rest(self) -> None:
        self._inline = b""
        while self._more():
            self._inline = b""
        if self._next is not None:
            raise FormatError("the layer's stream has an object behind the end of its tar")

    def _more(self) -> bool:
        """Take in the next chunk: False if it is an object, which then waits, or if there is none."""
        if self._next is not None:
            return False
        chunk = next(self._chunks, b"")
        if isinstance(chunk, int):
            self._next = chunk
            return False
        self._inline += chunk
        return bool(chunk)


def _stored_layer(objects: Objects, digest: bytes) -> tuple[LayerTable, bytearray]:
    data = objects.read(digest, STREAM_BYTES)
    tar = _StoredTar(objects, Splitstream.parse(data, objects.algorithm, ContentType.OCI_LAYER))
    return parse_layer(tar), tar.digests


def _passed_layer(columns_fd: int, digests_fd: int, sizes: Mapping[str, int]) -> tuple[LayerTable, bytes]:
    if max(sizes["columns"], sizes["digests"]) > _COLUMNS_BYTES:
        raise LimitExceededError("a layer's columns are larger than 1 GiB")
    columns = os.pread(columns_fd, sizes["columns"], 0)
    return LayerTable.parse(columns), os.pread(digests_fd, sizes["digests"], 0)


class _Source(Protocol):
    """Where a tree's digests come from, and what they lead to."""

    def translate(self, digests: bytes | bytearray) -> bytes:
        """Digests of the repository as the tree has them."""

    def read(self, digest: bytes, limit_bytes: int) -> bytes:
        """A whole object by the tree's digest."""

    def read_range(self, digest: bytes, offset: int, count: int) -> bytes:
        """A part of it."""


class _Rehashed:
    """The objects of a repository under digests of another algorithm."""

    def __init__(self, objects: Objects, algorithm: Algorithm) -> None:
        self._objects = objects
        self._algorithm = algorithm
        self._known: dict[bytes, bytes] = {}
        self._back: dict[bytes, bytes] = {}

    def translate(self, digests: bytes | bytearray) -> bytes:
        width = self._objects.algorithm.digest_bytes
        return b"".join(self._one(bytes(digests[at : at + width])) for at in range(0, len(digests), width))

    def read(self, digest: bytes, limit_bytes: int) -> bytes:
        return self._objects.read(self._back[digest], limit_bytes)

    def read_range(self, digest: bytes, offset: int, count: int) -> bytes:
        return self._objects.read_range(self._back[digest], offset, count)

    def _one(self, digest: bytes) -> bytes:
        known = self._known.get(digest)
        if known is None:
            fd = self._objects.open(digest)
            try:
                known = self._known[digest] = verity.compute_file(fd, self._algorithm).digest
            finally:
                os.close(fd)
            self._back[known] = digest
        return known


def merge(call: Call, objects: Objects, source: _Source, algorithm: Algorithm) -> Tree:
    """The merged tree of the layers in `call`, frozen, with digests as `source` translates them."""
    tree = Tree(algorithm)
    passed = iter(call.fds[1:])
    for number, layer in enumerate(call.args["layers"], 1):
        if "columns" in layer:
            table, digests = _passed_layer(next(passed), next(passed), layer)
        else:
            table, stored = _stored_layer(objects, bytes.fromhex(layer["stream"]))
            digests = bytes(stored)
        apply_layer(tree, table, source.translate(digests))
        call.report({"layers": number})
    tree.freeze()
    return tree


def _emit(fd: int | None, pieces: Iterator[bytes], algorithm: Algorithm) -> str:
    """Write an image if there is a file for it; answers with its digest in any case."""
    hasher = verity.Hasher(algorithm)
    for piece in pieces:
        hasher.update(piece)
        if fd is not None:
            write_all(fd, piece)
    return hasher.digest().hex()


def build(call: Call) -> dict[str, Any]:
    """Make composefs images of an OCI image, and search its variants for digests that are expected.

    fds: `objects/`; a columns and a digests memfd for each of `layers` that has `columns` and `digests` (their sizes
    in bytes) instead of `stream`; then, if `write` is set, a file for each of `images`, and as many as may be needed
    for what the search finds.  args: `repository_algorithm`, `algorithm`, `layers`, `images` (as `ImageOrder.values`
    gives them), `write`, `facts`, `hunt` (as `Hunt.to_wire`, or None).  Answers with `digests`, with `facts` if they
    are asked for, and with `outcomes`; a file for each outcome that has found a variant.
    """
    trees, source, algorithm = _merged(call)
    wanted = [ImageOrder.read(values) for values in call.args["images"]]
    passed = sum(2 for layer in call.args["layers"] if "columns" in layer)
    outputs = iter(call.fds[1 + passed :] if call.args["write"] else ())
    making = _Making(trees, algorithm)
    digests = [making.digest(one, next(outputs, None)) for one in wanted]
    hunt, facts = call.args["hunt"], None
    if call.args["facts"] or hunt:
        facts = gather(trees.get(NORMATIVE), source.read, source.read_range, partial(trees.get, BOOT))
    outcomes = _search(making, source, hunt, digests, facts, outputs) if hunt else []
    return {"digests": digests, "facts": facts if call.args["facts"] else None, "outcomes": outcomes}


@dataclass(frozen=True, slots=True)
class _Making:
    """Makes images of trees."""

    trees: Trees
    algorithm: Algorithm

    def digest(self, order: ImageOrder, fd: int | None = None) -> str:
        """The digest of an image, which is written if there is a file for it."""
        if fd is None:
            return self.trees.digest(order, partial(self._emit, order, None))
        digest = self._emit(order, fd)
        return self.trees.digest(order, lambda: digest)

    def _emit(self, order: ImageOrder, fd: int | None) -> str:
        return _emit(fd, writer.write(self.trees.get(order), order.format), self.algorithm)


def _search(
    making: _Making,
    source: _Source,
    hunt: Mapping[str, Any],
    digests: Sequence[str],
    facts: dict[str, Any] | None,
    outputs: Iterator[int],
) -> list[dict[str, Any]]:
    """Search for what is expected and not there, and write what was found and is not there."""
    orders = [ImageOrder.read(values) for values in hunt["orders"]]
    search = Search(making.trees, source.read, orders, making.digest)
    there = {*digests, *hunt["held"]}
    outcomes = []
    for claim in _claims(hunt, facts, making.algorithm)[:MAX_WANTED]:
        if claim.digest not in there:
            outcome = search.find(claim)
            fd = next(outputs, None) if outcome["found"] else None
            if fd is not None:
                making.digest(ImageOrder.read(outcome["found"]), fd)
            outcomes.append(outcome)
    return outcomes


def _claims(hunt: Mapping[str, Any], facts: dict[str, Any] | None, algorithm: Algorithm) -> list[Claim]:
    """What to search for, each digest once: what the caller expects, then what UKIs of the image claim.

    For a digest that no UKI claims, a dumpfile beside any of them will do.
    """
    claimed: dict[str, list[str]] = {digest: [] for digest in hunt["digests"]}
    ukis = [one for one in (facts["resources"] if facts else ()) if one["type"] == ResourceType.UKI]
    for uki in ukis:
        for digest in uki["claims"]:
            if len(digest) == 2 * algorithm.digest_bytes and (digest in claimed or hunt["claims"]):
                claimed.setdefault(digest, []).append(uki["path"])
    anywhere = [uki["path"] for uki in ukis]
    return [Claim(digest, tuple(paths or anywhere), digest in hunt["digests"]) for digest, paths in claimed.items()]


def _merged(call: Call) -> tuple[Trees, _Source, Algorithm]:
    """The trees that a call is about, where their objects are, and the algorithm of their digests."""
    algorithm = Algorithm(call.args["algorithm"])
    objects = Objects(call.fds[0], Algorithm(call.args["repository_algorithm"]))
    source: _Source = objects if algorithm is objects.algorithm else _Rehashed(objects, algorithm)
    return Trees(merge(call, objects, source, algorithm), source.read), source, algorithm


def dump(call: Call) -> dict[str, Any]:
    """Write the dumpfile of one image, of no more than `limit_bytes` if these are not null.

    fds and args as for `build` with a single image, whose file it goes to.  Raises LimitExceededError.
    """
    trees, _, _ = _merged(call)
    left = limit = call.args["limit_bytes"]
    with os.fdopen(os.dup(call.fds[-1]), "wb") as file:
        for line in dumpfile.serialize(trees.get(ImageOrder.read(call.args["images"][0]))):
            if limit is not None:
                left -= len(line)
                if left < 0:
                    raise LimitExceededError(f"the dumpfile of the image has more than {limit} bytes")
            file.write(line)
    return {}


TASKS: Final[dict[str, Task]] = {"build": build, "dump": dump}
