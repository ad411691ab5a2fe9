"""The host that operations work on: its settings, its repository, and the lock against other tools."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import (
    ComposefsdError,
    IncompatibleRepositoryError,
    LockedError,
    NoSpaceError,
    ReadOnlyError,
    UnsupportedError,
    VerityRequiredError,
)
from composefsd.linux.oserrors import translated
from composefsd.repository import Metadata, Repository, metadata
from composefsd.repository.objects import DIRECTORY

V = TypeVar("V")

_LOCK_SECONDS: Final = 60.0
_LOCK_RETRY_SECONDS: Final = 0.1
_RESERVE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration decides.

    state holds the daemon's own memory; esp and xbootldr None: to be found; efivars None: the sysroot is not that of
    the running machine, whose EFI variables say nothing then.
    """

    repository: Path
    sysroot: Path
    esp: Path | None
    xbootldr: Path | None
    state: Path
    algorithm: Algorithm = Algorithm.SHA512
    formats: tuple[FormatVersion, ...] = (FormatVersion.V1,)
    insecure: bool = False
    efivars: Path | None = None


class Host:
    """A host: one for the life of the daemon.

    Two locks order the operations of this process: `naming` is held while names come and go in the repository,
    `deploying` while something changes on the boot partition.
    """

    def __init__(self, settings: Settings, metadata: Metadata | None, problems: Sequence[ComposefsdError]) -> None:
        self.settings = settings
        self.metadata = metadata
        self.naming = asyncio.Lock()
        self.deploying = asyncio.Lock()
        self._problems = tuple(problems)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Look at the repository, and create it if there is none yet.

        What keeps it from being used becomes a problem, not an error: a daemon that says what is wrong helps more
        than one that does not start.
        """
        try:
            repository = _open_or_create(settings)
        except ComposefsdError as error:
            return cls(settings, None, [error])
        with repository:
            return cls(settings, repository.metadata, _obstacles(repository, settings))

    def look_again(self) -> None:
        """Find the problems anew: the repository has been made secure."""
        try:
            with self._open() as repository:
                self._problems = _obstacles(repository, self.settings)
        except ComposefsdError as error:
            self._problems = (error,)

    @property
    def problems(self) -> tuple[tuple[str, str], ...]:
        """What keeps the repository from being used: names of error classes without `Error`, and texts."""
        return tuple((type(error).__name__.removesuffix("Error"), error.message) for error in self._problems)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the repository, or that of one yet to be created."""
        return self.settings.algorithm if self.metadata is None else self.metadata.algorithm

    @property
    def formats(self) -> tuple[FormatVersion, ...]:
        """The image formats of the repository, its default first."""
        return self.settings.formats if self.metadata is None else self.metadata.formats

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Repository]:
        """The repository under a shared lock: nothing is collected meanwhile.  Raises LockedError after a minute."""
        with ExitStack() as stack:
            repository = stack.enter_context(self._open())
            await _enter(stack, repository.shared_lock)
            yield repository

    @asynccontextmanager
    async def alone(self, seconds: float = _LOCK_SECONDS) -> AsyncIterator[tuple[Repository, int]]:
        """The repository under the exclusive lock, and the descriptor that holds that, for a process to hold it, too.

        Other tools keep away, and so do all other operations of this process.  Raises LockedError after `seconds`,
        and ReadOnlyError for a repository that cannot be written.
        """
        with ExitStack() as stack:
            repository = stack.enter_context(self._open())
            repository.require_writable()
            lock = await _enter(stack, repository.exclusive_lock, seconds)
            yield repository, lock

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Repository]:
        """The same for an operation that adds to it.

        Raises VerityRequiredError for a repository without fs-verity, unless the configuration allows one, and
        ReadOnlyError for one that cannot be written.
        """
        async with self.reading() as repository:
            if not repository.verity and not self.settings.insecure:
                raise _insecure(self.settings.repository)
            repository.require_writable()
            yield repository

    def _open(self) -> Repository:
        """The repository as it was found at the start; it is never created later, when a mount may be missing."""
        if self.metadata is None:
            raise self._problems[0]
        return Repository.open(self.settings.repository)

    def check_format(self, version: FormatVersion | None, algorithm: Algorithm | None = None) -> FormatVersion:
        """The format to store an image in.  Raises UnsupportedError for one, or a hash, that the repository lacks."""
        if algorithm not in (None, self.algorithm):
            raise UnsupportedError(f"the repository holds {self.algorithm.value} digests, no others")
        if version is None:
            return self.formats[0]
        if version not in self.formats:
            have = ", ".join(one.label for one in self.formats)
            raise UnsupportedError(f"the repository holds images of the formats {have}, not {version.label}")
        return version

    def room_bytes(self) -> int:
        """Bytes that may still be written to the repository's filesystem.  Raises NoSpaceError if there are none."""
        with translated("looking for room in the repository"):
            about = os.statvfs(self.settings.repository)
        free_bytes = about.f_bavail * about.f_frsize
        if free_bytes <= _RESERVE_BYTES:
            raise NoSpaceError(
                f"the repository's filesystem has {free_bytes} bytes free, of which {_RESERVE_BYTES} have to stay",
                partition="repository",
                needed_bytes=_RESERVE_BYTES,
                free_bytes=free_bytes,
            )
        return free_bytes - _RESERVE_BYTES


async def _enter(
    stack: ExitStack, lock: Callable[[float], AbstractContextManager[V]], seconds: float = _LOCK_SECONDS
) -> V:
    """Take a lock without stopping the whole process to wait for it."""
    for attempts_left in reversed(range(int(seconds / _LOCK_RETRY_SECONDS))):
        try:
            return stack.enter_context(lock(0))
        except LockedError:
            if attempts_left:
                await asyncio.sleep(_LOCK_RETRY_SECONDS)
    raise LockedError(f"the repository is in use by another process; gave up after {seconds:g} s")


def _obstacles(repository: Repository, settings: Settings) -> tuple[ComposefsdError, ...]:
    """What keeps a repository that opens from being written."""
    problems: list[ComposefsdError] = []
    if not repository.verity and not settings.insecure:
        problems.append(_insecure(settings.repository))
    try:
        repository.require_writable()
    except ReadOnlyError as error:
        problems.append(error)
    return tuple(problems)


def _insecure(path: Path) -> VerityRequiredError:
    return VerityRequiredError(
        f"the repository {path} has no fs-verity; `composefsctl enable-verity` enables it where the filesystem can, "
        "Insecure=yes allows to do without"
    )


def _open_or_create(settings: Settings) -> Repository:
    path = settings.repository
    if any((path / name).exists() for name in (metadata.NAME, DIRECTORY)):  # without the first it is an old one
        repository = Repository.open(path, algorithm=settings.algorithm)
    else:
        wanted = Metadata.new(settings.algorithm, settings.formats)
        repository = Repository.create(path, wanted, insecure=settings.insecure)
    if repository.metadata.formats[0] is FormatVersion.V0:
        repository.close()
        raise IncompatibleRepositoryError(f"{path} is a repository of format v0, which holds no OCI images")
    return repository
