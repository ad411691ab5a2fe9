"""Two frozen trees, name by name: what one has and the other has not, and what differs of what both have.

Both are walked at once, depth first in the order of names, so the differences come in the order of a dumpfile and no
index of either tree is made.  Beside the trees that takes twelve bytes for an inode, whatever differs.

Hard links are compared by what they lead to, not by their count: of two names that both trees have, either both trees
give them one inode or neither does.  Each pair of inodes is compared once, at its first name.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from composefsd.tree.table import FILE_TYPE, NONE, REGULAR, ROOT, Kind, Tree, XattrSet

_PERMISSIONS: Final = 0o7777
_DIRECTORY: Final = int(Kind.DIRECTORY)
_REMEMBERED: Final = 4096
_DEVICES: Final = frozenset((Kind.CHAR, Kind.BLOCK))
_WITH_DIGEST: Final = frozenset(map(int, (Kind.EXTERNAL, Kind.UNVERIFIED)))  # members of enums are slow to hash
_WITH_TEXT: Final = frozenset(map(int, (Kind.INLINE, Kind.SYMLINK)))


class Side(StrEnum):
    """Which of the two trees."""

    A = "a"
    B = "b"


class Aspect(StrEnum):
    """What of a name can change, in the order in which it is told."""

    TYPE = "type"  # Kind; what else both have is compared all the same
    MODE = "mode"  # permission bits
    UID = "uid"
    GID = "gid"
    MTIME = "mtime"  # seconds and nanoseconds
    DEVICE = "rdev"  # Linux's device number
    SIZE = "size"  # bytes of a regular file
    STORAGE = "storage"  # Kind of a regular file: in the image, an object, an object without digest, zeros
    DIGEST = "digest"  # raw digest of an object; compared only if both trees have the same algorithm
    CONTENT = "content"  # bytes of a file that lies in the image
    TARGET = "target"
    XATTR = "xattr"  # value; the change has the name of the attribute, too
    LINK = "link"  # an earlier name of the same inode


Value: TypeAlias = "Kind | int | bytes | tuple[int, int] | None"
"""What an aspect is on one side; None if there is nothing such."""


@dataclass(frozen=True, slots=True)
class Change:
    """An aspect that differs; name is that of an extended attribute."""

    aspect: Aspect
    a: Value
    b: Value
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Only:
    """A name that one side has; below counts names in it that are not told one by one.

    size is that of a regular file in bytes, link an earlier name of the same inode.
    """

    path: bytes
    side: Side
    kind: Kind
    size: int
    below: int
    link: bytes | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A name that both sides have, with at least one change.

    below counts the names in it that are not told one by one, where only one side has a directory.
    """

    path: bytes
    changes: tuple[Change, ...]
    below: int = 0


Difference: TypeAlias = Only | Changed


def compare(a: Tree, b: Tree, *, expand: bool = False) -> Iterator[Difference]:
    """The differences, in the order of a depth-first walk; nothing for trees that are the same.

    A directory that only one side has is one difference that counts the names in it, unless `expand` wants them all.
    """
    return _Comparison(a, b, expand=expand).run()


class _Half:
    """One of the trees, and what is known of it so far.

    partner and first are columns of inodes: the other tree's inode of the same first name, and the entry of the first
    name; leads is a column of listings: the entry of the directory.
    """

    def __init__(self, tree: Tree, side: Side) -> None:
        self.tree, self.side = tree, side
        self.partner = array("I", [NONE]) * len(tree.kind)
        self.first = array("I", [NONE]) * len(tree.kind)
        self._leads = array("I", [NONE]) * (max(tree.listing) + 1)

    def enter(self, entry: int) -> None:
        """Go into a directory."""
        self._leads[self.tree.listing[self.tree.child[entry]]] = entry

    def meet(self, entry: int) -> int:
        """Come to a name of something that is no directory; answers with the first entry of its inode, or NONE."""
        inode = self.tree.child[entry]
        first = self.first[inode]
        if first == NONE:
            self.first[inode] = entry
        return first

    def path(self, entry: int) -> bytes:
        """The path of an entry that was come to; made when it is asked for, as few are told."""
        names = []
        while entry != NONE:
            names.append(self.tree.name(entry))
            entry = self._leads[self.tree.parent[entry]]
        return b"/" + b"/".join(reversed(names))

    def link(self, first: int) -> bytes | None:
        """The path of the first entry of an inode, if there is one."""
        return None if first == NONE else self.path(first)

    def below(self, directory: int) -> Iterator[tuple[int, int]]:
        """Come to everything in a directory: entry, and the first entry of its inode, or NONE."""
        tree = self.tree
        pending = [iter(tree.entries(directory))]
        while pending:
            for entry in pending[-1]:
                inode = tree.child[entry]
                if tree.kind[inode] == _DIRECTORY:
                    self.enter(entry)
                    yield entry, NONE
                    pending.append(iter(tree.entries(inode)))
                    break
                yield entry, self.meet(entry)
            else:
                pending.pop()


_Pair = tuple[int, int]
"""The entries of a name on each side, or NONE."""


class _Comparison:
    def __init__(self, a: Tree, b: Tree, *, expand: bool) -> None:
        self._a, self._b, self._expand = _Half(a, Side.A), _Half(b, Side.B), expand
        self._same_algorithm = a.algorithm is b.algorithm
        self._same_xattrs: dict[tuple[int, int], bool] = {}

    def run(self) -> Iterator[Difference]:
        if changes := self._compare_stat(ROOT, ROOT):
            yield Changed(b"/", tuple(changes))
        pending = [self._pairs(ROOT, ROOT)]
        while pending:
            for one, other in pending[-1]:
                if one == NONE:
                    yield from self._only(self._b, other)
                elif other == NONE:
                    yield from self._only(self._a, one)
                elif self._enter_both(one, other):
                    a, b = self._a.tree.child[one], self._b.tree.child[other]
                    if changes := self._compare_stat(a, b):
                        yield Changed(self._a.path(one), tuple(changes))
                    pending.append(self._pairs(a, b))
                    break
                elif not self._is_settled(one, other):
                    yield from self._compare_leaf(one, other)
            else:
                pending.pop()

    def _pairs(self, a: int, b: int) -> Iterator[_Pair]:
        """The names of two directories, merged."""
        entries_a, entries_b = self._a.tree.entries(a), self._b.tree.entries(b)
        names_a, names_b = list(map(self._a.tree.name, entries_a)), list(map(self._b.tree.name, entries_b))
        if names_a == names_b:  # nearly always
            return zip(entries_a, entries_b, strict=True)
        return _merge(names_a, entries_a, names_b, entries_b)

    def _enter_both(self, one: int, other: int) -> bool:
        """Go into a directory of both sides; False if it is none on one of them."""
        a, b = self._a.tree, self._b.tree
        if a.kind[a.child[one]] != _DIRECTORY or b.kind[b.child[other]] != _DIRECTORY:
            return False
        self._a.enter(one)
        self._b.enter(other)
        return True

    # Names on one side

    def _only(self, half: _Half, entry: int) -> Iterator[Difference]:
        inode = half.tree.child[entry]
        if half.tree.kind[inode] != _DIRECTORY:
            yield _only(half, entry, half.meet(entry))
            return
        half.enter(entry)
        below = 0 if self._expand else self._count_below(half, inode)
        yield _only(half, entry, NONE, below)
        if self._expand:
            yield from self._all_below(half, inode)

    def _count_below(self, half: _Half, directory: int) -> int:
        return sum(1 for _ in half.below(directory))

    def _all_below(self, half: _Half, directory: int) -> Iterator[Difference]:
        for entry, first in half.below(directory):
            yield _only(half, entry, first)

    # Names on both sides

    def _have_same_xattrs(self, a: int, b: int) -> bool:
        """Whether two sets of extended attributes are the same; a tree has few, so the answers are remembered."""
        known = self._same_xattrs.get((a, b))
        if known is None:
            if len(self._same_xattrs) >= _REMEMBERED:
                self._same_xattrs.clear()
            known = self._same_xattrs[a, b] = self._a.tree.xattr_sets[a] == self._b.tree.xattr_sets[b]
        return known

    def _is_settled(self, one: int, other: int) -> bool:
        """Whether there is nothing to tell of two entries of files: the fast way for nearly all of them."""
        half_a, half_b = self._a, self._b
        a, b = half_a.tree.child[one], half_b.tree.child[other]
        if half_a.first[a] != NONE or half_b.first[b] != NONE:
            return half_a.partner[a] == b and half_b.partner[b] == a
        if not self._are_alike(a, b):
            return False
        half_a.first[a], half_b.first[b] = one, other
        half_a.partner[a], half_b.partner[b] = b, a
        return True

    def _are_alike(self, a: int, b: int) -> bool:
        """Whether two inodes surely do not differ."""
        one, other = self._a.tree, self._b.tree
        kind = one.kind[a]
        if (
            kind != other.kind[b]
            or one.mode[a] != other.mode[b]
            or one.uid[a] != other.uid[b]
            or one.gid[a] != other.gid[b]
            or one.mtime[a] != other.mtime[b]
            or one.nsec[a] != other.nsec[b]
            or one.size[a] != other.size[b]
        ):
            return False
        same = self._have_same_xattrs(one.xattrs[a], other.xattrs[b])
        if kind in _WITH_TEXT:
            return same and one.text(a) == other.text(b)
        if kind in _WITH_DIGEST:
            return same and (not self._same_algorithm or one.digest(a) == other.digest(b))
        return same

    def _compare_leaf(self, one: int, other: int) -> Iterator[Difference]:
        """Two entries of which at most one is a directory."""
        a, b = self._a.tree.child[one], self._b.tree.child[other]
        if self._a.tree.kind[a] == _DIRECTORY:
            self._b.meet(other)
            yield from self._replaced(self._a, one, self._compare(a, b))
            return
        if self._b.tree.kind[b] == _DIRECTORY:
            self._a.meet(one)
            yield from self._replaced(self._b, other, self._compare(a, b))
            return
        first_a, first_b = self._a.meet(one), self._b.meet(other)
        partner_a, partner_b = self._a.partner[a], self._b.partner[b]
        if partner_a == b and partner_b == a:
            return
        changes = self._compare(a, b)
        if partner_a == NONE:
            self._a.partner[a] = b
        if partner_b == NONE:
            self._b.partner[b] = a
        if (partner_a, partner_b) != (NONE, NONE):
            changes.append(Change(Aspect.LINK, self._a.link(first_a), self._b.link(first_b)))
        if changes:
            yield Changed(self._a.path(one), tuple(changes))

    def _replaced(self, half: _Half, entry: int, changes: Sequence[Change]) -> Iterator[Difference]:
        """A directory on one side, something else on the other."""
        half.enter(entry)
        directory = half.tree.child[entry]
        below = 0 if self._expand else self._count_below(half, directory)
        yield Changed(half.path(entry), tuple(changes), below)
        if self._expand:
            yield from self._all_below(half, directory)

    def _compare(self, a: int, b: int) -> list[Change]:
        """What differs of two inodes."""
        one, other = self._a.tree, self._b.tree
        kind_a, kind_b = Kind(one.kind[a]), Kind(other.kind[b])
        changes = self._compare_stat(a, b)
        if FILE_TYPE[kind_a] != FILE_TYPE[kind_b]:
            return [Change(Aspect.TYPE, kind_a, kind_b), *changes]
        if kind_a in REGULAR:
            changes += self._compare_files(a, b, kind_a, kind_b)
        elif kind_a == Kind.SYMLINK and one.text(a) != other.text(b):
            changes.append(Change(Aspect.TARGET, one.text(a), other.text(b)))
        elif kind_a in _DEVICES and one.size[a] != other.size[b]:
            changes.append(Change(Aspect.DEVICE, one.size[a], other.size[b]))
        return sorted(changes, key=_rank)

    def _compare_stat(self, a: int, b: int) -> list[Change]:
        one, other = self._a.tree, self._b.tree
        changes = []
        if mode := (one.mode[a] ^ other.mode[b]) & _PERMISSIONS:
            kept = one.mode[a] & _PERMISSIONS
            changes.append(Change(Aspect.MODE, kept, kept ^ mode))
        if one.uid[a] != other.uid[b]:
            changes.append(Change(Aspect.UID, one.uid[a], other.uid[b]))
        if one.gid[a] != other.gid[b]:
            changes.append(Change(Aspect.GID, one.gid[a], other.gid[b]))
        times = (one.mtime[a], one.nsec[a]), (other.mtime[b], other.nsec[b])
        if times[0] != times[1]:
            changes.append(Change(Aspect.MTIME, *times))
        xattrs = one.xattr_sets[one.xattrs[a]], other.xattr_sets[other.xattrs[b]]
        if xattrs[0] != xattrs[1]:
            changes += _compare_xattrs(*xattrs)
        return changes

    def _compare_files(self, a: int, b: int, kind_a: Kind, kind_b: Kind) -> Iterator[Change]:
        one, other = self._a.tree, self._b.tree
        if one.size[a] != other.size[b]:
            yield Change(Aspect.SIZE, one.size[a], other.size[b])
        if kind_a != kind_b:
            yield Change(Aspect.STORAGE, kind_a, kind_b)
        digests = _digest(one, a), _digest(other, b)
        if digests[0] != digests[1] and (self._same_algorithm or None in digests):
            yield Change(Aspect.DIGEST, digests[0], digests[1])
        contents = _content(one, a), _content(other, b)
        if contents[0] != contents[1]:
            yield Change(Aspect.CONTENT, contents[0], contents[1])


def _digest(tree: Tree, inode: int) -> bytes | None:
    return tree.digest(inode) if tree.kind[inode] in _WITH_DIGEST else None


def _content(tree: Tree, inode: int) -> bytes | None:
    return tree.text(inode) if tree.kind[inode] == Kind.INLINE else None


_ORDER: Final = {aspect: number for number, aspect in enumerate(Aspect)}


def _rank(change: Change) -> tuple[int, bytes]:
    return _ORDER[change.aspect], change.name


def _merge(
    names_a: Sequence[bytes], entries_a: Sequence[int], names_b: Sequence[bytes], entries_b: Sequence[int]
) -> Iterator[_Pair]:
    at = to = 0
    while at < len(names_a) and to < len(names_b):
        one, other = names_a[at], names_b[to]
        yield (entries_a[at] if one <= other else NONE), (entries_b[to] if other <= one else NONE)
        at, to = at + (one <= other), to + (other <= one)
    yield from ((entry, NONE) for entry in entries_a[at:])
    yield from ((NONE, entry) for entry in entries_b[to:])


def _compare_xattrs(a: XattrSet, b: XattrSet) -> Iterator[Change]:
    one, other = dict(a), dict(b)
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield Change(Aspect.XATTR, one.get(name), other.get(name), name)


def _only(half: _Half, entry: int, first: int, below: int = 0) -> Only:
    tree, inode = half.tree, half.tree.child[entry]
    kind = Kind(tree.kind[inode])
    size = tree.size[inode] if kind in REGULAR else 0
    return Only(half.path(entry), half.side, kind, size, below, half.link(first))
