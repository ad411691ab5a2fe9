"""Which inodes an image has, and in which order.

V0 and V1 add 256 *stubs* to the root: whiteouts that hide the directories of the object store, `00` to `ff`, when
overlayfs stacks the image on it.  They exist in no tree.  Inodes are numbered directory by directory, breadth first;
a hard link has its number from the directory of its first name in *depth-first* order, since C composefs numbers what
a dumpfile lists first.  V2 has no stubs and numbers depth first.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from composefsd.erofs.format import FileType, FormatVersion
from composefsd.erofs.xattrs import SELINUX
from composefsd.errors import FormatError
from composefsd.tree.table import NONE, ROOT, Kind, Tree

STUB_NAMES: Final = tuple(b"%02x" % number for number in range(256))
STUB_MODE: Final = 0o644

_STUB_SET: Final = frozenset(STUB_NAMES)
_DIRECTORY: Final = int(Kind.DIRECTORY)  # loops over all files compare with these: members of enums are slow to get
_CHAR: Final = int(Kind.CHAR)
_TYPE_DIRECTORY: Final = int(FileType.DIRECTORY)
_TYPE_OF_KIND: Final = bytes((
    FileType.DIRECTORY, FileType.REGULAR, FileType.REGULAR, FileType.REGULAR, FileType.REGULAR, FileType.SYMLINK,
    FileType.CHAR, FileType.BLOCK, FileType.FIFO, FileType.SOCKET,
))  # fmt: skip


def stub_xattrs(tree: Tree) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of a stub: the root's SELinux label."""
    return tuple(pair for pair in tree.xattr_sets[tree.xattrs[ROOT]] if pair[0] == SELINUX)


def _walk(tree: Tree) -> Iterator[tuple[int, int]]:
    """Directory and inode of every name, depth first, in the order of names."""
    kind, child = tree.kind, tree.child
    pending = [(ROOT, iter(tree.entries(ROOT)))]
    while pending:
        directory, entries = pending[-1]
        for entry in entries:
            inode = child[entry]
            yield directory, inode
            if kind[inode] == _DIRECTORY:
                pending.append((inode, iter(tree.entries(inode))))
                break
        else:
            pending.pop()


class Numbering:
    """The inodes of an image.  `index` is a number in the image, `inode` a row of the tree.

    source, parent and file_type are columns of the image's inodes: the row each comes from (ROOT for a stub, too),
    the index of a directory it has a name in, and its type, which is REGULAR for an escaped whiteout.  index and
    links are columns of the tree's rows.  stubs and whiteouts are the indexes of these, stubs by their names.
    """

    def __init__(self, tree: Tree, version: FormatVersion) -> None:
        """Raises FormatError for a tree that no image can hold: a whiteout or a directory with two names."""
        rows = len(tree.kind)
        self.tree, self.version = tree, version
        self.source = array("I")
        self.parent = array("I")
        self.file_type = array("B")
        self.index = array("I", [NONE]) * rows
        self.links = array("I", bytes(4 * rows))
        self.stubs: dict[bytes, int] = {}
        self.whiteouts = array("I")
        self.links[ROOT] = 2
        self._add(ROOT, 0)
        if version.c_compatible:
            self._number_breadth_first()
        else:
            self._number_depth_first()

    def _add(self, inode: int, parent: int) -> None:
        self.index[inode] = len(self.source)
        self.source.append(inode)
        self.parent.append(parent)
        self.file_type.append(_TYPE_OF_KIND[self.tree.kind[inode]])

    def _count(self, directory: int, inode: int) -> None:
        """One more name for an inode."""
        if self.tree.kind[inode] == _DIRECTORY:
            if self.links[inode]:
                raise FormatError("a directory of the tree has two names")
            self.links[inode] = 2
            self.links[directory] += 1
            return
        self.links[inode] += 1
        if self.links[inode] > 1 and self.is_whiteout(inode):
            raise FormatError("a whiteout has more than one name", subject=self.path(inode))

    def is_whiteout(self, inode: int) -> bool:
        """Whether an inode of the tree is a character device with number 0:0."""
        return self.tree.kind[inode] == _CHAR and not self.tree.size[inode]

    def _number_depth_first(self) -> None:
        for directory, inode in _walk(self.tree):
            self._count(directory, inode)
            if self.index[inode] == NONE:
                self._add(inode, self.index[directory])

    def _number_breadth_first(self) -> None:
        home = self._find_homes()
        self._number_root(home)
        source, kind, child, numbers = self.source, self.tree.kind, self.tree.child, self.index
        for index, file_type in enumerate(self.file_type):  # which grows as we go
            if file_type == _TYPE_DIRECTORY and index:
                directory = source[index]
                for entry in self.tree.entries(directory):
                    inode = child[entry]
                    if home[inode] == directory and numbers[inode] == NONE:
                        self._add(inode, index)
                        if kind[inode] == _CHAR and self.is_whiteout(inode):
                            self._escape(inode)

    def _find_homes(self) -> "array[int]":
        """The directory of the first name of each inode; counts the names, too."""
        home = array("I", [NONE]) * len(self.tree.kind)
        kind, links = self.tree.kind, self.links
        for directory, inode in _walk(self.tree):
            if links[inode] or kind[inode] == _DIRECTORY:
                self._count(directory, inode)
            else:
                links[inode] = 1
            if home[inode] == NONE:
                home[inode] = directory
        return home

    def _number_root(self, home: "array[int]") -> None:
        tree = self.tree
        children = {tree.name(entry): tree.child[entry] for entry in tree.entries(ROOT)}
        for name in sorted(children.keys() | _STUB_SET):
            inode = children.get(name)
            if inode is not None:
                if home[inode] == ROOT and self.index[inode] == NONE:
                    self._add(inode, 0)
                    if self.is_whiteout(inode) and not (name in _STUB_SET and self._looks_like_stub(inode)):
                        self._escape(inode)
            else:
                self.stubs[name] = len(self.source)
                self.source.append(ROOT)
                self.parent.append(0)
                self.file_type.append(FileType.CHAR)

    def _escape(self, inode: int) -> None:
        index = self.index[inode]
        self.file_type[index] = FileType.REGULAR
        self.whiteouts.append(index)

    def _looks_like_stub(self, inode: int) -> bool:
        """Whether composefs-rs would take this whiteout of the root for one of its stubs, and not escape it."""
        tree = self.tree
        columns = (tree.uid, tree.gid, tree.mtime, tree.nsec)
        return (
            tree.mode[inode] == STUB_MODE
            and all(column[inode] == column[ROOT] for column in columns)
            and tree.xattr_sets[tree.xattrs[inode]] == stub_xattrs(tree)
        )

    def names(self, index: int) -> list[bytes]:
        """The names in a directory, with `.` and `..`, in no order."""
        names = [b".", b"..", *map(self.tree.name, self.tree.entries(self.source[index]))]
        if index == 0:
            names += self.stubs
        return names

    def listing(self, index: int) -> tuple[list[bytes], list[int]]:
        """The sorted names in a directory, with `.` and `..`, and the indexes of their inodes."""
        tree, numbers = self.tree, self.index
        entries, child = tree.entries(self.source[index]), tree.child
        names = list(map(tree.name, entries))
        indexes = [numbers[child[entry]] for entry in entries]
        extra = {b".": index, b"..": self.parent[index]}
        if index == 0:
            extra |= self.stubs
        for name, number in extra.items():
            at = bisect_left(names, name)
            names.insert(at, name)
            indexes.insert(at, number)
        return names, indexes

    def path(self, inode: int) -> str:
        """The first path of an inode of the tree, for messages."""
        paths = (path for path, _, found in self.tree.walk() if found == inode)
        return next(paths, b"/").decode(errors="backslashreplace")
