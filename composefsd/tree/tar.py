"""Tar layers: the parser that every layer goes through, whether it comes from a registry or from the repository.

A tar is a run of 512-byte blocks: a header for each entry, its content padded to a block, and two zero blocks at the
end (POSIX pax; GNU tar's basic format).  Headers of kind `x`, `L` and `K` say more about the entry that follows.
Numbers are octal text, or big-endian binary behind a byte of 0x80 (GNU).

What a header means here is what composefs-rs makes of it (the tar-core crate), since the digest of an image depends
on it.  We are stricter where an archive could show other parsers another tree, or a file that it does not hold:
malformed PAX records, single zero blocks, numbers that are negative or too large, any trace of sparse files.
"""

import re
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol, TypeVar
from zlib import adler32

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.layer import HARDLINK, INLINE_BYTES, MAX_SIZE_BYTES, LayerTable, Row
from composefsd.tree.pax import EXTENSIONS, Entry, apply_extensions
from composefsd.tree.table import Kind

BLOCK_BYTES: Final = 512
MAX_EXTENSION_BYTES: Final = 1 << 20
"""Long names and PAX records that one entry may have, together."""

MAX_LONG_NAME_BYTES: Final = 1 << 16
"""A single GNU long name; a path of this length is refused, but a PAX record may replace it."""

# name; mode, uid and gid; size, mtime, checksum, type, link name; magic and version; device major and minor; prefix
_HEADER: Final = Struct("100s24s12s12s8sc100s8s64x16s155s12x")
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_USTAR: Final = b"ustar\x0000"
_EXTENDED: Final = (_USTAR, b"ustar  \0")  # the second is GNU's, where other fields take the place of the prefix

_FILE: Final = int(Kind.INLINE)  # comparing the members of an IntEnum takes longer
_EXTERNAL: Final = int(Kind.EXTERNAL)
_DEVICES: Final = (Kind.CHAR, Kind.BLOCK)
_KINDS: Final[dict[bytes, int]] = {
    b"0": _FILE, b"\0": _FILE, b"7": _FILE, b"1": HARDLINK, b"2": Kind.SYMLINK, b"3": Kind.CHAR, b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip

_DECIMAL: Final = re.compile(rb"\+?[0-9]+")
_WHITE_SPACE: Final = b" \t\n\r\x0b\x0c"
_MASK: Final = 0xFFFF_FFFF

_SKIP_BYTES: Final = 1 << 20
"""What is read at once of content that nobody wants."""

_BATCH: Final = 1024
"""Rows are added to the table in batches."""

_MEMORY: Final = 1 << 14
"""How many different fields a `_Memory` remembers."""


class LayerStream(Protocol):
    """Where a tar comes from; remembers how it was cut into inline bytes and external files."""

    def inline(self, count: int) -> bytes:
        """The next `count` bytes, which are inline; fewer only at the end of the input."""

    def external(self, size: int) -> None:
        """Pass over an external file of `size` bytes.  Raises FormatError if the input ends in it."""

    def rest(self) -> None:
        """Pass over all that is left, which is inline."""


def parse_layer(stream: LayerStream) -> LayerTable:
    """Read a whole tar.

    Raises FormatError if it breaks the format or holds what images cannot have, and LimitExceededError for more than
    this host should bear; both tell the offset of the entry's header, in bytes from the start of the tar.
    """
    return _Parser(stream).run()


# Numbers


def _parse_octal(field: bytes) -> int:
    """Octal digits with white space around, up to the first NUL; an empty field is 0."""
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():
        digits = field.partition(b"\0")[0].strip(_WHITE_SPACE) or b"0"
        if not _DECIMAL.fullmatch(digits):
            raise FormatError("a number in the header is not octal")
    try:
        return int(digits, 8)
    except ValueError as error:
        raise FormatError("a number in the header is not octal") from error


def _parse_numeric(field: bytes) -> int:
    """Octal digits, or binary if the top bit is set."""
    if field[0] < 0x80:
        return _parse_octal(field)
    if field[0] & 0x40:
        raise FormatError("a number in the header is negative")
    value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    if value >> 64:
        raise FormatError("a number in the header has more than 64 bits")
    return value


def _parse_owner(fields: bytes) -> tuple[int, int, int]:
    """Mode, uid and gid, which stand side by side; composefs-rs cuts each to 32 bits."""
    mode, uid, gid = (_parse_numeric(fields[at : at + 8]) & _MASK for at in (0, 8, 16))
    return mode, uid, gid


def _parse_device(fields: bytes) -> int:
    """What Linux makes of the major and the minor number; spelt out, as `os.makedev` depends on the platform."""
    major, minor = _parse_octal(fields[:8]), _parse_octal(fields[8:])
    return (major & 0xFFFFF000) << 32 | (major & 0xFFF) << 8 | (minor & 0xFFFFFF00) << 12 | minor & 0xFF


def _expected_sum(field: bytes) -> int:
    """What all bytes of a header must add up to; its checksum counts the field itself as eight spaces."""
    return _parse_octal(field) + sum(field) - 8 * 0x20


def _check_signed_sum(block: bytes, found: int, expected: int) -> None:
    """Old BSD tars added bytes up as signed.  Raises FormatError if the block does not sum up that way either."""
    high = sum(byte >= 0x80 for byte in block[:148] + block[156:])
    if expected != found - 256 * high:
        raise FormatError(f"the header's checksum is wrong by {found - expected}")


_Value = TypeVar("_Value")


class _Memory(dict[bytes, _Value]):
    """What `parse` made of fields that were seen; headers repeat most of theirs."""

    def __init__(self, parse: Callable[[bytes], _Value]) -> None:
        super().__init__()
        self._parse = parse

    def __missing__(self, field: bytes) -> _Value:
        value = self._parse(field)
        if len(self) < _MEMORY:
            self[field] = value
        return value


# The archive


class _Parser:
    """The state between two headers: what extension headers said, and the memory of numbers."""

    def __init__(self, stream: LayerStream) -> None:
        self._stream = stream
        self._table = LayerTable()
        self._rows: list[Row] = []
        self._extensions: dict[bytes, bytes] = {}
        self._extension_bytes = 0
        self._owners = _Memory(_parse_owner)
        self._numbers = _Memory(_parse_numeric)
        self._devices = _Memory(_parse_device)
        self._sums = _Memory(_expected_sum)

    def run(self) -> LayerTable:
        inline, unpack, kinds, sums = self._stream.inline, _HEADER.unpack, _KINDS, self._sums
        at = 0
        try:
            while True:
                block = inline(BLOCK_BYTES)
                if len(block) != BLOCK_BYTES or (not block[0] and block == _ZERO_BLOCK):
                    break
                fields = unpack(block)
                # The low half of an Adler-32 is 1 plus the sum of the bytes modulo 65521, which 512 bytes of ASCII
                # do not reach; `sum` takes ten times as long, which is longer than the rest of the header.
                found = (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
                if found != sums[fields[4]]:
                    _check_signed_sum(block, found, sums[fields[4]])
                kind = kinds.get(fields[5])
                size = self._read_extension(fields) if kind is None else self._read_file(kind, fields)
                at += BLOCK_BYTES + size + -size % BLOCK_BYTES
            self._read_end(block)
            self._table.append_rows(self._rows)
        except (FormatError, LimitExceededError) as error:
            raise type(error)(f"tar entry at byte {at}: {error}", **{**error.facts, "offset": at}) from error
        return self._table

    def _read(self, count: int) -> bytes:
        data = self._stream.inline(count)
        if len(data) != count:
            raise FormatError("the archive is cut short")
        return data

    def _read_end(self, block: bytes) -> None:
        """The end of the archive, of which `block` is the first half, or what is left of the input."""
        if block and (len(block) != BLOCK_BYTES or self._stream.inline(BLOCK_BYTES) != _ZERO_BLOCK):
            raise FormatError("the archive is cut short, or has a single block of zeros")
        if self._extensions:
            raise FormatError("an extension header without an entry")
        if block:  # else the two blocks are missing, which composefs-rs minds only behind an entry without content
            self._stream.rest()

    def _read_extension(self, fields: tuple[bytes, ...]) -> int:
        """Read a header that is no file; answers with the size of its content."""
        typeflag, is_extended, size = fields[5], fields[7] in _EXTENDED, self._numbers[fields[2]]
        if typeflag in EXTENSIONS and is_extended:
            self._keep_extension(typeflag, size)
        elif typeflag == b"g":
            self._forget_extensions()  # composefs-rs reports global headers, and loses the local ones before them
            self._read_data(size)
            self._forget_extensions()
        elif typeflag == b"S" and is_extended:
            raise FormatError("sparse files are not supported")
        else:
            raise FormatError(f"entries of type {typeflag!r} are not supported")
        return size

    def _read_data(self, size: int) -> bytes:
        self._extension_bytes += size
        if self._extension_bytes > MAX_EXTENSION_BYTES:
            raise LimitExceededError(f"extension headers have more than {MAX_EXTENSION_BYTES} bytes")
        return self._read(size + -size % BLOCK_BYTES)[:size]

    def _keep_extension(self, typeflag: bytes, size: int) -> None:
        if typeflag in self._extensions:
            raise FormatError(f"two extension headers of type {typeflag.decode()} for one entry")
        if size > MAX_LONG_NAME_BYTES and typeflag != b"x":
            raise LimitExceededError(f"a long name of {size} bytes; {MAX_LONG_NAME_BYTES} are allowed")
        data = self._read_data(size)
        self._extensions[typeflag] = data if typeflag == b"x" else data.removesuffix(b"\0")

    def _forget_extensions(self) -> None:
        self._extensions.clear()
        self._extension_bytes = 0

    def _read_file(self, kind: int, fields: tuple[bytes, ...]) -> int:
        """Add the entry of a header that is no extension, and pass over its content; answers with its size."""
        name, owner, size_field, mtime_field, _sum, _type, link_field, magic, device, prefix = fields
        path = name.partition(b"\0")[0]
        if prefix[0] and magic == _USTAR:
            path = prefix.partition(b"\0")[0] + b"/" + path
        link = link_field.partition(b"\0")[0] if link_field[0] else b""
        mode, uid, gid = self._owners[owner]
        size, mtime, nsec, xattrs = self._numbers[size_field], self._numbers[mtime_field], 0, 0
        if self._extensions:
            path, link, size, uid, gid, mtime, nsec, xattrs = self._extend(Entry(path, link, size, uid, gid, mtime))
        if not path or mtime >> 63 or size > MAX_SIZE_BYTES:
            raise FormatError("an entry without a path, or whose time or size has more than 63 bits")
        rdev = self._devices[device] if magic in _EXTENDED else None  # in any kind of entry these have to be octal
        kind, column, text = self._read_content(kind, size, link, rdev)
        self._rows.append((kind, mode, uid, gid, mtime, nsec, column, xattrs, path, text))
        if len(self._rows) == _BATCH:
            self._table.append_rows(self._rows)
            self._rows.clear()
        return size

    def _extend(self, entry: Entry) -> tuple[bytes, bytes, int, int, int, int, int, int]:
        """What the extension headers make of the header's fields."""
        apply_extensions(self._extensions, entry)
        self._forget_extensions()
        xattrs = self._table.intern(tuple(sorted(entry.xattrs.items()))) if entry.xattrs else 0
        return entry.path, entry.link, entry.size, entry.uid, entry.gid, entry.mtime, entry.nsec or 0, xattrs

    def _read_content(self, kind: int, size: int, link: bytes, rdev: int | None) -> tuple[int, int, bytes]:
        """Pass over the content; answers with the kind, size and text of the row."""
        if kind == _FILE:
            if size > INLINE_BYTES:
                self._stream.external(size)
                if padding := -size % BLOCK_BYTES:
                    self._read(padding)
                return _EXTERNAL, size, b""
            return kind, size, self._read(BLOCK_BYTES)[:size] if size else b""
        self._skip(size + -size % BLOCK_BYTES)
        if kind == Kind.SYMLINK:
            return kind, len(link), link
        if kind not in _DEVICES:
            return kind, 0, link if kind == HARDLINK else b""
        if rdev is None:
            raise FormatError("a device without numbers, in an old header that has no place for them")
        return kind, rdev, b""

    def _skip(self, size: int) -> None:
        """Content of something that has none, which composefs-rs reads and forgets."""
        while size:
            size -= len(self._read(min(size, _SKIP_BYTES)))
