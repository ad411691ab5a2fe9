"""Files of an image: looked up as composefs-rs does it, and read through a function that the caller gives.

Lookups never follow symbolic links.  A path is cut into components as Rust's `std::path` does: repeated slashes and
`.` count for nothing, but `..` and a leading `.` are refused.
"""

from collections.abc import Callable, Iterator
from typing import Final

from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.tree.table import REGULAR, ROOT, Kind, Tree

ObjectReader = Callable[[bytes, int], bytes]
"""Raw digest and a limit in bytes -> the whole object; raises LimitExceededError if it is larger."""

RangeReader = Callable[[bytes, int, int], bytes]
"""Raw digest, offset and count -> so many bytes of the object, fewer where it ends."""

WHITE_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What Rust takes for white space; Python's `str.split` would also cut at U+001C to U+001F."""

_NO_NAMES: Final = (b".", b"..")


def text(path: bytes) -> str:
    """A path for a message."""
    return path.decode("utf-8", "backslashreplace")


def components(path: bytes) -> Iterator[bytes]:
    """The names that a path consists of; `.` only where it comes first."""
    for at, part in enumerate(path.split(b"/")):
        if part and (part != b"." or at == 0):
            yield part


def find_directory(tree: Tree, path: bytes, start: int = ROOT) -> int | None:
    """The inode of a directory; None if some component does not exist.

    Raises NotBootableError if a component is something else than a directory, or `..`.
    """
    inode = start
    for name in components(path):
        if name in _NO_NAMES:
            raise NotBootableError(f"{text(path)}: a path in an image may not have the component {text(name)}")
        entry = tree.find_entry(inode, name)
        if entry is None:
            return None
        inode = tree.child[entry]
        if tree.kind[inode] != Kind.DIRECTORY:
            raise NotBootableError(f"{text(path)}: {text(name)} is not a directory")
    return inode


def get_directory(tree: Tree, path: bytes, start: int = ROOT) -> int:
    """The inode of a directory; also raises NotBootableError if it does not exist."""
    inode = find_directory(tree, path, start)
    if inode is None:
        raise NotBootableError(f"the image has no directory {text(path)}")
    return inode


def find_file(tree: Tree, directory: int, name: bytes) -> int | None:
    """The inode of a regular file by its name in a directory, None without one.

    Raises NotBootableError if there is something else of that name.
    """
    entry = tree.find_entry(directory, name)
    if entry is None:
        return None
    inode = tree.child[entry]
    if tree.kind[inode] not in REGULAR:
        raise NotBootableError(f"{text(name)} is not a regular file")
    return inode


def get_file(tree: Tree, path: bytes) -> int:
    """The inode of the regular file at a path from the root.  Raises NotBootableError if there is none."""
    names = list(components(path))
    if not names or any(name in _NO_NAMES for name in names):
        raise NotBootableError(f"{text(path)!r} names no file of an image")
    inode = find_file(tree, get_directory(tree, b"/" + b"/".join(names[:-1])), names[-1])
    if inode is None:
        raise NotBootableError(f"the image has no file {text(path)}")
    return inode


def read_file(tree: Tree, inode: int, read: ObjectReader, limit_bytes: int) -> bytes:
    """The content of a regular file, wherever it lies.

    Raises LimitExceededError if it is larger than the limit, and FormatError if the object has not the size that the
    tree gives it.
    """
    size = tree.size[inode]
    if size > limit_bytes:
        raise LimitExceededError(f"a file of {size} bytes, where {limit_bytes} are allowed", limit=limit_bytes)
    kind = tree.kind[inode]
    if kind == Kind.INLINE:
        return tree.text(inode)
    if kind == Kind.SPARSE:
        return bytes(size)
    content = read(tree.digest(inode), limit_bytes)
    _check_length(tree, inode, len(content))
    return content


def read_range(tree: Tree, inode: int, ranges: RangeReader, offset: int, count: int) -> bytes:
    """Up to `count` bytes at an offset of a regular file, fewer only where it ends.

    Raises FormatError if the object is shorter than the tree has it.
    """
    count = max(0, min(count, tree.size[inode] - offset))
    kind = tree.kind[inode]
    if kind == Kind.INLINE:
        return tree.text(inode)[offset : offset + count]
    if kind == Kind.SPARSE:
        return bytes(count)
    content = ranges(tree.digest(inode), offset, count)
    if len(content) != count:
        _check_length(tree, inode, offset + len(content))
    return content


def _check_length(tree: Tree, inode: int, length: int) -> None:
    if length != tree.size[inode]:
        raise FormatError(
            f"object {tree.digest(inode).hex()} ends after {length} bytes, not the {tree.size[inode]} of the tree",
            subject=tree.digest(inode).hex(), offset=length,
        )  # fmt: skip
