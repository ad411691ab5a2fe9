"""Our side: real pulls into a repository, and the trees behind them, made in this process."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from interop.oci_seen import DIGESTS, DUMPS, Seen, Wanted
from real.corpus.case import Verdict

from composefsd.boot.transform import make_boot
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.errors import ComposefsdError, FormatError
from composefsd.oci.reference import Reference
from composefsd.oci.storage import ImageKind, StoredImage, load_image
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import BOTH_KINDS, PullRequest, PullResult
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.repository import Repository
from composefsd.splitstream.format import ContentType
from composefsd.tree import dumpfile
from composefsd.tree.layer import HARDLINK, LayerTable
from composefsd.tree.merge import apply_layer
from composefsd.tree.normative import XattrMode, make_normative
from composefsd.tree.table import FILE_TYPE, Kind, Tree
from composefsd.tree.tar import parse_layer
from composefsd.verity import compute_digest

_TAR_BYTES: Final = 1 << 30

ParsedLayer = tuple[LayerTable, bytes]
"""A layer's columns, and the digests of its external files."""


class MemoryTar:
    """A tar in memory, to be parsed; remembers the digests and contents of external files."""

    def __init__(self, tar: bytes, algorithm: Algorithm) -> None:
        self._tar = tar
        self._at = 0
        self._algorithm = algorithm
        self.digests = bytearray()
        self.contents: dict[bytes, bytes] = {}

    def inline(self, count: int) -> bytes:
        data = self._tar[self._at : self._at + count]
        self._at += len(data)
        return data

    def external(self, size: int) -> None:
        content = self.inline(size)
        if len(content) != size:
            raise FormatError("the tar ends in a file")
        digest = compute_digest(content, self._algorithm)
        self.digests += digest
        self.contents[digest] = content

    def rest(self) -> None:
        self._at = len(self._tar)


def parse_tar(tar: bytes, algorithm: Algorithm, contents: dict[bytes, bytes]) -> ParsedLayer:
    """Parse a tar in memory; the contents of its external files go into `contents`."""
    stream = MemoryTar(tar, algorithm)
    table = parse_layer(stream)
    contents |= stream.contents
    return table, bytes(stream.digests)


class StoredTar:
    """A layer as its splitstream has it, to be parsed without reading an object."""

    def __init__(self, repository: Repository, stream: bytes) -> None:

        self._parts = _stored_parts(repository, stream)

        self._inline = bytearray()
        self._waiting = b""
        self.digests = bytearray()

    def inline(self, count: int) -> bytes:
        while len(self._inline) < count and self._more():
            pass
        data = bytes(self._inline[:count])
        del self._inline[:count]
        return data

    def external(self, size: int) -> None:
        self._more()
        if not size or not self._waiting or self._inline:
            raise FormatError("the stream has no object where the tar has a file")
        self.digests += self._waiting
        self._waiting = b""

    def rest(self) -> None:
        while self._more():
            self._inline.clear()

    def _more(self) -> bool:
        if self._waiting:
            return False
        inline, self._waiting = next(self._parts, (b"", b""))
        self._inline += inline
        return bool(inline)


def _stored_parts(repository: Repository, stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Inline bytes and no digest, or no bytes and the digest of an object."""
    layer = repository.read_stream_object(stream, ContentType.OCI_LAYER)
    for chunk in layer.chunks():
        yield (chunk, b"") if isinstance(chunk, bytes) else (b"", layer.object_refs[chunk])


def _stored_tar(repository: Repository, stream: bytes) -> bytes:
    """The whole tar of a layer, its objects included."""
    parts = _stored_parts(repository, stream)
    return b"".join(repository.objects.read(digest, _TAR_BYTES) if digest else inline for inline, digest in parts)


class Trees:
    """The trees of an image, from its layers."""

    def __init__(
        self, layers: Iterable[ParsedLayer], algorithm: Algorithm, read: Callable[[bytes, int], bytes]
    ) -> None:
        self._read = read
        self._merged = Tree(algorithm)
        for table, digests in layers:
            apply_layer(self._merged, table, digests)
        self._merged.freeze()
        self._made: dict[tuple[ImageKind, XattrMode], Tree] = {}

    def get(self, wanted: Wanted) -> Tree:
        """The tree of an image.  Raises what making it raises."""
        key = wanted.kind, wanted.mode
        if key not in self._made:
            self._made[key] = self._make(wanted)
        return self._made[key]

    def _make(self, wanted: Wanted) -> Tree:
        if wanted.kind is ImageKind.BOOT:
            return make_boot(self.get(Wanted(ImageKind.NORMATIVE, wanted.mode)), self._read)
        tree = self._merged.fork()
        make_normative(tree, wanted.mode)
        return tree

    def dump(self, wanted: Wanted) -> bytes:
        """The dumpfile of an image."""
        return b"".join(dumpfile.serialize(self.get(wanted)))

    def digest(self, wanted: Wanted) -> str:
        """The digest of an image, in hexadecimal."""
        return compute_id(self.get(wanted), wanted.format).hex


class Ours:
    """A repository of ours, of one hash and one format."""

    def __init__(self, folder: Path, algorithm: Algorithm, version: FormatVersion) -> None:
        folder.mkdir()
        self.algorithm = algorithm
        self._path = folder / "repository"
        self._host = Host.open(
            Settings(
                repository=self._path,
                sysroot=folder,
                esp=None,
                xbootldr=None,
                state=folder / "state",
                algorithm=algorithm,
                formats=(version,),
                insecure=True,
            )
        )

    def pull(self, reference: str, name: str, *, is_hopeless: bool = False) -> tuple[Verdict, PullResult | None, str]:
        """Pull as the daemon does: both images, else the normative one alone; with the first message.

        `is_hopeless` spares the first attempt where even the second one is expected to fail.
        """
        attempts = [(Verdict.IMAGES, BOTH_KINDS), (Verdict.NORMATIVE, frozenset({ImageKind.NORMATIVE}))]
        message = ""
        for verdict, kinds in attempts[is_hopeless:]:
            request = PullRequest(Reference.parse(reference), name=name, kinds=kinds)
            try:
                result = asyncio.run(pull(self._host, request, Silent()))
            except ComposefsdError as error:
                message = message or error.message
                continue
            return (verdict if result.images else Verdict.ARTIFACT), result, message
        return Verdict.REFUSED, None, message

    def look(
        self, reference: str, name: str, algorithms: Iterable[Algorithm], *, is_hopeless: bool = False
    ) -> dict[Algorithm, Seen]:
        """Everything that we say about a layout: what was pulled, and what that gives with each of the hashes."""
        verdict, result, message = self.pull(reference, name, is_hopeless=is_hopeless)
        if result is None:
            return {algorithm: Seen(verdict, message) for algorithm in algorithms}
        documents = str(result.manifest_digest), str(result.config_digest)
        seen = {algorithm: Seen(verdict, message, *documents) for algorithm in algorithms}
        for image in result.images:
            wanted = Wanted(image.kind, image.xattrs, image.format)
            seen[self.algorithm].recorded[str(wanted)] = image.digest.hex
        if verdict is not Verdict.ARTIFACT:
            with Repository.open(self._path, writable=False) as repository:
                stored = load_image(repository, result.manifest_digest)
                for algorithm, one in seen.items():
                    self._add_images(one, repository, stored, algorithm)
        return seen

    def _add_images(self, seen: Seen, repository: Repository, stored: StoredImage, algorithm: Algorithm) -> None:
        layers, read = self._layers(repository, stored, algorithm)
        trees = Trees(layers, algorithm, read)
        wanted = [one for one in DIGESTS if seen.verdict is Verdict.IMAGES or one.kind is ImageKind.NORMATIVE]
        seen.computed = {str(one): trees.digest(one) for one in wanted}
        seen.dumps = {str(one): trees.dump(one) for one in DUMPS if one in wanted}
        diff_ids = (str(layer.diff_id) for layer in stored.content.layers)
        dumps = (dump_layer(*layer, algorithm) for layer in layers)
        seen.layers = dict(zip(diff_ids, dumps, strict=True))

    def _layers(
        self, repository: Repository, stored: StoredImage, algorithm: Algorithm
    ) -> tuple[list[ParsedLayer], Callable[[bytes, int], bytes]]:
        """The layers by one hash, and what reads their files."""
        if algorithm is self.algorithm:
            tars = [StoredTar(repository, stream) for stream in stored.layers]
            return [(parse_layer(tar), bytes(tar.digests)) for tar in tars], repository.objects.read
        contents: dict[bytes, bytes] = {}
        layers = [parse_tar(_stored_tar(repository, stream), algorithm, contents) for stream in stored.layers]
        return layers, lambda digest, _limit: contents[digest]


# The dump of a layer: a line for each entry of the tar, as `cfsctl oci layer --dumpfile` has it


def _escape(text: bytes, *, equals: bool = False) -> bytes:
    named = {0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
    plain = set(range(0x21, 0x7F)) - {0x5C} - ({0x3D} if equals else set())
    return b"".join(b"%c" % byte if byte in plain else named.get(byte, b"\\x%02x" % byte) for byte in text)


def _field(text: bytes) -> bytes:
    return {b"": b"-", b"-": b"\\x2d"}.get(text) or _escape(text)


def _absolute(path: bytes) -> bytes:
    """A path of a tar as composefs-rs keeps it; the root is an empty path."""
    return (b"/" + path.removeprefix(b"/")).rstrip(b"/")


def _payload(table: LayerTable, row: int, digest: bytes) -> tuple[bytes, bytes, bytes]:
    """PAYLOAD, CONTENT and DIGEST."""
    if table.kind[row] == Kind.INLINE:
        return b"-", _field(table.text(row)), b"-"
    if table.kind[row] == Kind.EXTERNAL:
        digits = digest.hex().encode()
        return b"%s/%s" % (digits[:2], digits[2:]), b"-", digits
    return _field(table.text(row)), b"-", b"-"


def _line(table: LayerTable, row: int, digest: bytes) -> bytes:
    path = _field(_absolute(table.path(row)))
    if table.kind[row] == HARDLINK:
        return b"%s 0 @120000 - - - - 0.0 %s - -\n" % (path, _field(_absolute(table.text(row))))
    kind, number = Kind(table.kind[row]), table.size[row]
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    line = b"%s %d %o 1 %d %d %d %d.%d %s %s %s" % (
        path, 0 if is_device else number, table.mode[row] | FILE_TYPE[kind], table.uid[row], table.gid[row],
        number if is_device else 0, table.mtime[row], table.nsec[row], *_payload(table, row, digest),
    )  # fmt: skip
    for name, value in table.xattr_sets[table.xattrs[row]]:
        line += b" %s=%s" % (_escape(name, equals=True), _escape(value, equals=True))
    return line + b"\n"


def dump_layer(table: LayerTable, digests: bytes, algorithm: Algorithm) -> bytes:
    """A layer as text."""
    width, lines, at = algorithm.digest_bytes, [], 0
    for row in range(len(table)):
        digest = digests[at : at + width]
        at += width if table.kind[row] == Kind.EXTERNAL else 0
        lines.append(_line(table, row, digest))
    return b"".join(lines)
