"""A tree as the bytes of an EROFS image, front to back: the second half of writing one.

The layout has decided every offset, so nothing has to be held back: an image is never in memory as a whole.  The
bytes are those of composefs-rs to the last bit, since their fs-verity digest is the name of the image, and a signed
kernel command line may hold it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from composefsd.digests import ObjectId
from composefsd.erofs.format import (
    BLOCK_BITS,
    BLOCK_BYTES,
    COMPACT,
    DIRENT,
    EXTENDED,
    HEAD_BYTES,
    MODE_OF_TYPE,
    NULL_CHUNK,
    SLOT_BYTES,
    DataLayout,
    FormatVersion,
    chunk_bits,
)
from composefsd.erofs.layout import IS_EXTENDED, Layout
from composefsd.erofs.numbering import STUB_MODE
from composefsd.tree.table import ROOT, Kind, Tree
from composefsd.verity import Hasher

_PIECE_BYTES: Final = 1 << 20
_PARTS: Final = 1024
_EXTERNAL: Final = int(Kind.EXTERNAL)
_V2_CHUNK_FORMAT: Final = 31
_BLOCK_OF_CHUNKS: Final = NULL_CHUNK * (BLOCK_BYTES // len(NULL_CHUNK))


def write(tree: Tree, version: FormatVersion) -> Iterator[bytes]:
    """The image of a frozen tree, in pieces of about 1 MiB.

    Raises FormatError for a tree that no image can hold, LimitExceededError if readers would refuse the image for its
    size; both before the first piece.
    """
    return _in_pieces(_Emitter(Layout(tree, version)).parts())


def compute_id(tree: Tree, version: FormatVersion) -> ObjectId:
    """The fs-verity digest of the image of a frozen tree.  Raises as `write`."""
    hasher = Hasher(tree.algorithm)
    for piece in write(tree, version):
        hasher.update(piece)
    return ObjectId(hasher.digest())


def _in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    size = 0
    for part in parts:
        pending.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            yield b"".join(pending)
            pending.clear()
            size = 0
    yield b"".join(pending)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")


class _Emitter:
    def __init__(self, layout: Layout) -> None:
        self._layout, self._tree = layout, layout.tree
        self._c_compatible = layout.version.c_compatible
        self._numbering, self._areas = layout.numbering, layout.areas
        self._tails: tuple[Callable[[int, int], tuple[int, int, bytes]], ...] = (
            self._directory, self._inline, self._chunked, self._chunked, self._chunked, self._symlink, self._device,
            self._device, self._special, self._special,
        )  # fmt: skip

    def parts(self) -> Iterator[bytes]:
        """The whole image, in many small parts."""
        layout = self._layout
        yield layout.head().serialize()
        yield from self._inodes()
        yield from self._areas.table()
        yield bytes(layout.table_end - layout.inodes_end - self._areas.table_bytes)
        for index in layout.first_block:
            yield from self._blocks(index)

    # Inodes

    def _inodes(self) -> Iterator[bytes]:
        """All inodes with their areas, tails and the gaps between them, some hundred in a part."""
        tails, known_areas, make_area = self._tails, self._areas.known, self._areas.make
        compact, extended = COMPACT.pack, EXTENDED.pack
        at = HEAD_BYTES
        parts: list[bytes] = []
        for index, row in enumerate(self._rows()):
            inode, kind, file_type, shape, slot, recipe, mode, uid, gid, mtime, nsec, links = row
            if inode == ROOT and index:
                mode, links, size, u, tail = STUB_MODE, 1, 0, 0, b""
            else:
                size, u, tail = tails[kind](index, inode)
            mode = mode & 0o7777 | MODE_OF_TYPE[file_type]
            area = known_areas[recipe]
            if area is None:
                area = make_area(recipe, inode)
            words = len(area) // 4 - 2 if area else 0
            if not shape & IS_EXTENDED:
                head = compact(shape, words, mode, links, size, 0, u, index, uid, gid, 0)
            elif self._c_compatible:
                head = extended(shape, words, mode, 0, size, u, index, uid, gid, mtime, nsec, links)
            else:
                head = extended(shape, words, mode, 0, size, u, slot, uid, gid, mtime, 0, links)
            start = slot * SLOT_BYTES
            if start != at:
                parts.append(bytes(start - at))
            parts += head, area, tail
            at = start + len(head) + len(area) + len(tail)
            if len(parts) > _PARTS:
                yield b"".join(parts)
                parts.clear()
        yield b"".join(parts)
        yield bytes(self._layout.inodes_end - at)

    def _rows(self) -> Iterator[tuple[int, ...]]:
        """What `_inodes` needs of each inode."""
        tree, numbering, layout = self._tree, self._numbering, self._layout
        columns = (tree.mode, tree.uid, tree.gid, tree.mtime, tree.nsec, numbering.links)
        return zip(
            numbering.source,
            map(tree.kind.__getitem__, numbering.source),
            numbering.file_type,
            layout.format,
            layout.slot,
            self._areas.recipe,
            *(map(column.__getitem__, numbering.source) for column in columns),
            strict=True,
        )

    # Size, the field that depends on the layout, and the tail of each kind

    def _directory(self, index: int, _inode: int) -> tuple[int, int, bytes]:
        groups = self._layout.groups.get(index, ())
        if groups and not self._layout.format[index] & DataLayout.INLINE:
            return len(groups) * BLOCK_BYTES, self._layout.first_block[index], b""
        names, indexes = self._numbering.listing(index)
        start = sum(groups)
        tail = self._group(names[start:], indexes[start:])
        return len(groups) * BLOCK_BYTES + len(tail), self._layout.first_block.get(index, 0), tail

    def _inline(self, index: int, inode: int) -> tuple[int, int, bytes]:
        content = self._tree.text(inode)
        block = self._layout.first_block.get(index)
        if block is None:
            return len(content), 0, content
        in_tail = self._layout.format[index] & DataLayout.INLINE
        return len(content), block, content[len(content) & -BLOCK_BYTES :] if in_tail else b""

    def _chunked(self, index: int, inode: int) -> tuple[int, int, bytes]:
        size = self._tree.size[inode]
        if not self._c_compatible:
            return size, _V2_CHUNK_FORMAT, NULL_CHUNK if self._tree.kind[inode] == _EXTERNAL else b""
        if 0 < size <= BLOCK_BYTES:
            return size, 0, NULL_CHUNK
        bits = chunk_bits(size)
        block = self._layout.first_block.get(index)
        if block is None:
            return size, bits - BLOCK_BITS, NULL_CHUNK * -(-size >> bits)
        return size, (block & 0xFFFF_0000) | (bits - BLOCK_BITS), b""

    def _symlink(self, index: int, inode: int) -> tuple[int, int, bytes]:
        target = self._tree.text(inode)
        block = self._layout.first_block.get(index)
        return (len(target), 0, target) if block is None else (len(target), block, b"")

    def _device(self, _index: int, inode: int) -> tuple[int, int, bytes]:
        return 0, self._tree.size[inode], b""

    def _special(self, _index: int, _inode: int) -> tuple[int, int, bytes]:
        return 0, 0, b""

    def _group(self, names: list[bytes], indexes: list[int]) -> bytes:
        """Directory entries: all their heads, then all their names."""
        slot, file_type, pack = self._layout.slot, self._numbering.file_type, DIRENT.pack
        heads = []
        offset = DIRENT.size * len(names)
        for name, index in zip(names, indexes, strict=True):
            heads.append(pack(slot[index], offset, file_type[index]))
            offset += len(name)
        return b"".join(heads + names)

    # Data blocks

    def _blocks(self, index: int) -> Iterator[bytes]:
        inode = self._numbering.source[index]
        kind = self._tree.kind[inode]
        if kind == Kind.DIRECTORY:
            yield from self._directory_blocks(index)
        elif kind == Kind.INLINE:
            content = self._tree.text(inode)
            in_tail = self._layout.format[index] & DataLayout.INLINE
            yield _padded(content[: len(content) & -BLOCK_BYTES] if in_tail else content)
        elif kind == Kind.SYMLINK:
            yield _padded(self._tree.text(inode)[:BLOCK_BYTES])
        else:
            yield _BLOCK_OF_CHUNKS

    def _directory_blocks(self, index: int) -> Iterator[bytes]:
        names, indexes = self._numbering.listing(index)
        start = 0
        for count in self._layout.groups[index]:
            yield _padded(self._group(names[start : start + count], indexes[start : start + count]))
            start += count
