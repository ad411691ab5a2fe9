"""Access to the structures of an image that nobody vouches for.

Every offset is checked before it is followed.  The parts of an image that we were sent to may not be larger together
than the image is: where they overlap, an image of a megabyte could keep a reader busy for days.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from struct import Struct
from typing import Final, NamedTuple, Self

from composefsd.erofs.format import (
    BLOCK_BYTES,
    COMPACT,
    DIRENT,
    EXTENDED,
    HEAD_BYTES,
    MAX_IMAGE_BYTES,
    MODE_OF_TYPE,
    SLOT_BYTES,
    XATTR_AREA,
    XATTR_BLOCK_OFFSET,
    XATTR_ENTRY,
    DataLayout,
    FileType,
    Head,
    round_up,
)
from composefsd.erofs.xattrs import PREFIXES, Xattr
from composefsd.errors import FormatError, LimitExceededError

ImageBytes = bytes | bytearray | memoryview | mmap

MAX_NAMES: Final = 1 << 22
"""More than any system has; as a tree, they take about a gigabyte of memory."""

_TYPE_OF_MODE: Final = {mode: FileType(number) for number, mode in enumerate(MODE_OF_TYPE) if number}
_LAYOUTS: Final = frozenset(DataLayout)
_INLINE: Final = int(DataLayout.INLINE)
_CHUNKED: Final = int(DataLayout.CHUNKED)
_WITH_CONTENT: Final = frozenset((FileType.DIRECTORY, FileType.REGULAR, FileType.SYMLINK))
_REFERENCE: Final = Struct("<I")
_NAME_OFFSET: Final = 8
_CACHED: Final = 4096
_MAX_SHARED: Final = 1 << 22
"""Nearly what a gigabyte can hold in earnest: a reference, an entry, and what else two files need that share one."""


class Inode(NamedTuple):
    """An inode, and where in the image its extended attributes and its tail are; mtime is that of the file."""

    nid: int
    file_type: FileType
    layout: int
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    links: int
    size: int
    u: int
    area_offset: int
    tail_offset: int
    tail_bytes: int

    @property
    def offset(self) -> int:
        """Where it is in the image."""
        return self.nid * SLOT_BYTES

    @property
    def is_whiteout(self) -> bool:
        """A character device with number 0:0."""
        return self.file_type == FileType.CHAR and not self.u


class Image:
    """An image in memory, or mapped."""

    def __init__(self, data: memoryview) -> None:
        """Raises FormatError if the header or the superblock is not that of a composefs image, or leads out of it."""
        self._data, self._end = data, len(data)
        self._unclaimed = len(data)
        self._visited = bytearray(len(data) // SLOT_BYTES // 8 + 1)
        self._shared: dict[int, Xattr] = {}
        self._areas: dict[bytes, tuple[Xattr, ...]] = {}
        self.head = Head.parse(bytes(data[:HEAD_BYTES]))
        if self.head.xattr_block * BLOCK_BYTES > self._end:
            raise FormatError("the shared attributes of an image are beyond its end", offset=XATTR_BLOCK_OFFSET)

    @classmethod
    @contextmanager
    def open(cls, image: ImageBytes) -> Iterator[Self]:
        """Raises as the constructor, and LimitExceededError for an image that is too large to be one."""
        with memoryview(image) as view, view.cast("B") as data:
            if len(data) > MAX_IMAGE_BYTES:
                raise LimitExceededError(f"an image of {len(data)} bytes is larger than {MAX_IMAGE_BYTES}")
            yield cls(data)

    @property
    def slots(self) -> int:
        """One more than the largest nid."""
        return self._end // SLOT_BYTES

    # Inodes

    def inode(self, nid: int) -> Inode:
        """Raises FormatError if there can be no inode."""
        offset = nid * SLOT_BYTES
        if offset < HEAD_BYTES or offset + COMPACT.size > self._end:
            raise FormatError(f"an image names inode {nid}, which it does not have", offset=offset)
        if self._data[offset] & 1:
            if offset + EXTENDED.size > self._end:
                raise FormatError("an inode is cut short", offset=offset)
            kind, words, mode, _, size, u, _, uid, gid, mtime, nsec, links = EXTENDED.unpack_from(self._data, offset)
            area_offset = offset + EXTENDED.size
        else:
            kind, words, mode, links, size, _, u, _, uid, gid, _ = COMPACT.unpack_from(self._data, offset)
            mtime, nsec = self.head.build_time, self.head.build_nsec
            area_offset = offset + COMPACT.size
        layout, file_type = kind & ~1, _TYPE_OF_MODE.get(mode & 0o170000)
        if layout not in _LAYOUTS or file_type is None:
            raise FormatError("an inode has an unknown layout or type", offset=offset)
        tail_offset = area_offset + (XATTR_AREA.size + 4 * (words - 1) if words else 0)
        tail_bytes = size % BLOCK_BYTES if layout == _INLINE else 0
        if tail_offset + tail_bytes > self._end or (layout != _CHUNKED and size > self._end):
            raise FormatError("an inode reaches beyond the end of the image", offset=offset)
        return Inode(
            nid, file_type, layout, mode & 0o7777, uid, gid, mtime, nsec, links, size, u, area_offset, tail_offset,
            tail_bytes,
        )  # fmt: skip

    def visit(self, inode: Inode) -> bool:
        """Is this is the first time?  Raises FormatError if its parts overlap others, or are not in the image."""
        byte, bit = inode.nid >> 3, 1 << (inode.nid & 7)
        if self._visited[byte] & bit:
            return False
        self._visited[byte] |= bit
        used = inode.tail_offset + inode.tail_bytes - inode.offset
        if inode.file_type in _WITH_CONTENT and inode.layout != _CHUNKED:
            blocks = self._blocks(inode)
            used += len(blocks) * BLOCK_BYTES
        self._claim(used)
        return True

    def _claim(self, size: int) -> None:
        self._unclaimed -= size
        if self._unclaimed < 0:
            raise FormatError("parts of the image overlap")

    # Content

    def _blocks(self, inode: Inode) -> range:
        count = inode.size // BLOCK_BYTES if inode.layout == _INLINE else -(-inode.size // BLOCK_BYTES)
        if count and inode.u + count > self._end // BLOCK_BYTES:
            raise FormatError("the blocks of an inode are beyond the end of the image", offset=inode.offset)
        return range(inode.u, inode.u + count)

    def _slice(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def content(self, inode: Inode) -> bytes:
        """The content of an inline file, or the target of a symbolic link."""
        if inode.layout == _CHUNKED:
            raise FormatError("content that should be in the image is not", offset=inode.offset)
        blocks = self._blocks(inode)
        in_blocks = self._slice(blocks.start * BLOCK_BYTES, min(len(blocks) * BLOCK_BYTES, inode.size))
        return in_blocks + self._slice(inode.tail_offset, inode.tail_bytes)

    def entries(self, inode: Inode) -> dict[bytes, int]:
        """Names and nids of a directory, with `.` and `..`.

        Raises FormatError if the directory is malformed, LimitExceededError if it has more names than any.
        """
        if inode.layout == _CHUNKED:
            raise FormatError("a directory is not in the image", offset=inode.offset)
        entries: dict[bytes, int] = {}
        for block in self._blocks(inode):
            self._add_group(entries, block * BLOCK_BYTES, BLOCK_BYTES)
            if len(entries) > MAX_NAMES:
                raise LimitExceededError(f"a directory of an image has more than {MAX_NAMES} names")
        if inode.tail_bytes:
            self._add_group(entries, inode.tail_offset, inode.tail_bytes)
        return entries

    def _add_group(self, entries: dict[bytes, int], offset: int, size: int) -> None:
        group = self._slice(offset, size)
        first = int.from_bytes(group[_NAME_OFFSET : _NAME_OFFSET + 2], "little")
        if not first or first % DIRENT.size or first > size:
            raise FormatError("directory entries are malformed", offset=offset)
        heads = list(DIRENT.iter_unpack(group[:first]))
        ends = [start for _, start, _ in heads[1:]]
        end = group.find(b"\0", heads[-1][1])
        if end >= 0 and group.count(b"\0", end) < size - end:  # readers disagree about where such a name ends
            raise FormatError("a directory has bytes behind its last name", offset=offset)
        ends.append(size if end < 0 else end)
        for (nid, start, _), end in zip(heads, ends, strict=True):
            name = group[start:end]
            if not first <= start < end <= size or b"/" in name or b"\0" in name:
                raise FormatError("a directory has a name that no file can have", offset=offset)
            if name in entries:
                raise FormatError("a directory has a name twice", offset=offset)
            entries[name] = nid

    # Extended attributes

    def xattrs(self, inode: Inode) -> tuple[Xattr, ...]:
        """Full names and values, shared ones first.  Raises FormatError if they are malformed."""
        offset = inode.area_offset
        area = self._slice(offset, inode.tail_offset - offset)
        if not area:
            return ()
        known = self._areas.get(area)
        if known is not None:
            return known
        at = XATTR_AREA.size + _REFERENCE.size * area[4]
        if at > len(area):
            raise FormatError("references to shared attributes are cut short", offset=offset)
        found = [self._shared_xattr(reference) for (reference,) in _REFERENCE.iter_unpack(area[XATTR_AREA.size : at])]
        only_shared = at == len(area)
        while at < len(area):
            xattr, at = _entry(area, at, offset)
            found.append(xattr)
        if only_shared:
            _remember(self._areas, area, tuple(found))
        return tuple(found)

    def _shared_xattr(self, reference: int) -> Xattr:
        known = self._shared.get(reference)
        if known is not None:
            return known
        offset = self.head.xattr_block * BLOCK_BYTES + reference * _REFERENCE.size
        head = self._slice(offset, XATTR_ENTRY.size)
        if len(head) < XATTR_ENTRY.size:
            raise FormatError("a shared attribute is beyond the end of the image", offset=offset)
        rest_bytes, _, value_bytes = XATTR_ENTRY.unpack(head)
        size = round_up(XATTR_ENTRY.size + rest_bytes + value_bytes, 4)
        self._claim(size)
        if len(self._shared) >= _MAX_SHARED:
            raise LimitExceededError(f"an image has more than {_MAX_SHARED} shared attributes")
        xattr, _ = _entry(self._slice(offset, size), 0, offset)
        self._shared[reference] = xattr
        return xattr


def _remember(cache: dict[bytes, tuple[Xattr, ...]], key: bytes, value: tuple[Xattr, ...]) -> None:
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = value


def _entry(data: bytes, at: int, offset: int) -> tuple[Xattr, int]:
    """The attribute at `at`, which is a multiple of 4, and where the next one is."""
    rest_bytes, index, value_bytes = XATTR_ENTRY.unpack_from(data, at)
    rest_end = at + XATTR_ENTRY.size + rest_bytes
    end = rest_end + value_bytes
    if index >= len(PREFIXES) or round_up(end, 4) > len(data):
        raise FormatError("an extended attribute is malformed", offset=offset + at)
    name = PREFIXES[index] + data[at + XATTR_ENTRY.size : rest_end]
    return (name, data[rest_end:end]), round_up(end, 4)
