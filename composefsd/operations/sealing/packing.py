"""A root directory as the tar of one layer.

The same directory always gives the same bytes: names are sorted, owners are numbers, and a time is that of the last
change with its nanoseconds.  Of the extended attributes those are kept that composefs images may have: file
capabilities and `user.*`.  What a layer cannot hold is refused, never left out.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from composefsd.digests import Algorithm
from composefsd.errors import FormatError
from composefsd.linux.oserrors import translated
from composefsd.linux.scan import scan
from composefsd.tree.pack import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    END,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Member,
    header,
    padding,
)
from composefsd.tree.table import REGULAR, Kind, Stat, Tree

_PIECE_BYTES: Final = 1 << 20
_WHITEOUT: Final = b".wh."
_KEPT: Final = b"security.capability"
_OTHERS: Final = {Kind.CHAR: CHAR, Kind.BLOCK: BLOCK_DEVICE, Kind.FIFO: FIFO}
_BENEATH: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack_directory(directory: Path) -> Iterator[bytes]:
    """The tar of a directory, which must not be a symbolic link, in pieces of at most 1 MiB.

    Raises FormatError for sockets, for names that would delete something, and for what changes meanwhile; also what
    `scan` raises.
    """
    nothing = bytes(Algorithm.SHA256.digest_bytes)  # what is in a file is read when its turn comes
    tree = scan(directory, Algorithm.SHA256, lambda _fd, _size: nothing)
    with translated(f"opening {directory}"):
        root = os.open(directory, _BENEATH | os.O_DIRECTORY)
    try:
        yield from _Packer(tree, root, directory).pieces()
    finally:
        os.close(root)


class _Packer:
    """Goes through a scanned directory in the order of names."""

    def __init__(self, tree: Tree, root: int, directory: Path) -> None:
        self._tree = tree
        self._root = root
        self._directory = directory
        self._first: dict[int, bytes] = {}

    def pieces(self) -> Iterator[bytes]:
        for path, entry, inode in self._tree.walk():
            if self._tree.name(entry).startswith(_WHITEOUT):
                raise FormatError(f"{self._show(path)}: in a layer this name would delete another one")
            relative = path[1:]
            if self._tree.kind[inode] == Kind.DIRECTORY:
                yield header(Member(relative, DIRECTORY, self._stat(inode)))
            elif (first := self._first.setdefault(inode, relative)) != relative:
                yield header(Member(relative, LINK, self._stat(inode), link=first))
            else:
                yield from self._leaf(relative, inode)
        yield END

    def _leaf(self, path: bytes, inode: int) -> Iterator[bytes]:
        tree, stat = self._tree, self._stat(inode)
        kind = Kind(tree.kind[inode])
        if kind in REGULAR:
            yield header(Member(path, FILE, stat, tree.size[inode]))
            yield from self._content(path, inode)
            yield padding(tree.size[inode])
        elif kind is Kind.SYMLINK:
            yield header(Member(path, SYMLINK, stat, link=tree.text(inode)))
        elif kind in _OTHERS:
            rdev = 0 if kind is Kind.FIFO else tree.size[inode]
            yield header(Member(path, _OTHERS[kind], stat, rdev=rdev))
        else:
            raise FormatError(f"{self._show(path)} is a socket, which a layer cannot hold")

    def _content(self, path: bytes, inode: int) -> Iterator[bytes]:
        if self._tree.kind[inode] == Kind.INLINE:
            yield self._tree.text(inode)
            return
        left, fd = self._tree.size[inode], self._open(path)
        try:
            while piece := self._read(fd, path):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        finally:
            os.close(fd)
        if left:
            raise FormatError(f"{self._show(path)} changed while it was read", subject=self._show(path))

    def _open(self, path: bytes) -> int:
        """A file beneath the root; no component is followed if it is a link by now."""
        *parents, name = path.split(b"/")
        with translated(f"opening {self._show(path)}"):
            directory = self._root
            try:
                for parent in parents:
                    inner = os.open(parent, _BENEATH | os.O_DIRECTORY, dir_fd=directory)
                    if directory != self._root:
                        os.close(directory)
                    directory = inner
                return os.open(name, _BENEATH | os.O_NONBLOCK, dir_fd=directory)
            finally:
                if directory != self._root:
                    os.close(directory)

    def _read(self, fd: int, path: bytes) -> bytes:
        with translated(f"reading {self._show(path)}"):
            return os.read(fd, _PIECE_BYTES)

    def _stat(self, inode: int) -> Stat:
        stat = self._tree.stat(inode)
        kept = tuple(pair for pair in stat.xattrs if pair[0] == _KEPT or pair[0].startswith(b"user."))
        return Stat(stat.mode, stat.uid, stat.gid, stat.mtime, stat.nsec, kept)

    def _show(self, path: bytes) -> str:
        return str(self._directory / os.fsdecode(path).lstrip("/"))
