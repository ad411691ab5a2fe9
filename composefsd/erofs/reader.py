"""Images back into what they say: the objects they name, and the tree they were made of.

Nothing is believed.  The rules are those of composefs-rs's reader and stricter in places: names that no file can
have, parts that overlap, directories with two names, `.` and `..` that lead elsewhere are refused always.  Not
compared are the order of a directory, name filters, inode numbers and padding; who wants to know about these writes
the tree again and compares the digest.

A tree that was read lacks what an image cannot tell apart from its own marks: whiteouts of the root whose name is two
hexadecimal digits, and a file's own attributes `trusted.overlay.…` and `user.overlay.…` for whiteouts and opaqueness.
"""

import re
from array import array
from collections.abc import Iterator
from typing import Final

from composefsd.digests import Algorithm
from composefsd.erofs.format import BLOCK_BYTES, SLOT_BYTES, DataLayout, FileType, FormatVersion
from composefsd.erofs.image import MAX_NAMES, Image, ImageBytes, Inode
from composefsd.erofs.numbering import STUB_NAMES
from composefsd.erofs.xattrs import (
    DIRECTORY_MARKS,
    ESCAPED,
    METACOPY,
    OPAQUE_MARKS,
    OVERLAY,
    REDIRECT,
    WHITEOUT,
    WHITEOUT_MARKS,
    Xattr,
    metacopy_head,
    redirect_path,
)
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.table import NONE, ROOT, Kind, Stat, Tree, XattrSet

MAX_DEPTH: Final = 2048
"""Directories below each other; half of PATH_MAX, for a name takes two bytes of a path."""

_MAX_INLINE_BYTES_V2: Final = 512
_MAX_TARGET_BYTES_V2: Final = 1024
_MARKS: Final = frozenset(name for name, _ in (*WHITEOUT_MARKS, *DIRECTORY_MARKS, *OPAQUE_MARKS))
_STUB_NAME: Final = re.compile(rb"[0-9a-fA-F]{2}")
_OBJECT_PATH: Final = re.compile(rb"([0-9a-fA-F]{2})/([0-9a-fA-F]+)\Z")
_DIRECTORY: Final = int(FileType.DIRECTORY)
_REGULAR: Final = int(FileType.REGULAR)
_SPECIAL: Final = {
    FileType.CHAR: Kind.CHAR, FileType.BLOCK: Kind.BLOCK, FileType.FIFO: Kind.FIFO, FileType.SOCKET: Kind.SOCKET,
}  # fmt: skip


def check(image: ImageBytes, algorithm: Algorithm) -> None:
    """Look at everything that can be reached from the root.

    Raises FormatError for what composefs-rs would not write, LimitExceededError for an image of more than 1 GiB.
    """
    head = metacopy_head(algorithm)
    with Image.open(image) as opened:
        for _, _, _, xattrs in _walk(opened):
            _metacopy_digest(xattrs or (), head, algorithm.digest_bytes)


def object_ids(image: ImageBytes, algorithm: Algorithm) -> set[bytes]:
    """The raw digests of all objects that an image names.  Raises as `check`.

    Digests of another algorithm are left out: a repository has objects of one algorithm only.
    """
    digests: set[bytes] = set()
    head = metacopy_head(algorithm)
    length = len(head) + algorithm.digest_bytes
    with Image.open(image) as opened:
        for _, _, _, xattrs in _walk(opened):
            path = b""
            for name, value in xattrs or ():
                if name == METACOPY and len(value) == length and value.startswith(head):
                    digest = value[len(head) :]
                    digests.add(digest)
                    path = redirect_path(digest)
                elif name == REDIRECT and value != path:
                    named = _redirect_digest(value, algorithm)
                    if named is not None:
                        digests.add(named)
    return digests


def read_tree(image: ImageBytes, algorithm: Algorithm) -> Tree:
    """The frozen tree that an image was made of; see above for what is lost.

    Raises FormatError and LimitExceededError as `check`, and for link counts that are wrong, a name that a directory
    has twice, and a tree that is too deep or has too many names.
    """
    with Image.open(image) as opened:
        return _Rebuilder(opened, algorithm).rebuild()


_Found = tuple[int, bytes, Inode, tuple[Xattr, ...] | None]
"""The nid of a directory, a name in it, and the inode; its attributes only the first time that it is found."""


def _walk(image: Image) -> Iterator[_Found]:
    """Every name below the root, and first the root itself, under an empty name."""
    root = image.inode(image.head.root_nid)
    if root.file_type != _DIRECTORY:
        raise FormatError("the root of an image is no directory", offset=root.offset)
    image.visit(root)
    yield root.nid, b"", root, image.xattrs(root)
    is_v2 = not image.head.version.c_compatible
    pending, parents = array("I", [root.nid]), array("I", [root.nid])
    while pending:
        nid, parent = pending.pop(), parents.pop()
        entries = image.entries(image.inode(nid))
        _check_names(image, nid, parent, entries)
        for name, child in entries.items():
            inode = image.inode(child)
            xattrs = image.xattrs(inode) if image.visit(inode) else None
            if inode.file_type == _DIRECTORY:
                if xattrs is None:
                    raise FormatError("a directory has two names", offset=inode.offset)
                pending.append(child)
                parents.append(nid)
            elif is_v2:
                if xattrs and _is_escaped_whiteout(inode, xattrs):
                    raise FormatError("an image of format 2 has an escaped whiteout", offset=inode.offset)
            elif inode.file_type != _REGULAR:
                _check_c_compatible(image, nid, inode)
            yield nid, name, inode, xattrs


def _check_names(image: Image, nid: int, parent: int, entries: dict[bytes, int]) -> None:
    """Take `.` and `..` out of the entries of a directory; look for the stubs in the root."""
    if entries.pop(b".", None) != nid or entries.pop(b"..", None) != parent:
        raise FormatError("'.' or '..' of a directory leads elsewhere", offset=nid * SLOT_BYTES)
    if nid == image.head.root_nid and image.head.version.c_compatible:
        missing = sum(name not in entries for name in STUB_NAMES)
        if missing:
            raise FormatError(f"the root of an image lacks {missing} of its 256 stubs", offset=nid * SLOT_BYTES)


def _check_c_compatible(image: Image, directory: int, inode: Inode) -> None:
    """What images of format 0 and 1 never have."""
    if inode.is_whiteout and directory != image.head.root_nid:
        raise FormatError("a whiteout is not escaped", offset=inode.offset)
    if inode.file_type == FileType.SYMLINK and inode.tail_bytes:
        end = inode.tail_offset + inode.tail_bytes
        if end - (inode.offset & -BLOCK_BYTES) > BLOCK_BYTES:  # EUCLEAN before Linux 6.12 (erofs_fill_symlink)
            raise FormatError("a symbolic link crosses a block boundary", offset=inode.offset)


def _is_escaped_whiteout(inode: Inode, xattrs: tuple[Xattr, ...]) -> bool:
    return inode.file_type == FileType.REGULAR and any(name == WHITEOUT for name, _ in xattrs)


def _metacopy_digest(xattrs: tuple[Xattr, ...], head: bytes, digest_bytes: int) -> bytes | None:
    """The digest of a verified external file.  Raises FormatError for a metacopy that is neither empty nor one."""
    for name, value in xattrs:
        if name == METACOPY and value:
            if len(value) != len(head) + digest_bytes or not value.startswith(head):
                raise FormatError("a file has a malformed metacopy, or one of another algorithm")
            return value[len(head) :]
    return None


def _redirect_digest(path: bytes, algorithm: Algorithm) -> bytes | None:
    """The digest in the path of an object; what is before `XX/REST` does not matter."""
    match = _OBJECT_PATH.search(path, max(0, len(path) - 2 * algorithm.digest_bytes - 1))
    if match is None or len(match[2]) != 2 * algorithm.digest_bytes - 2:
        return None
    return bytes.fromhex((match[1] + match[2]).decode())


def _own_xattrs(xattrs: tuple[Xattr, ...]) -> XattrSet:
    """The attributes that a file had in its tree; of several with one name the last.

    Shared ones stay the same objects: an image can refer to one from a million inodes.
    """
    own: dict[bytes, Xattr] = {}
    for xattr in xattrs:
        name = xattr[0]
        if name in _MARKS:
            continue
        if name.startswith(ESCAPED):
            own[OVERLAY + name[len(ESCAPED) :]] = (OVERLAY + name[len(ESCAPED) :], xattr[1])
        elif not name.startswith(OVERLAY):
            own[name] = xattr
    return tuple(own[name] for name in sorted(own))


def _stat(inode: Inode, xattrs: tuple[Xattr, ...]) -> Stat:
    return Stat(inode.mode, inode.uid, inode.gid, inode.mtime, inode.nsec, _own_xattrs(xattrs))


def _is_stub(name: bytes, inode: Inode, xattrs: tuple[Xattr, ...]) -> bool:
    """Whether an inode of the root is one of the stubs, or cannot be told apart from one."""
    return bool(_STUB_NAME.fullmatch(name)) and (inode.is_whiteout or _is_escaped_whiteout(inode, xattrs))


class _Rebuilder:
    """Makes a tree of an image.

    row_of is a column of nids: the row in the tree.  depth and missing_links are columns of the tree's rows: of
    directories how deep they lie, and how many links are still to be found.
    """

    def __init__(self, image: Image, algorithm: Algorithm) -> None:
        self._image, self._algorithm = image, algorithm
        self._metacopy_head = metacopy_head(algorithm)
        self._is_v2 = image.head.version == FormatVersion.V2
        self._tree = Tree(algorithm)
        self._row_of = array("I", [NONE]) * image.slots
        self._depth = array("H")
        self._missing_links = array("q")

    def rebuild(self) -> Tree:
        """Raises FormatError and LimitExceededError."""
        names = _walk(self._image)
        _, _, root, xattrs = next(names)
        self._tree.set_stat(ROOT, _stat(root, xattrs or ()))
        self._register(ROOT, root, root.links - 2, 0)
        for count, found in enumerate(names):
            if count >= MAX_NAMES:
                raise LimitExceededError(f"an image has more than {MAX_NAMES} names")
            self._add(found)
        if any(self._missing_links):
            raise FormatError("an inode has fewer names than links")
        self._tree.freeze()
        return self._tree

    def _register(self, row: int, inode: Inode, missing_links: int, depth: int) -> None:
        self._row_of[inode.nid] = row
        self._depth.append(depth)
        self._missing_links.append(missing_links)

    def _add(self, found: _Found) -> None:
        directory, name, inode, xattrs = found
        parent = self._row_of[directory]
        if xattrs is None:
            row = self._row_of[inode.nid]
            if row == NONE:
                raise FormatError("a stub has two names", offset=inode.offset)
            self._link(row, inode)
        elif inode.file_type == _DIRECTORY:
            row = self._add_directory(inode, xattrs, parent)
        elif parent == ROOT and _is_stub(name, inode, xattrs):
            return
        else:
            row = self._add_leaf(inode, xattrs)
        self._tree.insert(parent, name, row)

    def _link(self, row: int, inode: Inode) -> None:
        """One more link to an inode was found."""
        self._missing_links[row] -= 1
        if self._missing_links[row] < 0:
            raise FormatError("an inode has more names than links", offset=inode.offset)

    def _add_directory(self, inode: Inode, xattrs: tuple[Xattr, ...], parent: int) -> int:
        depth = self._depth[parent] + 1
        if depth >= MAX_DEPTH:
            raise LimitExceededError(f"directories of an image are more than {MAX_DEPTH} deep")
        row = self._tree.add_directory(_stat(inode, xattrs))
        self._register(row, inode, inode.links - 2, depth)
        self._link(parent, inode)
        return row

    def _add_leaf(self, inode: Inode, xattrs: tuple[Xattr, ...]) -> int:
        stat = _stat(inode, xattrs)
        if inode.file_type == _REGULAR:
            is_whiteout = _is_escaped_whiteout(inode, xattrs)
            row = self._tree.add_special(Kind.CHAR, stat) if is_whiteout else self._add_file(inode, xattrs, stat)
        elif inode.file_type == FileType.SYMLINK:
            is_whiteout = False
            row = self._tree.add_symlink(stat, self._content(inode, _MAX_TARGET_BYTES_V2))
        else:
            is_whiteout = inode.is_whiteout
            device = inode.u if inode.file_type in (FileType.CHAR, FileType.BLOCK) else 0
            row = self._tree.add_special(_SPECIAL[inode.file_type], stat, device)
        if not inode.links or (is_whiteout and inode.links > 1):
            raise FormatError(f"an inode cannot have {inode.links} links", offset=inode.offset)
        self._register(row, inode, inode.links - 1, 0)
        return row

    def _add_file(self, inode: Inode, xattrs: tuple[Xattr, ...], stat: Stat) -> int:
        digest = _metacopy_digest(xattrs, self._metacopy_head, self._algorithm.digest_bytes)
        if digest is not None:
            return self._tree.add_external(stat, inode.size, digest)
        for name, value in xattrs:
            if name == REDIRECT:
                digest = _redirect_digest(value, self._algorithm)
                if digest is None:
                    raise FormatError("a file redirects to no object", offset=inode.offset)
                return self._tree.add_external(stat, inode.size, digest, Kind.UNVERIFIED)
        if inode.layout == DataLayout.CHUNKED:
            return self._tree.add_sparse(stat, inode.size)
        return self._tree.add_inline(stat, self._content(inode, _MAX_INLINE_BYTES_V2))

    def _content(self, inode: Inode, limit_v2: int) -> bytes:
        if self._is_v2 and inode.layout != DataLayout.CHUNKED and inode.size > limit_v2:
            raise FormatError(f"content of {inode.size} bytes in the image", offset=inode.offset)
        return self._image.content(inode)
