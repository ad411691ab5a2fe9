"""The layer that seals an image: its UKI under /boot, and what a boot image needs that the base lacks.

    boot/, boot/EFI/, boot/EFI/Linux/      directories on the way; as the base has them, else new
    boot/EFI/Linux/NAME.efi                the UKI
    boot/EFI/Linux/NAME.dump               the boot image as a dumpfile, if that is wanted
    sysroot/                               only if the base has none
    usr/…/KVER/.wh.vmlinuz, .wh.initramfs.img    only if the kernel is to be in the UKI alone

A directory that the base has is repeated exactly: composefs would take its absence as well, but other tools give the
parents of a file new metadata if the layer does not name them.  A new directory belongs to root, has the mode 755 and
the time of /usr.  What is in /boot does not count in a boot image; new directories of the root and a kernel that goes
do, so the digest that goes into the UKI is that of the base with this layer, but for the files in /boot/EFI/Linux.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.boot.files import text
from composefsd.errors import NotBootableError
from composefsd.linux.oserrors import translated
from composefsd.tree.pack import DIRECTORY, END, FILE, Member, header, padding
from composefsd.tree.table import Kind, Stat, Tree

UKIS: Final = b"boot/EFI/Linux"
_SYSROOT: Final = b"sysroot"
_KERNEL_FILES: Final = (b"vmlinuz", b"initramfs.img")
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SealLayer:
    """What of a layer is known before there is a UKI; times of new files are that of /usr."""

    directories: tuple[Member, ...]
    whiteouts: tuple[Member, ...]
    new: Stat
    counts: bool
    """Whether the boot image is another one with this layer than without it."""

    @classmethod
    def plan(cls, tree: Tree, removed_kernel: str | None) -> "SealLayer":
        """For a base's tree; removed_kernel is the version of the one to remove.

        Raises NotBootableError if something else is where a directory has to be.
        """
        usr = tree.find(b"/usr")
        assert usr is not None, "a normative tree has /usr"
        new = Stat(0o755, 0, 0, tree.mtime[usr], tree.nsec[usr])
        paths = [*_upwards(UKIS)]
        counts = removed_kernel is not None or any(tree.find(b"/" + name) is None for name in (b"boot", _SYSROOT))
        whiteouts: tuple[Member, ...] = ()
        if tree.find(b"/" + _SYSROOT) is None:
            paths.append(_SYSROOT)
        _directory(tree, _SYSROOT, new)
        if removed_kernel is not None:
            modules = b"usr/lib/modules/" + removed_kernel.encode()
            paths += _upwards(modules)
            removed = Stat(0o644, 0, 0, new.mtime, new.nsec)
            whiteouts = tuple(Member(modules + b"/.wh." + name, FILE, removed) for name in _KERNEL_FILES)
        return cls(tuple(_directory(tree, path, new) for path in sorted(paths)), whiteouts, new, counts)

    def pieces(self, files: dict[bytes, Path]) -> Iterator[bytes]:
        """The tar of the layer; files are those in UKIS, by their names."""
        for member in (*self.directories, *self.whiteouts):
            yield header(member)
        for name, path in sorted(files.items()):
            yield from self._file(UKIS + b"/" + name, path)
        yield END

    def _file(self, name: bytes, path: Path) -> Iterator[bytes]:
        with translated(f"reading {path}"), path.open("rb") as file:
            size_bytes = path.stat().st_size
            yield header(Member(name, FILE, Stat(0o644, 0, 0, self.new.mtime, self.new.nsec), size_bytes))
            while piece := file.read(_PIECE_BYTES):
                yield piece
            yield padding(size_bytes)


def _upwards(path: bytes) -> Iterator[bytes]:
    """A directory and all that it is in, the outermost first."""
    names = path.split(b"/")
    for count in range(1, len(names) + 1):
        yield b"/".join(names[:count])


def _directory(tree: Tree, path: bytes, new: Stat) -> Member:
    inode = tree.find(b"/" + path)
    if inode is None:
        return Member(path, DIRECTORY, new)
    if tree.kind[inode] != Kind.DIRECTORY:
        raise NotBootableError(f"/{text(path)} of the image is not a directory")
    return Member(path, DIRECTORY, tree.stat(inode))
