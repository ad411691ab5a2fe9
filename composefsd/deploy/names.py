"""What things are called on a boot partition.

Payload is named as bootc's composefs backend names it, so that its status and administrators recognise it; entries
have names of our own.  UKIs lie one level below `EFI/Linux`, where no loader discovers them: the entry gives them
order and title.  All of it is within the character set of the Boot Loader Specification (UAPI.1), and lower case
below `EFI/Linux`, since VFAT ignores case.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

ENTRIES: Final = "loader/entries"
SREL: Final = "loader/entries.srel"
SREL_CONTENT: Final = b"type1\n"

UKI_DIRECTORY: Final = "EFI/Linux/bootc"
KERNEL_DIRECTORY: Final = "EFI/Linux"

_PAYLOAD_PREFIX: Final = "bootc_composefs-"
_MAX_OS: Final = 24
_DIGEST_DIGITS: Final = 12
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}"
_HEX: Final = r"[0-9a-f]{64}(?:[0-9a-f]{64})?"

ADDON_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,180}\.addon\.efi")
"""Names of addons that we write: of UAPI.1's character set, and short enough for VFAT with our temporary suffix."""

PAYLOAD_PATH: Final = re.compile(
    rf"EFI/Linux/(?:bootc/{_PAYLOAD_PREFIX}(?P<uki>{_HEX})\.efi(?:\.extra\.d/{_NAME})?"
    rf"|{_PAYLOAD_PREFIX}(?P<kernel>{_HEX})/{_NAME})"
)
"""The only paths of payload that we ever write or remove."""

SHARED_ADDON_PREFIX: Final = "0-global-"
"""Put before the name of an addon that an image has for all its UKIs.

systemd-stub loads the addons for all UKIs first, and those of one directory by name: so they stay in front.
"""

_STEM: Final = re.compile(r"composefsd-([a-z0-9_]{1,24})-([0-9]{6,9})-([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class DeploymentName:
    """What an entry of ours is called before counters and suffix: `composefsd-<os>-<seq>-<first of the digest>`.

    The number makes it unique for ever, and orders entries without a look at versions.
    """

    os: str
    seq: int
    digest: str

    @classmethod
    def make(cls, os_id: str, seq: int, boot_digest: str) -> Self:
        """The name for the deployment `seq` of this boot image (hexadecimal)."""
        return cls(reduced_os_id(os_id), seq, boot_digest[:_DIGEST_DIGITS])

    @classmethod
    def parse(cls, stem: str) -> Self | None:
        """None if the name is not one that we give; VFAT may have changed its case."""
        found = _STEM.fullmatch(stem.lower())
        return cls(found[1], int(found[2]), found[3]) if found else None

    def __str__(self) -> str:
        return f"composefsd-{self.os}-{self.seq:06}-{self.digest}"


def reduced_os_id(os_id: str) -> str:
    """The ID of an os-release as it goes into names: at most 24 of `[a-z0-9_]`, and `linux` if none is left."""
    lowered = os_id.lower().replace("-", "_")
    return re.sub(r"[^a-z0-9_]", "", lowered)[:_MAX_OS] or "linux"


def payload_stem(boot_digest: str) -> str:
    """What every path of the payload of a boot image contains."""
    return f"{_PAYLOAD_PREFIX}{boot_digest}"


def uki_path(boot_digest: str) -> str:
    """Where the UKI of a boot image lies."""
    return f"{UKI_DIRECTORY}/{payload_stem(boot_digest)}.efi"


def addon_path(boot_digest: str, name: str) -> str:
    """Where systemd-stub finds an addon of that UKI."""
    return f"{uki_path(boot_digest)}.extra.d/{name}"


def kernel_path(boot_digest: str) -> str:
    """Where the kernel of a boot image lies that comes without a UKI."""
    return f"{KERNEL_DIRECTORY}/{payload_stem(boot_digest)}/vmlinuz"


def initrd_path(boot_digest: str, number: int = 1) -> str:
    """Where its initrd lies; of several the one with this number, from 1.

    The number stands in front, as no path may be the beginning of another: entries are searched for them.
    """
    name = "initrd" if number == 1 else f"{number}-initrd"
    return f"{KERNEL_DIRECTORY}/{payload_stem(boot_digest)}/{name}"


def ancestors(directories: Iterable[str]) -> set[str]:
    """Directories with all those above them, the root apart."""
    parts = [directory.split("/") for directory in directories]
    return {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
