"""Public collections of tar archives, good and broken, that other projects test their readers with.

They come from Debian's packages of tar-split (which has those of Go), containers/storage and CPython, and from the
sources of libarchive.  Each archive is kept as it is without its compression.
"""

import binascii
import bz2
import lzma
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import zstandard
from real import apt, cache

_SUITE: Final = "trixie"
_PACKAGES: Final = (
    "golang-github-vbatts-tar-split-dev",
    "golang-github-containers-storage-dev",
    "libpython3.13-testsuite",
)
_SOURCES: Final = ("libarchive",)
_LIMIT_BYTES: Final = 16 << 20

_Unpack = Callable[[bytes], bytes]


def _unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        return reader.read()


def _gunzip(data: bytes) -> bytes:
    """The tool also knows the format of compress(1)."""
    return subprocess.run(["gzip", "--decompress", "--stdout"], input=data, capture_output=True, check=True).stdout


_ARCHIVE: Final = re.compile(r"(.+?\.(?:tar|ustar|t(?=[gbx]z)))(\.?(?:gz|Z|bz2|bz|xz|zst))?(\.uu)?")
_COMPRESSIONS: Final[dict[str, _Unpack]] = {
    "": bytes, "gz": _gunzip, "Z": _gunzip, "bz": bz2.decompress, "bz2": bz2.decompress, "xz": lzma.decompress,
    "zst": _unzstd,
}  # fmt: skip


def _undo_uuencode(data: bytes) -> bytes:
    lines = iter(data.splitlines())
    for line in lines:
        if line.startswith(b"begin "):
            break
    decoded = bytearray()
    for line in lines:
        if line.strip() in (b"", b"`", b"end"):
            break
        characters = ((line[0] - 32 & 63) * 4 + 5) // 3  # some encoders write more than they announce
        decoded += binascii.a2b_uu(line[:characters])
    return bytes(decoded)


def _plain(name: str, data: bytes) -> bytes | None:
    """The archive in a file without uuencoding and compression; None for what is none, or tests a compression."""
    found = _ARCHIVE.fullmatch(name)
    if found is None:
        return None
    try:
        plain = _COMPRESSIONS[(found[2] or "").lstrip(".")](_undo_uuencode(data) if found[3] else data)
    except (OSError, EOFError, subprocess.CalledProcessError, lzma.LZMAError, zstandard.ZstdError):
        return None
    return plain if len(plain) <= _LIMIT_BYTES else None


def _files_of_package(package: Path) -> Iterator[tuple[str, bytes]]:
    with TemporaryDirectory() as name:
        apt.unpack(package, Path(name))
        for path in sorted(Path(name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.name, path.read_bytes()


def _files_of_source(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as source:
        for member in source:
            file = source.extractfile(member)
            if file is not None:
                yield Path(member.name).name, file.read()


def _keep(group: str, files: Iterator[tuple[str, bytes]], work: Path) -> None:
    (work / group).mkdir()
    for name, data in files:
        plain = _plain(name, data)
        if plain is not None:
            (work / group / name).write_bytes(plain)


def _build(work: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for package in apt.download(_SUITE, _PACKAGES, folder):
            _keep(package.name.partition("_")[0], _files_of_package(package), work)
        for archive in apt.download(_SUITE, _SOURCES, folder, sources=True):
            if ".orig.tar" in archive.name and archive.suffix != ".asc":
                _keep(archive.name.partition("_")[0], _files_of_source(archive), work)


def archives() -> dict[str, Path]:
    """All archives by `collection/name`.  Raises UnavailableError where the packages cannot be had."""
    made_from = cache.key(Path(__file__), _SUITE)
    path = cache.ensure("corpora", made_from, _build, saying="Fetching public collections of tar archives")
    return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
