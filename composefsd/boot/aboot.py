"""Payloads of an Android boot partition, `/boot/aboot-KVER.img`: recognised, and never deployed.

composefs-rs 0.9.4 makes no boot image of an OCI image in which such a payload is broken, so that it is read here just
far enough to tell.  It is an Android boot image of version 2 or, for ukiboot, a UKI.
"""

from enum import StrEnum
from struct import Struct
from typing import Final

from composefsd.boot import uki
from composefsd.boot.pe import PortableExecutable, Source
from composefsd.errors import FormatError

_MAGIC: Final = b"ANDROID!"
# Android's bootimg.h: magic, …, page size, header version, …, header size, …
_HEADER: Final = Struct("<8s28xII1600xI12x")


class Encoding(StrEnum):
    """What a payload is."""

    ANDROID = "android-v2"
    UKI = "uki"


def identify(source: Source, size_bytes: int) -> Encoding:
    """Raises FormatError for what is neither, and LimitExceededError for too many sections."""
    if bytes(source(0, len(_MAGIC))) == _MAGIC:
        _check_android(source)
        return Encoding.ANDROID
    names = {section.name for section in PortableExecutable.parse(source, size_bytes).sections}
    for name in (uki.LINUX, uki.INITRD):
        if name not in names:
            raise FormatError(f"the UKI has no section {name.decode()}")
    return Encoding.UKI


def _check_android(source: Source) -> None:
    data = source(0, _HEADER.size)
    if len(data) < _HEADER.size:
        raise FormatError("the header of the Android boot image is cut short", offset=len(data))
    _, page_bytes, version, header_bytes = _HEADER.unpack(data)
    if version != 2:
        raise FormatError(f"an Android boot image of version {version}, not 2", offset=40)
    if not _HEADER.size <= header_bytes <= page_bytes:
        raise FormatError("the header of the Android boot image contradicts itself", offset=36)
