"""A filesystem tree as columns, about 122 bytes for an entry.

An *inode* is a row of the inode columns; inode 0 is the root.  An *entry* is a name in a directory; it is a row of
the entry columns and refers to an inode.  Two entries that share an inode are hard links.  There is no object for a
file: trees of several hundred thousand files are merged, transformed and written as images within tens of megabytes.

A tree is *open* at first: entries come and go through a hash index.  `freeze` drops the index, sorts every directory
by the bytes of its names, and opens the reading half: `entries`, `find`, `walk`.  A frozen tree keeps its names, but
inodes can still get other metadata, directories can be emptied and hard links split; `fork` makes a copy for that.

Rows are never reused: inodes and entries that nothing reaches any more stay in the columns, unseen by the reading
half.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self, TypeAlias

from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import FormatError, LimitExceededError

ROOT: Final = 0
NONE: Final = 0xFFFF_FFFF
"""No inode: the child of an entry that was removed."""

_NO_ENTRIES: Final = 0
"""The listing of a directory that was emptied after the freeze, and of everything that is no directory."""

MAX_INODES: Final = 1 << 24
"""What a tree may hold; every inode and entry takes memory, and offsets into names have 32 bits."""

MAX_XATTRS: Final = 1 << 22
"""Extended attributes in all sets together, each set counted once: a tree takes some 100 bytes for each."""

MAX_NAME_BYTES: Final = 255
"""EROFS_NAME_LEN of the kernel, which refuses to list a directory with a longer name."""

_ROW_COLUMNS: Final = ("kind", "mode", "uid", "gid", "mtime", "nsec", "size", "payload", "xattrs")
_INODE_COLUMNS: Final = (*_ROW_COLUMNS, "listing")

Column: TypeAlias = "array[int]"  # in quotes, since Python 3.11 has no array[int] at run time

XattrSet = tuple[tuple[bytes, bytes], ...]
"""Extended attributes of an inode: full names and values, sorted by name, no name twice."""


class Kind(IntEnum):
    """What an inode is, and what its `size` and `payload` columns mean."""

    DIRECTORY = 0
    INLINE = 1  # regular file; payload: index in `texts`
    EXTERNAL = 2  # regular file in the object store; size, and payload: index of its digest
    UNVERIFIED = 3  # the same without a verity digest in the image: the digest only names the object
    SPARSE = 4  # regular file of zeros; size
    SYMLINK = 5  # payload: index of the target in `texts`
    CHAR = 6  # size: the device number, in Linux's encoding (`os.makedev`)
    BLOCK = 7
    FIFO = 8
    SOCKET = 9


FILE_TYPE: Final[tuple[int, ...]] = (
    0o040000, 0o100000, 0o100000, 0o100000, 0o100000, 0o120000, 0o020000, 0o060000, 0o010000, 0o140000,
)  # fmt: skip
"""S_IFMT bits of each Kind."""

REGULAR: Final = frozenset((Kind.INLINE, Kind.EXTERNAL, Kind.UNVERIFIED, Kind.SPARSE))


@dataclass(frozen=True, slots=True)
class Stat:
    """The metadata of one inode: permission bits, owner, mtime in seconds and nanoseconds, extended attributes.

    mode may hold more than the low 12 bits if its source did; images and comparisons mask it.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    xattrs: XattrSet = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Inodes to be added at once: columns of one length, each as the tree's column of that name.

    payload and xattrs already point into the tree that the rows are for.
    """

    kind: Column
    mode: Column
    uid: Column
    gid: Column
    mtime: Column
    nsec: Column
    size: Column
    payload: Column
    xattrs: Column


@dataclass(frozen=True, slots=True)
class Listings:
    """The directories of a frozen tree as columns, for those who walk without calls.  Nobody changes them.

    The entries of listing n are `order[first[n]:first[n + 1]]`; the name of entry n are the bytes of `names` from
    where that of entry n - 1 ends up to `name_end[n]`.
    """

    first: Column
    order: Column
    names: bytearray
    name_end: Column


class Tree:
    """A filesystem tree; starts with a root of mode 0 and nothing in it."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        # one row for an inode
        self.kind = array("B")
        self.mode = array("I")
        self.uid = array("I")
        self.gid = array("I")
        self.mtime = array("q")
        self.nsec = array("I")
        self.size = array("Q")
        self.payload = array("I")
        self.xattrs = array("I")
        self.listing = array("I")
        # what the rows refer to
        self.texts: list[bytes] = []
        self.digests = bytearray()
        self.xattr_sets: list[XattrSet] = [()]
        self._xattr_ids: dict[XattrSet, int] = {(): 0}
        self._xattr_count = 0
        # one row for an entry
        self.parent = array("I")
        self.child = array("I")
        self._names = bytearray()
        self._name_end = array("I")
        self._index: dict[bytes, int] | None = {}
        self._listings = 1
        # after the freeze: the entries of listing n are sorted[first[n]:first[n + 1]]
        self._first = array("I")
        self._sorted = array("I")
        self.add_directory(Stat(0, 0, 0, 0, 0))

    # Inodes

    def _add(self, kind: Kind, stat: Stat, size: int, payload: int) -> int:
        self.kind.append(kind)
        self.mode.append(stat.mode)
        self.uid.append(stat.uid)
        self.gid.append(stat.gid)
        self.mtime.append(stat.mtime)
        self.nsec.append(stat.nsec)
        self.size.append(size)
        self.payload.append(payload)
        self.xattrs.append(self.intern(stat.xattrs))
        self.listing.append(_NO_ENTRIES)
        return len(self.kind) - 1

    def add_text(self, text: bytes) -> int:
        """Add to `texts`; answers with the index there, which is the payload of inline files and symbolic links."""
        self.texts.append(text)
        return len(self.texts) - 1

    def add_directory(self, stat: Stat) -> int:
        """A new empty directory; answers with its inode."""
        inode = self._add(Kind.DIRECTORY, stat, 0, 0)
        self.listing[inode] = self._listings
        self._listings += 1
        return inode

    def add_inline(self, stat: Stat, content: bytes) -> int:
        """A regular file whose content lies in the image."""
        return self._add(Kind.INLINE, stat, len(content), self.add_text(content))

    def add_external(self, stat: Stat, size_bytes: int, digest: bytes, kind: Kind = Kind.EXTERNAL) -> int:
        """A regular file in the object store; kind is EXTERNAL or UNVERIFIED, digest has the tree's width."""
        width = self.algorithm.digest_bytes
        if len(digest) != width:
            raise FormatError(f"a digest of {len(digest)} bytes in a tree of {self.algorithm.value}")
        payload = len(self.digests) // width
        self.digests += digest
        return self._add(kind, stat, size_bytes, payload)

    def add_sparse(self, stat: Stat, size_bytes: int) -> int:
        """A regular file of zeros that has a size and nothing else."""
        return self._add(Kind.SPARSE, stat, size_bytes, 0)

    def add_symlink(self, stat: Stat, target: bytes) -> int:
        """A symbolic link."""
        return self._add(Kind.SYMLINK, stat, len(target), self.add_text(target))

    def add_special(self, kind: Kind, stat: Stat, rdev: int = 0) -> int:
        """A device, fifo or socket; rdev is Linux's device number."""
        return self._add(kind, stat, rdev, 0)

    def add_rows(self, rows: Rows) -> int:
        """Append many inodes at once, the directories among them empty; answers with the first one.

        Raises LimitExceededError if the tree would have more than MAX_INODES inodes.
        """
        first, count = len(self.kind), len(rows.kind)
        if first + count > MAX_INODES:
            raise LimitExceededError(f"the tree has more than {MAX_INODES} inodes", subject="inodes")
        for name in _ROW_COLUMNS:
            getattr(self, name).extend(getattr(rows, name))
        self.listing.extend(array("I", bytes(4 * count)))
        kinds = rows.kind.tobytes()
        at = kinds.find(Kind.DIRECTORY)
        while at >= 0:
            self.listing[first + at] = self._listings
            self._listings += 1
            at = kinds.find(Kind.DIRECTORY, at + 1)
        return first

    def stat(self, inode: int) -> Stat:
        """The metadata of an inode."""
        return Stat(
            self.mode[inode], self.uid[inode], self.gid[inode], self.mtime[inode], self.nsec[inode],
            self.xattr_sets[self.xattrs[inode]],
        )  # fmt: skip

    def set_stat(self, inode: int, stat: Stat) -> None:
        """Replace the metadata of an inode."""
        self.mode[inode], self.uid[inode], self.gid[inode] = stat.mode, stat.uid, stat.gid
        self.mtime[inode], self.nsec[inode] = stat.mtime, stat.nsec
        self.xattrs[inode] = self.intern(stat.xattrs)

    def copy_stat(self, source: int, target: int) -> None:
        """Give the inode `target` the metadata of the inode `source`."""
        for column in (self.mode, self.uid, self.gid, self.mtime, self.nsec, self.xattrs):
            column[target] = column[source]

    def intern(self, xattrs: XattrSet) -> int:
        """The index of a set of extended attributes in `xattr_sets`.

        Raises LimitExceededError if the sets of the tree have more than MAX_XATTRS attributes.
        """
        known = self._xattr_ids.get(xattrs)
        if known is None:
            self._xattr_count += len(xattrs)
            if self._xattr_count > MAX_XATTRS:
                raise LimitExceededError(f"the tree has more than {MAX_XATTRS} extended attributes", subject="xattrs")
            known = self._xattr_ids[xattrs] = len(self.xattr_sets)
            self.xattr_sets.append(xattrs)
        return known

    def text(self, inode: int) -> bytes:
        """The content of an inline file or the target of a symbolic link."""
        return self.texts[self.payload[inode]]

    def digest(self, inode: int) -> bytes:
        """The raw digest of an external file."""
        width = self.algorithm.digest_bytes
        start = self.payload[inode] * width
        return bytes(self.digests[start : start + width])

    def object_id(self, inode: int) -> ObjectId:
        """The object of an external file."""
        return ObjectId(self.digest(inode))

    # Entries of an open tree

    def _key(self, directory: int, name: bytes) -> bytes:
        return self.listing[directory].to_bytes(4, "little") + name

    def _open_index(self) -> dict[bytes, int]:
        assert self._index is not None, "the tree is frozen"
        return self._index

    def lookup(self, directory: int, name: bytes) -> int | None:
        """The inode of a name in a directory of an open tree."""
        entry = self._open_index().get(self._key(directory, name))
        return None if entry is None else self.child[entry]

    def insert(self, directory: int, name: bytes, inode: int) -> int | None:
        """Give `inode` a name, instead of whatever had that name before; answers with that."""
        index, listing = self._index, self.listing[directory]
        assert index is not None, "the tree is frozen"
        key = listing.to_bytes(4, "little") + name  # `_key`, without the call: this is the merge's hot path
        entry = index.get(key)
        if entry is not None:
            replaced = self.child[entry]
            self.child[entry] = inode
            return replaced
        names = self._names
        names += name
        index[key] = len(self.child)
        self.parent.append(listing)
        self.child.append(inode)
        self._name_end.append(len(names))
        return None

    def remove(self, directory: int, name: bytes) -> int | None:
        """Take a name away, if it is there; answers with the inode that had it."""
        entry = self._open_index().pop(self._key(directory, name), None)
        if entry is None:
            return None
        removed = self.child[entry]
        self.child[entry] = NONE
        return removed

    def clear(self, directory: int) -> None:
        """Empty a directory; in constant time, since it only gets another listing."""
        if self._index is None:
            self.listing[directory] = _NO_ENTRIES
        else:
            self.listing[directory] = self._listings
            self._listings += 1

    # Freezing and copying

    def freeze(self) -> None:
        """Sort every directory and end the changing of names."""
        self._index = None
        first = array("I", bytes(4 * (self._listings + 1)))
        for listing, child in zip(self.parent, self.child, strict=True):
            if child != NONE:
                first[listing + 1] += 1
        for listing in range(self._listings):
            first[listing + 1] += first[listing]
        at, order = array("I", first), array("I", bytes(4 * first[-1]))
        for entry, (listing, child) in enumerate(zip(self.parent, self.child, strict=True)):
            if child != NONE:
                order[at[listing]] = entry
                at[listing] += 1
        for listing in range(self._listings):
            start, end = first[listing], first[listing + 1]
            if end - start > 1:
                order[start:end] = array("I", sorted(order[start:end], key=self.name))
        self._first, self._sorted = first, order

    def fork(self) -> Self:
        """A copy of a frozen tree whose inodes and hard links can change without touching this one."""
        assert self._index is None, "only a frozen tree can be forked"
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        for column in (*_INODE_COLUMNS, "child"):
            setattr(copy, column, getattr(self, column)[:])
        copy.xattr_sets, copy._xattr_ids = list(self.xattr_sets), dict(self._xattr_ids)
        return copy

    # Entries of a frozen tree

    def name(self, entry: int) -> bytes:
        """The name of an entry."""
        start = self._name_end[entry - 1] if entry else 0
        return bytes(self._names[start : self._name_end[entry]])

    def listings(self) -> Listings:
        """All directories and names."""
        return Listings(self._first, self._sorted, self._names, self._name_end)

    def entries(self, directory: int) -> Sequence[int]:
        """The entries of a directory, sorted by the bytes of their names."""
        listing = self.listing[directory]
        return self._sorted[self._first[listing] : self._first[listing + 1]]

    def find_entry(self, directory: int, name: bytes) -> int | None:
        """The entry of a name in a directory of a frozen tree."""
        listing = self.listing[directory]
        start, end = self._first[listing], self._first[listing + 1]
        at = bisect_left(self._sorted, name, start, end, key=self.name)
        if at < end and self.name(self._sorted[at]) == name:
            return self._sorted[at]
        return None

    def find(self, path: bytes) -> int | None:
        """The inode at an absolute path of a frozen tree; symbolic links are not followed."""
        inode = ROOT
        for name in path.split(b"/"):
            if name:
                entry = self.find_entry(inode, name)
                if entry is None:
                    return None
                inode = self.child[entry]
        return inode

    def split(self, entry: int) -> int:
        """Give an entry an inode of its own, a copy of the one it shares; answers with the new inode."""
        inode = self.child[entry]
        for name in _INODE_COLUMNS:
            column = getattr(self, name)
            column.append(column[inode])
        self.child[entry] = len(self.kind) - 1
        return self.child[entry]

    def walk(self) -> Iterator[tuple[bytes, int, int]]:
        """Path, entry and inode of everything below the root, depth first, in the order of names."""
        pending: list[tuple[bytes, Iterator[int]]] = [(b"/", iter(self.entries(ROOT)))]
        while pending:
            prefix, entries = pending[-1]
            for entry in entries:
                inode = self.child[entry]
                path = prefix + self.name(entry)
                yield path, entry, inode
                if self.kind[inode] == Kind.DIRECTORY:
                    pending.append((path + b"/", iter(self.entries(inode))))
                    break
            else:
                pending.pop()
