"""Where C composefs writes another image of format 1 than composefs-rs does, or none: the rules of docs/interop.md.

composefsd does as composefs-rs.  A rule may hold for a few trees that both write alike, but none is missing: a tree
that no rule holds for has one image.
"""

import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import Final

from composefsd.tree import dumpfile
from composefsd.tree.table import ROOT, Kind, Stat, Tree, XattrSet

_MAX_SHARED: Final = 128
_MAX_CHUNKS: Final = 1024
_CHUNK_BITS: Final = 43
_MAX_XATTR_BYTES: Final = 32_000
_XATTR_BYTES: Final = 16
_MAX_TEXT_BYTES: Final = 65_000
_OBJECTS: Final = (Kind.EXTERNAL, Kind.UNVERIFIED)
_STUB_NAME: Final = re.compile(rb"[0-9a-f]{2}")
_ACL: Final = re.compile(rb"system\.posix_acl_(access|default).+", re.DOTALL)
_SELINUX: Final = b"security.selinux"
_OF_WHITEOUT: Final = frozenset((b"trusted.overlay.whiteout", b"user.overlay.whiteout"))
_OF_DIRECTORY: Final = frozenset(
    prefix + rest for prefix in (b"trusted.overlay.", b"user.overlay.") for rest in (b"whiteouts", b"opaque")
)


class Rule(Enum):
    """The value is what docs/interop.md calls it."""

    OWN_MARKS = "an attribute that the image adds, too"
    STUB = "a whiteout that looks like a stub"
    MANY_SHARED = "more than 128 shared attributes"
    EMPTY_OBJECT = "an object of size 0"
    ACL_PREFIX = "a name that goes on after an ACL's"
    MANY_CHUNKS = "more than 1024 chunks"
    LARGE_SET = "attributes of more than 32 kB"
    LONG_TEXT = "attributes of more than 64 kB as text"
    EMPTY_NAME = "an attribute without a name"


def rules(tree: Tree) -> frozenset[Rule]:
    """The rules that hold for a tree."""
    return frozenset(_rules(tree))


def _rules(tree: Tree) -> Iterator[Rule]:
    users: Counter[tuple[bytes, bytes]] = Counter()
    seen = {ROOT}
    root = tree.stat(ROOT)
    users.update(root.xattrs)
    users.update(pair for pair in root.xattrs if pair[0] == _SELINUX)  # of the stubs
    for path, _entry, inode in tree.walk():
        if inode not in seen:
            seen.add(inode)
            users.update(tree.stat(inode).xattrs)
        if tree.kind[inode] == Kind.CHAR and not tree.size[inode]:
            yield from _rules_of_whiteout(tree, path, tree.stat(inode), root)
    for inode in seen:
        yield from _rules_of_inode(tree, inode, users)


def _rules_of_whiteout(tree: Tree, path: bytes, stat: Stat, root: Stat) -> Iterator[Rule]:
    parent, _, name = path.rpartition(b"/")
    directory = tree.find(parent)
    names = {name for name, _ in tree.stat(ROOT if directory is None else directory).xattrs}
    if not _OF_DIRECTORY.isdisjoint(names) or not _OF_WHITEOUT.isdisjoint(name for name, _ in stat.xattrs):
        yield Rule.OWN_MARKS
    label = tuple(pair for pair in root.xattrs if pair[0] == _SELINUX)
    like_root = Stat(0o644, root.uid, root.gid, root.mtime, root.nsec, label)
    if not parent and _STUB_NAME.fullmatch(name) and stat == like_root:
        yield Rule.STUB


def _rules_of_inode(tree: Tree, inode: int, users: Counter[tuple[bytes, bytes]]) -> Iterator[Rule]:
    kind, size = tree.kind[inode], tree.size[inode]
    xattrs = tree.stat(inode).xattrs
    own_and_objects = sum(users[pair] > 1 for pair in xattrs) + (2 if kind in _OBJECTS else 0)
    if own_and_objects > _MAX_SHARED:
        yield Rule.MANY_SHARED
    if kind in _OBJECTS and not size:
        yield Rule.EMPTY_OBJECT
    if kind in (*_OBJECTS, Kind.SPARSE) and size > _MAX_CHUNKS << _CHUNK_BITS:
        yield Rule.MANY_CHUNKS
    yield from _rules_of_xattrs(xattrs)


def _rules_of_xattrs(xattrs: XattrSet) -> Iterator[Rule]:
    if any(not name for name, _ in xattrs):
        yield Rule.EMPTY_NAME
    if any(_ACL.fullmatch(name) for name, _ in xattrs):
        yield Rule.ACL_PREFIX
    if sum(_XATTR_BYTES + len(name) + len(value) for name, value in xattrs) > _MAX_XATTR_BYTES:
        yield Rule.LARGE_SET
    if sum(2 + _text_bytes(name) + _text_bytes(value) for name, value in xattrs) > _MAX_TEXT_BYTES:
        yield Rule.LONG_TEXT


def _text_bytes(data: bytes) -> int:
    return len(dumpfile.quote(data)) + 3 * data.count(b"=")
