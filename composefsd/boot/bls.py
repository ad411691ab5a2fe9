"""Boot menu entries of the Boot Loader Specification (UAPI.1), Type #1: a `.conf` file of lines `key value`.

An entry is identified by its file name without the boot counters, `+LEFT-DONE` before the suffix, which the boot
loader changes by renaming the file.  Unknown keys are kept, comments are not.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Final, Self

from composefsd.boot import versions
from composefsd.errors import FormatError, LimitExceededError

LIMIT_BYTES: Final = 64 * 1024
_NAME_LIMIT: Final = 255
_TRIES_LIMIT: Final = (1 << 31) - 1  # INT_MAX, the limit of systemd-boot

_NOT_CARRIED: Final = {
    "devicetree": "a device tree",
    "devicetree-overlay": "device tree overlays",
    "efi": "an EFI program",
    "extra": "extra files",
    "profile": "a profile of a UKI",
    "uki": "a UKI",
    "uki-url": "a UKI on another machine",
}
"""Keys that say what to start in a way that an entry of ours does not."""

_KEY: Final = re.compile(r"[^\s#][^\s]*")
_FORBIDDEN: Final = re.compile(r"[\n\r\0]")
_LINE: Final = re.compile(r"([^ \t]+)(?:[ \t]+(.*))?", re.DOTALL)
_FILE_NAME: Final = re.compile(r"([A-Za-z0-9+\-_.]*?)(?:\+([0-9]+)(?:-([0-9]+))?)?(\.conf|\.efi)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """The fields of an entry in their order: keys and values, which hold no line breaks.

    Raises FormatError if a key or a value would not come back as it was from a file.
    """

    fields: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        for key, value in self.fields:
            if not _KEY.fullmatch(key):
                raise FormatError(f"a boot entry cannot have the key {key[:80]!r}", subject=key[:80])
            if _FORBIDDEN.search(value) or value.strip(" \t") != value:
                raise FormatError(f"a boot entry cannot hold the {key} {value[:200]!r}", subject=key)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises FormatError if the file is not UTF-8 or holds NUL, and LimitExceededError beyond 64 KiB."""
        if len(data) > LIMIT_BYTES:
            raise LimitExceededError("a boot entry of more than 64 KiB", limit=LIMIT_BYTES)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError("a boot entry is not UTF-8", offset=error.start) from error
        lines = (line.strip(" \t\r\v\f") for line in text.split("\n"))
        matches = (_LINE.fullmatch(line) for line in lines if not line.startswith("#"))
        return cls(tuple((match[1], match[2] or "") for match in matches if match))

    def serialize(self) -> bytes:
        return "".join(f"{key:<10} {value}".rstrip() + "\n" for key, value in self.fields).encode()

    def values(self, key: str) -> tuple[str, ...]:
        """All values of a key that may be repeated: `initrd`, `options`, `extra`."""
        return tuple(value for name, value in self.fields if name == key)

    def value(self, key: str) -> str | None:
        """The value of a key; of several the last, as systemd-boot has it."""
        return next((value for name, value in reversed(self.fields) if name == key), None)

    @property
    def options(self) -> str:
        """The kernel arguments of all `options` lines."""
        return " ".join(self.values("options"))


def obstacles(entry: Entry, named: Sequence[str]) -> Iterator[str]:
    """Why an entry of an image cannot be written anew, with its kernel and its initrds in other places.

    named are the files that composefs-rs sees in its lines `linux`, then in its lines `initrd`: it takes a line to
    its end, and only if the key comes first in it.  An entry that a boot loader would read in another way is refused.
    """
    for key in dict(entry.fields):
        if key in _NOT_CARRIED:
            yield f"an entry with {_NOT_CARRIED[key]} (`{key}`) cannot be deployed"
    kernels, initrds = entry.values("linux"), entry.values("initrd")
    if len(kernels) != 1:
        yield f"an entry with {len(kernels)} lines `linux` cannot be deployed"
    elif not initrds:
        yield "an entry without an initrd cannot be deployed: nothing else could mount the image"
    elif (*kernels, *initrds) != tuple(named):
        yield "an entry whose lines `linux` and `initrd` can be read in two ways cannot be deployed"


@dataclass(frozen=True, slots=True)
class EntryName:
    """The file name of an entry, or of a UKI that is one: `stem+left-done.conf`; left and done are None uncounted.

    Raises FormatError for a name outside the specification, and for a stem whose end would be read as a counter.
    """

    stem: str
    left: int | None = None
    done: int | None = None
    suffix: str = ".conf"

    def __post_init__(self) -> None:
        if _split(str(self)) != (self.stem, self.left, self.done, self.suffix):
            raise FormatError(f"{str(self)!r} is no name for this entry", subject=str(self)[:300])

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises FormatError for what is no name of an entry, or has a counter that systemd-boot refuses."""
        return cls(*_split(name))

    def __str__(self) -> str:
        left = "" if self.left is None else f"+{self.left}"
        done = "" if self.done is None else f"-{self.done}"
        return f"{self.stem}{left}{done}{self.suffix}"

    @property
    def id(self) -> str:
        """What the entry is known by: the name without counters.  Boot loaders compare it in lower case."""
        return self.stem + self.suffix

    @property
    def bad(self) -> bool:
        """Whether all tries are used up."""
        return self.left == 0


def _split(name: str) -> tuple[str, int | None, int | None, str]:
    match = _FILE_NAME.fullmatch(name)
    if match is None or not match[1] or len(name) > _NAME_LIMIT:
        raise FormatError(f"not the file name of a boot entry: {name[:300]!r}", subject=name[:300])
    stem, left, done, suffix = match.groups()
    if any(count is not None and int(count) > _TRIES_LIMIT for count in (left, done)):
        raise FormatError(f"boot counter out of range: {name!r}", subject=name)
    return stem, None if left is None else int(left), None if done is None else int(done), suffix


def in_menu_order(entries: Iterable[tuple[EntryName, Entry]]) -> list[tuple[EntryName, Entry]]:
    """Entries as systemd-boot shows them; the first one boots unless something says otherwise."""
    return sorted(entries, key=cmp_to_key(_compare))


def _compare(left: tuple[EntryName, Entry], right: tuple[EntryName, Entry]) -> int:
    """Bad ones last; then by sort key, machine and the newest version, or by the highest name without sort keys."""
    (name, entry), (other_name, other) = left, right
    key, other_key = entry.value("sort-key"), other.value("sort-key")
    order = name.bad - other_name.bad or (key is None) - (other_key is None)
    if not order and key is not None and other_key is not None:
        machines = entry.value("machine-id") or "", other.value("machine-id") or ""
        order = _order(key, other_key) or _order(*machines)
        order = order or -versions.compare(entry.value("version") or "", other.value("version") or "")
    return order or -versions.compare(name.id.lower(), other_name.id.lower())


def _order(left: str, right: str) -> int:
    return (left > right) - (left < right)
