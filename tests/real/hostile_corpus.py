"""The kept corpus of hostile images and dumps, tests/vectors/hostile."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from composefsd.digests import Algorithm
from composefsd.erofs import FormatVersion, write
from composefsd.tree import dumpfile

FOLDER: Final = Path(__file__).parents[1] / "vectors" / "hostile"
ALGORITHM: Final = Algorithm.SHA256


@dataclass(frozen=True, slots=True)
class Hostile:
    """An image or a dump, what our refusal says, and whether composefs-rs takes it."""

    name: str
    data: bytes
    message: str
    is_taken_by_composefs_rs: bool


def _read(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((FOLDER / name).read_bytes())
    return entries


def _hostile(number: int, entry: dict[str, Any], data: bytes) -> Hostile:
    return Hostile(f"{number}: {entry['ours']}", data, entry["ours"], entry["composefs_rs"] == "takes")


def sound_images() -> dict[FormatVersion, bytes]:
    """The images that are changed."""
    tree = dumpfile.parse(BytesIO((FOLDER / "base.dump").read_bytes()), ALGORITHM)
    return {version: b"".join(write(tree, version)) for version in FormatVersion}


def images() -> list[Hostile]:
    """All hostile images."""
    sound = sound_images()
    found = []
    for number, entry in enumerate(_read("images.json")):
        data = bytearray(sound[FormatVersion(entry["version"])])
        size = entry.get("size", len(data))
        data = data[:size].ljust(size, b"\0")
        for offset, change in entry["changes"]:
            data[offset : offset + len(change) // 2] = bytes.fromhex(change)
        found.append(_hostile(number, entry, bytes(data)))
    return found


def dumps() -> list[Hostile]:
    """All hostile dumps."""
    return [
        _hostile(number, entry, entry["text"].encode("latin-1")) for number, entry in enumerate(_read("dumps.json"))
    ]
