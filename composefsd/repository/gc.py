"""Garbage collection: what no ref leads to, goes.

Roots are the refs of both categories; first-level links to images and streams are not.  A root image keeps itself and
the objects it names.  A root stream keeps itself, the objects in it, and what it names; what it names is walked in
turn if it is the current splitstream of some name.  So composefs-rs defines it, and so two implementations agree on
what a repository holds.

Nothing is removed unless everything that lives could be read, and all names in the store make sense.  Then links go
first, and the objects they led to only once that is on the disk: a name never outlives what it stands for, whenever
the power fails.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from composefsd.digests import ObjectId
from composefsd.erofs import reader as erofs
from composefsd.errors import ComposefsdError, CorruptError, FormatError, LimitExceededError, ObjectMissingError
from composefsd.linux.oserrors import translate, translated
from composefsd.repository import links
from composefsd.repository.links import Category, Link
from composefsd.repository.objects import DIRECTORY
from composefsd.repository.repository import Repository

Tick = Callable[[int, int], None]
"""Told how many objects were removed, and of how many; of none as long as that is not known.  It may raise."""

_TICK_OBJECTS: Final = 256


@dataclass(frozen=True, slots=True)
class GcResult:
    """What was removed, or would be; bytes_removed adds up the sizes of the files.

    A dry run counts only links that lead nowhere already.
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
) -> GcResult:
    """Remove what neither a ref nor one of `roots` and `extra_images` keeps.

    The caller holds the exclusive lock, or the shared one for a dry run.  `roots` are names of images or streams, and
    those that do not exist are ignored; `extra_images` are digests of images.  Raises ObjectMissingError or
    CorruptError, having removed nothing, if something that lives cannot be read.
    """
    if not dry_run:
        repo.require_writable()
    report = tick or _ignore
    live = _mark(repo, frozenset(roots), extra_images, report)
    dead = list(_dead(repo, live))
    pruned = dict.fromkeys(Category, 0)
    if not dry_run:
        for category in Category:
            pruned[category] = _remove_dead_links(repo, category, live)
        repo.sync()
        _sweep(repo, dead, report)
    for category in Category:
        pruned[category] += _prune(repo, category, dry_run=dry_run)
    removed_bytes = sum(size for _, size in dead)
    return GcResult(len(dead), removed_bytes, pruned[Category.IMAGES], pruned[Category.STREAMS])


def _ignore(_done: int, _total: int) -> None:
    pass


def _mark(repo: Repository, roots: frozenset[str], extra_images: Iterable[bytes], report: Tick) -> set[bytes]:
    """The raw digests of all objects that live."""
    images = _entries(repo, Category.IMAGES)
    live: set[bytes] = set()
    for digest in {*_roots(repo, Category.IMAGES, images, roots), *extra_images}:
        report(0, 0)
        live.add(digest)
        with _reading(f"image {digest.hex()}"):
            live |= erofs.object_ids(repo.read_image(digest), repo.algorithm)
    streams = _entries(repo, Category.STREAMS)
    names = {digest: name for name, digest in streams.items()}
    pending, walked = list(_roots(repo, Category.STREAMS, streams, roots)), set[bytes]()
    while pending:
        digest = pending.pop()
        if digest in walked:
            continue
        report(0, 0)
        walked.add(digest)
        with _reading(f"stream {names[digest]}"):
            stream = repo.read_stream_object(digest)
        live.add(digest)
        live.update(stream.object_refs, stream.named_refs.values())
        pending += [named for named in stream.named_refs.values() if named in names]
    return live


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Puts in front of an error what could not be read; a format that is broken here is corruption."""
    try:
        yield
    except (FormatError, LimitExceededError) as error:
        raise CorruptError(f"{what}: {error}", **error.facts) from error
    except ComposefsdError as error:
        raise type(error)(f"{what}: {error}", **error.facts) from error


def _entries(repo: Repository, category: Category) -> dict[str, bytes]:
    """The first-level names of a category, and the objects their links name."""
    found = {}
    for link in links.entries(repo.fd, category):
        digest = links.object_in_text(link.text, repo.algorithm)
        if digest is None:
            raise CorruptError(f"{link.path} leads to {link.text[:200]!r}, which is no object", subject=link.path)
        found[link.path.partition("/")[2]] = digest
    return found


def _roots(repo: Repository, category: Category, entries: dict[str, bytes], names: frozenset[str]) -> set[bytes]:
    found = {digest for name, digest in entries.items() if name in names}
    for link in links.refs(repo.fd, category):
        entry = links.last_component(link.text)
        if entry is None:  # composefs-rs skips it, too
            continue
        if entry not in entries:
            raise ObjectMissingError(
                f"{link.path} leads to {category}/{entry}, which is not there", subject=link.path
            )
        found.add(entries[entry])
    return found


def _dead(repo: Repository, live: set[bytes]) -> Iterator[tuple[str, int]]:
    """The paths and sizes of all objects that do not live."""
    kept: list[set[str]] = [set() for _ in range(256)]
    for digest in live:
        kept[digest[0]].add(digest.hex()[2:])
    name_of_object = re.compile(f"[0-9a-fA-F]{{{2 * repo.algorithm.digest_bytes - 2}}}")
    for first, names in enumerate(kept):
        directory = f"{DIRECTORY}/{first:02x}"
        for name in _files(repo.fd, directory) - names:
            path = f"{directory}/{name}"
            if not name_of_object.fullmatch(name):
                raise CorruptError(f"{path} is not the name of an object", subject=path)
            if name.lower() not in names:
                yield path, _size(repo.fd, path)


def _files(root: int, directory: str) -> set[str]:
    with translated(f"reading {directory}", subject=directory):
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:
            return set()
        try:
            with os.scandir(fd) as entries:
                return {entry.name for entry in entries}
        finally:
            os.close(fd)


def _size(root: int, path: str) -> int:
    with translated(f"looking at {path}", subject=path):
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        raise CorruptError(f"{path} is a directory", subject=path)
    return status.st_size


def _remove_dead_links(repo: Repository, category: Category, live: set[bytes]) -> int:
    """Remove the first-level links whose objects are about to go."""
    dead = [link for link in links.entries(repo.fd, category) if _dies(repo, link, live)]
    return sum(links.remove(repo.fd, link.path) for link in dead)


def _dies(repo: Repository, link: Link, live: set[bytes]) -> bool:
    """Links of any other text than ours may lead elsewhere; `_prune` sees whether they still lead somewhere."""
    digest = links.object_in_text(link.text, repo.algorithm)
    if digest is None or digest in live:
        return False
    return link.text == links.link_text(link.path, f"{DIRECTORY}/{ObjectId(digest).path}")


def _sweep(repo: Repository, dead: list[tuple[str, int]], report: Tick) -> None:
    for number, (path, _) in enumerate(dead):
        if number % _TICK_OBJECTS == 0:
            report(number, len(dead))
        try:
            os.unlink(path, dir_fd=repo.fd)
        except OSError as error:
            raise translate(error, f"removing {path}", partition="repository", subject=path) from error
    report(len(dead), len(dead))


def _prune(repo: Repository, category: Category, *, dry_run: bool) -> int:
    """Remove links that lead nowhere: first those to objects, then the refs that led to them."""
    count = 0
    for found in (links.entries(repo.fd, category), links.refs(repo.fd, category)):
        for link in list(found):
            if not links.leads_somewhere(repo.fd, link.path):
                count += 1
                if not dry_run:
                    links.remove(repo.fd, link.path)
    return count
