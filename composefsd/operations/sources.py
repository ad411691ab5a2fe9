"""Where a tree comes from that is in no repository of a daemon: a directory, an OCI layout, a dumpfile, an image.

An OCI layout goes through the whole of a pull, into a repository that lasts as long as the question: the answer comes
from the same code as the daemon's.  Directories, dumpfiles and images are read in this process, with the rights of
whoever asks.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, Self, cast

from composefsd.boot.transform import make_boot
from composefsd.digests import Algorithm, OciDigest
from composefsd.erofs.format import HEAD_BYTES, FormatVersion, is_image
from composefsd.errors import (
    FormatError,
    InvalidArgumentsError,
    LimitExceededError,
    ObjectMissingError,
    SourceNotFoundError,
)
from composefsd.linux.scan import scan
from composefsd.oci.reference import Reference, Transport
from composefsd.oci.storage import ImageKind
from composefsd.operations import generate
from composefsd.operations.build import ImageOrder
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import PullRequest
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.tree import dumpfile
from composefsd.tree.normative import XattrMode, make_normative
from composefsd.tree.profile import Profile
from composefsd.tree.table import Kind, Tree

STDIN: Final = "-"


class SourceKind(StrEnum):
    """What a source is, as far as its text tells."""

    DIRECTORY = "directory"
    OCI = "oci"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Reading:
    """What is done with a source on the way to its tree.

    A dumpfile is taken as it is; so is a directory with `as_is`, without the changes that OCI images go through.
    """

    algorithm: Algorithm = Algorithm.SHA512
    bootable: bool = False
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    as_is: bool = False
    profile: Profile = Profile.CURRENT  # of the boot image

    @property
    def order(self) -> ImageOrder:
        """The image whose tree this is; the tree is that of any format."""
        profile = self.profile if self.bootable else Profile.CURRENT
        return ImageOrder(self.kind, FormatVersion.V1, self.xattrs, profile)

    @property
    def kind(self) -> ImageKind:
        return ImageKind.BOOT if self.bootable else ImageKind.NORMATIVE


@dataclass(frozen=True, slots=True)
class Source:
    """A source; reference has an absolute path and is there for an OCI layout or archive only."""

    text: str
    kind: SourceKind
    reference: Reference | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Nothing is guessed from what is in a directory or file.  Raises InvalidReferenceError."""
        transport, colon, _ = text.partition(":")
        if colon and transport in set(Transport):
            parsed = Reference.parse(text)
            return cls(text, SourceKind.OCI, Reference(parsed.transport, parsed.path.absolute(), parsed.tag))
        is_directory = text != STDIN and Path(text).is_dir()
        return cls(text, SourceKind.DIRECTORY if is_directory else SourceKind.FILE)

    def check(self, reading: Reading) -> None:
        """Raises InvalidArgumentsError for what can be seen to be wrong without reading anything."""
        if reading.bootable and self.kind is SourceKind.FILE:
            raise InvalidArgumentsError("a file is taken as it is: --bootable needs a directory or an OCI image")
        if reading.as_is and self.kind is SourceKind.OCI:
            raise InvalidArgumentsError("an OCI image has its form from the layers: only a directory can be as it is")


def read(source: Source, reading: Reading) -> Tree:
    """The frozen tree of a source.

    Raises InvalidArgumentsError, FormatError for an EROFS image, SourceNotFoundError, and whatever the source's
    format, or reading it, gives cause for.
    """
    source.check(reading)
    if source.kind is SourceKind.DIRECTORY:
        return _read_directory(source.text, reading)
    if source.reference is not None:
        with tempfile.TemporaryFile() as file:
            asyncio.run(dump_oci(source.reference, reading, file.fileno()))
            file.seek(0)
            return dumpfile.parse(file, reading.algorithm)
    with opened(source.text) as file:
        if starts_image(file):
            raise FormatError(f"{source.text} is an EROFS image, not a dumpfile", subject=source.text)
        return dumpfile.parse(file, reading.algorithm)


# Files


@contextmanager
def opened(text: str) -> Iterator[BufferedReader]:
    """A file, or standard input.  Raises SourceNotFoundError if it cannot be opened or, in the block, read."""
    try:
        if text == STDIN:
            yield cast("BufferedReader", sys.stdin.buffer)
            return
        with Path(text).open("rb") as file:
            yield file
    except OSError as error:
        raise SourceNotFoundError(f"{text} cannot be read: {error.strerror}", subject=text) from error


def starts_image(file: BufferedReader) -> bool:
    """Whether an EROFS image is next in `file`, of which nothing is taken."""
    return is_image(file.peek(HEAD_BYTES)[:HEAD_BYTES])


# Directories


def _read_directory(text: str, reading: Reading) -> Tree:
    # A link is followed only if a slash is behind it, as composefs-rs has it; `Path` drops the slash.
    path = Path(text).resolve() if text.endswith("/") else Path(text)
    tree = scan(path, reading.algorithm)
    if not reading.as_is:
        make_normative(tree, reading.xattrs, reading.order.profile)
    if not reading.bootable:
        return tree
    return make_boot(tree, _Files(path, tree).read, check_resources=False, profile=reading.profile)


class _Files:
    """The content of external files of a scanned directory, found again by digest."""

    def __init__(self, directory: Path, tree: Tree) -> None:
        self._directory = directory
        self._tree = tree
        self._paths: dict[bytes, bytes] | None = None

    def read(self, digest: bytes, limit_bytes: int) -> bytes:
        """Raises LimitExceededError over the limit, ObjectMissingError if the file went away meanwhile."""
        if self._paths is None:
            tree = self._tree
            self._paths = {
                tree.digest(inode): path for path, _, inode in tree.walk() if tree.kind[inode] == Kind.EXTERNAL
            }
        path = self._directory / self._paths[digest].decode(errors="surrogateescape").lstrip("/")
        try:
            with path.open("rb") as file:
                data = file.read(limit_bytes + 1)
        except OSError as error:
            raise ObjectMissingError(f"{path} cannot be read: {error.strerror}", subject=str(path)) from error
        if len(data) > limit_bytes:
            raise LimitExceededError(f"{path} is larger than {limit_bytes} bytes", subject=str(path))
        return data


# OCI images


@contextmanager
def scratch(algorithm: Algorithm) -> Iterator[Host]:
    """A host with an empty repository, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="composefsd-scratch-") as directory:
        top = Path(directory)
        yield Host.open(
            Settings(
                repository=top / "repository",
                sysroot=top,
                esp=None,
                xbootldr=None,
                state=top / "state",
                algorithm=algorithm,
                insecure=True,
            )
        )


async def pull_into(host: Host, reference: Reference) -> OciDigest:
    """Pull an OCI image without making composefs images; answers with its manifest's digest."""
    pulled = await pull(host, PullRequest(reference, name="image", kinds=frozenset()), Silent())
    return pulled.manifest_digest


async def dump_oci(reference: Reference, reading: Reading, file: int) -> None:
    """Write the dumpfile of an OCI image into a file."""
    with scratch(reading.algorithm) as host:
        image = await pull_into(host, reference)
        await generate.dump(host, image, reading.order, file)


def copy(source: BinaryIO, out: BinaryIO) -> None:
    """All that is left of a file."""
    while data := source.read(1 << 20):
        out.write(data)
