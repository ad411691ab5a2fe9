"""A directory tree as plain records, to be compared with another one entry by entry."""

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """All that `lstat`, `listxattr` and reading tell about one name.

    mode has type and permissions; content is the SHA-256 of a file, the target of a symbolic link, the device number
    of a device; `same_file` are the names (of the tree) that are the same file, for all but directories.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes | int
    links: int
    same_file: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]


def _content(path: bytes, info: os.stat_result) -> bytes | int:
    if stat.S_ISREG(info.st_mode):
        with Path(os.fsdecode(path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(path)  # noqa: PTH115  # names are bytes
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        return info.st_rdev
    return b""


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _walk(root: bytes, below: bytes) -> list[bytes]:
    """Every name below the root, a directory before what it holds; the root itself is the empty name."""
    names = [below]
    with os.scandir(os.path.join(root, below) if below else root) as entries:  # noqa: PTH118  # names are bytes
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = below + b"/" + entry.name if below else entry.name
            names += _walk(root, path) if entry.is_dir(follow_symlinks=False) else [path]
    return names


def scan(root: Path) -> dict[bytes, Record]:
    """The records of a tree by name; the root is `b""`."""
    start = os.fsencode(root)
    infos = {name: os.lstat(start + b"/" + name) for name in _walk(start, b"")}
    files: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for name, info in infos.items():
        if not stat.S_ISDIR(info.st_mode):
            files[info.st_dev, info.st_ino].append(name)
    return {
        name: Record(
            mode=info.st_mode,
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
            content=_content(start + b"/" + name, info),
            links=info.st_nlink,
            same_file=tuple(files.get((info.st_dev, info.st_ino), ())),
            xattrs=_xattrs(start + b"/" + name),
        )
        for name, info in infos.items()
    }


def differences(left: Record, right: Record) -> set[str]:
    """The names of the fields in which two records differ.

    A directory's link count is left out: what it counts is each file system's own affair.
    """
    fields = set(Record.__slots__) - ({"links"} if stat.S_ISDIR(left.mode) else set())
    return {field for field in fields if getattr(left, field) != getattr(right, field)}
