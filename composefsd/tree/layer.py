"""The entries of one tar layer as columns, in the order of the archive.

The table is made where the untrusted tar is parsed and used where layers are merged, so it has a serialised form that
crosses a pipe or a memfd between processes of one host.  That form is in the host's byte order: a header of six
32-bit counts (entries, xattr sets, xattr pairs, bytes of paths, of texts, of xattrs), the columns one after the
other, then the xattr sets and the three runs of bytes.  The reader trusts none of it.
"""

from array import array
from itertools import accumulate, islice, pairwise
from operator import gt, le
from struct import Struct
from typing import Final, Self

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.table import Column, Kind, XattrSet

HARDLINK: Final = 10
"""The kind of an entry that gives another name to a file; the other kinds are those of `Kind`."""

INLINE_BYTES: Final = 64
"""Content of regular files above this size is external; a constant of the composefs format."""

MAX_ENTRIES: Final = 4_000_000
MAX_TEXT_BYTES: Final = 1 << 30
"""Bounds of a layer: entries, and bytes of paths, of texts and of extended attributes, each."""

MAX_PATH_BYTES: Final = 4096
"""PATH_MAX of linux/limits.h; bounds paths and link targets."""

MAX_SIZE_BYTES: Final = (1 << 63) - 512
"""The largest file whose padded size is still an off_t."""

MAX_XATTR_NAME_BYTES: Final = 255
MAX_XATTR_VALUE_BYTES: Final = 65536
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h."""

_COLUMNS: Final = (
    ("kind", "B"), ("mode", "I"), ("uid", "I"), ("gid", "I"), ("mtime", "q"), ("nsec", "I"), ("size", "Q"),
    ("xattrs", "I"), ("path_end", "I"), ("text_end", "I"),
)  # fmt: skip
_COUNTS: Final = Struct("=6I")
_PAIR_BYTES: Final = 8

_TEXT_LIMITS: Final = {
    Kind.DIRECTORY: 0, Kind.INLINE: INLINE_BYTES, Kind.EXTERNAL: 0, Kind.SYMLINK: MAX_PATH_BYTES, Kind.CHAR: 0,
    Kind.BLOCK: 0, Kind.FIFO: 0, HARDLINK: MAX_PATH_BYTES,
}  # fmt: skip
"""The kinds a layer can have, and how long the text of each may be."""


Row = tuple[int, int, int, int, int, int, int, int, bytes, bytes]
"""An entry: kind, mode, uid, gid, mtime, nsec, size, index of its xattr set, path, text."""


class LayerTable:
    """Columns of a layer; all but the paths and texts are as in `Tree`, so that rows are merged in bulk.

    An entry's path is as the tar had it.  Its text is the content of an inline file or the target of a symbolic or
    hard link, else empty; size is what `Tree.size` would be, and 0 for a hard link.  The n-th row of kind EXTERNAL
    is the n-th external file of the layer, counted from 0.
    """

    def __init__(self) -> None:
        self.kind = array("B")
        self.mode = array("I")
        self.uid = array("I")
        self.gid = array("I")
        self.mtime = array("q")
        self.nsec = array("I")
        self.size = array("Q")
        self.xattrs = array("I")
        self.path_end = array("I")
        self.text_end = array("I")
        self.paths = bytearray()
        self.texts = bytearray()
        self.xattr_sets: list[XattrSet] = [()]
        self._xattr_ids: dict[XattrSet, int] = {(): 0}
        self._xattr_bytes = 0

    def __len__(self) -> int:
        return len(self.kind)

    def path(self, row: int) -> bytes:
        """The path of an entry, as the tar had it."""
        return bytes(self.paths[self.path_end[row - 1] if row else 0 : self.path_end[row]])

    def text(self, row: int) -> bytes:
        """The content of an inline file or the target of a link."""
        return bytes(self.texts[self.text_end[row - 1] if row else 0 : self.text_end[row]])

    def count_external(self) -> int:
        """How many external files the layer has."""
        return self.kind.count(Kind.EXTERNAL)

    def append_rows(self, rows: list[Row]) -> None:
        """Add entries, many at a time since columns are fast in bulk.  Raises LimitExceededError at the bounds."""
        if not rows:
            return
        *columns, paths, texts = zip(*rows, strict=True)
        for (name, code), column in zip(_COLUMNS, columns, strict=False):
            getattr(self, name).extend(array(code, column))
        self._append_texts(self.paths, self.path_end, paths)
        self._append_texts(self.texts, self.text_end, texts)
        if len(self.kind) > MAX_ENTRIES:
            raise LimitExceededError(f"the layer has more than {MAX_ENTRIES} entries")

    def _append_texts(self, run: bytearray, ends: Column, texts: tuple[bytes, ...]) -> None:
        start = len(run)
        run += b"".join(texts)
        if len(run) > MAX_TEXT_BYTES:
            raise LimitExceededError(f"the layer has more than {MAX_TEXT_BYTES} bytes of paths, or of small files")
        ends.extend(array("I", islice(accumulate(map(len, texts), initial=start), 1, None)))

    def intern(self, xattrs: XattrSet) -> int:
        """The index of a set of extended attributes.  Raises LimitExceededError at the layer's bounds."""
        known = self._xattr_ids.get(xattrs)
        if known is None:
            self._xattr_bytes += sum(len(name) + len(value) + _PAIR_BYTES for name, value in xattrs)
            if self._xattr_bytes > MAX_TEXT_BYTES:
                raise LimitExceededError("the layer has more than 1 GiB of extended attributes")
            known = self._xattr_ids[xattrs] = len(self.xattr_sets)
            self.xattr_sets.append(xattrs)
        return known

    def serialize(self) -> bytes:
        """The table as bytes for `parse`, on the same host."""
        pairs = [pair for xattrs in self.xattr_sets[1:] for pair in xattrs]
        set_sizes = array("I", map(len, self.xattr_sets[1:]))
        pair_sizes = array("I", (len(text) for pair in pairs for text in pair))
        values = b"".join(text for pair in pairs for text in pair)
        counts = (len(self), len(set_sizes), len(pairs), len(self.paths), len(self.texts), len(values))
        columns = [getattr(self, name).tobytes() for name, _code in _COLUMNS]
        runs = (set_sizes.tobytes(), pair_sizes.tobytes(), self.paths, self.texts, values)
        return b"".join((_COUNTS.pack(*counts), *columns, *runs))

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """Read what `serialize` wrote.

        Raises FormatError for anything that the parser of tars could not have made, and LimitExceededError for more
        extended attributes than it would have taken.
        """
        view = memoryview(data).cast("B")
        if len(view) < _COUNTS.size:
            raise FormatError("layer table is cut short", offset=len(view))
        entries, sets, pairs, *runs = _COUNTS.unpack_from(view)
        sizes = [entries * array(code).itemsize for _name, code in _COLUMNS]
        sizes += [4 * sets, _PAIR_BYTES * pairs, *runs]
        if entries > MAX_ENTRIES or max(runs) > MAX_TEXT_BYTES or len(view) != _COUNTS.size + sum(sizes):
            raise FormatError("layer table has another size than its counts say", offset=0)
        table, at = cls(), _COUNTS.size
        parts = []
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        for (name, _code), part in zip(_COLUMNS, parts, strict=False):
            getattr(table, name).frombytes(part)
        set_sizes, pair_sizes, paths, texts, values = parts[len(_COLUMNS) :]
        table.paths += paths
        table.texts += texts
        table._read_xattrs(set_sizes, pair_sizes, values)
        table._check_columns()
        table._check_texts()
        return table

    def _read_xattrs(self, set_sizes: memoryview, pair_sizes: memoryview, values: memoryview) -> None:
        sizes = pair_sizes.cast("I")
        if sum(sizes) != len(values) or sum(set_sizes.cast("I")) != len(sizes) // 2:
            raise FormatError("layer table's extended attributes do not add up")
        at = pair = 0
        for count in set_sizes.cast("I"):
            found = []
            for _ in range(count):
                name_end = at + sizes[pair]
                end = name_end + sizes[pair + 1]
                found.append((bytes(values[at:name_end]), bytes(values[name_end:end])))
                at, pair = end, pair + 2
            self._adopt(tuple(found))

    def _adopt(self, xattrs: XattrSet) -> None:
        ordered = all(first[0] < second[0] for first, second in pairwise(xattrs))
        if not ordered or xattrs in self._xattr_ids or not all(map(_is_xattr, xattrs)):
            raise FormatError("layer table has a malformed set of extended attributes")
        self.intern(xattrs)

    def _check_columns(self) -> None:
        if not self.kind:
            if self.paths or self.texts:
                raise FormatError("layer table has names and no entries")
            return
        paths_fit = self.path_end[0] > 0 and all(map(gt, self.path_end[1:], self.path_end))
        texts_fit = all(map(le, self.text_end, self.text_end[1:]))
        if not paths_fit or not texts_fit:
            raise FormatError("layer table has an entry without a path, or texts that overlap")
        if self.path_end[-1] != len(self.paths) or self.text_end[-1] != len(self.texts):
            raise FormatError("layer table has names beyond its entries")
        if max(self.nsec) >= 1_000_000_000 or min(self.mtime) < 0 or max(self.xattrs) >= len(self.xattr_sets):
            raise FormatError("layer table has a time or a set of extended attributes out of range")
        if b"\0" in self.paths:
            raise FormatError("layer table has a path with a NUL")

    def _check_texts(self) -> None:
        path_at = text_at = 0
        for row, (kind, size) in enumerate(zip(self.kind, self.size, strict=True)):
            path_end, text_end = self.path_end[row], self.text_end[row]
            length = text_end - text_at
            limit = _TEXT_LIMITS.get(kind)
            if limit is None or length > limit or path_end - path_at > MAX_PATH_BYTES:
                raise FormatError("layer table has an unknown kind, or a text too long for its kind", row=row)
            if not _size_fits(kind, size, length):
                raise FormatError("layer table has a size that does not fit its kind", row=row)
            if kind in _LINKS and self.texts.find(0, text_at, text_end) >= 0:
                raise FormatError("layer table has a link target with a NUL", row=row)
            path_at, text_at = path_end, text_end


_LINKS: Final = frozenset((Kind.SYMLINK, HARDLINK))


def _is_xattr(pair: tuple[bytes, bytes]) -> bool:
    name, value = pair
    return len(name) <= MAX_XATTR_NAME_BYTES and b"\0" not in name and len(value) <= MAX_XATTR_VALUE_BYTES


def _size_fits(kind: int, size: int, text_bytes: int) -> bool:
    if kind == Kind.EXTERNAL:
        return INLINE_BYTES < size <= MAX_SIZE_BYTES
    if kind in (Kind.CHAR, Kind.BLOCK):
        return True
    return size == (0 if kind == HARDLINK else text_bytes)
