"""The digest or dumpfile of a tree that is in no repository: what image builders ask for, without a daemon.

An OCI layout goes through the whole of a pull, into a repository that lasts as long as the question: the answer comes
from the same code as the daemon's.  A directory is scanned and a dumpfile parsed in this process, which reads them
with the rights of whoever asks.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from composefsd.boot.transform import make_boot
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.errors import InvalidArgumentsError, LimitExceededError, ObjectMissingError, SourceNotFoundError
from composefsd.linux.scan import scan
from composefsd.oci.reference import Reference, Transport
from composefsd.oci.storage import ImageKind
from composefsd.operations import generate
from composefsd.operations.build import ImageOrder
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import GenerateRequest, PullRequest
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.tree import dumpfile
from composefsd.tree.normative import XattrMode, make_normative
from composefsd.tree.table import Kind, Tree


@dataclass(frozen=True, slots=True)
class Question:
    """What to compute; a dumpfile as source is taken as it is, so it cannot be asked for its boot image."""

    source: str
    bootable: bool = False
    version: FormatVersion = FormatVersion.V1
    algorithm: Algorithm = Algorithm.SHA512
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY

    @property
    def reference(self) -> Reference | None:
        """The OCI layout or archive that the source names, if it does, with an absolute path."""
        transport, colon, _ = self.source.partition(":")
        if not colon or transport not in set(Transport):
            return None
        parsed = Reference.parse(self.source)
        return Reference(parsed.transport, parsed.path.absolute(), parsed.tag)

    def check(self) -> None:
        """Raises InvalidArgumentsError for what can be seen to be wrong without reading anything."""
        if self.bootable and self.reference is None and not Path(self.source).is_dir():
            raise InvalidArgumentsError("a dumpfile is taken as it is: --bootable needs a directory or an OCI image")


def compute(question: Question) -> ObjectId:
    """The fs-verity digest of the composefs image of the source.

    Raises InvalidArgumentsError, and whatever the source's format, or reading it, gives cause for.
    """
    question.check()
    if question.reference is not None:
        return asyncio.run(_of_image(question, question.reference))
    return compute_id(_tree(question), question.version)


def write_dumpfile(question: Question, out: BinaryIO) -> None:
    """Write the tree instead, as a dumpfile."""
    question.check()
    if question.reference is not None:
        asyncio.run(_dump_image(question, question.reference, out))
    else:
        out.writelines(dumpfile.serialize(_tree(question)))


def _tree(question: Question) -> Tree:
    path = Path(question.source)
    if question.source != "-" and path.is_dir():
        return _scanned(question, path)
    with _input(question.source) as file:
        return dumpfile.parse(file, question.algorithm)


@contextmanager
def _input(source: str) -> Iterator[BinaryIO]:
    try:
        with sys.stdin.buffer if source == "-" else Path(source).open("rb") as file:
            yield file
    except OSError as error:
        raise SourceNotFoundError(f"{source} cannot be read: {error.strerror}", subject=source) from error


def _scanned(question: Question, path: Path) -> Tree:
    tree = scan(path, question.algorithm)
    make_normative(tree, question.xattrs)
    if not question.bootable:
        return tree
    return make_boot(tree, _Files(path, tree).read, check_resources=False)


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


@contextmanager
def _scratch(question: Question) -> Iterator[Host]:
    """A host with an empty repository, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="composefsd-compute-id-") as directory:
        top = Path(directory)
        yield Host.open(
            Settings(
                repository=top / "repository",
                sysroot=top,
                esp=None,
                xbootldr=None,
                state=top / "state",
                algorithm=question.algorithm,
                insecure=True,
            )
        )


def _kind(question: Question) -> ImageKind:
    return ImageKind.BOOT if question.bootable else ImageKind.NORMATIVE


async def _of_image(question: Question, reference: Reference) -> ObjectId:
    with _scratch(question) as host:
        pulled = await pull(host, PullRequest(reference, name="image", kinds=frozenset()), Silent())
        request = GenerateRequest(frozenset({_kind(question)}), question.version, xattrs=question.xattrs)
        (image,) = await generate.compute_digest(host, pulled.manifest_digest, request, Silent())
        return image.digest


async def _dump_image(question: Question, reference: Reference, out: BinaryIO) -> None:
    with _scratch(question) as host, tempfile.TemporaryFile() as file:
        pulled = await pull(host, PullRequest(reference, name="image", kinds=frozenset()), Silent())
        order = ImageOrder(_kind(question), question.version, question.xattrs)
        await generate.dump(host, pulled.manifest_digest, order, file.fileno())
        file.seek(0)
        while data := file.read(1 << 20):
            out.write(data)
