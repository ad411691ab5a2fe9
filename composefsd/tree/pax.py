"""What extension headers of a tar say about the entry behind them: PAX records and GNU's long names.

PAX records are `LENGTH KEY=VALUE` and a newline, where the length counts the whole record in decimal (POSIX pax).
Which keys count, and the oddities of times, are those of composefs-rs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.layer import MAX_PATH_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES

EXTENSIONS: Final = (b"x", b"L", b"K")
"""Types of headers that belong to the entry behind them: PAX records, GNU's long name and long link target."""

_DECIMAL: Final = re.compile(rb"\+?[0-9]+")
_MASK: Final = 0xFFFF_FFFF


@dataclass(slots=True)
class Entry:
    """What extensions can change of an entry, as its header has it at first."""

    path: bytes
    link: bytes
    size: int
    uid: int
    gid: int
    mtime: int
    nsec: int | None = None
    xattrs: dict[bytes, bytes] | None = None


def _parse_decimal(value: bytes) -> int:
    """A number of a PAX record: decimal digits of at most 64 bits."""
    if len(value) < 20 and value.isdigit():
        return int(value)
    digits = value.lstrip(b"+0") or b"0"
    if not _DECIMAL.fullmatch(value) or len(digits) > 20 or int(digits) >> 64:
        raise FormatError(f"{value[:24]!r} in a PAX record is no number of 64 bits")
    return int(digits)


def _set_path(entry: Entry, value: bytes) -> None:
    entry.path = value


def _set_link(entry: Entry, value: bytes) -> None:
    entry.link = value


def _set_size(entry: Entry, value: bytes) -> None:
    entry.size = _parse_decimal(value)


def _set_uid(entry: Entry, value: bytes) -> None:
    entry.uid = _parse_decimal(value) & _MASK


def _set_gid(entry: Entry, value: bytes) -> None:
    entry.gid = _parse_decimal(value) & _MASK


def _set_time(entry: Entry, value: bytes) -> None:
    """Seconds, and up to nine digits behind a dot; if those are no number they count as nothing, as upstream."""
    if not value.isascii():
        raise FormatError("the PAX record mtime is not ASCII")
    seconds, _, fraction = value.partition(b".")
    entry.mtime = _parse_decimal(seconds)
    if entry.nsec is None:  # composefs-rs takes seconds from the last record of that key, and these from the first
        digits = fraction[:9]
        entry.nsec = int(digits.ljust(9, b"0")) if digits.isdigit() else _parse_odd_fraction(digits)


def _parse_odd_fraction(digits: bytes) -> int:
    """Number parsers of Rust accept a plus sign, and composefs-rs then counts it as one of the digits."""
    return int(digits) * 10 ** (9 - len(digits)) if _DECIMAL.fullmatch(digits) else 0


_SETTERS: Final[dict[bytes, Callable[[Entry, bytes], None]]] = {
    b"path": _set_path, b"linkpath": _set_link, b"size": _set_size, b"uid": _set_uid, b"gid": _set_gid,
    b"mtime": _set_time,
}  # fmt: skip
_IGNORED: Final = frozenset((b"atime", b"ctime", b"uname", b"gname"))


def _set_other(entry: Entry, key: bytes, value: bytes) -> None:
    if key.startswith(b"SCHILY.xattr."):
        _set_xattr(entry, key[13:], value)
    elif key.startswith(b"GNU.sparse."):
        raise FormatError("sparse files are not supported")
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the key of a PAX record is not UTF-8") from error


def _set_xattr(entry: Entry, name: bytes, value: bytes) -> None:
    if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_VALUE_BYTES:
        raise LimitExceededError(f"an extended attribute has {len(name)} bytes of name and {len(value)} of value")
    if b"\0" in name:
        raise FormatError("the name of an extended attribute has a NUL")
    if entry.xattrs is None:
        entry.xattrs = {}
    entry.xattrs[name] = value


def _apply_records(entry: Entry, data: bytes) -> None:
    lines = data.split(b"\n")  # most records are a line; values may have newlines, though
    if lines.pop():
        raise FormatError("the last PAX record is cut short")
    at = end = 0
    for line in lines:
        start, at = at, at + len(line) + 1
        if start < end:
            continue
        digits, _, record = line.partition(b" ")
        if not digits.isdigit() or len(digits) > 9:
            raise FormatError("a PAX record has no length")
        end = start + int(digits)
        if end != at:
            record = data[start + len(digits) + 1 : end - 1]
            if end < at or data[end - 1 : end] != b"\n":
                raise FormatError("a PAX record has another length than it says")
        key, equals, value = record.partition(b"=")
        if not equals:
            raise FormatError("a PAX record has no value")
        if setter := _SETTERS.get(key):
            setter(entry, value)
        elif key not in _IGNORED:
            _set_other(entry, key, value)


def apply_extensions(extensions: dict[bytes, bytes], entry: Entry) -> None:
    """Change what the extensions say: PAX records win over GNU's long names, and those over the header."""
    entry.path = extensions.get(b"L", entry.path)
    entry.link = extensions.get(b"K", entry.link)
    if pax := extensions.get(b"x"):
        _apply_records(entry, pax)
    longest = max(len(entry.path), len(entry.link))
    if longest > MAX_PATH_BYTES:
        raise LimitExceededError(f"a path or link target of {longest} bytes; {MAX_PATH_BYTES} are allowed")
    if b"\0" in entry.path or b"\0" in entry.link:
        raise FormatError("a path or link target has a NUL")
