"""Which boot loader the ESP holds.

systemd-boot carries its name and version as text, which bootctl looks for as well:
`#### LoaderInfo: systemd-boot 257.1 ####`.  Nothing else of a loader is read, and nothing of it is run.
"""

import re
from dataclasses import dataclass
from typing import Final

from composefsd.deploy.volume import Volume

SYSTEMD_BOOT: Final = "systemd-boot"

_PLACES: Final = ("EFI/systemd", "EFI/BOOT")
_MAX_LOADER_BYTES: Final = 16 << 20
_MAX_FILES: Final = 32
_INFO: Final = re.compile(rb"#### LoaderInfo: ([\x21-\x7e]{1,40}) ([\x21-\x7e]{1,100}) ####")
_UKI_KEY_SINCE: Final = 258


@dataclass(frozen=True, slots=True)
class Loader:
    """Kind and version as the loader tells them, such as `systemd-boot` and `257.9-1~deb13u1`."""

    kind: str
    version: str

    @property
    def release(self) -> int:
        """The leading number of the version; 0 if it has none."""
        found = re.match(r"[0-9]{1,9}", self.version)
        return int(found[0]) if found else 0

    @property
    def knows_uki_key(self) -> bool:
        """Whether an entry may name a UKI with the key `uki`; older loaders start it through `efi`."""
        return self.kind == SYSTEMD_BOOT and self.release >= _UKI_KEY_SINCE


def parse(data: bytes) -> Loader | None:
    """What a loader's binary tells of itself; None if it is none that we know."""
    found = _INFO.search(data)
    return Loader(found[1].decode(), found[2].decode()) if found else None


def find(esp: Volume) -> Loader | None:
    """The loader on the ESP; with several copies the oldest, as the firmware may start any of them."""
    paths = [
        f"{place}/{name.name}"
        for place in _PLACES
        for name in esp.names(place)
        if name.is_file and name.name.lower().endswith(".efi")
    ]
    known = (parse(esp.read(path, _MAX_LOADER_BYTES) or b"") for path in paths[:_MAX_FILES] if _readable(esp, path))
    return min((loader for loader in known if loader is not None), key=lambda loader: loader.release, default=None)


def _readable(esp: Volume, path: str) -> bool:
    found = esp.stat(path)
    return found is not None and found.st_size <= _MAX_LOADER_BYTES
