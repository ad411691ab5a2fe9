"""What an image says about itself: its system, what in it boots, and why it might not.

The imager gathers facts while it has the trees; the daemon keeps them in its own state directory, since a repository
has no place for them, and gathers them anew for images that another tool has pulled.  Both ends of the way read them
back through checked getters: the imager reads hostile bytes, and a file may be anything.
"""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from composefsd.boot import kargs, resources
from composefsd.boot.files import RangeReader, get_file, read_file
from composefsd.boot.kargs import DropIn
from composefsd.boot.os_release import OsRelease
from composefsd.boot.resources import ResourceType
from composefsd.digests import OciDigest
from composefsd.document import DOCUMENT_BYTES, Document
from composefsd.errors import ComposefsdError, LimitExceededError
from composefsd.operations import boot_facts
from composefsd.operations.boot_facts import BootFact, FileFact, ProfileFact, SignatureFact, describe
from composefsd.tree.table import Tree

__all__ = [
    "BootFact",
    "DirectoryFact",
    "Facts",
    "FileFact",
    "ProfileFact",
    "SignatureFact",
    "add_reference",
    "forget_facts",
    "gather",
    "has_facts",
    "load_facts",
    "load_references",
    "save_facts",
]

log = logging.getLogger(__name__)

_VERSION: Final = 3
_OS_RELEASES: Final = (b"/usr/lib/os-release", b"/etc/os-release")
_OS_RELEASE_BYTES: Final = 64 << 10
_REFERENCES: Final = 16
_REFERENCES_BYTES: Final = _REFERENCES * 4097  # a reference has no more than 4096 characters that can be printed
_LABEL: Final = b"security.selinux"
_TOO_MUCH: Final = "the image says more about how it boots than can be kept"


@dataclass(frozen=True, slots=True)
class DirectoryFact:
    """A directory of the boot image: permission bits, owner, and its SELinux label or nothing."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of an image beyond its documents; reasons tell why it cannot boot, one a line.

    kargs are the kernel arguments that it asks for on any architecture.
    """

    title: str = ""
    os_version: str = ""
    os_id: str = ""
    resources: tuple[BootFact, ...] = ()
    reasons: tuple[str, ...] = ()
    etc: DirectoryFact = field(default_factory=DirectoryFact)
    var: DirectoryFact = field(default_factory=DirectoryFact)
    kargs: tuple[DropIn, ...] = ()

    @property
    def bootable(self) -> bool:
        """Whether nothing in the image itself stands against deploying it."""
        return not self.reasons

    @property
    def claimed_digests(self) -> frozenset[str]:
        """The digests that the image's UKIs name, in hexadecimal."""
        return frozenset(claim for one in self.resources if one.type == ResourceType.UKI for claim in one.claims)

    @classmethod
    def unknown(cls, reason: str) -> Self:
        """The facts of an image that cannot be looked into."""
        return cls(reasons=(reason,))

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """From what `asdict` gave, through whatever hands.  Raises FormatError or LimitExceededError."""
        facts = Document.of(value, "the facts of an image")
        return cls(
            facts.text("title"),
            facts.text("os_version"),
            facts.text("os_id"),
            tuple(map(BootFact.of, facts.children("resources"))),
            facts.texts("reasons"),
            _directory_fact(facts.child("etc")),
            _directory_fact(facts.child("var")),
            tuple(map(_drop_in, facts.children("kargs"))),
        )


def _drop_in(document: Document) -> DropIn:
    return DropIn(
        document.text("path"),
        document.texts("arguments"),
        document.texts("architectures"),
        document.text("problem"),
    )


def _directory_fact(document: Document) -> DirectoryFact:
    return DirectoryFact(
        document.integer("mode"), document.integer("uid"), document.integer("gid"), document.text("label")
    )


# Gathering, in the imager


def gather(
    tree: Tree, read: Callable[[bytes, int], bytes], ranges: RangeReader, make_boot: Callable[[], Tree]
) -> dict[str, Any]:
    """The facts of an image, as plain values, from its normative tree; `make_boot` gives that of its boot image."""
    release = _os_release(tree, read)
    try:
        found = tuple(describe(tree, one) for one in resources.collect(tree, read, ranges))
    except LimitExceededError:
        return asdict(Facts.unknown(_TOO_MUCH))
    reasons = list(boot_facts.reasons(found))
    boot = None
    try:
        boot = make_boot()
    except ComposefsdError as error:
        reasons += error.message.splitlines()
    facts = Facts(
        title=(release.title or "") if release else "",
        os_version=(release.version or "") if release else "",
        os_id=(release.id or "") if release else "",
        resources=found,
        reasons=tuple(dict.fromkeys(reasons)),
        etc=_directory(boot, b"/etc"),
        var=_directory(boot, b"/var"),
        kargs=kargs.collect(tree, read),
    )
    return asdict(facts if _is_bounded(facts) else Facts.unknown(_TOO_MUCH))


def _is_bounded(facts: Facts) -> bool:
    return len(_serialize(facts)) <= DOCUMENT_BYTES


def _os_release(tree: Tree, read: Callable[[bytes, int], bytes]) -> OsRelease | None:
    for path in _OS_RELEASES:
        with suppress(ComposefsdError):
            return OsRelease.parse(read_file(tree, get_file(tree, path), read, _OS_RELEASE_BYTES))
    return None


def _directory(tree: Tree | None, path: bytes) -> DirectoryFact:
    inode = None if tree is None else tree.find(path)
    if tree is None or inode is None:
        return DirectoryFact()
    stat = tree.stat(inode)
    label = dict(stat.xattrs).get(_LABEL, b"")
    return DirectoryFact(stat.mode & 0o7777, stat.uid, stat.gid, label.decode(errors="backslashreplace"))


# Keeping, in the daemon


def _path(state: Path, image: OciDigest) -> Path:
    return state / "images" / f"{image.algorithm}_{image.hex}.json"


def has_facts(state: Path, image: OciDigest) -> bool:
    """Whether an image's facts are kept."""
    return load_facts(state, image) is not None


def load_facts(state: Path, image: OciDigest) -> Facts | None:
    """The facts of an image; None if there are none, or none that this version can use."""
    try:
        with _path(state, image).open("rb") as file:
            data = file.read(DOCUMENT_BYTES + 1)
        document = Document.parse(data, "the facts of an image")
        return Facts.from_wire(document.value("facts")) if document.integer("version") == _VERSION else None
    except (OSError, ComposefsdError):  # they can be gathered again
        return None


def save_facts(state: Path, image: OciDigest, facts: Facts) -> None:
    """Keep the facts of an image, if that is possible: they can be gathered again, so nothing is synced either."""
    data = _serialize(facts)
    if len(data) > DOCUMENT_BYTES:
        data = _serialize(Facts.unknown(_TOO_MUCH))
    keep(_path(state, image), data)


def keep(path: Path, data: bytes) -> None:
    """Keep what can be found out again, if that is possible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("%s cannot be kept: %s", path, error.strerror)
        with suppress(OSError):
            temporary.unlink()


def _serialize(facts: Facts) -> bytes:
    return json.dumps({"version": _VERSION, "facts": asdict(facts)}, separators=(",", ":")).encode()


def forget_facts(state: Path, image: OciDigest) -> None:
    """Drop the facts of an image that went, and where it came from."""
    for path in (_path(state, image), _references_path(state, image)):
        with suppress(OSError):
            path.unlink()


# Where an image came from


def _references_path(state: Path, image: OciDigest) -> Path:
    return state / "images" / f"{image.algorithm}_{image.hex}.references"


def load_references(state: Path, image: OciDigest) -> tuple[str, ...]:
    """The references that an image was pulled by, the last one first."""
    try:
        with _references_path(state, image).open("rb") as file:
            text = file.read(_REFERENCES_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(line for line in text.splitlines() if line)


def add_reference(state: Path, image: OciDigest, reference: str) -> None:
    """Remember that an image was pulled by a reference, if that is possible; the oldest of many are forgotten."""
    others = (one for one in load_references(state, image) if one != reference)
    lines = [reference, *others][:_REFERENCES]
    keep(_references_path(state, image), "".join(f"{line}\n" for line in lines).encode())
