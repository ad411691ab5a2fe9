"""Making an insecure repository secure, whole or not at all.

Under the exclusive lock, in this order, so that a stop anywhere leaves an insecure repository as good as it was:

 1. `damages`: the content of every object is compared with its name, and nothing is changed;
 2. `enable`: fs-verity for every object, and the kernel's digest compared with the name;
 3. the repository's `sync`, then its `make_secure`, the one step that changes what the repository is.

The lock is what makes it whole.  In an insecure repository other tools may store objects without fs-verity, when the
kernel does not let them at once; one that came between the second step and the third would be missing for ever.
composefs-rs holds the shared lock for as long as it has a repository open, so none can.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.errors import ComposefsdError, CorruptError, LockedError
from composefsd.linux import fsverity
from composefsd.linux.oserrors import translated
from composefsd.repository import links
from composefsd.repository.fsck import Code, Finding, Severity
from composefsd.repository.objects import DIRECTORY
from composefsd.repository.repository import Repository

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TICK_OBJECTS: Final = 64
_TICK_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Count:
    """Objects, and the bytes in them."""

    objects: int = 0
    bytes: int = 0


Tick = Callable[[Count, Count], None]
"""Told what is done, and of how much."""


class _Walk:
    """All files of `objects/`, by name; says now and then how far it is."""

    def __init__(self, repo: Repository, tick: Tick) -> None:
        self._repo = repo
        self._tick = tick
        self._paths = list(_paths(repo.fd))
        self._sizes = [_size(repo.fd, path) for path in self._paths]

    def __iter__(self) -> Iterator[str]:
        total = Count(len(self._paths), sum(self._sizes))
        done = told = Count()
        self._tick(done, total)
        for path, size in zip(self._paths, self._sizes, strict=True):
            yield path
            done = Count(done.objects + 1, done.bytes + size)
            if done.objects - told.objects >= _TICK_OBJECTS or done.bytes - told.bytes >= _TICK_BYTES:
                self._tick(done, total)
                told = done
        self._tick(done, total)


def _paths(root: int) -> Iterator[str]:
    for first in range(256):
        directory = f"{DIRECTORY}/{first:02x}"
        for name, _, _ in links.listing(root, directory):
            yield f"{directory}/{name}"


def _size(root: int, path: str) -> int:
    with translated(f"looking at {path}", subject=path):
        return os.stat(path, dir_fd=root, follow_symlinks=False).st_size


def damages(repo: Repository, tick: Tick) -> Iterator[Finding]:
    """Every file among the objects that is not what its name says, as fsck calls it; nothing is changed."""
    names = re.compile(f"{DIRECTORY}/[0-9a-f]{{2}}/[0-9a-fA-F]{{{2 * repo.algorithm.digest_bytes - 2}}}")
    for path in _Walk(repo, tick):
        if not names.fullmatch(path):
            yield _damage(Code.OBJECT_INVALID_NAME, path, "not the name of an object")
            continue
        try:
            found = _digest(repo, path)
        except ComposefsdError as error:
            yield _damage(Code.OBJECT_VERITY_FAILED, path, error.message)
            continue
        if found != _named(path):
            yield _damage(Code.OBJECT_DIGEST_MISMATCH, path, f"its digest is {found.hex()}")


def _damage(code: Code, path: str, message: str) -> Finding:
    return Finding(Severity.ERROR, code, os.fsencode(path).decode(errors="replace"), message)


def _digest(repo: Repository, path: str) -> bytes:
    """What the file is: by the kernel's word where it has fs-verity, else by reading it.

    Raises CorruptError and what `translate` says.
    """
    with translated("reading it"):
        fd = os.open(path, _READ, dir_fd=repo.fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CorruptError("not a regular file")
            return _content_digest(fd, repo.algorithm)
        finally:
            os.close(fd)


def _content_digest(fd: int, algorithm: Algorithm) -> bytes:
    measured = fsverity.measure(fd, algorithm)
    return verity.compute_file(fd, algorithm).digest if measured is None else measured.digest


def _named(path: str) -> bytes:
    return bytes.fromhex(path.removeprefix(f"{DIRECTORY}/").replace("/", ""))


def enable(repo: Repository, tick: Tick) -> int:
    """Enable fs-verity on every object that has none; how many those were.

    The kernel reads each anew, so that what is compared with the name is what will be there from now on.  Raises
    CorruptError if that differs, LockedError if somebody has an object open for writing, VerityRequiredError,
    NoSpaceError for the hash trees, ReadOnlyError and DeviceError; what was done until then is of use the next time.
    """
    return sum(_enable(repo, path) for path in _Walk(repo, tick))


def _enable(repo: Repository, path: str) -> bool:
    with translated(f"enabling fs-verity on {path}", partition="repository", subject=path):
        fd = os.open(path, _READ, dir_fd=repo.fd)
    try:
        is_new = fsverity.measure(fd, repo.algorithm) is None
        if is_new:
            fsverity.enable(fd, repo.algorithm)
        found = fsverity.measure(fd, repo.algorithm)
    except LockedError as error:
        raise LockedError(f"{path} is open for writing", subject=path) from error
    finally:
        os.close(fd)
    if found is None:
        raise CorruptError(f"{path} has no fs-verity after it was enabled", subject=path)
    if found.digest != _named(path):
        raise CorruptError(f"{path} has the digest {found.hex}", subject=path)
    return is_new


def probe(repo: Repository) -> bool:
    """Whether the filesystem of the repository can have fs-verity with its hash."""
    return fsverity.probe(repo.fd, repo.algorithm)
