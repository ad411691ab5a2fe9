"""Boot entries on the partitions: ours and those of others, which are read and never touched."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from composefsd.boot import bls
from composefsd.deploy.names import ENTRIES, SREL, SREL_CONTENT, DeploymentName, payload_stem
from composefsd.deploy.volume import Volume, is_temporary, printable, temporary_name
from composefsd.errors import ComposefsdError, LimitExceededError, UnsupportedError

_MAX_TOTAL_BYTES: Final = 16 << 20
_STEM: Final = re.compile(rf"{payload_stem('')}([0-9a-f]{{64}}(?:[0-9a-f]{{64}})?)")
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A file in `loader/entries`.

    data is None for one that is too long to read or no regular file, and then it may name anything.  name is None for
    a name outside the specification, entry for content that no loader can read, ours for an entry of somebody else.
    """

    file_name: str
    data: bytes | None
    name: bls.EntryName | None
    entry: bls.Entry | None
    ours: DeploymentName | None

    @property
    def path(self) -> str:
        """Below the root of its partition."""
        return f"{ENTRIES}/{self.file_name}"

    def is_of(self, seq: int, boot_digest: str) -> bool:
        """Whether this is the entry of that deployment, whatever its counters are by now."""
        return self.ours is not None and (self.ours.seq, self.ours.digest) == (
            seq,
            boot_digest[: len(self.ours.digest)],
        )

    def mentions(self, name: str) -> bool:
        """Whether the text holds `name`, in any case: VFAT ignores it."""
        return self.data is None or name.lower().encode() in self.data.lower()

    @property
    def boot_digest(self) -> str | None:
        """The digest in the name of the payload that it boots."""
        found = _STEM.search((self.data or b"").decode(errors="replace").lower())
        return found[1] if found else None


def scan(volume: Volume) -> list[Found]:
    """All entries of a partition, in order of file names.  Raises LimitExceededError for more than 16 MiB of them."""
    entries: list[Found] = []
    total = 0
    for name in volume.names(ENTRIES):
        if name.is_directory or not name.name.lower().endswith(".conf"):
            continue
        data = _read(volume, f"{ENTRIES}/{name.name}")
        total += len(data or b"")
        if total > _MAX_TOTAL_BYTES:
            raise LimitExceededError(f"{volume.label}: {ENTRIES} holds more than {_MAX_TOTAL_BYTES} bytes")
        entries.append(_found(name.name, data))
    return entries


def _read(volume: Volume, path: str) -> bytes | None:
    try:
        return volume.read(path, bls.LIMIT_BYTES)
    except (LimitExceededError, UnsupportedError):
        return None


def _found(file_name: str, data: bytes | None) -> Found:
    name, entry = None, None
    try:
        name = bls.EntryName.parse(file_name)
        entry = bls.Entry.parse(data) if data is not None else None
    except ComposefsdError:  # no loader shows it; it stays where it is
        entry = None
    return Found(file_name, data, name, entry, DeploymentName.parse(name.stem) if name is not None else None)


def naming(entries: Iterable[Found], name: str) -> list[Found]:
    """The entries that keep a file: those whose text holds its name, and those that could not be read.

    A comparison of paths would have to read every entry as every loader does; a name with a digest in it is enough.
    """
    return [entry for entry in entries if entry.mentions(name)]


def in_menu_order(entries: Iterable[Found]) -> list[Found]:
    """The entries that a loader shows, the one that boots by default first."""
    shown = {id(found.entry): found for found in entries if found.name is not None and _boots(found.entry)}
    pairs = [
        (found.name, found.entry) for found in shown.values() if found.name is not None and found.entry is not None
    ]
    return [shown[id(entry)] for _, entry in bls.in_menu_order(pairs)]


def _boots(entry: bls.Entry | None) -> bool:
    """systemd-boot passes over an entry that names nothing to start."""
    return entry is not None and any(entry.value(key) for key in ("linux", "efi", "uki", "uki-url"))


def entry_text(title: str, os_id: str, seq: int, boots: Sequence[tuple[str, str]]) -> str:
    """The entry of a deployment; `boots` are the keys that tell what to start.

    The version is our number and not the system's: it always grows, and never looks like a boot counter.  There is no
    `machine-id`, which would take part in sorting and identify the machine on an unencrypted partition.
    """
    fields = (("title", title), ("version", str(seq)), ("sort-key", f"composefsd-{os_id}"), *boots)
    return bls.Entry(fields).serialize().decode()


def menu_title(title: str, seq: int) -> str:
    """A title that tells deployments of the same system apart."""
    return f"{one_line(title) or 'Linux'} (deployment {seq})"


def one_line(text: str) -> str:
    """Text from an image without control characters."""
    return _CONTROL.sub(" ", text).strip()


def objection(boot: Volume, present: Iterable[Found]) -> str | None:
    """Why entries must not be written to this partition, if so: the directory belongs to other rules (UAPI.1)."""
    try:
        content = boot.read(SREL, 100)
    except (LimitExceededError, UnsupportedError):
        content = b""
    if content is None:
        others = [found.file_name for found in present if found.ours is None]
        if not others:
            return None
        remedy = f"write `type1` into {SREL} there to let us add ours"
        return f"{boot.label} has an entry {printable(others[0])}, but does not say which rules it follows: {remedy}"
    if content.split() != SREL_CONTENT.split():
        return f"{boot.label}: {SREL} says that {ENTRIES} does not follow the Boot Loader Specification"
    return None


def write(boot: Volume, file_name: str, text: str) -> None:
    """Add an entry, whole or not at all."""
    boot.ensure_directory(ENTRIES)
    if boot.stat(SREL) is None:
        boot.write_new(SREL, SREL_CONTENT)
    boot.write_new(f"{ENTRIES}/{file_name}", text.encode())


def remove(boot: Volume, seq: int, boot_digest: str) -> int:
    """Remove the entry of a deployment, by number: a loader may rename it at any time.  Answers with its size."""
    return sum(boot.remove(found.path) or 0 for found in scan(boot) if found.is_of(seq, boot_digest))


def sweep(boot: Volume) -> None:
    """Remove temporary files of ours."""
    boot.remove(f"loader/{temporary_name('entries.srel')}")
    for name in boot.names(ENTRIES):
        if name.is_file and is_temporary(name.name):
            boot.remove(f"{ENTRIES}/{name.name}")
