"""Images and PE files for the tests of this room."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack

import pytest

from composefsd import verity
from composefsd.boot.files import ObjectReader, RangeReader
from composefsd.digests import Algorithm
from composefsd.errors import LimitExceededError
from composefsd.tree.table import ROOT, Kind, Stat, Tree

STAT = Stat(0o755, 0, 0, 1, 0)

Content = bytes | str | int | Kind | None
"""None: a directory; bytes: a file; str: a symbolic link; int: a file of so many zeros; Kind: a special file."""


@dataclass
class Image:
    """A frozen tree with the objects of its files."""

    tree: Tree
    objects: dict[bytes, bytes] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)

    @property
    def read(self) -> ObjectReader:
        def read(digest: bytes, limit: int) -> bytes:
            content = self.objects[digest]
            self.reads.append(len(content))
            if len(content) > limit:
                raise LimitExceededError("too large")
            return content

        return read

    @property
    def ranges(self) -> RangeReader:
        def ranges(digest: bytes, offset: int, count: int) -> bytes:
            self.reads.append(count)
            return self.objects[digest][offset : offset + count]

        return ranges


MakeImage = Callable[..., Image]


@pytest.fixture
def image() -> MakeImage:
    """Makes an image from contents by path; parents come by themselves.

    links are hard links by path, stats the metadata of some paths.
    """

    def make(
        contents: Mapping[str, Content],
        links: Mapping[str, str] | None = None,
        stats: Mapping[str, Stat] | None = None,
    ) -> Image:
        made = Image(Tree(Algorithm.SHA256))
        inodes = {"": ROOT}
        stats = stats or {}
        made.tree.set_stat(ROOT, stats.get("/", STAT))
        for path, content in contents.items():
            _insert(made, inodes, path, _inode(made, content, stats.get(path, STAT)))
        for path, target in (links or {}).items():
            _insert(made, inodes, path, inodes[target])
        made.tree.freeze()
        return made

    return make


def _insert(made: Image, inodes: dict[str, int], path: str, inode: int) -> None:
    parent, _, name = path.rpartition("/")
    if parent not in inodes:
        _insert(made, inodes, parent, made.tree.add_directory(STAT))
    inodes[path] = inode
    made.tree.insert(inodes[parent], name.encode("utf-8", "surrogateescape"), inode)


def _inode(made: Image, content: Content, stat: Stat) -> int:
    tree = made.tree
    match content:
        case None:
            return tree.add_directory(stat)
        case str():
            return tree.add_symlink(stat, content.encode())
        case Kind():
            return tree.add_special(content, stat)
        case int():
            return tree.add_sparse(stat, content)
    if len(content) <= 64:
        return tree.add_inline(stat, content)
    digest = verity.compute(content, tree.algorithm).digest
    made.objects[digest] = content
    return tree.add_external(stat, len(content), digest)


MakePe = Callable[..., bytes]


@pytest.fixture
def pe() -> MakePe:
    """Makes a PE file from sections: name and content, each at an aligned place of its own."""

    def make(
        sections: Sequence[tuple[bytes, bytes]],
        *,
        machine: int = 0x8664,
        magic: int = 0x20B,
        certificates: bytes = b"",
    ) -> bytes:
        directories = 16
        optional_bytes = (112 if magic == 0x20B else 96) + 8 * directories
        headers = 64 + 24 + optional_bytes + 40 * len(sections)
        at = -headers % 512 + headers
        table, contents = b"", b""
        for name, content in sections:
            raw = -len(content) % 512 + len(content)
            table += pack("<8sIIII16x", name, len(content), 0x1000, raw, at + len(contents))
            contents += content.ljust(raw, b"\0")
        entries = [(0, 0)] * directories
        if certificates:
            entries[4] = at + len(contents), len(certificates)
        optional = pack("<H", magic).ljust(optional_bytes - 8 * directories - 4, b"\0") + pack("<I", directories)
        optional += b"".join(pack("<II", *entry) for entry in entries)
        dos = b"MZ".ljust(0x3C, b"\0") + pack("<I", 64)
        coff = pack("<4sHH12xHH", b"PE\0\0", machine, len(sections), optional_bytes, 0x22)
        return (dos + coff + optional + table).ljust(at, b"\0") + contents + certificates

    return make
