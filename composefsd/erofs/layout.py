"""Where everything of an image lies: the first half of writing one.

Inodes are placed front to back.  Content that is no multiple of the block size ends in a *tail* behind its inode, and
a tail must not cross a block boundary, so inodes are moved behind one where theirs would.  The rules for that differ
between C composefs (V0, V1) and old composefs-rs (V2) and decide digests, oddities included.
"""

from array import array
from collections.abc import Callable
from typing import Final

from composefsd.erofs.areas import Areas
from composefsd.erofs.format import (
    BLOCK_BITS,
    BLOCK_BYTES,
    COMPACT,
    DIRENT,
    EXTENDED,
    HEAD_BYTES,
    INLINE_DIRECTORY_BYTES,
    MAX_IMAGE_BYTES,
    NULL_CHUNK,
    SLOT_BYTES,
    DataLayout,
    FileType,
    FormatVersion,
    Head,
    chunk_bits,
    round_up,
)
from composefsd.erofs.numbering import Numbering
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.table import ROOT, Kind, Tree

IS_EXTENDED: Final = 1
"""Bit 0 of the format of an inode."""

_UNSIGNED: Final = 0xFFFF_FFFF_FFFF_FFFF


Content = tuple[int, int, int, int]
"""What comes with an inode: its size, the number of its data blocks, the length of its tail, its DataLayout."""

_PLAIN: Final = int(DataLayout.PLAIN)
_INLINE: Final = int(DataLayout.INLINE)
_CHUNKED: Final = int(DataLayout.CHUNKED)
_EXTERNAL: Final = int(Kind.EXTERNAL)
_SYMLINK: Final = int(FileType.SYMLINK)
_MAX_ONE_CHUNK: Final = 1 << 43
_Measure = Callable[[int, int], Content]
_EMPTY: Final[Content] = (0, 0, 0, _PLAIN)


class Layout:
    """Offsets of an image.

    slot and format are columns of its inodes: the nid, and the format field.  first_block has those with blocks in
    the image; groups the number of entries of each block of a directory.
    """

    def __init__(self, tree: Tree, version: FormatVersion) -> None:
        """Raises FormatError for a tree that no image can hold, LimitExceededError for an image nobody would read."""
        self.tree, self.version = tree, version
        self.numbering = Numbering(tree, version)
        self.areas = Areas(self.numbering)
        self.slot = array("I")
        self.format = array("B")
        self.first_block: dict[int, int] = {}
        self.groups: dict[int, tuple[int, ...]] = {}
        self._block_counts: dict[int, int] = {}
        self._c_compatible = version.c_compatible
        self._oldest = self._oldest_mtime()
        self._measures = self._choose_measures()
        self.inodes_end = self._place_inodes()
        self.areas.place(self.inodes_end)
        self.table_end = round_up(self.inodes_end + self.areas.table_bytes, BLOCK_BYTES)
        self.end = self._place_blocks()
        if self.end > MAX_IMAGE_BYTES:
            raise LimitExceededError(f"an image of {self.end} bytes would be larger than {MAX_IMAGE_BYTES}")

    def head(self) -> Head:
        """The beginning of the image."""
        seconds, nanoseconds = self._oldest if self._c_compatible else (0, 0)
        return Head(
            version=self.version,
            has_acl=self.areas.has_acl,
            root_nid=self.slot[0],
            inodes=len(self.slot),
            build_time=seconds,
            build_nsec=nanoseconds,
            blocks=self.end // BLOCK_BYTES,
            xattr_block=self.inodes_end // BLOCK_BYTES if self._c_compatible else 0,
        )

    def _oldest_mtime(self) -> tuple[int, int]:
        """The smallest mtime; times before 1970 count as very late ones, as composefs-rs has them unsigned."""
        mtime, nsec = self.tree.mtime, self.tree.nsec
        unsigned, nanoseconds = min((mtime[inode] & _UNSIGNED, nsec[inode]) for inode in self.numbering.source)
        return (unsigned if unsigned <= _UNSIGNED >> 1 else unsigned - _UNSIGNED - 1), nanoseconds

    # Content

    def _choose_measures(self) -> tuple[_Measure, ...]:
        """A function for each Kind, of the index and the inode."""
        inline = self._inline if self._c_compatible else self._inline_v2
        chunked = self._chunked if self._c_compatible else self._chunked_v2
        return (
            self._directory, inline, chunked, chunked, chunked, self._symlink, self._device, self._device,
            self._special, self._special,
        )  # fmt: skip

    def _directory(self, index: int, inode: int) -> Content:
        names = self.numbering.names(index)
        text = b"".join(names)
        if b"/" in text or b"\0" in text or b"" in names or names.count(b".") + names.count(b"..") > 2:
            raise FormatError("a directory has a name that no file can have", subject=self.numbering.path(inode))
        size = DIRENT.size * len(names) + len(text)
        if size <= INLINE_DIRECTORY_BYTES:
            return (size, 0, size, _INLINE)
        groups, rest = self._group(sorted(names))
        self.groups[index] = groups
        layout = _INLINE if rest else _PLAIN
        return (len(groups) * BLOCK_BYTES + rest, len(groups), rest, layout)

    def _group(self, names: list[bytes]) -> tuple[tuple[int, ...], int]:
        """How many entries go into each block, and how many bytes of entries are left for the tail."""
        groups: list[int] = []
        count = filled = 0
        for name in names:
            needed = DIRENT.size + len(name)
            if needed > BLOCK_BYTES:
                raise FormatError("a file name is too long for an image", subject=name[:100].decode(errors="replace"))
            if filled + needed > BLOCK_BYTES:
                groups.append(count)
                count = filled = 0
            count += 1
            filled += needed
        if filled > INLINE_DIRECTORY_BYTES:
            groups.append(count)
            filled = 0
        return tuple(groups), filled

    def _inline(self, _index: int, inode: int) -> Content:
        size = self.tree.size[inode]
        blocks, tail = divmod(size, BLOCK_BYTES)
        if tail > INLINE_DIRECTORY_BYTES:
            blocks, tail = blocks + 1, 0
        return (size, blocks, tail, _INLINE if tail else _PLAIN)

    def _inline_v2(self, _index: int, inode: int) -> Content:
        size = self.tree.size[inode]
        return (size, 0, size, _INLINE if size else _PLAIN)

    def _chunked(self, index: int, inode: int) -> Content:
        size = self.tree.size[inode]
        if size <= _MAX_ONE_CHUNK:
            return (size, 0, len(NULL_CHUNK) if size else 0, _CHUNKED)
        tail = len(NULL_CHUNK) * -(-size >> chunk_bits(size))
        if tail + self._area_bytes(index) % SLOT_BYTES > BLOCK_BYTES:
            return (size, 1, 0, _CHUNKED)
        return (size, 0, tail, _CHUNKED)

    def _chunked_v2(self, _index: int, inode: int) -> Content:
        tail = len(NULL_CHUNK) if self.tree.kind[inode] == _EXTERNAL else 0
        return (self.tree.size[inode], 0, tail, _CHUNKED)

    def _symlink(self, index: int, inode: int) -> Content:
        size = self.tree.size[inode]
        if self._c_compatible and size:
            compact = self._fits_compact(inode, size, self.numbering.links[inode])
            inode_bytes = COMPACT.size if compact else EXTENDED.size
            if inode_bytes + self._area_bytes(index) + size >= BLOCK_BYTES:
                return (size, 1, 0, _PLAIN)
        return (size, 0, size, _INLINE)

    def _device(self, _index: int, inode: int) -> Content:
        if self.tree.size[inode] > 0xFFFF_FFFF:
            raise FormatError("a device number does not fit in an image", subject=self.numbering.path(inode))
        return _EMPTY

    def _special(self, _index: int, _inode: int) -> Content:
        return _EMPTY

    # Inodes

    def _area_bytes(self, index: int) -> int:
        return self.areas.area_bytes[self.areas.recipe[index]]

    def _fits_compact(self, inode: int, size: int, links: int) -> bool:
        tree = self.tree
        return (
            tree.mtime[inode] == self._oldest[0]
            and tree.nsec[inode] == self._oldest[1]
            and (tree.uid[inode] | tree.gid[inode] | links) <= 0xFFFF
            and size <= 0xFFFF_FFFF
        )

    def _place_inodes(self) -> int:
        """Fill `slot` and `format`; answers with the end of the last inode."""
        source = self.numbering.source
        rows = zip(
            source,
            map(self.tree.kind.__getitem__, source),
            map(self.numbering.links.__getitem__, source),
            map(self.tree.mtime.__getitem__, source),
            map(self.areas.area_bytes.__getitem__, self.areas.recipe),
            self.numbering.file_type,
            strict=True,
        )
        measures, add_slot, add_format = self._measures, self.slot.append, self.format.append
        oldest = self._oldest[0] if self._c_compatible else None  # else no inode is compact
        pad = _pad if self._c_compatible else _pad_v2
        at = HEAD_BYTES
        for index, (inode, kind, links, mtime, area_bytes, file_type) in enumerate(rows):
            if inode == ROOT and index:
                content, links = _EMPTY, 1
            else:
                content = measures[kind](index, inode)
            if mtime == oldest and self._fits_compact(inode, content[0], links):
                head, extended = COMPACT.size + area_bytes, 0
            else:
                head, extended = EXTENDED.size + area_bytes, IS_EXTENDED
            at = at + SLOT_BYTES - 1 & -SLOT_BYTES
            # What lies within one block stays where it is: nearly everything.
            if content[1] or at + head + content[2] >> BLOCK_BITS != at >> BLOCK_BITS:
                at = pad(file_type, at, head, content)
            add_slot(at // SLOT_BYTES)
            add_format(content[3] | extended)
            if content[1]:
                self._block_counts[index] = content[1]
            at += head + content[2]
        return round_up(at, SLOT_BYTES)

    def _place_blocks(self) -> int:
        """Fill `first_block`; answers with the end of the image."""
        block = self.table_end // BLOCK_BYTES
        for index, count in self._block_counts.items():
            self.first_block[index] = block
            block += count
        return block * BLOCK_BYTES


def _pad(file_type: int, at: int, head: int, content: Content) -> int:
    """Where an inode goes that could be at `at`, as C composefs decides it; head is its size before the tail."""
    size, blocks, tail, layout = content
    if file_type == _SYMLINK:
        last = at + head + size - 1
        return at if at >> BLOCK_BITS == last >> BLOCK_BITS else round_up(at, BLOCK_BYTES)
    if layout == _CHUNKED and blocks:
        return round_up(at, BLOCK_BYTES)
    left = -(at + head) % BLOCK_BYTES
    return at + round_up(left, SLOT_BYTES) if 0 < left < tail else at


def _pad_v2(_file_type: int, at: int, head: int, content: Content) -> int:
    """The same as old composefs-rs decides it: a tail that would end with its block is moved, too."""
    size, _blocks, _tail, layout = content
    if layout != _INLINE:
        return at
    last = at + head - 1
    if last >> BLOCK_BITS == (last + 1 + size % BLOCK_BYTES) >> BLOCK_BITS:
        return at
    return round_up(at + BLOCK_BYTES - last % BLOCK_BYTES, SLOT_BYTES)
