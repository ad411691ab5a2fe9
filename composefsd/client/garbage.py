"""What a collection tells: its listing as records, and how `gc` and `explain` print it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from composefsd.client import show
from composefsd.client.failures import AnswerError
from composefsd.client.properties import Properties, Value
from composefsd.client.records import Deployment
from composefsd.client.render import Colour, Screen, Table
from composefsd.client.text import size

DOCUMENT: Final = "garbage"
"""The document that a collection leaves."""

_GROUPS: Final = {
    "image": "images",
    "stream": "streams",
    "ref": "refs that lead nowhere",
    "temporary": "leftovers of dead writers",
    "object": "objects",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something stays: the kind of a root and its name."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Root:
    """A root that stays: what it reaches, and how much of that no other root does."""

    kind: str
    name: str
    leads_to: str
    objects: int
    bytes: int
    objects_alone: int
    bytes_alone: int

    @classmethod
    def parse(cls, line: Properties) -> Self:
        counts = (line.number(key) or 0 for key in ("objects", "bytes", "objects_alone", "bytes_alone"))
        return cls(line.text("stays"), line.text("name"), line.text("leads_to"), *counts)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A thing that goes: an object by its digest, anything else by its path in the repository."""

    kind: str
    name: str
    bytes: int | None

    @classmethod
    def parse(cls, line: Properties) -> Self:
        return cls(line.text("goes"), line.text("digest") or line.text("path"), line.number("bytes"))


@dataclass(frozen=True, slots=True)
class Listing:
    """The document of a collection; not `complete` if it was too long, or something stopped the collection."""

    stays: tuple[Root, ...]
    goes: tuple[Garbage, ...]
    complete: bool

    @classmethod
    def read(cls, descriptor: int) -> Self:
        """From a descriptor, which is closed.  Raises AnswerError for what is no such document."""
        stays: list[Root] = []
        goes: list[Garbage] = []
        complete = False
        for line in _lines(descriptor):
            if line.text("stays"):
                stays.append(Root.parse(line))
            elif line.text("goes"):
                goes.append(Garbage.parse(line))
            else:
                complete = line.number("unlisted") == 0
        return cls(tuple(stays), tuple(goes), complete)


def _lines(descriptor: int) -> Iterator[Properties]:
    with os.fdopen(descriptor, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise AnswerError(f"line {number} of the daemon's listing is not JSON") from error
            if not isinstance(found, dict):
                raise AnswerError(f"line {number} of the daemon's listing is no object")
            yield Properties(found)


Deployed = Mapping[str, Sequence[str]]
"""Ids of deployments by the digest of the manifest or of the boot image, as the name of such a root tells them."""


def deployed(found: Sequence[Deployment]) -> Deployed:
    """The deployments of each OCI image and of each boot image."""
    ids: dict[str, list[str]] = {}
    for deployment in found:
        for digest in (deployment.manifest_digest, deployment.boot_digest.rpartition(":")[2]):
            ids.setdefault(digest, []).append(deployment.id)
    return ids


def _name(screen: Screen, root: Root | Reason, ids: Deployed) -> str:
    """The name of a root for people: of a deployment its id."""
    if root.kind == "deployment" and root.name in ids:
        return ", ".join(screen.deployment(one) for one in ids[root.name])
    return root.name


def dry_run(screen: Screen, result: Mapping[str, Value], listing: Listing | None, ids: Deployed) -> None:
    """What would go and what would stay; the counts alone if there is no listing."""
    screen.line("nothing was removed; without --dry-run:")
    if listing is None:
        show.result(screen, result)
        return
    _groups(screen, result, listing)
    screen.line()
    _roots(screen, listing.stays, ids)
    _say_if_cut(screen, listing)


def every_line(screen: Screen, listing: Listing) -> None:
    """All that goes, one by one."""
    table = Table(("WHAT", "BYTES", "NAME"), frozenset({"BYTES"}))
    for gone in listing.goes:
        table.add(gone.kind, "" if gone.bytes is None else size(gone.bytes), gone.name)
    table.show(screen)
    _say_if_cut(screen, listing)


def reasons(screen: Screen, found: Sequence[Reason], ids: Deployed) -> None:
    """What keeps something."""
    if not found:
        screen.line("nothing keeps it")
        return
    table = Table(("KIND", "NAME"))
    for reason in found:
        table.add(reason.kind, _name(screen, reason, ids))
    table.show(screen)


def _groups(screen: Screen, result: Mapping[str, Value], listing: Listing) -> None:
    """How much of each kind goes; the objects are counted by the daemon, as the listing may lack some."""
    table = Table(("WOULD GO", "COUNT", "BYTES"), frozenset({"COUNT", "BYTES"}))
    counted = Properties(result)
    for kind, title in _GROUPS.items():
        sizes = [gone.bytes for gone in listing.goes if gone.kind == kind]
        known = [one for one in sizes if one is not None]
        count, total = len(sizes), sum(known)
        if kind == "object":
            count, total = counted.number("objects-removed") or 0, counted.number("freed-bytes") or 0
        table.add(title, str(count), size(total) if known or kind == "object" else "")
    table.show(screen)


def _roots(screen: Screen, roots: Sequence[Root], ids: Deployed) -> None:
    if not roots:
        screen.line("nothing stays: no name leads to anything")
        return
    right = frozenset({"OBJECTS", "BYTES", "OBJECTS ALONE", "BYTES ALONE"})
    table = Table(("STAYS FOR", "NAME", "LEADS TO", "OBJECTS", "BYTES", "OBJECTS ALONE", "BYTES ALONE"), right)
    for root in roots:
        table.add(
            root.kind, _name(screen, root, ids), _short(screen, root.leads_to), str(root.objects), size(root.bytes),
            str(root.objects_alone), size(root.bytes_alone),
        )  # fmt: skip
    table.show(screen)


def _short(screen: Screen, entry: str) -> str:
    """The name of a stream or image as it fits."""
    prefix, colon, digest = entry.partition(":")
    return f"{prefix}{colon}{screen.digest(digest)}" if colon else screen.digest(entry)


def _say_if_cut(screen: Screen, listing: Listing) -> None:
    if not listing.complete:
        screen.line("the listing was too long, and is cut", Colour.YELLOW)
