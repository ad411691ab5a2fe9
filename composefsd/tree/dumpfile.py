r"""The text form of a tree, composefs-dump(5), in the dialect of composefs-rs.

A line for each name, eleven fields with one space between them, then extended attributes:

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE]…

MODE is octal and has type bits, behind `@` for hard links, of which only PATH, MODE and PAYLOAD (the target) count.
MTIME is seconds, a dot, and a plain number of nanoseconds.  PAYLOAD is the target of a link or the object of a file,
CONTENT an inline file, DIGEST the fs-verity digest of a file; each of these is `-` if it is not set.  Escapes are
`\\`, `\n`, `\r`, `\t` and `\xHH`.  Defined by composefs (man/composefs-dump.md) and, where it differs, composefs-rs;
tests/vectors/erofs holds dumps.
"""

import re
from array import array
from binascii import unhexlify
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.table import FILE_TYPE, MAX_NAME_BYTES, ROOT, Kind, Stat, Tree, XattrSet

MAX_PATH_BYTES: Final = 4096
MAX_TARGET_BYTES: Final = 1024
MAX_CONTENT_BYTES: Final = 512
MAX_XATTR_NAME_BYTES: Final = 255
MAX_XATTR_VALUE_BYTES: Final = 65535
MAX_XATTR_NAMES_BYTES: Final = 65535
"""Bounds that composefs-rs sets; the last one is for all names of an inode together."""

MAX_LINE_BYTES: Final = 4 << 20
MAX_LINES: Final = 1 << 22
MAX_BYTES: Final = 1 << 31
"""Bounds of ours, the last one for a whole dump, so that none can take all memory; MAX_XATTRS is another."""

# Writing

_NAMED: Final = {0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
_ESCAPED: Final = {bytes((byte,)): _NAMED.get(byte, b"\\x%02x" % byte) for byte in range(256)}
_UNSAFE: Final = re.compile(rb"[^!-\[\]-~]")
_UNSAFE_IN_XATTRS: Final = re.compile(rb"[^!-<>-\[\]-~]")


def _escape_raw(text: bytes, unsafe: re.Pattern[bytes]) -> bytes:
    return unsafe.sub(lambda match: _ESCAPED[match[0]], text)


def quote(text: bytes) -> str:
    """Printable ASCII without spaces: `text` as a dump has it, for messages."""
    return _escape_raw(text, _UNSAFE).decode("ascii")


def _escape(text: bytes) -> bytes:
    """A field, where `-` stands for nothing."""
    if not text:
        return b"-"
    return b"\\x2d" if text == b"-" else _escape_raw(text, _UNSAFE)


def _count_links(tree: Tree) -> "array[int]":
    """How many names each inode has; a directory has 2, and one for each subdirectory."""
    links = array("I", bytes(4 * len(tree.kind)))
    links[ROOT] = 2
    pending = [ROOT]
    while pending:
        directory = pending.pop()
        for entry in tree.entries(directory):
            inode = tree.child[entry]
            links[inode] += 1
            if tree.kind[inode] == Kind.DIRECTORY:
                links[inode] = 2
                links[directory] += 1
                pending.append(inode)
    return links


def _fields(tree: Tree, inode: int) -> tuple[bytes, bytes, bytes]:
    """PAYLOAD, CONTENT and DIGEST."""
    kind = tree.kind[inode]
    if kind == Kind.INLINE:
        return b"-", _escape(tree.text(inode)), b"-"
    if kind == Kind.SYMLINK:
        return _escape(tree.text(inode)), b"-", b"-"
    if kind in (Kind.EXTERNAL, Kind.UNVERIFIED):  # composefs-rs does not tell them apart in a dump
        digits = tree.digest(inode).hex().encode()
        return b"%s/%s" % (digits[:2], digits[2:]), b"-", digits
    return b"-", b"-", b"-"


def _serialize_inode(tree: Tree, inode: int, path: bytes, links: int) -> bytes:
    kind, size = tree.kind[inode], tree.size[inode]
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    line = b"%s %d %o %d %d %d %d %d.%d %s %s %s" % (
        _escape(path), 0 if is_device else size, tree.mode[inode] | FILE_TYPE[kind], links, tree.uid[inode],
        tree.gid[inode], size if is_device else 0, tree.mtime[inode], tree.nsec[inode], *_fields(tree, inode),
    )  # fmt: skip
    for name, value in tree.xattr_sets[tree.xattrs[inode]]:
        line += b" %s=%s" % (_escape_raw(name, _UNSAFE_IN_XATTRS), _escape_raw(value, _UNSAFE_IN_XATTRS))
    return line + b"\n"


def serialize(tree: Tree) -> Iterator[bytes]:
    """The lines of a frozen tree, each with its newline, depth first in the order of names."""
    links = _count_links(tree)
    written: dict[int, bytes] = {}
    yield _serialize_inode(tree, ROOT, b"/", links[ROOT])
    for path, _entry, inode in tree.walk():
        target = written.get(inode)
        if target is not None:
            yield b"%s 0 @120000 - - - - 0.0 %s - -\n" % (_escape(path), _escape(target))
            continue
        if links[inode] > 1 and tree.kind[inode] != Kind.DIRECTORY:
            written[inode] = path
        yield _serialize_inode(tree, inode, path, links[inode])


# Reading

_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_UNESCAPED: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_DECIMAL: Final = re.compile(rb"\+?[0-9]{1,40}")
_OCTAL: Final = re.compile(rb"\+?[0-7]{1,40}")
# White space of Unicode, which is what Rust's `trim` takes off; `str.isspace` knows four characters more.
_BLANK: Final = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_NOT_CANONICAL: Final = frozenset((b"", b".", b".."))
_NOT_CANONICAL_TEXT: Final = "a path is not absolute, or has an empty, `.` or `..` component"
_KINDS: Final = {
    0o040000: Kind.DIRECTORY, 0o100000: Kind.INLINE, 0o120000: Kind.SYMLINK, 0o020000: Kind.CHAR,
    0o060000: Kind.BLOCK, 0o010000: Kind.FIFO, 0o140000: Kind.SOCKET,
}  # fmt: skip


def _replace_escape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if len(code) == 3:
        return bytes((int(code[1:], 16),))
    if code not in _UNESCAPED:
        raise FormatError("a field has an escape that does not exist")
    return _UNESCAPED[code]


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(_replace_escape, field) if b"\\" in field else field


def _unescape_path(field: bytes) -> bytes:
    """A path or the target of a symbolic link."""
    path = _unescape(field)
    if not path or b"\0" in path:
        raise FormatError("a path or link target is empty or has a NUL")
    if len(path) > MAX_PATH_BYTES:
        raise LimitExceededError(f"a path or link target of {len(path)} bytes; {MAX_PATH_BYTES} are allowed")
    return path


def _parse_number(field: bytes, bits: int) -> int:
    if len(field) < 10 and field.isdigit():
        return int(field)
    number = int(field) if _DECIMAL.fullmatch(field) else 1 << bits
    if number >> bits:
        raise FormatError(f"{field[:40]!r} is no decimal number of {bits} bits")
    return number


def _parse_mode(field: bytes) -> tuple[Kind, int]:
    mode = int(field, 8) if _OCTAL.fullmatch(field) else 1 << 32
    kind = _KINDS.get(mode & 0o170000)
    if mode >> 32 or kind is None:
        raise FormatError(f"{field[:40]!r} is no octal mode with the type of a file")
    return kind, mode & 0o7777


def _parse_time(field: bytes) -> tuple[int, int]:
    seconds, dot, nanoseconds = field.partition(b".")
    nsec = _parse_number(nanoseconds, 64) if dot else 1_000_000_000
    if nsec >= 1_000_000_000:
        raise FormatError("a time has no nanoseconds, or a second of them")
    return _parse_number(seconds, 63), nsec


def _parse_xattrs(fields: list[bytes]) -> XattrSet:
    """Of values under the same name the largest wins, since composefs-rs sorts the pairs first."""
    found: dict[bytes, bytes] = {}
    names_bytes = 0
    for field in fields:
        key, equals, text = field.partition(b"=")
        name, value = _unescape(key), _unescape(text)
        names_bytes += len(name)
        if not equals or b"\0" in name:
            raise FormatError("an extended attribute has no value, or a NUL in its name")
        if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_VALUE_BYTES:
            raise LimitExceededError(f"an extended attribute has {len(name)} bytes of name and {len(value)} of value")
        if names_bytes > MAX_XATTR_NAMES_BYTES:
            raise LimitExceededError(f"the names of extended attributes have more than {MAX_XATTR_NAMES_BYTES} bytes")
        found[name] = max(value, found.get(name, b""))
    return tuple(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class _Line:
    """The fields of a line that is no hard link; payload, content and digest are None if they are not set."""

    kind: Kind
    size: int
    links: int
    rdev: int
    stat: Stat
    payload: bytes | None
    content: bytes | None
    digest: bytes | None

    @classmethod
    def parse(cls, fields: list[bytes]) -> "_Line":
        if len(fields) < 11:
            raise FormatError("a line has less than eleven fields")
        kind, mode = _parse_mode(fields[2])
        uid, gid = _parse_number(fields[4], 32), _parse_number(fields[5], 32)
        xattrs = _parse_xattrs(fields[11:]) if len(fields) > 11 else ()
        stat = Stat(mode, uid, gid, *_parse_time(fields[7]), xattrs)
        payload, content, digest = (None if field == b"-" else field for field in fields[8:11])
        size, links, rdev = _parse_number(fields[1], 64), _parse_number(fields[3], 32), _parse_number(fields[6], 64)
        line = cls(kind, size, links, rdev, stat, payload, content, digest)
        line._check()
        return line

    def _check(self) -> None:
        if self.rdev and self.kind not in (Kind.CHAR, Kind.BLOCK):
            raise FormatError("a device number on what is no device")
        if self.kind != Kind.INLINE and (self.content is not None or self.digest is not None):
            raise FormatError("content or a digest on what is no regular file")
        if self.kind == Kind.CHAR and not self.rdev and self.links > 1:
            raise FormatError("a whiteout with more than one link")


class _Reader:
    """Lines into a tree; number counts them from 1."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.number = self._bytes = 0
        self._tree = Tree(algorithm)
        self._directories: dict[bytes, int] = {b"": ROOT}
        self._has_root = self._has_replaced = False

    def read(self, line: bytes) -> None:
        """Add what a line says, unless it is blank."""
        self.number += 1
        self._bytes += len(line)
        if len(line) > MAX_LINE_BYTES or self.number > MAX_LINES:
            raise LimitExceededError(f"more than {MAX_LINES} lines, or one of more than {MAX_LINE_BYTES} bytes")
        if self._bytes > MAX_BYTES:
            raise LimitExceededError(f"more than {MAX_BYTES} bytes")
        if line.endswith(b"\n"):
            line = line[:-1].removesuffix(b"\r")
        if not _is_blank(line):
            self._read_fields(line)

    def _read_fields(self, line: bytes) -> None:
        if not line.isascii():
            _check_utf8(line)
        fields = line.split(b" ")
        path = _unescape_path(fields[0])
        if path == b"/":
            self._read_root(fields)
            return
        if not self._has_root:
            raise FormatError("the first line is not that of the root")
        directory, name = self._place(path)
        if directory is None:
            raise FormatError("a path whose parent is no directory that was listed before")
        if len(name) > MAX_NAME_BYTES:
            raise LimitExceededError(f"a name of {len(name)} bytes; {MAX_NAME_BYTES} are allowed")
        is_link = len(fields) > 2 and fields[2].startswith(b"@")
        inode = self._find_target(fields) if is_link else self._add(_Line.parse(fields))
        replaced = self._tree.insert(directory, name, inode)
        if replaced is not None:
            self._has_replaced = True
            self._directories = {b"": ROOT}
        if self._tree.kind[inode] == Kind.DIRECTORY:
            self._directories[path] = inode

    def finish(self) -> Tree:
        """The frozen tree.  Raises FormatError if lines replaced a file that had no other name."""
        if not self._has_root:
            raise FormatError("a dump without a line for the root")
        self._tree.freeze()
        if self._has_replaced:
            links = _count_links(self._tree)
            if any(not count and kind != Kind.DIRECTORY for count, kind in zip(links, self._tree.kind, strict=True)):
                raise FormatError("a path occurs twice, and a file has no name left")
        return self._tree

    def _read_root(self, fields: list[bytes]) -> None:
        line = _Line.parse(fields)
        if line.kind != Kind.DIRECTORY:
            raise FormatError("the root is not a directory")
        self._tree.set_stat(ROOT, line.stat)
        self._has_root = True

    def _place(self, path: bytes) -> tuple[int | None, bytes]:
        """The directory of a path, if it exists, and its last name.  Raises FormatError if it is not canonical."""
        parent, slash, name = path.rpartition(b"/")
        directory = self._directories.get(parent)
        if not slash or name in _NOT_CANONICAL:
            raise FormatError(_NOT_CANONICAL_TEXT)
        return (self._walk(parent) if directory is None else directory), name

    def _walk(self, path: bytes) -> int | None:
        """The directory at a path that was not seen as such before."""
        empty, *names = path.split(b"/")
        if empty or not _NOT_CANONICAL.isdisjoint(names):
            raise FormatError(_NOT_CANONICAL_TEXT)
        inode: int | None = ROOT
        for name in names:
            inode = None if inode is None else self._tree.lookup(inode, name)
        return inode if inode is not None and self._tree.kind[inode] == Kind.DIRECTORY else None

    def _find_target(self, fields: list[bytes]) -> int:
        if len(fields) < 9 or fields[8] == b"-":
            raise FormatError("a hard link without a target")
        _parse_number(fields[1], 64)
        kind, _mode = _parse_mode(fields[2][1:])
        directory, name = self._place(_unescape_path(fields[8]))
        inode = None if directory is None else self._tree.lookup(directory, name)
        if inode is None or Kind.DIRECTORY in (kind, self._tree.kind[inode]):
            raise FormatError("a hard link to what is no file that was listed before")
        return inode

    def _add(self, line: _Line) -> int:
        if line.kind == Kind.DIRECTORY:
            return self._tree.add_directory(line.stat)
        if line.kind == Kind.INLINE:
            return self._add_file(line)
        if line.kind == Kind.SYMLINK:
            target = _unescape_path(line.payload or b"")
            if len(target) > MAX_TARGET_BYTES:
                raise LimitExceededError(f"a link target of {len(target)} bytes; {MAX_TARGET_BYTES} are allowed")
            return self._tree.add_symlink(line.stat, target)
        return self._tree.add_special(line.kind, line.stat, line.rdev)

    def _add_file(self, line: _Line) -> int:
        if line.payload is not None:
            kind = Kind.UNVERIFIED if line.digest is None else Kind.EXTERNAL
            path = _unescape_path(line.payload)
            return self._tree.add_external(line.stat, line.size, self._parse_digest(path, line.digest), kind)
        if line.digest is not None:
            raise FormatError("a digest without an object")
        content = _unescape(line.content or b"")
        if len(content) > MAX_CONTENT_BYTES:
            raise LimitExceededError(f"inline content of {len(content)} bytes; {MAX_CONTENT_BYTES} are allowed")
        if line.size and not content:
            return self._tree.add_sparse(line.stat, line.size)
        return self._tree.add_inline(line.stat, content)

    def _parse_digest(self, path: bytes, digest: bytes | None) -> bytes:
        """The digest, or else the last two components of the object's path, `XX/REST`."""
        width = 2 * self._tree.algorithm.digest_bytes
        tail = path[-width - 1 :]
        if digest is None:
            digest = tail[:2] + tail[3:] if tail[2:3] == b"/" else b""
        try:
            parsed = unhexlify(digest)
        except ValueError as error:
            raise FormatError("a digest is not hexadecimal") from error
        if 2 * len(parsed) != width:
            raise FormatError(f"a digest of {len(parsed)} bytes where {width // 2} are due, or a path without one")
        return parsed


def _check_utf8(line: bytes) -> None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise FormatError("a line is not UTF-8") from error


def _is_blank(line: bytes) -> bool:
    return not line.startswith(b"/") and not line.decode(errors="replace").strip(_BLANK)


def parse(source: BinaryIO, algorithm: Algorithm) -> Tree:
    """Read a dump into a frozen tree.

    Raises FormatError for what composefs-rs would not parse or, files that lost all their names, not write as an
    image, and LimitExceededError beyond its bounds or ours; facts tell the line, counted from 1.
    """
    reader = _Reader(algorithm)
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            reader.read(line)
        return reader.finish()
    except (FormatError, LimitExceededError) as error:
        raise type(error)(f"dump, line {reader.number}: {error}", **{**error.facts, "line": reader.number}) from error
