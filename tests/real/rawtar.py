"""Tar headers of every form, also wrong ones: what `real.layers`, which writes one form, cannot make.

Fields as in POSIX.1-1988 `ustar`, GNU tar's base-256 numbers and long names, and pax records.  A number that is given
as bytes goes into its field as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from real.layers import BLOCK

USTAR: Final = b"ustar\x0000"
GNU: Final = b"ustar  \0"
V7: Final = bytes(8)
"""Magic and version of the three kinds of header."""

END: Final = bytes(2 * BLOCK)

Number = int | bytes
Records = Iterable[tuple[bytes, bytes]]


def octal(number: int, width: int) -> bytes:
    """Octal digits that fill all of a field but its last byte."""
    return b"%0*o\0" % (width - 1, number)


def spaced(number: int, width: int) -> bytes:
    """Octal digits between spaces, as old tars wrote them."""
    return (b"%o " % number).rjust(width)


def base256(number: int, width: int) -> bytes:
    """GNU's binary form, behind a set top bit; negative numbers are in two's complement."""
    mask = (1 << 8 * width) - 1
    return ((number & mask) | 0x80 << 8 * (width - 1)).to_bytes(width, "big")


def _field(number: Number, width: int) -> bytes:
    if isinstance(number, bytes):
        return number.ljust(width, b"\0")[:width]
    return octal(number, width) if 0 <= number < 8 ** (width - 1) else base256(number, width)


@dataclass(frozen=True, slots=True)
class Header:
    """One header block; `sum_error` is added to its checksum, `signed_sum` adds bytes up as old BSD tars did."""

    name: bytes
    kind: bytes = b"0"
    size: Number = 0
    link: bytes = b""
    mode: Number = 0o644
    uid: Number = 0
    gid: Number = 0
    mtime: Number = 0
    magic: bytes = USTAR
    major: Number = 0
    minor: Number = 0
    prefix: bytes = b""
    sum_error: int = 0
    signed_sum: bool = False

    def block(self) -> bytes:
        """The 512 bytes."""
        fields = (
            self.name.ljust(100, b"\0")[:100],
            *(_field(number, 8) for number in (self.mode, self.uid, self.gid)),
            *(_field(number, 12) for number in (self.size, self.mtime)),
            b" " * 8,
            self.kind,
            self.link.ljust(100, b"\0")[:100],
            self.magic,
            bytes(64),
            *(_field(number, 8) if self.magic != V7 else bytes(8) for number in (self.major, self.minor)),
            self.prefix.ljust(167, b"\0")[:167],
        )
        block = b"".join(fields)
        total = sum(byte - 256 * (self.signed_sum and byte > 127) for byte in block) + self.sum_error
        return block[:148] + b"%06o\0 " % total + block[156:]


def padded(content: bytes) -> bytes:
    """The content with zeros up to the end of a block."""
    return content + bytes(-len(content) % BLOCK)


def member(header: Header, content: bytes = b"") -> bytes:
    """A header as it is, and content behind it."""
    return header.block() + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    """A pax record; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(records: Records, *, kind: bytes = b"x") -> bytes:
    """An extended header (`x`) or a global one (`g`) with these records."""
    return raw_pax(b"".join(record(key, value) for key, value in records), kind=kind)


def raw_pax(data: bytes, *, kind: bytes = b"x") -> bytes:
    """An extended header with any content."""
    return member(Header(b"PaxHeader", kind, len(data)), data)


def long_name(name: bytes, *, kind: bytes = b"L", terminated: bool = True) -> bytes:
    """GNU's header for a long name (`L`) or link target (`K`)."""
    data = name + b"\0" * terminated
    return member(Header(b"././@LongLink", kind, len(data), magic=GNU), data)
