"""A difference of two trees as lines for people and as records for programs.

Names and values come from images that nobody vouches for: they stand as dumpfiles have them, and cut.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from composefsd.tree.difference import Aspect, Change, Changed, Difference, Only, Value
from composefsd.tree.dumpfile import quote
from composefsd.tree.table import Kind

Record = Mapping[str, str | int | bool | None]

_PATH_BYTES: Final = 4096
_SHOWN_BYTES: Final = 64
_NAME_BYTES: Final = 300
_RECORDED_BYTES: Final = 4096
_SHOWN_DIGITS: Final = 16
_SECOND: Final = 1_000_000_000

_TYPES: Final = {
    Kind.DIRECTORY: "directory", Kind.INLINE: "file", Kind.EXTERNAL: "file", Kind.UNVERIFIED: "file",
    Kind.SPARSE: "file", Kind.SYMLINK: "symlink", Kind.CHAR: "char-device", Kind.BLOCK: "block-device",
    Kind.FIFO: "fifo", Kind.SOCKET: "socket",
}  # fmt: skip
_STORAGE: Final = {
    Kind.INLINE: "inline", Kind.EXTERNAL: "object", Kind.UNVERIFIED: "object-without-digest", Kind.SPARSE: "zeros",
}  # fmt: skip


def _cut(text: bytes, most: int) -> str:
    return quote(text) if len(text) <= most else f"{quote(text[:most])}...({len(text)} bytes)"


def _device(number: int) -> str:
    """Major and minor, as Linux packs them; spelt out, as `os.major` depends on the platform."""
    major = number >> 32 & 0xFFFFF000 | number >> 8 & 0xFFF
    minor = number >> 12 & 0xFFFFFF00 | number & 0xFF
    return f"{major}:{minor}"


def _time(seconds: int, nanoseconds: int) -> str:
    whole, rest = divmod(abs(seconds * _SECOND + nanoseconds), _SECOND)
    return f"{'-' if seconds < 0 else ''}{whole}.{rest:09}"


def _plain(aspect: Aspect, value: Value, most: int) -> str | int | None:
    """A value of a change; text is cut to `most` bytes before it is escaped."""
    match value:
        case Kind():
            return _TYPES[value] if aspect is Aspect.TYPE else _STORAGE[value]
        case (int(seconds), int(nanoseconds)):
            return _time(seconds, nanoseconds)
        case int() if aspect is Aspect.MODE:
            return f"{value:04o}"
        case int() if aspect is Aspect.DEVICE:
            return _device(value)
        case bytes() if aspect is Aspect.DIGEST:
            return value.hex()
        case bytes():
            return _cut(value, most)
    return value


def _shown(aspect: Aspect, value: Value) -> str:
    plain = _plain(aspect, value, _SHOWN_BYTES if aspect is not Aspect.LINK else _PATH_BYTES)
    if aspect is Aspect.DIGEST and isinstance(plain, str):
        return f"{plain[:_SHOWN_DIGITS]}..."
    if plain is None:
        return "an inode of its own" if aspect is Aspect.LINK else "none"
    return f"a hard link to {plain}" if aspect is Aspect.LINK else str(plain) or "empty"


def _names(count: int) -> str:
    return f"with {count:,} name{'' if count == 1 else 's'} below"


Row: TypeAlias = "Only | tuple[Changed, Change]"
"""What is told on one line."""


def rows(difference: Difference) -> Iterator[Row]:
    """A difference, line by line."""
    if isinstance(difference, Only):
        yield difference
    else:
        for change in difference.changes:
            yield difference, change


def line(row: Row) -> str:
    """`only in A: PATH (TYPE, …)`, or `PATH: ASPECT VALUE -> VALUE`, where the first value is that of A."""
    return _only_line(row) if isinstance(row, Only) else _change_line(*row)


def record(row: Row, *, is_stored: bool) -> Record:
    """What `line` says; is_stored tells whether an image of the format at hand has it."""
    return _only_record(row) if isinstance(row, Only) else _change_record(*row, is_stored=is_stored)


def _only_line(found: Only) -> str:
    facts = [_TYPES[found.kind]]
    if facts[0] == "file":
        facts.append(f"{found.size:,} byte{'' if found.size == 1 else 's'}")
    if found.below:
        facts.append(_names(found.below))
    if found.link is not None:
        facts.append(f"hard link to {_cut(found.link, _PATH_BYTES)}")
    return f"only in {found.side.name}: {_cut(found.path, _PATH_BYTES)} ({', '.join(facts)})"


def _change_line(found: Changed, change: Change) -> str:
    values = [_shown(change.aspect, value) for value in (change.a, change.b)]
    if change.aspect is Aspect.TYPE and found.below:
        values[0 if change.a is Kind.DIRECTORY else 1] += f" {_names(found.below)}"
    name = f" {_cut(change.name, _NAME_BYTES)}" if change.aspect is Aspect.XATTR else ""
    return f"{_cut(found.path, _PATH_BYTES)}: {change.aspect.value}{name} {values[0]} -> {values[1]}"


def _only_record(found: Only) -> Record:
    return {
        "path": _cut(found.path, _PATH_BYTES),
        "only_in": found.side.value,
        "type": _TYPES[found.kind],
        "size": found.size,
        "names_below": found.below,
        "link": None if found.link is None else _cut(found.link, _PATH_BYTES),
    }


def _change_record(found: Changed, change: Change, *, is_stored: bool) -> Record:
    return {
        "path": _cut(found.path, _PATH_BYTES),
        "change": change.aspect.value,
        "xattr": _cut(change.name, _NAME_BYTES) if change.aspect is Aspect.XATTR else None,
        "a": _plain(change.aspect, change.a, _RECORDED_BYTES),
        "b": _plain(change.aspect, change.b, _RECORDED_BYTES),
        "names_below": found.below if change.aspect is Aspect.TYPE else 0,
        "stored": is_stored,
    }
