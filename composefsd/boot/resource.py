"""The kinds of things in an image that boot, and what is told of one."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from composefsd.boot import bls
from composefsd.boot.os_release import OsRelease
from composefsd.boot.uki import Uki

MODULES: Final = b"/usr/lib/modules"


class ResourceType(StrEnum):
    """The kinds of things that boot, or take part in it."""

    TYPE1 = "type1"
    UKI = "uki"
    ADDON = "addon"
    GLOBAL_ADDON = "global-addon"
    KERNEL = "kernel"
    ABOOT = "aboot"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of the image that a resource needs."""

    path: bytes
    inode: int


@dataclass(frozen=True, slots=True)
class BootResource:
    """One thing that boots; `path` and `inode` are its own file.

    kernel_version is the directory below /usr/lib/modules it was found in.  files are further files: those that an
    entry names, the initrd of a kernel, the vbmeta of an aboot payload.  uki belongs to UKIs and addons, entry to
    type 1, os_release to kernels.  problem tells why it cannot be used, one reason a line; what could not be read is
    None then.  notes are what else there is to know, such as that it will find no modules.
    """

    type: ResourceType
    path: bytes
    inode: int
    kernel_version: str | None = None
    files: tuple[File, ...] = ()
    uki: Uki | None = None
    entry: bls.Entry | None = None
    os_release: OsRelease | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str | None:
        """A name for people: that of the entry, of the UKI's system, or of the kernel's."""
        if self.entry is not None:
            return self.entry.value("title")
        release = self.os_release if self.uki is None else self.uki.os_release
        return None if release is None else release.title

    @property
    def version(self) -> str | None:
        """The version that goes with the title."""
        if self.entry is not None:
            return self.entry.value("version")
        release = self.os_release if self.uki is None else self.uki.os_release
        return None if release is None else release.version
