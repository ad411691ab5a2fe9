"""What an image carries for booting: UKIs, addons, entries, kernels.

Found where composefs-rs 0.9.4 looks (`composefs-boot/src/bootloader.rs`), in the tree of the normative image, as the
boot image has an empty /boot:

    /boot/loader/entries/*.conf              entries; `linux`, `initrd`, `efi` in them are paths from the image's root
    /boot/EFI/Linux/**/*.efi                 UKIs; `*.addon.efi` are addons
    /boot/loader/addons/**/*.efi             UKIs; `*.addon.efi` are addons for every UKI
    /usr/lib/modules/KVER/**/*.efi           UKIs and addons; `uki.extra.d` is no kernel, its addons are for every UKI
    /usr/lib/modules/KVER/vmlinuz            a kernel, with `initramfs.img` beside it; no other names
    /boot/aboot-KVER.img                     an Android boot partition's content, with `vbmeta-KVER.img`

Upstream refuses to make the boot image of an image that breaks one of its rules, an entry that names a missing file
say; `check` does the same.  `collect` lists all there is, and what is wrong with each.  PE files are only read by
`collect`: they are hostile input, for a process without rights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Final

from composefsd.boot import aboot, bls
from composefsd.boot.examination import REFUSALS, Examiner, ImageFiles
from composefsd.boot.files import (
    WHITE_SPACE,
    ObjectReader,
    RangeReader,
    find_directory,
    find_file,
    get_file,
    read_file,
    text,
)
from composefsd.boot.resource import MODULES, BootResource, File, ResourceType
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.tree.table import REGULAR, Kind, Tree

__all__ = ["ADDONS", "MODULES", "RESOURCES_LIMIT", "BootResource", "File", "ResourceType", "check", "collect"]

RESOURCES_LIMIT: Final = 500
"""The most that are looked into."""

ENTRIES: Final = b"/boot/loader/entries"
UKIS: Final = b"/boot/EFI/Linux"
ADDONS: Final = b"/boot/loader/addons"
_SHARED_ADDONS: Final = b"uki.extra.d"

_ENTRY_FILES: Final = ("linux", "initrd", "efi")
_ENTRY_LIMIT_BYTES: Final = 1 << 20
_PRIMARY: Final = (ResourceType.TYPE1, ResourceType.UKI, ResourceType.KERNEL)


def collect(tree: Tree, read: ObjectReader, ranges: RangeReader | None = None) -> tuple[BootResource, ...]:
    """All boot resources of a frozen tree, in upstream's order, broken ones with their `problem`.

    With `ranges`, no more than headers and small sections are read of a UKI; without, all of it.  Raises
    LimitExceededError for more than RESOURCES_LIMIT.
    """
    finder = _Finder(ImageFiles(tree, read, ranges))
    finder.find()
    if len(finder.resources) > RESOURCES_LIMIT:
        raise LimitExceededError(f"{len(finder.resources)} things that boot", limit=RESOURCES_LIMIT)
    examiner = Examiner(finder.files, finder.resources)
    return tuple(map(examiner.examined, finder.resources))


def check(tree: Tree, read: ObjectReader, ranges: RangeReader | None = None) -> None:
    """Raises NotBootableError, with one reason a line, for an image whose boot image upstream refuses to make."""
    finder = _Finder(ImageFiles(tree, read, ranges))
    finder.find()
    if finder.defects:
        raise NotBootableError("\n".join(finder.defects))


@dataclass(slots=True)
class _Finder:
    """Gathers resources and the reasons to refuse the image."""

    files: ImageFiles
    resources: list[BootResource] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    @property
    def tree(self) -> Tree:
        return self.files.tree

    def find(self) -> None:
        for step in (self._entries, self._executables, self._kernels, self._aboot):
            self._guarded(step)
        self._check_aboot()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except REFUSALS as error:
            self._defect(error)

    def _defect(self, error: Exception | str) -> str:
        self.defects.append(str(error))
        return self.defects[-1]

    def _listing(self, directory: int) -> Iterator[tuple[bytes, int]]:
        for entry in self.tree.entries(directory):
            yield self.tree.name(entry), self.tree.child[entry]

    # Entries of type 1

    def _entries(self) -> None:
        directory = find_directory(self.tree, ENTRIES)
        if directory is None:
            return
        for name, inode in self._listing(directory):
            if name.endswith(b".conf"):
                self._entry(ENTRIES + b"/" + name, inode)

    def _entry(self, path: bytes, inode: int) -> None:
        resource = BootResource(ResourceType.TYPE1, path, inode)
        defects = len(self.defects)
        try:
            content = self._entry_text(path, inode)
            files = tuple(self._named_files(path, content))
            problem = "\n".join(self.defects[defects:]) or None
            resource = replace(resource, files=files, problem=problem, entry=bls.Entry.parse(content.encode()))
        except NotBootableError as error:
            resource = replace(resource, problem=self._defect(error))
        except (FormatError, LimitExceededError) as error:  # of no interest to upstream
            resource = replace(resource, problem=f"{text(path)}: {error}")
        self.resources.append(resource)

    def _entry_text(self, path: bytes, inode: int) -> str:
        if self.tree.kind[inode] not in REGULAR:
            raise NotBootableError(f"{text(path)} is not a regular file")
        try:
            return read_file(self.tree, inode, self.files.read, _ENTRY_LIMIT_BYTES).decode()
        except UnicodeDecodeError as error:
            raise NotBootableError(f"{text(path)} is not UTF-8") from error
        except LimitExceededError as error:
            raise NotBootableError(f"{text(path)}: {error}") from error

    def _named_files(self, path: bytes, content: str) -> Iterator[File]:
        """The files that an entry needs, cut from its lines just as upstream does: to the end, spaces included."""
        lines = content.split("\n")
        for key, line in product(_ENTRY_FILES, lines):
            rest = line.removeprefix(key)
            if rest != line and rest[:1] in tuple(" \t\n\f\r"):
                name = rest.lstrip(WHITE_SPACE).encode()
                try:
                    yield File(name, get_file(self.tree, name))
                except NotBootableError as error:
                    self._defect(f"{text(path)}: {error}")

    # UKIs and addons

    def _executables(self) -> None:
        for path, addon in ((UKIS, ResourceType.ADDON), (ADDONS, ResourceType.GLOBAL_ADDON)):
            directory = find_directory(self.tree, path)
            if directory is not None:
                self._executables_below(path, directory, addon, None)
        for name, path, inode in self._modules():
            if name == _SHARED_ADDONS:
                self._executables_below(path, inode, ResourceType.GLOBAL_ADDON, None)
            else:
                self._executables_below(path, inode, ResourceType.ADDON, text(name))

    def _executables_below(self, top: bytes, directory: int, addon: ResourceType, kernel_version: str | None) -> None:
        pending = [(top, self._listing(directory))]
        while pending:
            prefix, listing = pending[-1]
            for name, inode in listing:
                path = prefix + b"/" + name
                if self.tree.kind[inode] == Kind.DIRECTORY:
                    pending.append((path, self._listing(inode)))
                    break
                if name.endswith(b".efi"):
                    kind = addon if name.endswith(b".addon.efi") else ResourceType.UKI
                    self._executable(BootResource(kind, path, inode, kernel_version))
            else:
                pending.pop()

    def _executable(self, resource: BootResource) -> None:
        if self.tree.kind[resource.inode] not in REGULAR:
            resource = replace(resource, problem=self._defect(f"{text(resource.path)} is not a regular file"))
        self.resources.append(resource)

    # Kernels

    def _modules(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Name, path and inode of the directories below /usr/lib/modules."""
        directory = find_directory(self.tree, MODULES)
        if directory is None:
            return
        for name, inode in self._listing(directory):
            if self.tree.kind[inode] == Kind.DIRECTORY:
                yield name, MODULES + b"/" + name, inode

    def _kernels(self) -> None:
        for name, path, directory in self._modules():
            vmlinuz = self._regular(directory, b"vmlinuz")
            if vmlinuz is None:
                continue
            problem = None
            if text(name).encode() != name:
                problem = self._defect(f"{text(path)}: the version of a kernel is not UTF-8")
            initrd = self._regular(directory, b"initramfs.img")
            files = () if initrd is None else (File(path + b"/initramfs.img", initrd),)
            kernel = BootResource(ResourceType.KERNEL, path + b"/vmlinuz", vmlinuz, text(name), files)
            self.resources.append(replace(kernel, problem=problem))

    def _regular(self, directory: int, name: bytes) -> int | None:
        """A regular file; anything else of the name is as good as none."""
        try:
            return find_file(self.tree, directory, name)
        except NotBootableError:
            return None

    # Android

    def _aboot(self) -> None:
        boot = find_directory(self.tree, b"/boot")
        if boot is None:
            return
        images = [(name, inode) for name, inode in self._listing(boot) if name.endswith(b".img")]
        for name, inode in images:
            if name.startswith(b"aboot-"):
                self._aboot_payload(boot, b"/boot/" + name, inode)
            elif name.startswith(b"vbmeta-") and self._regular(boot, name.replace(b"vbmeta", b"aboot", 1)) is None:
                self._defect(f"/boot/{text(name)} has no aboot payload to go with")

    def _aboot_payload(self, boot: int, path: bytes, inode: int) -> None:
        version = path[len(b"/boot/aboot-") : -len(b".img")]
        resource = BootResource(ResourceType.ABOOT, path, inode, text(version))
        try:
            resource = replace(resource, files=self._checked_vbmeta(boot, inode, version))
        except REFUSALS as error:
            resource = replace(resource, problem=self._defect(f"{text(path)}: {error}"))
        self.resources.append(resource)

    def _checked_vbmeta(self, boot: int, inode: int, version: bytes) -> tuple[File, ...]:
        """The vbmeta image that goes with a payload, after upstream's checks of both."""
        if not version or text(version).encode() != version:
            raise NotBootableError("no kernel version in UTF-8")
        if self.tree.kind[inode] not in REGULAR:
            raise NotBootableError("not a regular file")
        name = b"vbmeta-" + version + b".img"
        vbmeta = find_file(self.tree, boot, name)
        encoding = aboot.identify(self.files.open(inode), self.tree.size[inode])
        if vbmeta is None:
            return ()
        if encoding is aboot.Encoding.UKI:
            raise NotBootableError("a UKI has no vbmeta")
        return (File(b"/boot/" + name, vbmeta),)

    def _check_aboot(self) -> None:
        payloads = sum(resource.type is ResourceType.ABOOT for resource in self.resources)
        others = any(resource.type in _PRIMARY for resource in self.resources)
        if payloads > 1:
            self._defect("the image has more than one aboot payload")
        if payloads and others:
            self._defect("the image has an aboot payload beside other things that boot")
