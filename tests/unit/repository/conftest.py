"""Repositories in real directories, a disk that fails on demand, and a kernel with fs-verity played by this one."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.linux import fsverity
from composefsd.repository import Metadata, Repository
from composefsd.repository import repository as facade
from composefsd.splitstream import ContentType, Writer

SHA256 = Algorithm.SHA256
_CREATING = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)


class PowerCut(BaseException):
    """The machine stops; nothing cleans up."""


class Disk:
    """All that changes the disk, as a list of calls; one of them may be made to fail.

    With a `PowerCut` everything after it fails as well, so that no cleanup code does its work; with an OSError only
    the one call fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._at = -1
        self._error: BaseException | None = None
        for name in ("write", "link", "symlink", "rename", "unlink", "mkdir", "chmod", "fchmod", "sendfile"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        monkeypatch.setattr(os, "open", self._opening(os.open))
        monkeypatch.setattr(os, "fsync", self._wrapped("fsync", os.fsync))
        monkeypatch.setattr(facade, "syncfs", self._wrapped("syncfs", facade.syncfs))

    def fail(self, at: int, error: BaseException) -> None:
        """Let the change number `at` from now fail."""
        self.log, self._at, self._error = [], at, error

    def heal(self) -> None:
        """Let everything work again."""
        self.log, self._at, self._error = [], -1, None

    @property
    def failed(self) -> bool:
        return self._error is not None and len(self.log) > self._at

    def _change(self, name: str) -> None:
        number, error = len(self.log), self._error
        self.log.append(name)
        if error is not None and (number == self._at or (number > self._at and isinstance(error, PowerCut))):
            raise error

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **kwargs: Any) -> Any:
            self._change(name)
            return function(*args, **kwargs)

        return changing

    def _opening(self, function: Callable[..., int]) -> Callable[..., int]:
        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & _CREATING:
                self._change("create")
            return function(path, flags, *args, **kwargs)

        return opening


class VerityKernel:
    """The two ioctls as a kernel with fs-verity answers them.

    A file's digest is fixed when verity is enabled, which fails while this process has the file open for writing, as
    with the real one.  That the content cannot change afterwards is not played.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digests: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.busy = 0  # so many attempts to enable fail because of writers elsewhere
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)

    def strip(self, path: Path) -> None:
        """Take fs-verity from a file, which the real kernel would not do."""
        status = path.stat()
        self.digests.pop((status.st_dev, status.st_ino), None)

    def _ioctl(self, fd: int, request: int, argument: bytes | bytearray) -> int:
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        if request == fsverity.ENABLE_VERITY:
            self._enable(fd, file, int.from_bytes(argument[4:8], "little"))
        else:
            assert isinstance(argument, bytearray)
            if file not in self.digests:
                raise OSError(errno.ENODATA, "no data")
            number, digest = self.digests[file]
            argument[:] = number.to_bytes(2, "little") + len(digest).to_bytes(2, "little") + digest
        return 0

    def _enable(self, fd: int, file: tuple[int, int], number: int) -> None:
        if os.fstat(fd).st_nlink == 0:  # a new file without a name may have the inode of one that is gone
            self.digests.pop(file, None)
        if file in self.digests:
            raise OSError(errno.EEXIST, "exists")
        self.busy -= 1
        if self.busy >= 0 or file in _written_files():
            raise OSError(errno.ETXTBSY, "busy")
        self.digests[file] = (number, verity.compute_file(fd, Algorithm.from_kernel_number(number)).digest)


def _nothing(_fd: int) -> None:
    pass


def _written_files() -> set[tuple[int, int]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the numbers are what is wanted
        try:
            flags, status = fcntl.fcntl(int(name), fcntl.F_GETFL), os.fstat(int(name))
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and flags & os.O_ACCMODE != os.O_RDONLY:
            found.add((status.st_dev, status.st_ino))
    return found


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing whole filesystems after each object is real work for a real disk, and proves nothing here."""
    monkeypatch.setattr(os, "fsync", _nothing)
    monkeypatch.setattr(facade, "syncfs", _nothing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def power_cut() -> type[PowerCut]:
    return PowerCut


@pytest.fixture
def verity_kernel(monkeypatch: pytest.MonkeyPatch) -> VerityKernel:
    return VerityKernel(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def repo(root: Path) -> Iterator[Repository]:
    """An empty insecure repository."""
    with Repository.create(root, Metadata.new(SHA256, (FormatVersion.V1,)), insecure=True) as repository:
        yield repository


@pytest.fixture
def stream() -> Callable[..., bytes]:
    """Makes splitstreams: of these objects, with these named references; returns the digest of the stored one."""

    def make(repository: Repository, name: str, *objects: bytes, **named: bytes) -> bytes:
        writer = Writer(repository.algorithm, ContentType.OCI_LAYER)
        writer.inline(name.encode())
        for digest in objects:
            writer.external(digest, 100)
        for key, digest in named.items():
            writer.add_reference(key, digest)
        digest = repository.objects.store(writer.finish())
        repository.link_stream(name, digest)
        return digest

    return make
