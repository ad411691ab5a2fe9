"""The journal: what was deployed, on purpose, and how far it came.

`SYSROOT/state/composefsd/` holds `system.json` and one `<id>.json` for each deployment, written by temporary file,
fsync, rename and fsync of the directory.  A record is JSON of schema version 1; a file that is broken, or of a later
schema, is reported and left alone.  The journal records intent; facts are found by scanning the boot partition, and
on conflict the scan wins (see `listing`).
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

from composefsd.deploy.names import PAYLOAD_PATH
from composefsd.deploy.volume import Volume, is_temporary
from composefsd.digests import ObjectId, OciDigest
from composefsd.document import Document
from composefsd.errors import ComposefsdError, FormatError, LimitExceededError
from composefsd.linux import lock

JOURNAL: Final = "state/composefsd"

SCHEMA: Final = 1

_SYSTEM: Final = f"{JOURNAL}/system.json"
_MAX_RECORD_BYTES: Final = 1 << 20
_MAX_SEQ: Final = 10**9
_LOCK_SECONDS: Final = 10.0

_ID: Final = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?")
_SHA256: Final = re.compile(r"(?:[0-9a-f]{64})?")
_TEXT: Final = re.compile(r"[^\0]{0,65536}", re.DOTALL)
_LINE: Final = re.compile(r"[^\0-\x1f\x7f]{0,65536}")

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Phase(StrEnum):
    """How far a deployment has come; each names what is durable."""

    PLANNED = "planned"
    STATE = "state"
    PAYLOAD = "payload"
    ENTRY = "entry"
    RETIRING = "retiring"


class DeploymentState(StrEnum):
    """The words of the property `State`."""

    PREPARED = "prepared"
    STAGED = "staged"
    ARMED = "armed"
    GOOD = "good"
    FAILED = "failed"
    RETIRING = "retiring"


class DeploymentType(StrEnum):
    """A unified kernel image, or a kernel and an initrd named by a type 1 entry."""

    UKI = "uki"
    TYPE1 = "type1"


class VerityPolicy(StrEnum):
    """What a deployment demands of fs-verity: of the repository at once, once the disk is sealed, or not at all."""

    REQUIRE = "require"
    DEFERRED = "deferred"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class File:
    """A file on the boot partition: path below its root, size in bytes, SHA-256 (empty until it was written)."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A boot image made bootable.  The fields after `remove_state` are findings of a scan, not kept in the journal.

    id is `boot_digest` in hexadecimal; aliases are further digests of the same boot image (in another format) that
    its kernel command line may mount.  entry is the name of the boot entry: without counters in the journal, as it is
    on the partition in a scan.  files leave the entry out.  tag is the repository's tag that keeps the image.
    manifest_digest is None, and other fields are empty, where the journal was lost and only the entry is known.
    options is the command line that the entry gives a kernel, None if it gives none: a UKI carries its own.
    """

    id: str
    seq: int
    phase: Phase
    state: DeploymentState
    type: DeploymentType
    verity: VerityPolicy
    boot_digest: ObjectId
    aliases: tuple[ObjectId, ...] = ()
    manifest_digest: OciDigest | None = None
    reference: str = ""
    tag: str = ""
    title: str = ""
    os_version: str = ""
    entry: str = ""
    entry_text: str = ""
    kernel_arguments: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    created_usec: int = 0
    pinned: bool = False
    state_existed: bool = False
    remove_state: bool = False

    booted: bool = False
    default: bool = False
    tries_left: int = -1
    tries_done: int = -1
    problems: tuple[str, ...] = ()
    options: str | None = None

    def known_as(self, digest: str | None) -> bool:
        """Whether a boot image of this digest (hexadecimal) is this deployment's."""
        return digest is not None and digest in (self.id, *(alias.hex for alias in self.aliases))


# Serialized records


def serialize(deployment: Deployment) -> bytes:
    """The record as JSON."""
    record = {
        "schema": SCHEMA,
        "seq": deployment.seq,
        "phase": deployment.phase,
        "state": deployment.state,
        "type": deployment.type,
        "verity": deployment.verity,
        "boot_digest": deployment.boot_digest.hex,
        "aliases": [alias.hex for alias in deployment.aliases],
        "manifest_digest": str(deployment.manifest_digest or ""),
        "reference": deployment.reference,
        "tag": deployment.tag,
        "title": deployment.title,
        "os_version": deployment.os_version,
        "entry": deployment.entry,
        "entry_text": deployment.entry_text,
        "kernel_arguments": list(deployment.kernel_arguments),
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in deployment.files],
        "created_usec": deployment.created_usec,
        "pinned": deployment.pinned,
        "state_existed": deployment.state_existed,
        "remove_state": deployment.remove_state,
    }
    return json.dumps(record, indent=1).encode() + b"\n"


def _load(data: bytes) -> Document:
    """The object in a file of the journal, if it is of our schema."""
    fields = Document.parse(data, "the record")
    if (schema := fields.integer("schema")) != SCHEMA:
        raise FormatError(f"the record is of schema {schema}, and this release knows only {SCHEMA}")
    return fields


def parse(data: bytes) -> Deployment:
    """Raises FormatError for anything but a record of schema 1; keys it does not know are passed over."""
    fields = _load(data)
    fields.require("aliases", "kernel_arguments", "files")
    boot_digest = ObjectId.parse(fields.text("boot_digest", form=_ID))
    manifest = fields.text("manifest_digest", form=_LINE)
    return Deployment(
        id=boot_digest.hex,
        seq=fields.integer("seq", limit=_MAX_SEQ),
        phase=fields.choice("phase", Phase),
        state=fields.choice("state", DeploymentState),
        type=fields.choice("type", DeploymentType),
        verity=fields.choice("verity", VerityPolicy),
        boot_digest=boot_digest,
        aliases=tuple(ObjectId.parse(alias) for alias in fields.texts("aliases", form=_ID)),
        manifest_digest=OciDigest.parse(manifest) if manifest else None,
        reference=fields.text("reference", form=_LINE),
        tag=fields.text("tag", form=_LINE),
        title=fields.text("title", form=_LINE),
        os_version=fields.text("os_version", form=_LINE),
        entry=fields.text("entry", form=_LINE),
        entry_text=fields.text("entry_text", form=_TEXT),
        kernel_arguments=fields.texts("kernel_arguments", form=_TEXT),
        files=tuple(map(_parse_file, fields.children("files"))),
        created_usec=fields.integer("created_usec", limit=1 << 62),
        pinned=fields.flag("pinned"),
        state_existed=fields.flag("state_existed"),
        remove_state=fields.flag("remove_state"),
    )


def _parse_file(fields: Document) -> File:
    path, sha256 = fields.text("path", form=PAYLOAD_PATH), fields.text("sha256", form=_SHA256)
    return File(path, fields.integer("size", limit=1 << 40), sha256)


# The directory


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the journal holds: its readable records in the order of `seq`, and a line for each that is not."""

    deployments: tuple[Deployment, ...]
    problems: tuple[str, ...]


class Journal:
    """The records below a sysroot."""

    def __init__(self, sysroot: Volume) -> None:
        self._sysroot = sysroot

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to change anything that is deployed.  Raises LockedError if another process keeps it."""
        self._sysroot.ensure_directory(JOURNAL)
        with ExitStack() as stack:
            with self._sysroot.doing("open the journal"):
                fd = stack.enter_context(self._sysroot.directory(JOURNAL))
            stack.enter_context(lock.exclusive(fd, timeout=_LOCK_SECONDS))
            yield

    def load(self) -> Loaded:
        """Read every record.  Raises only if the directory itself cannot be read."""
        deployments: list[Deployment] = []
        problems: list[str] = []
        for name in self._sysroot.names(JOURNAL):
            stem = name.name.removesuffix(".json")
            if stem == name.name or not _ID.fullmatch(stem):
                continue
            try:
                deployments.append(self._read(stem))
            except ComposefsdError as error:
                problems.append(f"{JOURNAL}/{name.name}: {error}")
        return Loaded(tuple(sorted(deployments, key=lambda found: found.seq)), tuple(problems))

    def _read(self, deployment_id: str) -> Deployment:
        data = self._sysroot.read(_path(deployment_id), _MAX_RECORD_BYTES)
        deployment = parse(data or b"")
        if deployment.id != deployment_id:
            raise FormatError("names another boot digest than its file name")
        return deployment

    def save(self, deployment: Deployment) -> Deployment:
        """Write a record durably; answers with it.  Raises FormatError rather than write what cannot be read back."""
        data = serialize(deployment)
        parse(data)
        self._sysroot.replace(_path(deployment.id), data)
        return deployment

    def advance(self, deployment: Deployment, phase: Phase) -> Deployment:
        """Record that a deployment has reached a phase."""
        return self.save(replace(deployment, phase=phase))

    def forget(self, deployment_id: str) -> None:
        """Remove a record durably, if it is there."""
        self._sysroot.remove(_path(deployment_id))

    def last_seq(self) -> int:
        """The highest number ever given out, as far as is known here."""
        try:
            data = self._sysroot.read(_SYSTEM, _MAX_RECORD_BYTES)
            recorded = _load(data).integer("last_seq", limit=_MAX_SEQ) if data is not None else 0
        except (FormatError, LimitExceededError):  # then records and entries tell
            recorded = 0
        return max([recorded, *(deployment.seq for deployment in self.load().deployments)])

    def reserve(self, seq: int) -> None:
        """Remember durably that `seq` is used, for a number is never given out twice."""
        data = json.dumps({"schema": SCHEMA, "last_seq": seq}, indent=1).encode() + b"\n"
        self._sysroot.replace(_SYSTEM, data)

    def sweep(self) -> None:
        """Remove files that were never finished."""
        for name in self._sysroot.names(JOURNAL):
            if name.is_file and is_temporary(name.name):
                self._sysroot.remove(f"{JOURNAL}/{name.name}")


def _path(deployment_id: str) -> str:
    return f"{JOURNAL}/{deployment_id}.json"
