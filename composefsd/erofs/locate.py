"""Where an image that should be the writer's departs from it, and what lies there.

The tree of an image does not say everything of its bytes: inode numbers, padding, name filters, the order of a
directory.  Whoever has two digests for one tree wants to know which of these it is.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from composefsd.erofs.format import BLOCK_BYTES, COMPACT, EXTENDED, HEAD_BYTES, SLOT_BYTES, FormatVersion
from composefsd.erofs.layout import IS_EXTENDED, Layout
from composefsd.erofs.writer import write
from composefsd.tree.table import ROOT, Tree

_COMPOSEFS_HEADER_BYTES: Final = 32
_SUPERBLOCK: Final = 1024


class Part(StrEnum):
    """What can lie at an offset."""

    HEADER = "header"  # of composefs
    PADDING = "padding"
    SUPERBLOCK = "superblock"
    INODE = "inode"
    XATTRS = "xattrs"  # behind an inode
    TAIL = "tail"  # behind an inode: names, content, chunk addresses, and zeros up to the next one
    XATTR_TABLE = "xattr table"
    DATA = "data"  # blocks of an inode
    END = "end"  # one of the two is longer


@dataclass(frozen=True, slots=True)
class Spot:
    """Where in an image: offset from its start in bytes; path of the inode that the part belongs to, if any."""

    offset: int
    part: Part
    path: bytes | None = None


def first_difference(image: bytes, tree: Tree, version: FormatVersion) -> Spot | None:
    """The first byte of `image` that is not the writer's for this tree and format; None if all are.

    Raises FormatError and LimitExceededError as the writer.
    """
    at, view = 0, memoryview(image)
    for piece in write(tree, version):
        found = view[at : at + len(piece)]
        if found != piece:
            return _locate(at + _common(found, piece), len(image), tree, version)
        at += len(piece)
    return None if at == len(image) else Spot(at, Part.END)


def _common(one: memoryview, other: bytes) -> int:
    """How many bytes are the same at the beginning of two strings that differ."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _locate(offset: int, size: int, tree: Tree, version: FormatVersion) -> Spot:
    """What the writer has at an offset, up to which the image is the writer's."""
    if offset >= size:
        return Spot(offset, Part.END)
    if offset < HEAD_BYTES:
        part = Part.HEADER if offset < _COMPOSEFS_HEADER_BYTES else Part.SUPERBLOCK
        return Spot(offset, Part.PADDING if _COMPOSEFS_HEADER_BYTES <= offset < _SUPERBLOCK else part)
    layout = Layout(tree, version)
    if offset < layout.inodes_end:
        return _locate_inode(offset, layout)
    if offset < layout.inodes_end + layout.areas.table_bytes:
        return Spot(offset, Part.XATTR_TABLE)
    if offset < layout.table_end:
        return Spot(offset, Part.PADDING)
    block = offset // BLOCK_BYTES
    index = max((start, index) for index, start in layout.first_block.items() if start <= block)[1]
    return Spot(offset, Part.DATA, _path(layout, index))


def _locate_inode(offset: int, layout: Layout) -> Spot:
    index = bisect_right(layout.slot, offset // SLOT_BYTES) - 1
    if index < 0:
        return Spot(offset, Part.PADDING)
    behind = offset - layout.slot[index] * SLOT_BYTES
    inode_bytes = EXTENDED.size if layout.format[index] & IS_EXTENDED else COMPACT.size
    area_bytes = layout.areas.area_bytes[layout.areas.recipe[index]]
    behind_inode = Part.XATTRS if behind < inode_bytes + area_bytes else Part.TAIL
    part = Part.INODE if behind < inode_bytes else behind_inode
    return Spot(offset, part, _path(layout, index))


def _path(layout: Layout, index: int) -> bytes:
    """The first path of an inode of the image; of a stub the name that it has in the root."""
    inode = layout.numbering.source[index]
    if inode == ROOT and index:
        return next(b"/" + name for name, stub in layout.numbering.stubs.items() if stub == index)
    return next((path for path, _, found in layout.tree.walk() if found == inode), b"/")
