"""OCI layers written tersely: tar archives with everything a layer can hold, also what no tar tool would write.

POSIX.1-2001 `pax` archives of ustar headers; what a ustar field cannot hold goes into an extended header.  Names,
link targets and xattr values are written as they are given, so that hostile layers can be made.  The same entries
always give the same bytes.
"""

import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final, TypedDict, Unpack

BLOCK: Final = 512
OPAQUE: Final = ".wh..wh..opq"
WHITEOUT: Final = ".wh."

Name = str | bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a tar; `type` is its ustar type flag.

    mtime_sec and mtime_nsec are whole seconds and nanoseconds, device is (major, minor), xattr values are raw bytes.
    `records` are further pax records, written as they are.
    """

    path: Name
    type: bytes = b"0"
    content: bytes = b""
    link: Name = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    records: Mapping[str, bytes] = field(default_factory=dict)


class Meta(TypedDict, total=False):
    """What any entry may carry beside its name, mode and content."""

    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Mapping[str, bytes]
    records: Mapping[str, bytes]


def regular(path: Name, content: bytes = b"", *, mode: int = 0o644, **meta: Unpack[Meta]) -> Entry:
    """A regular file."""
    return Entry(path, b"0", content, mode=mode, **meta)


def directory(path: Name, *, mode: int = 0o755, **meta: Unpack[Meta]) -> Entry:
    """A directory; the name needs no slash at the end."""
    return Entry(path, b"5", mode=mode, **meta)


def symlink(path: Name, target: Name, *, mode: int = 0o777, **meta: Unpack[Meta]) -> Entry:
    """A symbolic link to `target`."""
    return Entry(path, b"2", link=target, mode=mode, **meta)


def hard_link(path: Name, target: Name) -> Entry:
    """Another name of `target`, a path from the layer's root; of this layer or of one below it."""
    return Entry(path, b"1", link=target)


def fifo(path: Name, *, mode: int = 0o644, **meta: Unpack[Meta]) -> Entry:
    """A named pipe."""
    return Entry(path, b"6", mode=mode, **meta)


def char_device(path: Name, major: int, minor: int, *, mode: int = 0o600, **meta: Unpack[Meta]) -> Entry:
    """A character device."""
    return Entry(path, b"3", mode=mode, device=(major, minor), **meta)


def block_device(path: Name, major: int, minor: int, *, mode: int = 0o600, **meta: Unpack[Meta]) -> Entry:
    """A block device."""
    return Entry(path, b"4", mode=mode, device=(major, minor), **meta)


def whiteout(path: str) -> Entry:
    """Deletes `path` of the layers below."""
    parent, _, name = path.rpartition("/")
    return Entry(f"{parent}/{WHITEOUT}{name}" if parent else f"{WHITEOUT}{name}")


def opaque(path: str) -> Entry:
    """Hides what the layers below have in the directory `path`."""
    return Entry(f"{path}/{OPAQUE}")


def _bytes(name: Name) -> bytes:
    return name if isinstance(name, bytes) else os.fsencode(name)


def _record(key: str, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where LENGTH counts its own digits too."""
    rest = b" " + os.fsencode(key) + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _octal(number: int, digits: int) -> bytes:
    """The number as a ustar field of `digits`; one that does not fit is zero here and a pax record elsewhere."""
    return b"%0*o" % (digits, number if 0 <= number < 8**digits else 0)


def _pax_records(entry: Entry, path: bytes, link: bytes) -> bytes:
    """The extended header's content: what ustar cannot hold, then the xattrs, then the entry's own records."""
    found: dict[str, bytes] = {}
    if len(path) > 100:
        found["path"] = path
    if len(link) > 100:
        found["linkpath"] = link
    for key, number in (("uid", entry.uid), ("gid", entry.gid)):
        if number >= 8**7:
            found[key] = str(number).encode()
    if entry.mtime_nsec or not 0 <= entry.mtime_sec < 8**11:
        found["mtime"] = f"{entry.mtime_sec}.{entry.mtime_nsec:09}".encode()
    found |= {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()} | dict(entry.records)
    return b"".join(_record(key, value) for key, value in found.items())


def _header(entry: Entry, path: bytes, link: bytes, size_bytes: int, kind: bytes) -> bytes:
    """One ustar header block with its checksum."""
    major, minor = entry.device
    fields = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
        path[:100],
        _octal(entry.mode, 7),
        _octal(entry.uid, 7),
        _octal(entry.gid, 7),
        _octal(size_bytes, 11),
        _octal(entry.mtime_sec, 11),
        b" " * 8,
        kind,
        link[:100],
        b"ustar\00000",
        b"",
        b"",
        _octal(major, 7),
        _octal(minor, 7),
        b"",
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def _pieces(entry: Entry) -> Iterator[bytes]:
    """The blocks of one entry."""
    path, link = _bytes(entry.path), _bytes(entry.link)
    if entry.type == b"5" and not path.endswith(b"/"):
        path += b"/"
    if records := _pax_records(entry, path, link):
        yield _header(Entry(b"", mode=0o644), b"PaxHeader", b"", len(records), b"x")
        yield _padded(records)
    yield _header(entry, path, link, len(entry.content), entry.type)
    yield _padded(entry.content)


def write_tar(entries: Iterable[Entry], output: BinaryIO) -> None:
    """Write the entries as one tar, with its two closing blocks."""
    for entry in entries:
        for piece in _pieces(entry):
            output.write(piece)
    output.write(bytes(2 * BLOCK))


def tar_layer(entries: Iterable[Entry]) -> bytes:
    """The entries as the bytes of one tar."""
    output = io.BytesIO()
    write_tar(entries, output)
    return output.getvalue()
