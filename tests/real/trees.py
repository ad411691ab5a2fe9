"""Trees for comparisons, made by hypothesis, and their text.

No whiteout has two names, and no directory more than one; the rest is as varied as images can be.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from hypothesis import strategies as st
from real.tree_fields import (
    CONTENTS,
    DEVICES,
    FILE_SIZES,
    MANY_XATTRS,
    NAMES,
    STATS,
    TARGETS,
    TWO_DIGITS,
    XATTRS,
    around,
    numbers,
)

from composefsd.digests import Algorithm
from composefsd.tree import dumpfile
from composefsd.tree.table import ROOT, Kind, Stat, Tree

_ENTRY_BYTES: Final = 12
_DOTS_BYTES: Final = 2 * _ENTRY_BYTES + 3
_STUBS_BYTES: Final = 256 * (_ENTRY_BYTES + 2)


class _Growing:
    """A tree, and what its next entries may refer to."""

    def __init__(self, draw: st.DrawFn, algorithm: Algorithm) -> None:
        self.tree = Tree(algorithm)
        self._draw = draw
        self._stats = draw(st.lists(STATS, min_size=1, max_size=3))
        self._digests = [bytes([byte]) * algorithm.digest_bytes for byte in (0, 0x5A, 0xFF)]
        self._directories, self._leaves = [ROOT], list[int]()
        self.tree.set_stat(ROOT, self._stat())

    def grow(self) -> None:
        """Add something."""
        self._draw(st.sampled_from(self._steps()))()

    def _steps(self) -> list[Callable[[], None]]:
        return [
            self._add_directory, self._add_directory, self._add_external, self._add_external, self._add_inline,
            self._add_symlink, self._add_symlink, self._add_special, self._add_link, self._add_link,
            self._add_whiteout, self._fill, self._add_chain, self._add_alike,
        ]  # fmt: skip

    def _stat(self) -> Stat:
        choice = self._draw(st.integers(0, len(self._stats) + 1))
        return self._stats[choice] if choice < len(self._stats) else self._draw(STATS)

    def _slim_stat(self) -> Stat:
        """For what comes in hundreds."""
        stat = self._draw(st.sampled_from(self._stats))
        short = tuple((name, value[:32]) for name, value in stat.xattrs)
        return Stat(stat.mode, stat.uid, stat.gid, stat.mtime, stat.nsec, short)

    def _insert(self, inode: int, name: bytes | None = None, directory: int | None = None) -> bool:
        """Give an inode a name, unless something else has it."""
        if directory is None:
            directory = self._draw(st.sampled_from(self._directories))
        if name is None:
            name = self._draw(NAMES)
        if self.tree.lookup(directory, name) is not None:
            return False
        self.tree.insert(directory, name, inode)
        return True

    def _insert_leaf(self, inode: int) -> None:
        if self._insert(inode):
            self._leaves.append(inode)

    def _add_directory(self) -> None:
        inode = self.tree.add_directory(self._stat())
        if self._insert(inode):
            self._directories.append(inode)

    def _add_external(self) -> None:
        digest = self._draw(st.sampled_from(self._digests) | st.integers(1, 0xFFFF_FFFF).map(self._digest))
        kind = self._draw(st.sampled_from([Kind.EXTERNAL, Kind.EXTERNAL, Kind.UNVERIFIED]))
        self._insert_leaf(self.tree.add_external(self._stat(), self._draw(FILE_SIZES), digest, kind))

    def _digest(self, number: int) -> bytes:
        return number.to_bytes(4, "little") * (self.tree.algorithm.digest_bytes // 4)

    def _add_inline(self) -> None:
        if self._draw(st.booleans()):
            self._insert_leaf(self.tree.add_inline(self._stat(), self._draw(CONTENTS)))
        else:
            self._insert_leaf(self.tree.add_sparse(self._stat(), self._draw(FILE_SIZES) or 1))

    def _add_symlink(self) -> None:
        self._insert_leaf(self.tree.add_symlink(self._stat(), self._draw(TARGETS)))

    def _add_special(self) -> None:
        kind = self._draw(st.sampled_from([Kind.CHAR, Kind.BLOCK, Kind.FIFO, Kind.SOCKET]))
        device = self._draw(DEVICES) if kind in (Kind.CHAR, Kind.BLOCK) else 0
        self._insert_leaf(self.tree.add_special(kind, self._stat(), device))

    def _add_link(self) -> None:
        if self._leaves:
            self._insert(self._draw(st.sampled_from(self._leaves)))

    def _add_whiteout(self) -> None:
        """Anywhere, or in the root like a stub."""
        if self._draw(st.integers(0, 3)):
            self._insert(self.tree.add_special(Kind.CHAR, self._stat()))
            return
        root = self.tree.stat(ROOT)
        label = tuple(pair for pair in root.xattrs if pair[0] == b"security.selinux")
        stat = Stat(self._draw(st.sampled_from([0o644, 0o600])), root.uid, root.gid, root.mtime, root.nsec, label)
        self._insert(self.tree.add_special(Kind.CHAR, stat), self._draw(TWO_DIGITS), ROOT)

    def _fill(self) -> None:
        """Many names in one directory, so that its entries take as many bytes as a boundary has, or nearly."""
        directory = self._draw(st.sampled_from(self._directories))
        size = self._draw(st.sampled_from([1, 5, 20, 100, 250]))
        whole = self._draw(st.sampled_from([*around(2048, 4096, 6144, 8192), 2046, 4098])) - _DOTS_BYTES
        if directory == ROOT and self._draw(st.booleans()):
            whole += 4096 - _STUBS_BYTES
        stat, number = self._slim_stat(), 0
        inode = self.tree.add_inline(stat, b"")
        while whole >= _ENTRY_BYTES + 4:
            name = b"%03d" % number + b"m" * min(size, whole - _ENTRY_BYTES - 3, 252)
            if self._insert(inode, name, directory):
                whole -= _ENTRY_BYTES + len(name)
            number += 1
            if number % 7 == 0:
                inode = self.tree.add_inline(stat, b"")

    def _add_chain(self) -> None:
        """Directories in each other."""
        depth, stat = self._draw(numbers([1, 2, 60], 60)), self._slim_stat()
        directory, name = self._directories[-1], self._draw(NAMES)[:20]
        for _ in range(depth):
            inner = self.tree.add_directory(stat)
            if not self._insert(inner, b"c" + name, directory):
                return
            directory = inner
        self._directories.append(directory)

    def _add_alike(self) -> None:
        """Some files with the same attributes, maybe more than can be shared, and files that have some of them."""
        xattrs, stat = self._draw(MANY_XATTRS | XATTRS), self._stat()
        directory = self._draw(st.sampled_from(self._directories))
        for number in range(self._draw(st.integers(1, 3))):
            some = xattrs[number * 40 :] if number == 2 else xattrs
            alike = Stat(stat.mode, stat.uid, stat.gid, stat.mtime, stat.nsec, some)
            if number == 1:
                inode = self.tree.add_external(alike, 5, self._digests[1])
            else:
                inode = self.tree.add_inline(alike, b"x" * number)
            self._insert(inode, b"alike-%d" % number, directory)


@st.composite
def trees(draw: st.DrawFn, algorithm: Algorithm = Algorithm.SHA512, largest: int = 10) -> Tree:
    """A frozen tree of up to `largest` steps, each of which adds an entry or a few hundred."""
    growing = _Growing(draw, algorithm)
    for _ in range(draw(st.integers(0, largest))):
        growing.grow()
    growing.tree.freeze()
    return growing.tree


def with_algorithm(tree: Tree, algorithm: Algorithm) -> Tree:
    """The same tree with digests of SHA-256, which are the first half of those of SHA-512."""
    if tree.algorithm is algorithm:
        return tree
    width, wanted = tree.algorithm.digest_bytes, algorithm.digest_bytes
    copy = tree.fork()
    copy.algorithm = algorithm
    copy.digests = bytearray(b"".join(tree.digests[at : at + wanted] for at in range(0, len(tree.digests), width)))
    return copy


def dump(tree: Tree, order: int = 0) -> bytes:
    """The text of a tree, unlike ours with unverified files as such; siblings in a random order if `order` is not 0.

    The first line of a file with several names is the one in full: which of them it is depends on the order.
    """
    lines = list(dumpfile.serialize(tree))
    found = [(path, inode) for path, _, inode in tree.walk()]
    bodies: dict[int, bytes] = {}
    for (_, inode), line in zip(found, lines[1:], strict=True):
        body = line.split(b" ", 1)[1]
        if tree.kind[inode] == Kind.UNVERIFIED and inode not in bodies:
            fields = body.split(b" ")
            fields[9] = b"-\n" if fields[9].endswith(b"\n") else b"-"
            body = b" ".join(fields)
        bodies.setdefault(inode, body)
    escaped = {path: line.split(b" ", 1)[0] for (path, _), line in zip(found, lines[1:], strict=True)}
    if order:
        found = _shuffled(found, Random(order))
    written, text = dict[int, bytes](), [lines[0]]
    for path, inode in found:
        if inode in written:
            text.append(b"%s 0 @120000 - - - - 0.0 %s - -\n" % (escaped[path], written[inode]))
        else:
            text.append(b"%s %s" % (escaped[path], bodies[inode]))
            written[inode] = escaped[path]
    return b"".join(text)


def _shuffled(found: list[tuple[bytes, int]], random: Random) -> list[tuple[bytes, int]]:
    """Depth first as before, and so parents first, but siblings in any order."""
    places: dict[bytes, tuple[float, ...]] = {b"": ()}
    for path, _ in found:
        places[path] = (*places[path.rpartition(b"/")[0]], random.random())
    return sorted(found, key=lambda entry: places[entry[0]])
