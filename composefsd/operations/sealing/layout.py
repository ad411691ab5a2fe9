"""Writing an OCI layout so that nobody ever sees half of one.

All is written into a directory of its own first, which is a whole layout and can be read as one.  Publishing it is
one rename if nothing has the output's name yet.  Else its blobs are renamed into the layout that is there, each of
them synced before, and `index.json` comes last, by a rename as well.  A crash leaves the old image, at worst beside
blobs that nothing names; a staging directory that is left behind goes when the next one is made in its place.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.digests import DiffId, OciDigest
from composefsd.document import DOCUMENT_BYTES
from composefsd.errors import (
    DigestMismatchError,
    FormatError,
    InvalidArgumentsError,
    LimitExceededError,
    LockedError,
)
from composefsd.linux import lock
from composefsd.linux.oserrors import translated
from composefsd.oci.manifest import Descriptor
from composefsd.oci.transport.source import Blob
from composefsd.operations.sealing.index import INDEX, entry, read_index, serialize_index, tag_of

LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"

_PREFIX: Final = ".composefsctl-layout-"
_VERSION: Final = "oci-layout"
_VERSION_TEXT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_LEVEL: Final = 6
_GZIP: Final = 31  # wbits: a gzip header without name and time, so that the same tar gives the same blob
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer's blob, and the digest of its plain tar."""

    blob: Descriptor
    diff_id: DiffId


class StagedLayout:
    """A layout that is being written; `path` can be read as a layout once `set_tag` was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs"
        (self._blobs / "sha256").mkdir(parents=True)
        _write(path / _VERSION, [_VERSION_TEXT])

    def blob_path(self, digest: OciDigest) -> Path:
        """Where a blob lies, whether it is there or not."""
        return self._blobs / digest.algorithm / digest.hex

    def copy_blob(self, one: Descriptor, blob: Blob) -> None:
        """Copy a blob byte for byte, unless it is there; closes its descriptor.

        Raises DigestMismatchError or FormatError for content that is not what the descriptor says.
        """
        try:
            if not self.blob_path(one.digest).exists():
                self.blob_path(one.digest).parent.mkdir(exist_ok=True)
                _write(self.blob_path(one.digest), _checked_pieces(one, blob))
        finally:
            os.close(blob.fd)

    def add_document(self, data: bytes, media_type: str) -> Descriptor:
        """Store a document under its digest.  Raises LimitExceededError for one that nobody would read."""
        if len(data) > DOCUMENT_BYTES:
            raise LimitExceededError(f"a document of {len(data)} bytes; {DOCUMENT_BYTES} are allowed")
        digest = OciDigest("sha256", hashlib.sha256(data).hexdigest())
        _write(self.blob_path(digest), [data])
        return Descriptor(media_type, digest, len(data), {})

    def add_layer(self, tar: Iterable[bytes]) -> WrittenLayer:
        """Pack a tar with gzip, and store it."""
        temporary, packer = self._blobs / "layer", _Packer(tar)
        _write(temporary, packer.pieces())
        digest = OciDigest("sha256", packer.packed.hexdigest())
        temporary.rename(self.blob_path(digest))
        blob = Descriptor(LAYER_TYPE, digest, packer.size_bytes, {})
        return WrittenLayer(blob, DiffId("sha256", packer.plain.hexdigest()))

    def keep_only(self, digests: Iterable[OciDigest]) -> None:
        """Remove the blobs that the finished layout does not need."""
        kept = {self.blob_path(digest) for digest in digests}
        for algorithm in self._blobs.iterdir():
            for blob in algorithm.iterdir():
                if blob not in kept:
                    blob.unlink()

    def set_tag(self, tag: str, manifest: Descriptor) -> None:
        """Let the index name this manifest and nothing else."""
        _write(self.path / INDEX, [serialize_index([entry(tag, manifest)])])

    def publish(self, output: Path, tag: str) -> None:
        """Move it to `output`: to be a new layout, or into the one that is there, whose other images stay.

        Raises what `check_output` does, and FormatError for an index that cannot be read.
        """
        with translated(f"writing {output}", partition=str(output)):
            for directory in (*self._blobs.iterdir(), self._blobs, self.path):
                _sync(directory)
            if self.path.parent == output or not self._rename(output):
                self._merge(output, tag)

    def _rename(self, output: Path) -> bool:
        """Whether it is the output now; not if another run was quicker, whose image stays then."""
        try:
            self.path.rename(output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        _sync(output.parent)
        return True

    def _merge(self, output: Path, tag: str) -> None:
        with _locked(output):
            check_output(output, tag)
            (self.path / _VERSION).rename(output / _VERSION)  # first: by this file the next run knows a layout
            for algorithm in self._blobs.iterdir():
                target = output / "blobs" / algorithm.name
                target.mkdir(parents=True, exist_ok=True)
                for blob in algorithm.iterdir():
                    blob.rename(target / blob.name)
                _sync(target)
            for directory in (output / "blobs", output):
                _sync(directory)
            (own,) = read_index(self.path)
            others = [one for one in read_index(output) if tag_of(one) != tag]
            merged = self.path / f"{INDEX}.new"
            _write(merged, [serialize_index([*others, own])])
            merged.rename(output / INDEX)
            _sync(output)


class _Packer:
    """A tar on its way into a blob."""

    def __init__(self, tar: Iterable[bytes]) -> None:
        self._tar = tar
        self.plain, self.packed, self.size_bytes = hashlib.sha256(), hashlib.sha256(), 0

    def pieces(self) -> Iterator[bytes]:
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        for piece in self._tar:
            self.plain.update(piece)
            yield self._counted(compressor.compress(piece))
        yield self._counted(compressor.flush())

    def _counted(self, data: bytes) -> bytes:
        self.packed.update(data)
        self.size_bytes += len(data)
        return data


# Where it goes


def check_output(output: Path, tag: str) -> None:
    """Raises InvalidArgumentsError for what is no layout, or one in which an image without a tag would be lost."""
    with translated(f"reading {output}"):
        if output.is_symlink() or (output.exists() and not output.is_dir()):
            raise InvalidArgumentsError(f"{output} exists, and is no directory")
        if not output.exists() or all(one.name.startswith(_PREFIX) for one in output.iterdir()):
            return
        if not (output / _VERSION).is_file():
            raise InvalidArgumentsError(f"{output} exists, and is no OCI layout")
    tagged = [one for one in read_index(output) if tag_of(one)]
    if tagged and not tag:
        raise InvalidArgumentsError(f"{output} has images already: the new one needs a tag (oci:{output}:TAG)")


@contextmanager
def staging(output: Path) -> Iterator[StagedLayout]:
    """A layout to be written for `output`, on the same file system; gone at the end unless it was published.

    What an earlier run has left there, and nobody writes any more, is removed.
    """
    where, prefix = output.parent, f"{_PREFIX}{output.name}-"
    if output.is_dir():
        where, prefix = output, _PREFIX
    with ExitStack() as stack:
        with translated(f"writing to {where}", partition=str(where)), _locked(where):
            _clean(where, prefix)
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            path.chmod(0o777 & ~_umask())
            stack.enter_context(_locked(path))
            layout = StagedLayout(path)
        yield layout


def _clean(where: Path, prefix: str) -> None:
    """Remove directories of writers that are gone; those that live hold a lock."""
    for left in where.iterdir():
        if not left.name.startswith(prefix):
            continue
        try:
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            with suppress(LockedError), lock.exclusive(fd, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(fd)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with lock.exclusive(fd):
            yield
    finally:
        os.close(fd)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Files


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file and sync it; what goes wrong in `pieces` is told by whoever makes them."""
    with translated(f"writing {path}", partition=str(path.parent)), path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checked_pieces(one: Descriptor, blob: Blob) -> Iterator[bytes]:
    """A blob's bytes; raises at the end unless they were what the descriptor says."""
    digest, at = hashlib.new(one.digest.algorithm), blob.offset or 0
    left = one.size_bytes
    while left:
        with translated(f"reading blob {one.digest}"):
            piece = os.pread(blob.fd, min(left, _PIECE_BYTES), at)
        if not piece:
            raise FormatError(f"blob {one.digest} ends {left} bytes early", subject=str(one.digest))
        digest.update(piece)
        at, left = at + len(piece), left - len(piece)
        yield piece
    if digest.hexdigest() != one.digest.hex:
        actual = f"{one.digest.algorithm}:{digest.hexdigest()}"
        raise DigestMismatchError(
            f"blob {one.digest} has the digest {actual}", expected=str(one.digest), actual=actual
        )
