"""A directory of the host as a tree, the way composefs-rs scans one.

Nothing is looked up by a path: every name is opened without following it (O_PATH, which does not even touch devices),
asked what it is, and then read through that very descriptor.  So a directory that changes under the scan gives an
error or another tree, but never something from outside.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.linux.oserrors import translate
from composefsd.tree.layer import INLINE_BYTES
from composefsd.tree.table import ROOT, Kind, Stat, Tree, XattrSet
from composefsd.verity import compute_file

Store = Callable[[int, int], bytes]
"""Takes a descriptor that reads a file and the file's size, stores the content, and answers with its raw digest."""

MAX_DEPTH: Final = 500
"""Every level keeps a descriptor open, of which a process has 1024 unless it asked for more."""

_NOFOLLOW: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = {
    stat.S_IFCHR: Kind.CHAR, stat.S_IFBLK: Kind.BLOCK, stat.S_IFIFO: Kind.FIFO, stat.S_IFSOCK: Kind.SOCKET,
}  # fmt: skip
_SECOND: Final = 1_000_000_000


def scan(directory: Path, algorithm: Algorithm, store: Store | None = None) -> Tree:
    """The frozen tree below `directory`, which must not be a symbolic link.

    Files of more than 64 bytes go through `store`, or if there is none only have their digest computed.  Names that
    share an inode are hard links, whatever its link count says: fuse-overlayfs gets that wrong.  Raises FormatError
    for a file that changes meanwhile, LimitExceededError for directories too deep, and what `translate` makes of an
    OSError.
    """
    scanner = _Scanner(algorithm, store)
    try:
        scanner.run(os.open(directory, _NOFOLLOW | os.O_DIRECTORY))
    except OSError as error:
        path = directory / scanner.path
        raise translate(error, f"scanning {path}", subject=str(path)) from error
    scanner.tree.freeze()
    return scanner.tree


def _read_xattrs(fd: int) -> XattrSet:
    """Symbolic links and devices included: /proc leads to what `fd` has open, and O_PATH allows no other way."""
    path = f"/proc/self/fd/{fd}"
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    return tuple(sorted((os.fsencode(name), os.getxattr(path, name)) for name in names))


def _make_stat(fd: int, info: os.stat_result) -> Stat:
    mtime, nsec = divmod(info.st_mtime_ns, _SECOND)
    return Stat(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, mtime, nsec, _read_xattrs(fd))


def _list(fd: int) -> list[str]:
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(readable) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(readable)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory that is being scanned: its descriptor, name and inode, and the names that are left in it."""

    fd: int
    name: str
    inode: int
    left: Iterator[str]


class _Scanner:
    """Walks down with a stack of open directories."""

    def __init__(self, algorithm: Algorithm, store: Store | None) -> None:
        self.tree = Tree(algorithm)
        self._name = ""
        self._store = store or (lambda fd, _size: compute_file(fd, algorithm).digest)
        self._inodes: dict[tuple[int, int], int] = {}
        self._levels: list[_Level] = []

    @property
    def path(self) -> str:
        """What the scan looks at, or had trouble with, relative to where it began."""
        return "/".join((*(level.name for level in self._levels[1:]), self._name))

    def run(self, root: int) -> None:
        """Scan the directory that `root` has open, and close it."""
        try:
            self._levels.append(_Level(root, "", ROOT, iter(())))
            self.tree.set_stat(ROOT, _make_stat(root, os.fstat(root)))
            self._levels[0] = _Level(root, "", ROOT, iter(_list(root)))
            while self._levels:
                name = next(self._levels[-1].left, None)
                if name is None:
                    os.close(self._levels.pop().fd)
                else:
                    self._scan_name(self._levels[-1], name)
        finally:
            for level in self._levels:
                os.close(level.fd)

    def _scan_name(self, level: _Level, name: str) -> None:
        self._name = name
        fd = os.open(name, _NOFOLLOW, dir_fd=level.fd)
        try:
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                inode = self.tree.add_directory(_make_stat(fd, info))
                self._descend(_Level(fd, name, inode, iter(_list(fd))))
                fd = -1  # the stack will close it
            else:
                inode = self._scan_leaf(fd, info)
            self.tree.insert(level.inode, os.fsencode(name), inode)
        finally:
            if fd >= 0:
                os.close(fd)

    def _descend(self, level: _Level) -> None:
        if len(self._levels) >= MAX_DEPTH:
            raise LimitExceededError(f"more than {MAX_DEPTH} levels of directories: {self.path}", subject=self.path)
        self._levels.append(level)

    def _scan_leaf(self, fd: int, info: os.stat_result) -> int:
        key = info.st_dev, info.st_ino
        inode = self._inodes.get(key)
        if inode is None:
            inode = self._inodes[key] = self._add_leaf(fd, info)
        return inode

    def _add_leaf(self, fd: int, info: os.stat_result) -> int:
        made = _make_stat(fd, info)
        if stat.S_ISREG(info.st_mode):
            return self._add_file(fd, info, made)
        if stat.S_ISLNK(info.st_mode):
            return self.tree.add_symlink(made, os.readlink(b"", dir_fd=fd))
        kind = _SPECIAL[stat.S_IFMT(info.st_mode)]
        return self.tree.add_special(kind, made, info.st_rdev if kind in (Kind.CHAR, Kind.BLOCK) else 0)

    def _add_file(self, fd: int, info: os.stat_result, made: Stat) -> int:
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if info.st_size > INLINE_BYTES:
                digest = self._store(readable, info.st_size)
                self._check_unchanged(readable, info)
                return self.tree.add_external(made, info.st_size, digest)
            content = os.pread(readable, INLINE_BYTES + 1, 0)
            self._check_unchanged(readable, info, len(content))
            return self.tree.add_inline(made, content)
        finally:
            os.close(readable)

    def _check_unchanged(self, fd: int, before: os.stat_result, size: int | None = None) -> None:
        after = os.fstat(fd)
        read = before.st_size if size is None else size
        if (read, after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
            raise FormatError(f"{self.path} changed while it was read", subject=self.path)
