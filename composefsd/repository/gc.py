"""Garbage collection: what no root leads to, goes.  What roots are, and what lives by them, is in `marks`.

Nothing is removed unless everything that lives could be read, all names in the store make sense, and it is known of
each link whether it will lead somewhere afterwards; a dry run does all that, too, and so tells what will be removed.
Then links to images and streams go, and the objects only once that is on the disk: a name never outlives what it
stands for, whenever the power fails.  Refs that lead nowhere go last, as in composefs-rs: one whose text ends in the
name of an entry is a root once more, even if the way there is wrong, and shall be one again if this was cut off.

The directories are read twice, first to look and then to remove, so that what goes need not be held in memory.
"""

import os
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from composefsd.errors import CorruptError, ObjectMissingError
from composefsd.linux.oserrors import translate, translated
from composefsd.repository import links, setup
from composefsd.repository.drafts import is_temporary
from composefsd.repository.links import Category
from composefsd.repository.marks import ABSENT, Marks, Root, Tick, Weight
from composefsd.repository.objects import DIRECTORY, TEMPORARY_PREFIX
from composefsd.repository.outlook import Outlook
from composefsd.repository.repository import Repository

_TICK_OBJECTS: Final = 256
_TEMPORARIES: Final = (("", links.TEMPORARY_PREFIX), ("", setup.TEMPORARY_PREFIX), (DIRECTORY, TEMPORARY_PREFIX))
"""Where temporary names are, and how they begin."""


class What(StrEnum):
    """What can go: an object, a link to an image or a stream, a ref, a temporary name."""

    OBJECT = "object"
    IMAGE = "image"
    STREAM = "stream"
    REF = "ref"
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True)
class Gone:
    """A file or link that was removed, or would be; path is relative to the repository, links have no size."""

    what: What
    path: str
    size_bytes: int = 0


class Witness(Protocol):
    """Who is told about each thing, as it is removed; in a dry run first about each root that stays."""

    def stays(self, weight: Weight) -> None:
        """A root stays, and keeps so much."""

    def goes(self, gone: Gone) -> None:
        """Something was removed, or would be."""


@dataclass(frozen=True, slots=True)
class GcResult:
    """What was removed, or would be: objects, their bytes as the sizes of the files, links of images and of streams.

    The refs of a category count among its links, as composefs-rs counts them; its dry runs count only links that lead
    nowhere before anything is removed.
    """

    objects_removed: int
    bytes_removed: int
    images_pruned: int
    streams_pruned: int


def collect(
    repo: Repository,
    *,
    roots: Iterable[str] = (),
    extra_images: Iterable[bytes] = (),
    dry_run: bool,
    tick: Tick | None = None,
    witness: Witness | None = None,
) -> GcResult:
    """Remove what neither a ref nor one of `roots` and `extra_images` keeps; these are as in `Marks.read`.

    The caller holds the exclusive lock, or the shared one for a dry run.  Raises ObjectMissingError or CorruptError,
    having removed nothing, if something that lives cannot be read.
    """
    if not dry_run:
        repo.require_writable()
    report, tell = tick or _ignore, witness or _Nobody()
    marks = Marks.read(repo, roots=roots, extra_images=extra_images, report=report)
    store = _Store(repo, marks)
    dead = store.count_dead()
    outlook = Outlook(repo.fd, marks)
    pruned = {category: _dangling(repo, category, outlook) for category in Category}
    if dry_run and witness is not None:
        for weight in marks.weigh(store.sizes()):
            witness.stays(weight)
    entries, refs = _parted(gone for found in pruned.values() for gone in found)
    _unlink_all(repo, entries, tell, dry_run=dry_run)
    if not dry_run:
        repo.sync()
    count, removed_bytes = _sweep(repo, store, dead, report, tell, dry_run=dry_run)
    _unlink_all(repo, refs, tell, dry_run=dry_run)
    return GcResult(count, removed_bytes, len(pruned[Category.IMAGES]), len(pruned[Category.STREAMS]))


def explain(repo: Repository, digest: bytes) -> list[Root]:
    """The roots that keep an object; none if the collector would take it.

    The caller holds the shared lock.  Raises as `collect`.
    """
    return list(Marks.read(repo).keepers(digest))


def temporaries(repo: Repository) -> Iterator[Gone]:
    """What `Repository.clean_temporaries` would remove now; without the exclusive lock some may be in use."""
    for directory, prefix in _TEMPORARIES:
        for name, _, is_directory in links.listing(repo.fd, directory or "."):
            if is_temporary(name, prefix) and not is_directory:
                path = f"{directory}/{name}".lstrip("/")
                with suppress(ObjectMissingError):  # the living use them up
                    yield Gone(What.TEMPORARY, path, _size(repo.fd, path))


def _ignore(_done: int, _total: int) -> None:
    pass


class _Nobody:
    """A witness that does not look."""

    def stays(self, weight: Weight) -> None:
        pass

    def goes(self, gone: Gone) -> None:
        pass


# Links


def _dangling(repo: Repository, category: Category, outlook: Outlook) -> list[Gone]:
    """The links of a category that will lead nowhere: those to objects, then the refs that lead to them."""
    what = What.IMAGE if category is Category.IMAGES else What.STREAM
    found = [Gone(what, link.path) for link in links.entries(repo.fd, category) if outlook.dangles(link.path)]
    refs = sorted(links.refs(repo.fd, category))
    return found + [Gone(What.REF, link.path) for link in refs if outlook.dangles(link.path)]


def _parted(found: Iterable[Gone]) -> tuple[list[Gone], list[Gone]]:
    """Links to objects, and refs."""
    entries: list[Gone] = []
    refs: list[Gone] = []
    for gone in found:
        (refs if gone.what is What.REF else entries).append(gone)
    return entries, refs


def _unlink_all(repo: Repository, found: Iterable[Gone], witness: Witness, *, dry_run: bool) -> None:
    for gone in found:
        if not dry_run:
            links.remove(repo.fd, gone.path)
        witness.goes(gone)


# Objects


class _Store:
    """The objects of a repository, living and dead."""

    def __init__(self, repo: Repository, marks: Marks) -> None:
        self._repo = repo
        self._marks = marks
        self._digests = marks.by_first_byte()
        self._is_name = re.compile(f"[0-9a-fA-F]{{{2 * repo.algorithm.digest_bytes - 2}}}").fullmatch

    def count_dead(self) -> list[int]:
        """How many objects do not live, by first byte.  Raises CorruptError if one is none."""
        return [self._check(first) for first in range(256)]

    def sizes(self) -> "array[int]":
        """The sizes of those that live, for `Marks.weigh`."""
        sizes = array("q", [ABSENT]) * len(self._marks)
        for first in range(256):
            directory = f"{DIRECTORY}/{first:02x}"
            numbers = {digest.hex()[2:]: self._marks.number(digest) for digest in self._digests[first]}
            for name, _ in _listing(self._repo.fd, directory):
                number = numbers.get(name.lower())
                if number is not None:
                    sizes[number] = _size(self._repo.fd, f"{directory}/{name}")
        return sizes

    def dead(self, first: int) -> Iterator[tuple[str, bool]]:
        """The paths of what does not live, and whether they are directories."""
        living = {digest.hex()[2:] for digest in self._digests[first]}
        directory = f"{DIRECTORY}/{first:02x}"
        for name, is_directory in _listing(self._repo.fd, directory):
            if name not in living and name.lower() not in living:  # composefs-rs reads names in upper case, too
                yield f"{directory}/{name}", is_directory

    def _check(self, first: int) -> int:
        count = 0
        for path, is_directory in self.dead(first):
            if not self._is_name(path.rpartition("/")[2]):
                raise CorruptError(f"{path} is not the name of an object", subject=path)
            if is_directory:
                raise CorruptError(f"{path} is a directory", subject=path)
            count += 1
        return count


def _sweep(
    repo: Repository, store: _Store, dead: list[int], report: Tick, witness: Witness, *, dry_run: bool
) -> tuple[int, int]:
    """Remove what does not live; `dead` is `_Store.count_dead`.  Answers with how many objects, and their bytes."""
    total, count, removed_bytes = sum(dead), 0, 0
    for path in (path for first in range(256) if dead[first] for path, _ in store.dead(first)):
        if count % _TICK_OBJECTS == 0:
            report(count, max(total, count))
        gone = Gone(What.OBJECT, path, _size(repo.fd, path))
        if not dry_run:
            _unlink(repo.fd, path)
        witness.goes(gone)
        count += 1
        removed_bytes += gone.size_bytes
    report(count, count)
    return count, removed_bytes


def _listing(root: int, directory: str) -> list[tuple[str, bool]]:
    """The names in a directory, and whether they are directories; one that does not exist is empty."""
    with translated(f"reading {directory}", subject=directory):
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(fd) as entries:
                return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(fd)


def _size(root: int, path: str) -> int:
    with translated(f"looking at {path}", subject=path):
        try:
            return os.stat(path, dir_fd=root, follow_symlinks=False).st_size
        except FileNotFoundError as error:
            raise ObjectMissingError(f"{path} went away", subject=path) from error


def _unlink(root: int, path: str) -> None:
    try:
        os.unlink(path, dir_fd=root)
    except OSError as error:
        raise translate(error, f"removing {path}", partition="repository", subject=path) from error
