"""Unified kernel images (UAPI.5) and their addons: what the sections of a PE file say.

A UKI may have several profiles: each begins with a section `.profile`, and the sections up to the next one take the
place of those before the first, the base.  Of equal names in one part the first counts, as in systemd-stub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.os_release import OsRelease
from composefsd.boot.pe import Architecture, PortableExecutable, Section, Source
from composefsd.errors import FormatError, LimitExceededError

TEXT_LIMIT_BYTES: Final = 64 * 1024

LINUX: Final = b".linux"
INITRD: Final = b".initrd"
_CMDLINE: Final = b".cmdline"
_OS_RELEASE: Final = b".osrel"
_UNAME: Final = b".uname"
_PROFILE: Final = b".profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """A variant of a UKI; cmdline is the command line it boots with: its own, or the base's without one."""

    id: str | None
    title: str | None
    cmdline: str | None


@dataclass(frozen=True, slots=True)
class Uki:
    """What a UKI, or an addon, says about itself.

    cmdline is the base's.  signed tells that there is a signature, not that it is good.  sections are all of the
    file, so that a caller can read them: the kernel, say, to compare it.
    """

    architecture: Architecture
    signed: bool
    cmdline: str | None
    os_release: OsRelease | None
    uname: str | None
    profiles: tuple[Profile, ...]
    sections: tuple[Section, ...]

    @classmethod
    def read(cls, source: Source, size_bytes: int) -> Self:
        """From a file that is read in parts.

        Raises FormatError for a broken PE file or a text section that is no text, LimitExceededError for too many
        sections or too much text.
        """
        executable = PortableExecutable.parse(source, size_bytes)
        base, *variants = _parts(executable.sections)
        texts = _Texts(source, base)
        release = texts.data(_OS_RELEASE)
        return cls(
            executable.architecture,
            executable.signed,
            texts.text(_CMDLINE),
            None if release is None else OsRelease.parse(release),
            texts.text(_UNAME),
            tuple(_profile(_Texts(source, part), texts) for part in variants),
            executable.sections,
        )

    def section(self, name: bytes) -> Section | None:
        """The section of the base with a name: LINUX, INITRD."""
        return _find(_parts(self.sections)[0], name)

    @property
    def has_kernel(self) -> bool:
        """Whether it boots by itself; an addon does not."""
        return self.section(LINUX) is not None

    @property
    def command_lines(self) -> tuple[str, ...]:
        """Every command line that it may boot with, the base's first, no text twice."""
        texts = [self.cmdline, *(profile.cmdline for profile in self.profiles)]
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


@dataclass(frozen=True, slots=True)
class _Texts:
    """The small sections of one part."""

    source: Source
    sections: Sequence[Section]

    def data(self, name: bytes) -> bytes | None:
        """The content of a section without the zeros at its end; None if there is no such section."""
        section = _find(self.sections, name)
        if section is None:
            return None
        if section.size_bytes > TEXT_LIMIT_BYTES:
            message = f"UKI section {name.decode()} has {section.size_bytes} bytes"
            raise LimitExceededError(message, limit=TEXT_LIMIT_BYTES)
        return bytes(self.source(section.offset, section.size_bytes)).rstrip(b"\0")

    def text(self, name: bytes) -> str | None:
        data = self.data(name)
        if data is None:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"UKI section {name.decode()} is not UTF-8", subject=name.decode()) from error
        if "\0" in text:
            raise FormatError(f"UKI section {name.decode()} has NUL inside", subject=name.decode())
        return text


def _profile(own: _Texts, base: _Texts) -> Profile:
    fields = OsRelease.parse(own.data(_PROFILE) or b"")  # the same syntax
    line = own.text(_CMDLINE)
    return Profile(fields.first("ID"), fields.first("TITLE"), base.text(_CMDLINE) if line is None else line)
