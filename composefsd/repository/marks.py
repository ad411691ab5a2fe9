"""What lives in a repository, and why: the roots of garbage collection, and what hangs from each.

Roots are the refs of both categories, first-level names that the caller gives, and images that it gives; first-level
links are none by themselves.  A root image keeps itself and the objects it names.  A root stream keeps itself, the
objects in it, and what it names; what it names is walked in turn if it is the current splitstream of some name.  So
composefs-rs defines it, and so two implementations agree on what a repository holds.

Each image and stream is read once.  What is remembered of it are numbers of objects, four bytes each; a digest is
remembered once, so memory follows the number of live objects and not the number of roots.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from composefsd.erofs import reader as erofs
from composefsd.errors import ComposefsdError, CorruptError, FormatError, LimitExceededError, ObjectMissingError
from composefsd.repository import links
from composefsd.repository.links import Category
from composefsd.repository.repository import Repository

Tick = Callable[[int, int], None]
"""Told how many objects were dealt with, and of how many; of none as long as that is not known.  It may raise."""

ABSENT: Final = -1
"""The size of an object that lives and is not there."""

_UNSEEN: Final = -1
_SHARED: Final = -2


class Origin(StrEnum):
    """How a root comes to be one."""

    REF = "ref"
    NAME = "name"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Root:
    """Why something lives.

    name is a ref's path below the `refs` of its category, or what the caller gave: a name, or an image's digest in
    hexadecimal.  entry is the first-level name that it leads to.
    """

    origin: Origin
    category: Category
    name: str
    entry: str


@dataclass(frozen=True, slots=True)
class Weight:
    """What a root keeps of what is there: objects and bytes it reaches, and how many of these no other root does."""

    root: Root
    objects: int
    size_bytes: int
    objects_alone: int
    bytes_alone: int


@dataclass(frozen=True, slots=True)
class _Node:
    """An image or stream that was read: the numbers of the objects that live by it, itself included, and the streams
    that are walked from it."""

    objects: "array[int]"
    streams: tuple["_Key", ...] = ()


_Key = tuple[Category, bytes]
"""An image or stream by the digest of its object."""


class Marks:
    """What lives; `Marks.read` finds it out."""

    def __init__(self, repo: Repository, report: Tick) -> None:
        self._repo = repo
        self._report = report
        self._numbers: dict[bytes, int] = {}
        self._nodes: dict[_Key, _Node] = {}
        self._roots: dict[_Key, list[Root]] = {}

    @classmethod
    def read(
        cls,
        repo: Repository,
        *,
        roots: Iterable[str] = (),
        extra_images: Iterable[bytes] = (),
        report: Tick = lambda _done, _total: None,
    ) -> Self:
        """Read everything that lives.

        `roots` are names of images or streams, and those that do not exist are ignored; `extra_images` are digests of
        images.  Raises ObjectMissingError or CorruptError if something that lives cannot be read, or if there is
        something among the links that makes no sense.
        """
        marks, names = cls(repo, report), frozenset(roots)
        images, streams = _entries(repo, Category.IMAGES), _entries(repo, Category.STREAMS)
        marks._add_roots(Category.IMAGES, images, names)
        for digest in extra_images:
            marks._add_root(digest, Root(Origin.IMAGE, Category.IMAGES, digest.hex(), digest.hex()))
        marks._add_roots(Category.STREAMS, streams, names)
        marks._walk({digest: name for name, digest in streams.items()})
        for root in (root for found in marks._roots.values() for root in found if root.origin is not Origin.IMAGE):
            marks._check_way(f"{root.category}/{root.entry}")
        return marks

    # What lives

    def __len__(self) -> int:
        """How many objects live, be they there or not."""
        return len(self._numbers)

    def lives(self, digest: bytes) -> bool:
        return digest in self._numbers

    def by_first_byte(self) -> list[list[bytes]]:
        """The digests of all objects that live, in lists by their first byte."""
        found: list[list[bytes]] = [[] for _ in range(256)]
        for digest in self._numbers:
            found[digest[0]].append(digest)
        return found

    def number(self, digest: bytes) -> int | None:
        """The number of an object, below `len`; None if it does not live."""
        return self._numbers.get(digest)

    # Why

    def weigh(self, sizes: "array[int]") -> Iterator[Weight]:
        """What each root keeps; `sizes` are the objects' bytes by number, ABSENT for those that are not there."""
        alone: dict[int, list[int]] = {}
        for number, owner in enumerate(self._owners()):
            if owner != _SHARED and sizes[number] != ABSENT:
                counts = alone.setdefault(owner, [0, 0])
                counts[0] += 1
                counts[1] += sizes[number]
        for owner, (key, roots) in enumerate(self._roots.items()):
            reached: set[int] = set().union(*(self._nodes[node].objects for node in self._reachable(key)))
            found = [size for size in map(sizes.__getitem__, reached) if size != ABSENT]
            for root in roots:
                yield Weight(root, len(found), sum(found), *alone.get(owner, (0, 0)))

    def keepers(self, digest: bytes) -> Iterator[Root]:
        """The roots that keep an object."""
        number = self._numbers.get(digest)
        if number is None:
            return
        holders = {key for key, node in self._nodes.items() if number in node.objects}
        for key, roots in self._roots.items():
            if not holders.isdisjoint(self._reachable(key)):
                yield from roots

    def _owners(self) -> "array[int]":
        """For each object the place of the image or stream among `_roots` which alone keeps it, by one root alone."""
        owner_of: dict[_Key, int] = {}
        for place, (key, roots) in enumerate(self._roots.items()):
            for node in self._reachable(key):
                owner_of[node] = place if len(roots) == 1 and node not in owner_of else _SHARED
        owners = array("q", [_UNSEEN]) * len(self._numbers)
        for key, owner in owner_of.items():
            for number in self._nodes[key].objects:
                if owners[number] != owner:
                    owners[number] = owner if owners[number] == _UNSEEN else _SHARED
        return owners

    def _reachable(self, key: _Key) -> set[_Key]:
        found, pending = {key}, [key]
        while pending:
            for other in self._nodes[pending.pop()].streams:
                if other not in found:
                    found.add(other)
                    pending.append(other)
        return found

    # Reading

    def _add_roots(self, category: Category, entries: dict[str, bytes], names: frozenset[str]) -> None:
        for name in sorted(names & entries.keys()):
            self._add_root(entries[name], Root(Origin.NAME, category, name, name))
        prefix = f"{category}/{links.REFS}/"
        for link in sorted(links.refs(self._repo.fd, category)):
            entry = links.last_component(link.text)
            if entry is None:  # composefs-rs skips it, too
                continue
            if entry not in entries:
                raise ObjectMissingError(
                    f"{link.path} leads to {category}/{entry}, which is not there", subject=link.path
                )
            self._add_root(entries[entry], Root(Origin.REF, category, link.path.removeprefix(prefix), entry))

    def _add_root(self, digest: bytes, root: Root) -> None:
        self._roots.setdefault((root.category, digest), []).append(root)

    def _walk(self, names: dict[bytes, str]) -> None:
        """Read all images and streams that the roots lead to; `names` are those of the current streams."""
        pending = list(self._roots)
        while pending:
            key = pending.pop()
            if key not in self._nodes:
                self._report(0, 0)
                node = self._nodes[key] = self._read(key, names)
                pending += node.streams

    def _read(self, key: _Key, names: dict[bytes, str]) -> _Node:
        category, digest = key
        if category is Category.IMAGES:
            with _reading(f"image {digest.hex()}"):
                found = erofs.object_ids(self._repo.read_image(digest), self._repo.algorithm)
            return _Node(self._mark((digest, *found)))
        with _reading(f"stream {names[digest]}"):
            stream = self._repo.read_stream_object(digest)
        self._check_way(f"{category}/{names[digest]}")
        named = stream.named_refs.values()
        walked = tuple((Category.STREAMS, one) for one in dict.fromkeys(named) if one in names)
        return _Node(self._mark((digest, *stream.object_refs, *named)), walked)

    def _check_way(self, path: str) -> None:
        """A link whose text names an object and whose way leads nowhere is damage, which its removal would spread."""
        if not links.leads_somewhere(self._repo.fd, path):
            raise ObjectMissingError(f"{path} lives, and leads nowhere", subject=path)

    def _mark(self, digests: Iterable[bytes]) -> "array[int]":
        numbers = self._numbers
        return array("I", [numbers.setdefault(digest, len(numbers)) for digest in digests])


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
