"""Extended attributes in an image: names, their filter, and entries.

A name is stored as the index of a prefix and the rest.  An entry is a header of 4 bytes, the rest of the name and the
value, padded with zeros to 4 bytes.  Each inode has a filter of 32 bits, one for the hash of each of its names, which
lets the kernel answer that an attribute is not there without looking (fs/erofs/xattr.c).

Overlayfs reads some names itself: `trusted.overlay.metacopy` and `…redirect` say where the content of a file is.  A
tree's own attributes below `trusted.overlay.` are escaped, so that overlayfs hands them on (the kernel's
Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts").
"""

from typing import Final

from composefsd.digests import Algorithm
from composefsd.erofs.format import XATTR_ENTRY, round_up
from composefsd.errors import FormatError

Xattr = tuple[bytes, bytes]
"""Full name and value."""

PREFIXES: Final = (
    b"", b"user.", b"system.posix_acl_access", b"system.posix_acl_default", b"trusted.", b"lustre.", b"security.",
)  # fmt: skip
"""By the index that stands for each (EROFS_XATTR_INDEX_* of fs/erofs/erofs_fs.h)."""

ACL_INDEXES: Final = frozenset((2, 3))

OVERLAY: Final = b"trusted.overlay."
ESCAPED: Final = b"trusted.overlay.overlay."
METACOPY: Final = b"trusted.overlay.metacopy"
REDIRECT: Final = b"trusted.overlay.redirect"
OPAQUE: Final = b"trusted.overlay.opaque"
SELINUX: Final = b"security.selinux"
WHITEOUT: Final = b"trusted.overlay.overlay.whiteout"
"""Makes a regular file a whiteout to an overlayfs on top of the mounted image."""

WHITEOUT_MARKS: Final = ((WHITEOUT, b""), (b"user.overlay.whiteout", b""))
DIRECTORY_MARKS: Final = ((b"trusted.overlay.overlay.whiteouts", b""), (b"user.overlay.whiteouts", b""))
OPAQUE_MARKS: Final = ((b"trusted.overlay.overlay.opaque", b"x"), (b"user.overlay.opaque", b"x"))
"""What format 1 adds to DIRECTORY_MARKS: kernels look for whiteout attributes in such directories only."""

_LUSTRE: Final = 5
_FILTER_SEED: Final = 0x25BBE08F
_MAX_REST_BYTES: Final = 0xFF
_MAX_VALUE_BYTES: Final = 0xFFFF
_WORD: Final = 0xFFFF_FFFF
_PRIMES: Final = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


def _rotate(word: int, bits: int) -> int:
    word &= _WORD
    return (word << bits | word >> 32 - bits) & _WORD


def xxh32(data: bytes, seed: int) -> int:
    """XXH32 (xxHash specification, "XXH32 algorithm description")."""
    p1, p2, p3, p4, p5 = _PRIMES
    blocks = len(data) // 16 * 16
    if blocks:
        lanes = [seed + p1 + p2, seed + p2, seed, seed - p1]
        for at in range(0, blocks, 4):
            word = int.from_bytes(data[at : at + 4], "little")
            lane = at // 4 % 4
            lanes[lane] = _rotate(lanes[lane] + word * p2, 13) * p1
        total = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        total = seed + p5
    total += len(data)
    words = len(data) // 4 * 4
    for at in range(blocks, words, 4):
        total = _rotate(total + int.from_bytes(data[at : at + 4], "little") * p3, 17) * p4
    for byte in data[words:]:
        total = _rotate(total + byte * p5, 11) * p1
    total &= _WORD
    total = (total ^ total >> 15) * p2 & _WORD
    total = (total ^ total >> 13) * p3 & _WORD
    return total ^ total >> 16


def filter_bit(index: int, rest: bytes) -> int:
    """The bit that a name sets in its inode's filter."""
    return 1 << xxh32(rest, _FILTER_SEED + index) % 32


def split_name(name: bytes, *, lustre: bool) -> tuple[int, bytes]:
    """Index of the prefix, and the rest.  C composefs does not know the prefix of Lustre, format 2 does."""
    for index in range(len(PREFIXES) - 1, 0, -1):
        if name.startswith(PREFIXES[index]) and (index != _LUSTRE or lustre):
            return index, name[len(PREFIXES[index]) :]
    return 0, name


def escape(name: bytes) -> bytes:
    """A tree's own name, as an image has it."""
    return ESCAPED + name[len(OVERLAY) :] if name.startswith(OVERLAY) else name


def entry_bytes(rest: bytes, value: bytes) -> int:
    """The size of an entry.  Raises FormatError if its header cannot hold the lengths."""
    if len(rest) > _MAX_REST_BYTES or len(value) > _MAX_VALUE_BYTES:
        raise FormatError(
            "an extended attribute is too long for an image", subject=rest[:100].decode(errors="replace")
        )
    return round_up(XATTR_ENTRY.size + len(rest) + len(value), 4)


def serialize_entry(index: int, rest: bytes, value: bytes) -> bytes:
    """An entry, with its padding."""
    return (XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value).ljust(entry_bytes(rest, value), b"\0")


def metacopy_head(algorithm: Algorithm) -> bytes:
    """What comes before the digest in a metacopy: version, length, flags, algorithm (`struct ovl_metacopy`)."""
    return bytes((0, 4 + algorithm.digest_bytes, 0, algorithm.kernel_number))


def redirect_path(digest: bytes) -> bytes:
    """Where the object of a digest is, from the root of the object store: `/XX/REST`."""
    digits = digest.hex().encode()
    return b"/%b/%b" % (digits[:2], digits[2:])
