"""Looking into what boots: what the files of an image's boot resources say, and what is odd about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot import uki
from composefsd.boot.files import (
    ObjectReader,
    RangeReader,
    find_directory,
    get_file,
    read_file,
    read_range,
    text,
)
from composefsd.boot.os_release import OsRelease
from composefsd.boot.pe import Source
from composefsd.boot.resource import MODULES, BootResource, ResourceType
from composefsd.boot.uki import Uki
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.tree.table import Tree

EXECUTABLE_LIMIT_BYTES: Final = 1 << 30
"""The largest UKI, or aboot payload, that is looked into."""

HASH_LIMIT_BYTES: Final = 4 << 30
"""How much of all signed UKIs and addons of an image is compared with their signatures."""

REFUSALS: Final = (FormatError, LimitExceededError, NotBootableError)
"""What is raised for a file that is not as it should be."""

_OS_RELEASE: Final = b"/usr/lib/os-release"
_EXECUTABLES: Final = (ResourceType.UKI, ResourceType.ADDON, ResourceType.GLOBAL_ADDON)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The files of a frozen tree, and how their objects are read."""

    tree: Tree
    read: ObjectReader
    ranges: RangeReader | None = None

    def open(self, inode: int) -> Source:
        """A file to be read in parts: really so, or from a copy."""
        tree, ranges = self.tree, self.ranges
        if tree.size[inode] > EXECUTABLE_LIMIT_BYTES:
            raise LimitExceededError(f"{tree.size[inode]} bytes to boot", limit=EXECUTABLE_LIMIT_BYTES)
        if ranges is not None:
            return lambda offset, count: read_range(tree, inode, ranges, offset, count)
        view = memoryview(read_file(tree, inode, self.read, EXECUTABLE_LIMIT_BYTES))
        return lambda offset, count: view[offset : offset + count]


@dataclass(slots=True)
class Examiner:
    """Looks into resources, with an eye on the others of the image; hash_bytes is how much it may still hash."""

    files: ImageFiles
    resources: Sequence[BootResource]
    hash_bytes: int = HASH_LIMIT_BYTES

    def examined(self, resource: BootResource) -> BootResource:
        """The resource with what its file says."""
        if resource.problem is not None:
            return resource
        try:
            if resource.type in _EXECUTABLES:
                return self._examined_uki(resource)
            if resource.type is ResourceType.KERNEL:
                return replace(resource, os_release=self._os_release())
        except REFUSALS as error:
            return replace(resource, problem=str(error))
        return resource

    def _examined_uki(self, resource: BootResource) -> BootResource:
        size_bytes = self.files.tree.size[resource.inode]
        parsed = Uki.read(self.files.open(resource.inode), size_bytes, hash_limit_bytes=self.hash_bytes)
        if parsed.signed and size_bytes <= self.hash_bytes:
            self.hash_bytes -= size_bytes
        resource = replace(resource, uki=parsed, notes=(*parsed.notes, *self._remarks(resource, parsed)))
        return replace(resource, problem="\n".join(_misfits(resource.type, parsed)) or None)

    def _remarks(self, resource: BootResource, parsed: Uki) -> Iterator[str]:
        """What is odd about a UKI or an addon in this image, which boots all the same."""
        if resource.type is ResourceType.UKI:
            for uname in parsed.unames:
                if not self._has_modules(uname):
                    yield f"it is for the kernel {uname}, and the image has no {text(MODULES)}/{uname}: no modules"
        elif resource.type is ResourceType.ADDON and not self._has_uki(resource.path):
            yield "it is in no directory NAME.efi.extra.d beside a UKI NAME.efi: nothing loads it"

    def _has_modules(self, version: str) -> bool:
        """Whether there are modules for a kernel; no if that cannot be told, which is a defect of its own."""
        try:
            return find_directory(self.files.tree, MODULES + b"/" + version.encode()) is not None
        except NotBootableError:
            return False

    def _has_uki(self, addon: bytes) -> bool:
        owner = addon.rpartition(b"/")[0].removesuffix(b".extra.d")
        return any(one.type is ResourceType.UKI and one.path == owner for one in self.resources)

    def _os_release(self) -> OsRelease | None:
        try:
            inode = get_file(self.files.tree, _OS_RELEASE)
        except NotBootableError:
            return None
        return OsRelease.parse(read_file(self.files.tree, inode, self.files.read, 64 * 1024))


def _misfits(kind: ResourceType, parsed: Uki) -> Iterator[str]:
    """Why an executable is not what it is called, or cannot boot."""
    if kind is ResourceType.UKI and not parsed.has_kernel:
        yield f"no section {uki.LINUX.decode()}: not a UKI"
    if kind is not ResourceType.UKI and parsed.has_kernel:
        yield f"a section {uki.LINUX.decode()}: not an addon"
    try:
        _ = parsed.arguments
    except FormatError as error:
        yield str(error)
