"""A directory tree whose changes are durable, and announced.

A boot partition is VFAT, has no journal, and may hold whatever somebody else wrote there; the state on the root
filesystem is changed in the same manner.  So paths are walked name by name and links are never followed; a file is
written under a temporary name and renamed to one that nothing had; `fsync` of the file and then of its directory is
the barrier (on VFAT `syncfs` is none).  Before every change the volume calls its `step`, which may raise: there a job
is cancelled, and there the tests cut the power.
"""

import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from composefsd.errors import ComposefsdError, FormatError, LimitExceededError, NoSpaceError, UnsupportedError
from composefsd.linux.oserrors import translate
from composefsd.linux.writing import write_all

T = TypeVar("T")

Step = Callable[[str], None]
"""Told what is about to be done, as `VERB PATH`."""

TEMPORARY_PREFIX: Final = ".#"
TEMPORARY_SUFFIX: Final = ".composefsd"

_CHUNK: Final = 1 << 20
_MAX_NAMES: Final = 10_000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not hang us
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_IN_THE_WAY: Final = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def unheard(_step: str) -> None:
    """The step of a volume that nobody listens to."""


def temporary_name(name: str) -> str:
    """What a file is called until it is complete: in the same directory, and recognisably ours."""
    return f"{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` gave this name."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def split(path: str) -> tuple[str, ...]:
    """The names in a relative path; the empty path is the volume itself.

    Raises FormatError for a name that is empty, `.` or `..`, too long, or holds NUL or a backslash.
    """
    parts = tuple(path.split("/")) if path else ()
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or "\\" in part or len(os.fsencode(part)) > 255:
            raise FormatError(f"not a path inside a volume: {path[:300]!r}", subject=path[:300])
    return parts


def parent(path: str) -> tuple[str, str]:
    """The directory of `path`, and its last name."""
    directory, _, name = path.rpartition("/")
    return directory, name


def printable(path: str) -> str:
    """A path for a message: what was no UTF-8 in a name, as the bus cannot carry, is escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def rename_new(directory: int, old: str, new: str) -> None:
    """Rename inside `directory`; raises FileExistsError rather than replace what is called `new`."""
    if _LIBC.renameat2(directory, os.fsencode(old), directory, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), new)
    # A filesystem without the flag: our lock keeps our own processes apart, and nobody else makes these names.
    if exists(directory, new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def exists(directory: int, name: str) -> bool:
    """Whether a directory has this name, be it a dangling link's."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Space:
    """Room on a filesystem; `cluster_bytes` is what the smallest file or directory takes."""

    cluster_bytes: int
    free_bytes: int
    total_bytes: int
    read_only: bool

    def rounded(self, size_bytes: int) -> int:
        """The space that a file of this size takes."""
        return -(-size_bytes // self.cluster_bytes) * self.cluster_bytes


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a directory, and what kind of thing it is; links and devices are neither."""

    name: str
    is_directory: bool
    is_file: bool


class Volume:
    """An open directory and all below it.  Paths are relative to it; errors name `label` and the path."""

    def __init__(self, fd: int, label: str, step: Step = unheard) -> None:
        """Takes over `fd`, the descriptor of a directory."""
        self._fd = fd
        self.label = label
        self._step = step

    @classmethod
    def open(cls, path: Path, step: Step = unheard) -> Self:
        """Raises OSError.  `path` itself comes from the configuration and may be a link."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), str(path), step)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    # Ways in

    def _translate(self, error: OSError, doing: str) -> ComposefsdError:
        text = f"{self.label}: cannot {printable(doing)}"
        if error.errno in _IN_THE_WAY:
            reason = f"{os.strerror(error.errno)} (links are not followed, and nothing is replaced)"
            return UnsupportedError(f"{text}: {reason}", partition=self.label)
        translated = translate(error, text, partition=self.label)
        if isinstance(translated, NoSpaceError):
            translated.facts["free_bytes"] = self.space().free_bytes
        return translated

    @contextmanager
    def doing(self, doing: str) -> Iterator[None]:
        """Turns an OSError of the block into ours, which names the volume and what it was `doing`."""
        try:
            yield
        except OSError as error:
            raise self._translate(error, doing) from error

    def step(self, step: str) -> None:
        """Announce a change."""
        self._step(step)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor of the directory at `path`, reached without following a link.  Raises OSError."""
        fd = os.dup(self._fd)
        try:
            for part in split(path):
                child = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = child
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def above(self, path: str, doing: str) -> Iterator[tuple[int, str]]:
        """The directory of `path` as a descriptor, and the last name; errors of the block are translated."""
        split(path)
        directory, name = parent(path)
        with self.doing(f"{doing} {path}"), self.directory(directory) as above:
            yield above, name

    @contextmanager
    def _file(self, path: str, doing: str) -> Iterator[int]:
        with self.above(path, doing) as (above, name):
            fd = os.open(name, _READ, dir_fd=above)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    text = f"{self.label}: {printable(path)} is not a regular file"
                    raise UnsupportedError(text, partition=self.label)
                yield fd
            finally:
                os.close(fd)

    def sync(self, directory: int, path: str) -> None:
        """The barrier: the names in the directory at `path` are on the device when this returns."""
        self._step(f"sync {path or '.'}/")
        os.fsync(directory)

    # Reading

    def space(self) -> Space:
        """Room on the filesystem of this volume."""
        found = os.fstatvfs(self._fd)
        unit = found.f_frsize
        read_only = bool(found.f_flag & os.ST_RDONLY)
        return Space(max(found.f_bsize, unit), found.f_bavail * unit, found.f_blocks * unit, read_only)

    def stat(self, path: str) -> os.stat_result | None:
        """Of what `path` names, be it a link; None if nothing is there."""
        return _unless_absent(lambda: self._stat(path))

    def _stat(self, path: str) -> os.stat_result:
        with self.above(path, "look at") as (above, name):
            return os.stat(name, dir_fd=above, follow_symlinks=False)

    def names(self, path: str) -> list[Name]:
        """What is in a directory, in order of names; nothing if there is none.

        Raises LimitExceededError for a directory of more than 10 000 names.
        """
        return sorted(_unless_absent(lambda: self._names(path)) or [], key=lambda name: name.name)

    def _names(self, path: str) -> list[Name]:
        found: list[Name] = []
        with self.doing(f"list {path}"), self.directory(path) as fd, os.scandir(fd) as entries:
            for entry in entries:
                if len(found) == _MAX_NAMES:
                    raise LimitExceededError(f"{self.label}: {path} holds more than {_MAX_NAMES} names")
                kinds = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
                found.append(Name(entry.name, *kinds))
        return found

    def read(self, path: str, limit: int) -> bytes | None:
        """A whole file; None if there is none.  Raises LimitExceededError if it is longer than `limit` bytes."""
        data = _unless_absent(lambda: self._read(path, limit + 1))
        if data is not None and len(data) > limit:
            raise LimitExceededError(f"{self.label}: {printable(path)} is longer than {limit} bytes")
        return data

    def _read(self, path: str, count: int) -> bytes:
        with self._file(path, "read") as fd, os.fdopen(os.dup(fd), "rb") as file:
            return file.read(count)

    def digest(self, path: str) -> tuple[int, str] | None:
        """Size and SHA-256 of a file as the device holds it, past the page cache; None if there is none."""
        return _unless_absent(lambda: self._digest(path))

    def _digest(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._file(path, "read back") as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while data := os.read(fd, _CHUNK):
                digest.update(data)
                size += len(data)
        return size, digest.hexdigest()

    # Files

    def stage(self, path: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write a file durably under the temporary name of `path`.  Answers with its size and SHA-256."""
        digest, size = hashlib.sha256(), 0
        with self.above(path, "write") as (above, name):
            self._step(f"create {path}")
            fd = os.open(temporary_name(name), _CREATE, 0o644, dir_fd=above)
            with os.fdopen(fd, "wb", buffering=0) as file:
                for chunk in chunks:
                    self._step(f"write {path} at {size}")
                    write_all(fd, chunk)
                    digest.update(chunk)
                    size += len(chunk)
                self._step(f"sync {path}")
                os.fsync(file)
        return size, digest.hexdigest()

    def publish(self, path: str) -> None:
        """Give a staged file its name, which nothing may have, durably."""
        with self.above(path, "rename") as (above, name):
            self._step(f"rename {path}")
            rename_new(above, temporary_name(name), name)
            self.sync(above, parent(path)[0])

    def write_new(self, path: str, data: bytes) -> None:
        """A small file that was not there, whole or not at all."""
        self.stage(path, [data])
        self.publish(path)

    def replace(self, path: str, data: bytes) -> None:
        """Put `data` in the place of what is at `path`.  For the root filesystem, where a rename is atomic."""
        directory, name = parent(path)
        self.remove(f"{directory}/{temporary_name(name)}")
        self.stage(path, [data])
        with self.above(path, "replace") as (above, name):
            self._step(f"replace {path}")
            os.rename(temporary_name(name), name, src_dir_fd=above, dst_dir_fd=above)
            self.sync(above, directory)

    def remove(self, path: str) -> int | None:
        """Remove a file durably.  Answers with its size, or None if there was none."""
        found = self.stat(path)
        if found is None:
            return None
        with self.above(path, "remove") as (above, name):
            self._step(f"remove {path}")
            os.unlink(name, dir_fd=above)
            self.sync(above, parent(path)[0])
        return found.st_size

    # Directories

    def ensure_directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and those above it where they are missing, durably."""
        made = ""
        for part in split(path):
            made = f"{made}/{part}" if made else part
            with self.above(made, "create") as (above, name):
                if not exists(above, name):
                    self._step(f"make {made}/")
                    os.mkdir(name, mode, dir_fd=above)
                    self.sync(above, parent(made)[0])

    def move_new(self, directory: str, old: str, new: str) -> None:
        """Rename a thing inside `directory` to a name that nothing has, durably."""
        with self.above(f"{directory}/{old}", "rename") as (above, _):
            self._step(f"rename {directory}/{old}")
            rename_new(above, old, new)
            self.sync(above, directory)

    def remove_directory(self, path: str) -> bool:
        """Remove a directory durably if it is there and empty."""
        if self.stat(path) is None:  # asked first, for a read-only filesystem refuses even that with EROFS
            return False
        with self.above(path, "remove") as (above, name):
            self._step(f"remove {path}/")
            try:
                os.rmdir(name, dir_fd=above)
            except OSError as error:
                if error.errno in _NOT_EMPTY:
                    return False
                raise
            self.sync(above, parent(path)[0])
        return True


def _unless_absent(call: Callable[[], T]) -> T | None:
    """The result of `call`, or None if what it looked for is not there."""
    try:
        return call()
    except ComposefsdError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
