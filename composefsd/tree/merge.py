"""Layers onto a tree, as composefs-rs merges them.

Entries take effect one after the other, across layers and within one.  This differs from the text of the OCI
specification, which gives whiteouts effect on lower layers only; the digest of an image depends on it, and builders
write whiteouts first.  Whiteouts are taken literally: whatever follows `.wh.` is a name to remove, and
`.wh..wh..opq` empties its directory at that moment.  Parents are never created, links never followed.
"""

from array import array
from typing import Final

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.layer import HARDLINK, LayerTable
from composefsd.tree.table import MAX_NAME_BYTES, ROOT, Kind, Rows, Tree

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_NO_NAMES: Final = frozenset((b"", b".", b".."))
_CACHED_DIRECTORIES: Final = 1 << 16
_SHOWN_BYTES: Final = 200

_DIRECTORY: Final = int(Kind.DIRECTORY)  # comparing the members of an IntEnum takes longer
_EXTERNAL: Final = int(Kind.EXTERNAL)
_TEXTS: Final = (int(Kind.INLINE), int(Kind.SYMLINK))


def apply_layer(tree: Tree, layer: LayerTable, digests: bytes | memoryview) -> None:
    """Merge a layer into an open tree; digests are those of its external files, in their order.

    Raises FormatError for an entry that cannot be placed (no parent, no link target, `..`), and LimitExceededError
    for a name that the kernel could not read back; both leave the tree half merged.
    """
    external = layer.count_external()
    if len(digests) != external * tree.algorithm.digest_bytes:
        raise FormatError(f"a layer with {external} external files and {len(digests)} bytes of digests")
    xattr_ids = [tree.intern(xattrs) for xattrs in layer.xattr_sets]
    kinds = array("B", layer.kind.tobytes().replace(bytes((HARDLINK,)), bytes((Kind.FIFO,))))
    rows = Rows(
        kinds, layer.mode, layer.uid, layer.gid, layer.mtime, layer.nsec, layer.size,
        array("I", bytes(4 * len(layer))), array("I", map(xattr_ids.__getitem__, layer.xattrs)),
    )  # fmt: skip
    # Every entry becomes an inode in one go, although those of hard links and whiteouts will never get a name.
    merger = _Merger(tree, tree.add_rows(rows), len(tree.digests) // tree.algorithm.digest_bytes)
    tree.digests += digests
    merger.run(layer)


def _show(path: bytes) -> str:
    return path[:_SHOWN_BYTES].decode(errors="backslashreplace")


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and name without empty and `.` components; no name if the path means the root.

    composefs-rs takes a path that ends in `..` for the root, too; anywhere else `..` is refused.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if not names or names[-1] == b"..":
        return b"", b""
    return b"/".join(names[:-1]), names[-1]


class _Merger:
    """Names the inodes of one layer; remembers which directory a parent path leads to until one goes away."""

    def __init__(self, tree: Tree, first_inode: int, first_digest: int) -> None:
        self._tree = tree
        self._inode = first_inode
        self._digest = first_digest
        self._directories: dict[bytes, int] = {}

    def run(self, layer: LayerTable) -> None:
        tree, payload, directories = self._tree, self._tree.payload, self._directories
        paths, texts = bytes(layer.paths), bytes(layer.texts)
        path_at = text_at = 0
        rows = zip(layer.kind, layer.path_end, layer.text_end, strict=True)
        for inode, (kind, path_end, text_end) in enumerate(rows, self._inode):
            path, text, path_at, text_at = paths[path_at:path_end], texts[text_at:text_end], path_end, text_end
            parent, _, name = path.rpartition(b"/")
            if name in _NO_NAMES:
                parent, name = _split(path)
                if not name:
                    self._replace_root(kind, inode, path)
                    continue
            if kind == _EXTERNAL:
                payload[inode] = self._digest
                self._digest += 1
            elif kind in _TEXTS:
                payload[inode] = tree.add_text(text)
            elif kind == HARDLINK:
                inode = self._find_target(text, path)
            directory = directories.get(parent)
            if directory is None:
                directory = self._find_directory(parent, path)
            if name[:4] == _WHITEOUT:
                self._remove(directory, name)
            elif len(name) > MAX_NAME_BYTES:
                raise LimitExceededError(f"a name of {len(name)} bytes: {_show(path)}", subject=_show(path))
            elif kind == _DIRECTORY:
                self._merge_directory(directory, name, inode)
            else:
                replaced = tree.insert(directory, name, inode)
                if replaced is not None:
                    self._forget_if_directory(replaced)

    def _replace_root(self, kind: int, inode: int, path: bytes) -> None:
        if kind != _DIRECTORY:
            raise FormatError(f"the root is not a directory: {_show(path)}", subject=_show(path))
        self._tree.copy_stat(inode, ROOT)

    def _merge_directory(self, directory: int, name: bytes, inode: int) -> None:
        """A directory that is there already keeps its entries."""
        tree = self._tree
        known = tree.lookup(directory, name)
        if known is not None and tree.kind[known] == _DIRECTORY:
            tree.copy_stat(inode, known)
        else:
            tree.insert(directory, name, inode)

    def _remove(self, directory: int, whiteout: bytes) -> None:
        if whiteout == _OPAQUE:
            self._tree.clear(directory)
            self._directories.clear()
        else:
            self._forget_if_directory(self._tree.remove(directory, whiteout.removeprefix(_WHITEOUT)))

    def _forget_if_directory(self, inode: int | None) -> None:
        if inode is not None and self._tree.kind[inode] == _DIRECTORY:
            self._directories.clear()

    def _find_directory(self, parent: bytes, path: bytes) -> int:
        """The directory at `parent`; path is the entry that needs it."""
        tree, directory = self._tree, ROOT
        for name in parent.split(b"/"):
            if name in (b"", b"."):
                continue
            known = None if name == b".." else tree.lookup(directory, name)
            if known is None or tree.kind[known] != _DIRECTORY:
                raise FormatError(f"the parent of an entry is no directory: {_show(path)}", subject=_show(path))
            directory = known
        if len(self._directories) < _CACHED_DIRECTORIES:
            self._directories[parent] = directory
        return directory

    def _find_target(self, target: bytes, path: bytes) -> int:
        """The file, in this layer or one below, that a hard link gives another name."""
        parent, name = _split(target)
        found = self._tree.lookup(self._find_directory(parent, path), name) if name else None
        if found is None or self._tree.kind[found] == _DIRECTORY:
            raise FormatError(
                f"a hard link to what is no file: {_show(path)} to {_show(target)}", subject=_show(path)
            )
        return found
