"""The unpacker's halves: blobs that are what they promise, and decompression to the last frame."""

import gzip
import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from composefsd.errors import ComposefsdError, DigestMismatchError, FormatError
from composefsd.oci.manifest import Compression
from composefsd.oci.unpack import BlobReader, decompress
from composefsd.workers.serve import Call

PLAIN = random.Random(7).randbytes(300_000) + bytes(3_000_000)


def blob(tmp_path: Path, data: bytes, **changes: Any) -> BlobReader:
    path = tmp_path / "blob"
    path.write_bytes(data)
    args = {"algorithm": "sha256", "hex": hashlib.sha256(data).hexdigest(), "size": len(data), "offset": 0} | changes
    return BlobReader(Call(args, (), lambda event: None), os.open(path, os.O_RDONLY))


def unpack(tmp_path: Path, data: bytes, compression: Compression, **changes: Any) -> bytes:
    reader = blob(tmp_path, data, **changes)
    out = b"".join(decompress(reader, compression))
    reader.check()
    return out


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
HALVES = (PLAIN[:1_000_000], PLAIN[1_000_000:])


@pytest.mark.parametrize(
    ("compression", "data"),
    [
        (Compression.NONE, PLAIN),
        (Compression.GZIP, gzip.compress(PLAIN)),
        (Compression.GZIP, b"".join(map(gzip.compress, HALVES))),
        (Compression.GZIP, gzip.compress(PLAIN) + bytes(5000)),
        (Compression.ZSTD, zstandard.compress(PLAIN)),
        (Compression.ZSTD, SKIPPABLE + zstandard.compress(HALVES[0]) + SKIPPABLE + zstandard.compress(HALVES[1])),
    ],
    ids=["plain", "gzip", "gzip members", "gzip padded", "zstd", "zstd frames"],
)
def test_every_member_and_frame_is_unpacked(tmp_path: Path, compression: Compression, data: bytes) -> None:
    assert unpack(tmp_path, data, compression) == PLAIN


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_blob_that_is_cut_short_is_refused(tmp_path: Path, compression: Compression, keep: float) -> None:
    whole = gzip.compress(PLAIN) if compression is Compression.GZIP else zstandard.compress(PLAIN)
    size, digest = len(whole), hashlib.sha256(whole).hexdigest()
    with pytest.raises(ComposefsdError):
        unpack(tmp_path, whole[: int(keep * size)], compression, size=size, hex=digest)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_what_is_not_compressed_is_refused(tmp_path: Path, compression: Compression) -> None:
    with pytest.raises(FormatError, match="no valid"):
        unpack(tmp_path, b"this is no compressed stream at all", compression)


def test_a_blob_of_another_digest_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatchError) as caught:
        unpack(tmp_path, PLAIN, Compression.NONE, hex="0" * 64)
    assert caught.value.facts["expected"] == "sha256:" + "0" * 64
    assert caught.value.facts["actual"] == "sha256:" + hashlib.sha256(PLAIN).hexdigest()


def test_bytes_behind_the_promised_size_are_not_read(tmp_path: Path) -> None:
    digest = hashlib.sha256(PLAIN[:1000]).hexdigest()
    assert unpack(tmp_path, PLAIN, Compression.NONE, size=1000, hex=digest) == PLAIN[:1000]


def test_a_blob_may_lie_inside_of_a_file(tmp_path: Path) -> None:
    digest = hashlib.sha256(PLAIN[500:1500]).hexdigest()
    assert unpack(tmp_path, PLAIN, Compression.NONE, size=1000, hex=digest, offset=500) == PLAIN[500:1500]
