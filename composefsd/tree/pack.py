"""Members of a tar as bytes: POSIX.1-2001 `pax`, the same for the same input.

A member is a ustar header of 512 bytes, its content, and zeros up to the next multiple of 512.  What a field of the
header cannot hold stands in records of an extended header before it: long names, large numbers, parts of a second,
and extended attributes as `SCHILY.xattr.NAME`, which is how OCI layers carry them.  Owners are numbers; names of
users are left out, since those of the host mean nothing in an image.
"""

import os
import struct
from dataclasses import dataclass
from typing import Final

from composefsd.errors import FormatError
from composefsd.tree.table import Stat

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What stands behind the last member."""

FILE: Final = b"0"
LINK: Final = b"1"
SYMLINK: Final = b"2"
CHAR: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
_RECORDS: Final = b"x"

_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_NAME_BYTES: Final = 100
_ID_MAX: Final = 0o7777777
_NUMBER_MAX: Final = 0o77777777777


@dataclass(frozen=True, slots=True)
class Member:
    """A member: path from the layer's root without a slash in front; link is the target, rdev Linux's device number.

    size is that of the content, which follows the header.
    """

    path: bytes
    type: bytes
    stat: Stat
    size: int = 0
    link: bytes = b""
    rdev: int = 0


def header(member: Member) -> bytes:
    """All that stands before the content.  Raises FormatError for a time before 1970, which readers refuse, and for
    an extended attribute with `=` in its name.
    """
    if member.stat.mtime < 0:
        raise FormatError(f"{member.path[:200]!r} was changed before 1970, which a layer cannot tell")
    path = member.path + b"/" if member.type == DIRECTORY else member.path
    records = _records(member, path)
    extended = b""
    if records:
        fields = (b"././@PaxHeader", _RECORDS, 0o644, 0, 0, len(records), 0, b"", 0)
        extended = _block(*fields) + records + padding(len(records))
    stat = member.stat
    return extended + _block(
        path, member.type, stat.mode & 0o7777, stat.uid, stat.gid, member.size, stat.mtime, member.link, member.rdev
    )


def padding(size: int) -> bytes:
    """The zeros behind a content of `size` bytes."""
    return bytes(-size % BLOCK)


def _records(member: Member, path: bytes) -> bytes:
    """The records of what the header has no room for, and of what it never has."""
    stat = member.stat
    wanted: dict[bytes, bytes] = {}
    for key, name in ((b"path", path), (b"linkpath", member.link)):
        if len(name) > _NAME_BYTES:
            wanted[key] = name
    for key, number, most in ((b"size", member.size, _NUMBER_MAX), (b"uid", stat.uid, _ID_MAX)):
        if number > most:
            wanted[key] = b"%d" % number
    if stat.gid > _ID_MAX:
        wanted[b"gid"] = b"%d" % stat.gid
    if stat.nsec or stat.mtime > _NUMBER_MAX:
        wanted[b"mtime"] = b"%d.%09d" % (stat.mtime, stat.nsec)
    for name, value in stat.xattrs:
        if b"=" in name:  # which ends a key
            raise FormatError(f"{member.path[:200]!r} has the attribute {name!r}, which a layer cannot name")
        wanted[b"SCHILY.xattr." + name] = value
    return b"".join(_record(key, value) for key, value in sorted(wanted.items()))


def _record(key: bytes, value: bytes) -> bytes:
    """A length in decimal that counts itself, a space, key, `=`, value, a newline."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def _octal(number: int, width: int) -> bytes:
    """A number in octal digits; zero if it has no room, as a record tells it then."""
    digits = width - 1
    return b"%0*o" % (digits, number if number < 8**digits else 0)


def _block(
    path: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes, rdev: int
) -> bytes:
    fields = [
        path[:_NAME_BYTES], _octal(mode, 8), _octal(uid, 8), _octal(gid, 8), _octal(size, 12), _octal(mtime, 12),
        b" " * 8, kind, link[:_NAME_BYTES], b"ustar\0", b"00", b"", b"",
        _octal(os.major(rdev), 8), _octal(os.minor(rdev), 8), b"",
    ]  # fmt: skip
    total = sum(_HEADER.pack(*fields))
    fields[6] = b"%06o\0 " % total
    return _HEADER.pack(*fields)
