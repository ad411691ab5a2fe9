"""The layer of a seal, onto the tree that it was planned for."""

import io
import tarfile
from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.errors import NotBootableError
from composefsd.operations.sealing.layer import SealLayer
from composefsd.tree.table import ROOT, Stat, Tree

USR = Stat(0o755, 0, 0, 1_700_000_000, 5)
BOOT = Stat(0o700, 3, 4, 7, 9, ((b"user.x", b"y"),))
VERSION = "6.1"


def tree(*directories: tuple[bytes, Stat], file: bytes = b"") -> Tree:
    """A tree with these directories in the root, modules of a kernel, and perhaps a file."""
    made = Tree(Algorithm.SHA256)
    for name, stat in directories:
        made.insert(ROOT, name, made.add_directory(stat))
    inode = ROOT
    for name in (b"usr", b"lib", b"modules", VERSION.encode()):
        inode, parent = made.add_directory(USR), inode
        made.insert(parent, name, inode)
    if file:
        made.insert(ROOT, file, made.add_inline(USR, b""))
    made.freeze()
    return made


def members(layer: SealLayer, files: dict[bytes, Path] | None = None) -> dict[str, tarfile.TarInfo]:
    data = b"".join(layer.pieces(files or {}))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: one for one in archive.getmembers()}


def test_a_directory_of_the_base_is_repeated_exactly() -> None:
    found = members(SealLayer.plan(tree((b"boot", BOOT), (b"sysroot", USR)), None))
    assert list(found) == ["boot", "boot/EFI", "boot/EFI/Linux"]
    boot = found["boot"]
    assert (boot.mode, boot.uid, boot.gid) == (0o700, 3, 4)
    assert boot.pax_headers == {"SCHILY.xattr.user.x": "y", "mtime": "7.000000009"}


def test_what_the_base_lacks_belongs_to_root_and_is_as_old_as_usr() -> None:
    found = members(SealLayer.plan(tree(), None))
    assert list(found) == ["boot", "boot/EFI", "boot/EFI/Linux", "sysroot"]
    for one in found.values():
        assert (one.isdir(), one.mode, one.uid, one.gid) == (True, 0o755, 0, 0)
        assert one.pax_headers == {"mtime": "1700000000.000000005"}


def test_files_come_last_and_the_kernel_goes(tmp_path: Path) -> None:
    (tmp_path / "uki").write_bytes(b"x" * 700)
    layer = SealLayer.plan(tree((b"boot", BOOT), (b"sysroot", USR)), VERSION)
    found = members(layer, {b"a.efi": tmp_path / "uki"})
    modules = f"usr/lib/modules/{VERSION}"
    assert list(found)[-3:] == [f"{modules}/.wh.vmlinuz", f"{modules}/.wh.initramfs.img", "boot/EFI/Linux/a.efi"]
    assert {"usr", "usr/lib", "usr/lib/modules", modules} < found.keys()
    uki = found["boot/EFI/Linux/a.efi"]
    assert (uki.size, uki.mode, uki.isreg()) == (700, 0o644, True)


def test_only_what_the_boot_image_has_counts() -> None:
    whole = tree((b"boot", BOOT), (b"sysroot", USR))
    assert not SealLayer.plan(whole, None).counts
    assert SealLayer.plan(whole, VERSION).counts
    assert SealLayer.plan(tree((b"boot", BOOT)), None).counts
    assert SealLayer.plan(tree((b"sysroot", BOOT)), None).counts


@pytest.mark.parametrize("name", [b"boot", b"sysroot"])
def test_something_else_in_place_of_a_directory_is_refused(name: bytes) -> None:
    with pytest.raises(NotBootableError, match=f"/{name.decode()} of the image is not a directory"):
        SealLayer.plan(tree(file=name), None)
