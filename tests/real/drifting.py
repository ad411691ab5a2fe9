"""Small bootable images that have other digests by each version and option of composefs-rs, and how to seal them."""

from collections.abc import Iterable, Mapping
from typing import Final

from real import handmade
from real.layers import Entry, directory, regular, tar_layer

_CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")
_CONTEXTS: Final = b"/.*\tsystem_u:object_r:default_t:s0\n/usr(/.*)?\tsystem_u:object_r:usr_t:s0\n"

UKI: Final = "boot/EFI/Linux/demo.efi"
DUMP: Final = "boot/EFI/Linux/demo.dump"

Times = Mapping[str, tuple[int, int]]
"""Seconds and nanoseconds of the mtime of a directory, by its name."""

WHOLE: Final[Times] = {}
SPLIT: Final[Times] = {"usr": (1, 250_000_000), "boot": (2, 500_000_000), "sysroot": (3, 750_000_000)}
EQUAL: Final[Times] = dict.fromkeys(("usr", "boot", "sysroot"), (5, 5))

NO_XATTRS: Final[Mapping[str, bytes]] = {}
USER: Final = {"user.note": b"of the builder"}
MANY: Final = {**USER, "security.capability": _CAPABILITY, "trusted.left": b"over", "security.selinux": b"build:host"}


def base(times: Times = SPLIT, xattrs: Mapping[str, bytes] = MANY, *, policy: bool = True) -> bytes:
    """The tar of the only layer but those that `sealed` adds."""
    entries: list[Entry] = []
    for name in ("boot", "run", "sysroot", "usr", "var", "etc"):
        seconds, nanoseconds = times.get(name, (1_700_000_000, 0))
        entries.append(directory(name, mtime_sec=seconds, mtime_nsec=nanoseconds, xattrs=xattrs))
    entries += [regular("usr/tool", b"not a program\n" * 100, mode=0o755, xattrs=xattrs), regular("usr/note", b"x")]
    entries += [directory("usr/lib"), regular("usr/lib/os-release", b"ID=drifting\nVERSION_ID=1\n")]
    if policy:
        folders = ("etc/selinux", "etc/selinux/demo", "etc/selinux/demo/contexts", "etc/selinux/demo/contexts/files")
        entries += map(directory, folders)
        entries.append(regular("etc/selinux/config", b"SELINUXTYPE=demo\n"))
        entries.append(regular("etc/selinux/demo/contexts/files/file_contexts", _CONTEXTS))
    return tar_layer(entries)


def seal(arguments: Iterable[str], dump: bytes | None = None) -> bytes:
    """The tar of a layer with a UKI that has these on its command line, and a dumpfile beside it."""
    files = [directory("boot/EFI"), directory("boot/EFI/Linux")]
    files.append(regular(UKI, handmade.uki(" ".join(("root=/dev/vda", *arguments)))))
    if dump is not None:
        files.append(regular(DUMP, dump))
    return tar_layer(files)
