"""EROFS structures as composefs images use them.  Little-endian; offsets in bytes from the start of the image.

An image is a composefs header of 32 bytes at 0, a superblock at 1024, inodes from 1152 on (each at a multiple of 32
and followed by its extended attributes and the tail of its content), the table of shared extended attributes, and
data blocks of 4096 bytes.  The number of an inode, its *nid*, is its offset divided by 32.

Defined by the kernel (fs/erofs/erofs_fs.h); what of it composefs uses, and its own header, by C composefs and
composefs-rs.  The vectors in tests/vectors/erofs were written by both.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, Self

from composefsd.errors import FormatError

BLOCK_BITS: Final = 12
BLOCK_BYTES: Final = 1 << BLOCK_BITS
SLOT_BYTES: Final = 32
"""What the offset of an inode is a multiple of."""

HEAD_BYTES: Final = 1152
"""Composefs header and superblock; the first inode may follow."""

MAX_IMAGE_BYTES: Final = 1 << 30
"""Readers refuse larger images: they hold metadata only, and real ones take tens of megabytes."""

INLINE_DIRECTORY_BYTES: Final = 2048
"""The rest of a directory, or of an inline file, that is larger gets a block of its own."""

NULL_CHUNK: Final = b"\xff\xff\xff\xff"
"""The address of a chunk that is not in the image."""

COMPACT: Final = Struct("<HHHHIIIIHHI")
"""Format, xattr count, mode, links, size, 0, u, ino, uid, gid, 0."""
EXTENDED: Final = Struct("<HHHHQIIIIqII16x")
"""Format, xattr count, mode, 0, size, u, ino, uid, gid, mtime, its nanoseconds, links."""
DIRENT: Final = Struct("<QHBx")
"""Nid, offset of the name from the start of the group, type."""
XATTR_AREA: Final = Struct("<IB7x")
"""Complemented name filter, number of shared references."""
XATTR_ENTRY: Final = Struct("<BBH")
"""Length of the name behind its prefix, index of the prefix, length of the value."""

_COMPOSEFS_HEADER: Final = Struct("<IIII16x")
_SUPERBLOCK: Final = Struct("<IIIBBHQqIIII32xIHHHBBIQ24x")
_SUPERBLOCK_OFFSET: Final = 1024
XATTR_BLOCK_OFFSET: Final = _SUPERBLOCK_OFFSET + 44
"""Of the field that Head calls xattr_block."""

_COMPOSEFS_MAGIC: Final = 0xD078629A
_EROFS_MAGIC: Final = 0xE0F5E1E2
_HAS_ACL: Final = 1
_COMPAT_WRITTEN: Final = 0b110  # mtime, xattr filter
_COMPAT_KNOWN: Final = 0b111  # and a checksum
_INCOMPAT_KNOWN: Final = 0b100  # chunked files; nobody sets it, though all have them


class FormatVersion(IntEnum):
    """The `composefs_version` of an image; V0 and V1 have the layout of C composefs, V2 that of old composefs-rs."""

    V0 = 0
    V1 = 1
    V2 = 2

    @property
    def label(self) -> str:
        """As options and messages spell it: `v1`."""
        return f"v{self.value}"

    @property
    def c_compatible(self) -> bool:
        """Of the layout that C composefs has, too."""
        return self is not FormatVersion.V2

    @classmethod
    def from_label(cls, label: str) -> Self:
        """Raises FormatError for anything but a label that `label` gives."""
        for version in cls:
            if version.label == label:
                return version
        raise FormatError(f"unknown image format {label[:20]!r}", subject=label[:20])


class DataLayout(IntEnum):
    """Where the content of an inode lies: bits 1 to 3 of its format field.  Bit 0 tells an extended inode."""

    PLAIN = 0  # in blocks
    INLINE = 4  # in blocks, and the rest behind the inode
    CHUNKED = 8  # outside of the image; chunk addresses behind the inode


class FileType(IntEnum):
    """The type in a directory entry (linux/fs_types.h)."""

    REGULAR = 1
    DIRECTORY = 2
    CHAR = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


MODE_OF_TYPE: Final[tuple[int, ...]] = (
    0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000,
)  # fmt: skip
"""S_IFMT bits of each FileType."""


@dataclass(frozen=True, slots=True)
class Head:
    """The composefs header and the superblock.

    root_nid is 16 bits wide.  build_time and build_nsec are the mtime of all compact inodes.  xattr_block is where
    references to shared extended attributes count from, in blocks.
    """

    version: FormatVersion
    has_acl: bool
    root_nid: int
    inodes: int
    build_time: int
    build_nsec: int
    blocks: int
    xattr_block: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises FormatError if `data` is short, of another kind, or uses a feature that composefs does not."""
        if len(data) < HEAD_BYTES:
            raise FormatError("an image is cut short before its first inode", offset=len(data))
        magic, header_version, flags, number = _COMPOSEFS_HEADER.unpack_from(data)
        if (magic, header_version) != (_COMPOSEFS_MAGIC, 1):
            raise FormatError("not a composefs image", offset=0)
        if number not in (0, 1, 2):
            raise FormatError(f"unknown composefs version {number} of an image", offset=12)
        (
            magic, _, compat, block_bits, slots, root_nid, inodes, build_time, build_nsec, blocks, meta_block,
            xattr_block, incompat, compression, devices, _, _, prefixes, _, packed,
        ) = _SUPERBLOCK.unpack_from(data, _SUPERBLOCK_OFFSET)  # fmt: skip
        if magic != _EROFS_MAGIC:
            raise FormatError("not an EROFS image", offset=_SUPERBLOCK_OFFSET)
        if block_bits != BLOCK_BITS:
            raise FormatError(f"an image with blocks of 2^{block_bits} bytes", offset=_SUPERBLOCK_OFFSET + 12)
        unknown = (compat & ~_COMPAT_KNOWN, incompat & ~_INCOMPAT_KNOWN)
        if any(unknown) or any((slots, meta_block, compression, devices, prefixes, packed)):
            raise FormatError("an image uses EROFS features that composefs does not", offset=_SUPERBLOCK_OFFSET)
        return cls(
            FormatVersion(number),
            bool(flags & _HAS_ACL),
            root_nid,
            inodes,
            build_time,
            build_nsec,
            blocks,
            xattr_block,
        )

    def serialize(self) -> bytes:
        """The first 1152 bytes of an image."""
        header = _COMPOSEFS_HEADER.pack(_COMPOSEFS_MAGIC, 1, _HAS_ACL if self.has_acl else 0, self.version)
        superblock = _SUPERBLOCK.pack(
            _EROFS_MAGIC, 0, _COMPAT_WRITTEN, BLOCK_BITS, 0, self.root_nid, self.inodes, self.build_time,
            self.build_nsec, self.blocks, 0, self.xattr_block, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        return header.ljust(_SUPERBLOCK_OFFSET, b"\0") + superblock


def is_image(head: bytes) -> bool:
    """Whether a file that starts with these bytes, of which HEAD_BYTES are enough, means to be an EROFS image."""
    magics = (head[:4], head[_SUPERBLOCK_OFFSET : _SUPERBLOCK_OFFSET + 4])
    return magics[0] == _COMPOSEFS_MAGIC.to_bytes(4, "little") or magics[1] == _EROFS_MAGIC.to_bytes(4, "little")


def chunk_bits(size_bytes: int) -> int:
    """log2 of the chunk size of an external file: the whole file in one chunk, if that can be said."""
    bits = (size_bytes - 1).bit_length() if size_bytes > 1 else 1
    return min(max(bits, BLOCK_BITS), BLOCK_BITS + 31)


def round_up(number: int, multiple: int) -> int:
    """`multiple` is a power of two."""
    return (number + multiple - 1) & -multiple
