"""What the layers of the demo image hold beside Debian's files: something of each kind that a layer can do."""

from collections.abc import Iterator
from typing import Final, TypedDict

from real.layers import (
    Entry,
    char_device,
    directory,
    fifo,
    hard_link,
    opaque,
    regular,
    symlink,
    tar_layer,
    whiteout,
)

MTIME: Final = 1750000000
"""Modification time in seconds of all that is made here."""

_CAP_NET_RAW: Final = bytes.fromhex("0100000200200000000000000000000000000000")
"""`cap_net_raw+ep` as linux/capability.h lays out revision 2 of the xattr."""


def base_additions() -> Iterator[Entry]:
    """What later layers need to have something to delete, to replace, to hide and to link."""
    for path in ("efi", "sysroot", "usr/lib/demo", "usr/lib/demo/hidden", "usr/lib/demo/hidden/below"):
        yield directory(path, mtime_sec=MTIME)
    for name in ("deleted", "replaced", "kept", "file-then-directory", "linked", "hidden/old", "hidden/below/old"):
        yield regular(f"usr/lib/demo/{name}", f"{name}, of the first layer\n".encode() * 9, mtime_sec=MTIME)
    yield directory("usr/lib/demo/directory-then-file", mtime_sec=MTIME)
    yield regular("usr/lib/demo/directory-then-file/inner", b"gone later\n", mtime_sec=MTIME)
    yield regular("run/demo", b"nothing of /run is part of an image\n", mtime_sec=MTIME)


def changes(os_release: bytes) -> Iterator[Entry]:
    """A layer that changes what is below it in every way that a layer can."""
    # the root's metadata is that of /usr in the end, and /run gets its time: so they must differ here to show it
    yield directory(".", mode=0o700, uid=1, mtime_sec=MTIME - 1)
    yield directory("usr", mtime_sec=MTIME, mtime_nsec=5)
    for name in ("vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"):
        yield whiteout(name)
    yield regular("usr/lib/os-release", os_release + b"IMAGE_ID=composefs-demo\nIMAGE_VERSION=1\n", mtime_sec=MTIME)
    yield opaque("etc/apt")
    yield regular("etc/apt/sources.list", b"# updates come as images\n", mtime_sec=MTIME)
    yield regular("etc/fstab", b"# the root is mounted by the initrd\n", mtime_sec=MTIME)
    yield whiteout("usr/lib/demo/deleted")
    yield regular("usr/lib/demo/replaced", b"of the third layer", mode=0o640, gid=4, mtime_sec=MTIME, mtime_nsec=7)
    yield directory("usr/lib/demo/file-then-directory", mtime_sec=MTIME)
    yield regular("usr/lib/demo/file-then-directory/inner", b"", mtime_sec=MTIME)
    yield regular("usr/lib/demo/directory-then-file", b"x" * 65, mtime_sec=MTIME)
    yield directory("usr/lib/demo/hidden", mode=0o2755, gid=50, mtime_sec=MTIME, mtime_nsec=123456789)
    yield opaque("usr/lib/demo/hidden")
    yield regular("usr/lib/demo/hidden/new", b"y" * 64, mtime_sec=MTIME)
    yield hard_link("usr/lib/demo/link-to-the-first-layer", "usr/lib/demo/linked")
    yield hard_link("usr/bin/vi", "usr/bin/busybox")
    yield from _oddities()


class _Time(TypedDict):
    mtime_sec: int
    mtime_nsec: int


def _oddities() -> Iterator[Entry]:
    """Kinds of files that a Debian root does not happen to have."""
    path, when = "usr/lib/demo/odd", _Time(mtime_sec=MTIME, mtime_nsec=999999999)
    capability = {"security.capability": _CAP_NET_RAW, "user.demo": b"not of the allowlist\0\xff"}
    yield directory(path, mode=0o1777, **when)
    yield regular(f"{path}/capable", b"#!/bin/sh\n" * 20, mode=0o755, xattrs=capability, **when)
    yield regular(f"{path}/setuid", b"not a program", mode=0o4755, uid=1000, gid=1000, **when)
    yield symlink(f"{path}/dangling", "../" * 20 + "nowhere", **when)
    yield fifo(f"{path}/fifo", mode=0o600, **when)
    yield char_device(f"{path}/null", 1, 3, mode=0o666, **when)
    yield regular(path.encode() + b"/latin-1-\xe9\xa0 name", b"bytes, not text", **when)
    yield regular(f"{path}/{'long-' * 50}", b"z" * 5000, **when)
    yield directory(f"{path}/empty", mode=0o700, uid=70000, gid=70000, **when)


def more_changes() -> Iterator[Entry]:
    """A layer over the changes, which takes some of them back."""
    yield whiteout("usr/bin/vi")
    yield regular("usr/lib/demo/deleted", b"back again\n", mtime_sec=MTIME)
    yield whiteout("usr/lib/demo/odd/empty")
    yield regular("usr/lib/demo/linked", b"no longer the file that the other name has\n", mtime_sec=MTIME)
    yield hard_link("usr/lib/demo/linked-again", "usr/lib/demo/link-to-the-first-layer")


def uki_layer(path: str, uki: bytes) -> bytes:
    """The layer that adds a UKI, and the directories that lead to it."""
    names = path.split("/")[:-1]
    folders = (directory("/".join(names[: depth + 1]), mtime_sec=MTIME) for depth in range(len(names)))
    return tar_layer((*folders, regular(path, uki, mtime_sec=MTIME)))
