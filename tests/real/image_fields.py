"""Where the fields of an EROFS image are, so that tests can put something else there.

For images that are sound: they are found by walking the image with our own reader.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from composefsd.erofs.format import BLOCK_BYTES, DIRENT, XATTR_AREA, XATTR_ENTRY, DataLayout, FileType, round_up
from composefsd.erofs.image import Image, Inode

_SUPERBLOCK: Final = 1024
_HEAD: Final = {
    "magic": (0, 4), "header version": (4, 4), "flags": (8, 4), "composefs version": (12, 4), "unused": (16, 8),
    "superblock magic": (_SUPERBLOCK, 4), "checksum": (_SUPERBLOCK + 4, 4), "compat": (_SUPERBLOCK + 8, 4),
    "block bits": (_SUPERBLOCK + 12, 1), "slots": (_SUPERBLOCK + 13, 1), "root": (_SUPERBLOCK + 14, 2),
    "inodes": (_SUPERBLOCK + 16, 8), "build time": (_SUPERBLOCK + 24, 8), "build nsec": (_SUPERBLOCK + 32, 4),
    "blocks": (_SUPERBLOCK + 36, 4), "meta block": (_SUPERBLOCK + 40, 4), "xattr block": (_SUPERBLOCK + 44, 4),
    "uuid": (_SUPERBLOCK + 48, 8), "incompat": (_SUPERBLOCK + 80, 4), "compression": (_SUPERBLOCK + 84, 2),
    "devices": (_SUPERBLOCK + 86, 2), "device slot": (_SUPERBLOCK + 88, 2), "directory bits": (_SUPERBLOCK + 90, 1),
    "prefixes": (_SUPERBLOCK + 91, 1), "prefix start": (_SUPERBLOCK + 92, 4), "packed": (_SUPERBLOCK + 96, 8),
    "filter": (_SUPERBLOCK + 104, 1), "reserved": (_SUPERBLOCK + 105, 8),
}  # fmt: skip
_COMPACT: Final = {
    "format": (0, 2), "words": (2, 2), "mode": (4, 2), "links": (6, 2), "size": (8, 4), "zero": (12, 4), "u": (16, 4),
    "ino": (20, 4), "uid": (24, 2), "gid": (26, 2),
}  # fmt: skip
_EXTENDED: Final = {
    "format": (0, 2), "words": (2, 2), "mode": (4, 2), "zero": (6, 2), "size": (8, 8), "u": (16, 4), "ino": (20, 4),
    "uid": (24, 4), "gid": (28, 4), "mtime": (32, 8), "nsec": (40, 4), "links": (44, 4),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A number of `size` bytes, or the bytes of a name or a value."""

    name: str
    offset: int
    size: int


def locate(image: bytes) -> list[Field]:
    """The fields of a sound image."""
    fields = [Field(name, offset, size) for name, (offset, size) in _HEAD.items()]
    with Image.open(image) as opened:
        pending, seen = [opened.head.root_nid], {opened.head.root_nid}
        while pending:
            inode = opened.inode(pending.pop())
            fields += _of_inode(opened, image, inode)
            if inode.file_type == FileType.DIRECTORY:
                fields += _of_directory(image, inode)
                found = set(opened.entries(inode).values()) - seen
                seen |= found
                pending += sorted(found)
    return fields


def _of_inode(opened: Image, image: bytes, inode: Inode) -> Iterator[Field]:
    table = _EXTENDED if image[inode.offset] & 1 else _COMPACT
    for name, (offset, size) in table.items():
        yield Field(name, inode.offset + offset, size)
    at = inode.area_offset
    if at == inode.tail_offset:
        return
    yield Field("name filter", at, 4)
    yield Field("shared count", at + 4, 1)
    shared = image[at + 4]
    at += XATTR_AREA.size
    for _ in range(shared):
        yield Field("reference", at, 4)
        reference = int.from_bytes(image[at : at + 4], "little")
        yield from _of_entry(image, opened.head.xattr_block * BLOCK_BYTES + 4 * reference)
        at += 4
    while at < inode.tail_offset:
        yield from _of_entry(image, at)
        rest_bytes, _, value_bytes = XATTR_ENTRY.unpack_from(image, at)
        at += round_up(XATTR_ENTRY.size + rest_bytes + value_bytes, 4)


def _of_entry(image: bytes, at: int) -> Iterator[Field]:
    rest_bytes, _, value_bytes = XATTR_ENTRY.unpack_from(image, at)
    yield Field("rest bytes", at, 1)
    yield Field("prefix", at + 1, 1)
    yield Field("value bytes", at + 2, 2)
    if rest_bytes:
        yield Field("attribute", at + XATTR_ENTRY.size, rest_bytes)
    if value_bytes:
        yield Field("value", at + XATTR_ENTRY.size + rest_bytes, value_bytes)


def _of_directory(image: bytes, inode: Inode) -> Iterator[Field]:
    whole = inode.size // BLOCK_BYTES if inode.layout == DataLayout.INLINE else -(-inode.size // BLOCK_BYTES)
    groups = [((inode.u + block) * BLOCK_BYTES, BLOCK_BYTES) for block in range(whole)]
    if inode.tail_bytes:
        groups.append((inode.tail_offset, inode.tail_bytes))
    for offset, size in groups:
        yield from _of_group(image[offset : offset + size], offset)


def _of_group(group: bytes, offset: int) -> Iterator[Field]:
    first = int.from_bytes(group[8:10], "little")
    starts = [start for _, start, _ in DIRENT.iter_unpack(group[:first])]
    ends = [*starts[1:], len(group.rstrip(b"\0"))]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        at = offset + DIRENT.size * number
        yield Field("nid", at, 8)
        yield Field("name offset", at + 8, 2)
        yield Field("type", at + 10, 1)
        yield Field("name", offset + start, end - start)
