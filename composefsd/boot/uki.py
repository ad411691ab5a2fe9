"""Unified kernel images (UAPI.5) and their addons: what the sections of a PE file say.

A UKI may have several profiles: each begins with a section `.profile`, and the sections up to the next one take the
place of those before the first, the base.  Of equal names in one part the first counts, as in systemd-stub.

What would make two readers see different things makes a UKI unusable: a `.cmdline`, `.osrel` or `.profile` that is no
text.  systemd-stub boots whatever `.uname`, `.sbat`, `.pcrsig` and `.pcrpkey` hold, and passes the last two on.  What
is wrong with these is told in `notes`, and so is whatever else a person should know.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Self, TypeVar

from composefsd.boot import authenticode, cmdline, pcrs, sbat
from composefsd.boot.authenticode import Signature
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.os_release import OsRelease
from composefsd.boot.pcrs import PcrKey, PcrSignature
from composefsd.boot.pe import Architecture, PortableExecutable, Section, Source
from composefsd.boot.sbat import SbatEntry
from composefsd.errors import FormatError, LimitExceededError

TEXT_LIMIT_BYTES: Final = 64 * 1024
ALL_TEXT_LIMIT_BYTES: Final = 512 * 1024
"""For all sections of a UKI that are read."""

PROFILES_LIMIT: Final = 100
_UNAME_LIMIT_BYTES: Final = 64  # the kernel's __NEW_UTS_LEN
HASH_LIMIT_BYTES: Final = 4 << 30

LINUX: Final = b".linux"
INITRD: Final = b".initrd"
_CMDLINE: Final = b".cmdline"
_OS_RELEASE: Final = b".osrel"
_UNAME: Final = b".uname"
_PROFILE: Final = b".profile"
_SBAT: Final = b".sbat"
_PCR_SIGNATURES: Final = b".pcrsig"
_PCR_KEY: Final = b".pcrpkey"
_ONCE: Final = (LINUX, _CMDLINE, _OS_RELEASE, _UNAME, _SBAT, _PCR_SIGNATURES, _PCR_KEY, b".splash", INITRD)
"""Sections of which systemd-stub takes the first: not those with device trees and firmware, one for each machine."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Profile:
    """A variant of a UKI, and what it boots with: its own sections, or the base's where it has none.

    own are the names of its own sections but `.profile`; all else is inherited from the base.
    """

    id: str | None
    title: str | None
    cmdline: str | None
    uname: str | None = None
    pcr_signatures: tuple[PcrSignature, ...] = ()
    own: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Uki:
    """What a UKI, or an addon, says about itself.

    cmdline is the base's.  signed tells that there is a certificate table, signatures what is in it.  sections are
    all of the file, so that a caller can read them: the kernel, say, to compare it.
    """

    architecture: Architecture
    signed: bool
    cmdline: str | None
    os_release: OsRelease | None
    uname: str | None
    profiles: tuple[Profile, ...]
    sections: tuple[Section, ...]
    signatures: tuple[Signature, ...] = ()
    sbat: tuple[SbatEntry, ...] = ()
    pcr_signatures: tuple[PcrSignature, ...] = ()
    pcr_key: PcrKey | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, source: Source, size_bytes: int, *, hash_limit_bytes: int = HASH_LIMIT_BYTES) -> Self:
        """From a file that is read in parts, and wholly if it is signed and no larger than `hash_limit_bytes`.

        Raises FormatError for a broken PE file or a text section that is no text, LimitExceededError for too many
        sections or too much text.
        """
        executable = PortableExecutable.parse(source, size_bytes)
        part, *variants = _parts(executable.sections)
        if len(variants) > PROFILES_LIMIT:
            raise LimitExceededError(f"a UKI of {len(variants)} profiles", limit=PROFILES_LIMIT)
        reader = _Reader(source, list(_repetitions(part)))
        texts = _Texts(reader, part)
        release = texts.data(_OS_RELEASE)
        base = Profile(None, None, texts.text(_CMDLINE), texts.uname(), texts.pcr_signatures() or ())
        profiles = tuple(_profile(_Texts(reader, own), base) for own in variants)
        key = texts.noted(_PCR_KEY, PcrKey.parse)
        reader.notes += _by_other_keys(key, (base, *profiles))
        return cls(
            executable.architecture,
            executable.signed,
            base.cmdline,
            None if release is None else OsRelease.parse(release),
            base.uname,
            profiles,
            executable.sections,
            authenticode.read(source, size_bytes, executable, hash_limit_bytes),
            texts.noted(_SBAT, sbat.parse) or (),
            base.pcr_signatures,
            key,
            tuple(dict.fromkeys(reader.notes)),
        )

    @property
    def unames(self) -> tuple[str, ...]:
        """Every kernel version that it names, the base's first, none twice."""
        names = [self.uname, *(profile.uname for profile in self.profiles)]
        return tuple(dict.fromkeys(name for name in names if name))

    def section(self, name: bytes) -> Section | None:
        """The section of the base with a name: LINUX, INITRD."""
        return _find(_parts(self.sections)[0], name)

    @property
    def has_kernel(self) -> bool:
        """Whether it boots by itself; an addon does not."""
        return self.section(LINUX) is not None

    @property
    def command_lines(self) -> tuple[str, ...]:
        """Every command line that it may boot with, the base's first, no text twice.

        That of a profile without any is empty: it boots, too.  The base's counts only if there is one.
        """
        texts = [self.cmdline, *(profile.cmdline or "" for profile in self.profiles)]
        return tuple(dict.fromkeys(text for text in texts if text is not None))

    @property
    def arguments(self) -> tuple[ComposefsArgument, ...]:
        """The composefs arguments of all command lines, none twice.  Raises FormatError if one is malformed."""
        return tuple(dict.fromkeys(found for text in self.command_lines for found in cmdline.find_all(text)))


def parse(data: bytes | memoryview) -> Uki:
    """From a whole file in memory, of which only headers and texts are copied.  Raises like `Uki.read`."""
    view = memoryview(data)
    return Uki.read(lambda offset, count: view[offset : offset + count], len(view))


def _parts(sections: Sequence[Section]) -> list[Sequence[Section]]:
    """The base, then the sections of each profile, its `.profile` first."""
    starts = [at for at, section in enumerate(sections) if section.name == _PROFILE]
    bounds = [0, *starts, len(sections)]
    return [sections[start:end] for start, end in pairwise(bounds)]


def _find(sections: Sequence[Section], name: bytes) -> Section | None:
    return next((section for section in sections if section.name == name), None)


def _repetitions(sections: Sequence[Section]) -> Iterator[str]:
    counts = Counter(section.name for section in sections)
    for name in _ONCE:
        if counts[name] > 1:
            yield f"it has {counts[name]} sections {name.decode()}, of which the first counts"


def _by_other_keys(key: PcrKey | None, parts: Sequence[Profile]) -> Iterator[str]:
    """systemd tries a signature only with the key that it names."""
    if key is not None and any(one.key != key.short for part in parts for one in part.pcr_signatures):
        yield "a signature in .pcrsig is by another key than that in .pcrpkey"


@dataclass(slots=True)
class _Reader:
    """Reads the small sections of one file, no more than its bound in all, and gathers notes."""

    source: Source
    notes: list[str] = field(default_factory=list)
    read_bytes: int = 0

    def data(self, section: Section) -> bytes:
        """The content of a section without the zeros at its end."""
        name, size = section.name.decode(), section.size_bytes
        if size > TEXT_LIMIT_BYTES:
            raise LimitExceededError(f"UKI section {name} has {size} bytes", limit=TEXT_LIMIT_BYTES)
        self.read_bytes += size
        if self.read_bytes > ALL_TEXT_LIMIT_BYTES:
            raise LimitExceededError("a UKI with too much text in its sections", limit=ALL_TEXT_LIMIT_BYTES)
        return bytes(self.source(section.offset, size)).rstrip(b"\0")


@dataclass(frozen=True, slots=True)
class _Texts:
    """The small sections of one part."""

    reader: _Reader
    sections: Sequence[Section]

    def data(self, name: bytes) -> bytes | None:
        """The content of a section; None if there is no such section."""
        section = _find(self.sections, name)
        return None if section is None else self.reader.data(section)

    def text(self, name: bytes) -> str | None:
        data = self.data(name)
        return None if data is None else _text(name, data)

    def noted(self, name: bytes, parse: Callable[[bytes], T]) -> T | None:
        """What a section says that no UKI needs for booting; None, and a note, if it cannot be read."""
        try:
            data = self.data(name)
            return None if data is None else parse(data)
        except (FormatError, LimitExceededError) as error:
            self.reader.notes.append(error.message)
            return None

    def uname(self) -> str | None:
        return self.noted(_UNAME, _parse_uname)

    def pcr_signatures(self) -> tuple[PcrSignature, ...] | None:
        return self.noted(_PCR_SIGNATURES, pcrs.parse_signatures)


def _text(name: bytes, data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"UKI section {name.decode()} is not UTF-8", subject=name.decode()) from error
    if "\0" in text:
        raise FormatError(f"UKI section {name.decode()} has NUL inside", subject=name.decode())
    return text


def _parse_uname(data: bytes) -> str:
    text = _text(_UNAME, data).rstrip("\n")
    if not text.isprintable() or len(data) > _UNAME_LIMIT_BYTES or "/" in text:
        raise FormatError(".uname is not the version of a kernel", subject=".uname")
    return text


def _profile(own: _Texts, base: Profile) -> Profile:
    fields = OsRelease.parse(own.data(_PROFILE) or b"")  # the same syntax
    line, uname, signatures = own.text(_CMDLINE), own.uname(), own.pcr_signatures()
    names = dict.fromkeys(section.name.decode(errors="backslashreplace") for section in own.sections[1:])
    return Profile(
        fields.first("ID"),
        fields.first("TITLE"),
        base.cmdline if line is None else line,
        base.uname if uname is None else uname,
        base.pcr_signatures if signatures is None else signatures,
        tuple(names),
    )
