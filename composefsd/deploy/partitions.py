"""Where the boot partitions are.

The ESP holds the loader.  Entries and payload go to `$BOOT`: XBOOTLDR if there is one, otherwise the ESP (UAPI.1);
paths in an entry are relative to the partition that holds it, so both go to the same one.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from composefsd.errors import EspNotFoundError

MOUNTINFO: Final = Path("/proc/self/mountinfo")
_OWN_SYSROOTS: Final = (Path("/"), Path("/sysroot"))
_MAX_MOUNTINFO_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class BootPartitions:
    """Mount points, or plain directories in the place of partitions."""

    esp: Path
    xbootldr: Path | None = None

    @property
    def boot(self) -> Path:
        """$BOOT, where entries and payload belong."""
        return self.xbootldr or self.esp

    @classmethod
    def find(
        cls,
        esp: Path | None,
        xbootldr: Path | None,
        *,
        sysroot: Path,
        host: Path = Path("/"),
        mountinfo: Path = MOUNTINFO,
    ) -> Self:
        """What the configuration names, otherwise the VFAT mounts at the conventional places of this machine.

        host and mountinfo stand in for the machine in tests.  Raises EspNotFoundError, also where the sysroot is
        another machine's (not `/sysroot` or `/`): the ESP that happens to be mounted here is not meant then.
        """
        if esp is not None:
            return cls(_existing(esp, "ESP"), _existing(xbootldr, "XBOOTLDR") if xbootldr is not None else None)
        if xbootldr is not None:
            raise EspNotFoundError("an XBOOTLDR partition is configured, but no ESP")
        if sysroot not in _OWN_SYSROOTS:
            raise EspNotFoundError(f"no ESP is configured, and {sysroot} is not the root of this machine")
        found = _mounted(host, mountinfo)
        if found is None:
            raise EspNotFoundError("no ESP is configured, and no VFAT is mounted at /efi, /boot or /boot/efi")
        return cls(*found)


def _existing(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise EspNotFoundError(f"the {what} {path} is not a directory", partition=str(path))
    return path


def _mounted(host: Path, mountinfo: Path) -> tuple[Path, Path | None] | None:
    """ESP and XBOOTLDR.  With an ESP of its own, a VFAT at /boot is XBOOTLDR; alone, it is the ESP."""
    boot = host / "boot"
    conventional = (host / "efi", boot / "efi", boot)
    for path in conventional:
        _trigger(path)
    vfat = _vfat_mounts(mountinfo)
    esp = next((path for path in conventional if path in vfat), None)
    if esp is None:
        return None
    separate = esp != boot and vfat.get(boot, vfat[esp]) != vfat[esp]
    return esp, boot if separate else None


def _trigger(path: Path) -> None:
    """Have an automount, as systemd makes them for boot partitions, mount what it stands for."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return


def _vfat_mounts(mountinfo: Path) -> dict[Path, str]:
    """Mount points of VFAT filesystems with their device numbers; the last on a point counts (proc(5))."""
    try:
        with mountinfo.open("rb") as file:
            lines = file.read(_MAX_MOUNTINFO_BYTES).split(b"\n")
    except OSError as error:
        raise EspNotFoundError(f"cannot read {mountinfo}: {error.strerror}") from error
    mounts: dict[Path, str] = {}
    for line in lines:
        before, separator, after = line.partition(b" - ")
        fields = before.split()
        if not separator or len(fields) < 5:
            continue
        point = Path(os.fsdecode(fields[4]))
        mounts.pop(point, None)
        if after.split(maxsplit=1)[0] == b"vfat":
            mounts[point] = fields[2].decode()
    return mounts
