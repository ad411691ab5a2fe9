"""Tar archives that other projects test their readers with, as they are and changed: read as cfsctl reads them."""

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from interop.hostile import mutated, told
from interop.oci_ours import dump_layer, parse_tar
from real import apt, corpora
from real.bounds import seconds
from real.ledger import Ledger, Sweep

from composefsd.digests import Algorithm
from composefsd.errors import ComposefsdError

_ALGORITHM: Final = Algorithm.SHA512
_SECONDS: Final = 20
_SMALL_BYTES: Final = 64 << 10

STRICTER: Final = {
    r"has a NUL": "no file can have such a name",
    r"negative": "no such number fits into an image",
    r"PAX record|PAX header": "a malformed record ends the header silently in cfsctl",
    r"zero block": "two readers would not see the same entries",
    r"sparse": "the file is not what is stored",
    r"more than|longer than|too (long|many|large)": "memory is bounded, and a name has 255 bytes",
    r"not a number|is no number": "a broken number is 0 in cfsctl",
}
"""Why we refuse archives that cfsctl takes, by what we say."""


@dataclass(frozen=True, slots=True)
class Reader:
    """cfsctl with a repository to import into."""

    program: Path
    repository: Path

    def dump(self, tar: bytes) -> bytes | None:
        """The dumpfile of a layer; None if it is refused, at once or when it is read back."""
        name = f"sha256:{hashlib.sha256(tar).hexdigest()}"
        if self._run(tar, "import-layer", name).returncode:
            return None
        done = self._run(b"", "layer", "--dumpfile", name)
        return None if done.returncode else done.stdout

    def _run(self, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(self.program), "--repo", str(self.repository), "oci", *arguments]
        return subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)


@pytest.fixture(scope="module")
def reader(cfsctl: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    repository = tmp_path_factory.mktemp("corpora") / "repository"
    init = [str(cfsctl), "init", "--insecure", f"--algorithm=fsverity-{_ALGORITHM.value}-12", str(repository)]
    subprocess.run(init, check=True, capture_output=True)
    return Reader(cfsctl, repository)


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    try:
        return {name: path.read_bytes() for name, path in corpora.archives().items()}
    except apt.UnavailableError as error:
        pytest.fail(f"the public archives cannot be had: {error}", pytrace=False)


def compare(name: str, tar: bytes, reader: Reader) -> str:
    """What came out, in a word or two; fails where we take what cfsctl refuses, or read it otherwise."""
    theirs = reader.dump(tar)
    case = f"{name}: {tar[:20000].hex()}"
    ours, refusal = _parse(tar)
    if ours is None and theirs is None:
        return "refused by both"
    if ours is None:
        known = [reason for pattern, reason in STRICTER.items() if re.search(pattern, refusal)]
        assert known, f"refused with {refusal!r}, but cfsctl takes {case}"
        return f"stricter: {known[0]}"
    if theirs is None:
        assert _lacks_end(tar), f"taken, but cfsctl refuses {case}"
        return "taken without end blocks, which cfsctl imports and cannot read back"
    assert ours == theirs, case
    return "read alike"


def _parse(tar: bytes) -> tuple[bytes | None, str]:
    """Our dumpfile of a layer, or None and why it is refused."""
    try:
        with seconds(_SECONDS):
            table, digests = parse_tar(tar, _ALGORITHM, {})
    except ComposefsdError as error:
        return None, error.message
    return dump_layer(table, digests, _ALGORITHM), ""


def _lacks_end(tar: bytes) -> bool:
    return not tar.endswith(bytes(1024))


def test_public_archives_are_read_as_cfsctl_reads_them(
    archives: dict[str, bytes], reader: Reader, ledger: Ledger
) -> None:
    counts = Counter(compare(name, tar, reader) for name, tar in archives.items())
    assert len(archives) > 100
    assert counts["read alike"] > 60
    ledger.record("public tar archives (Go, tar-split, libarchive, CPython)", "cfsctl", len(archives), told(counts))


def test_changed_public_archives_are_read_as_cfsctl_reads_them(
    archives: dict[str, bytes], reader: Reader, sweep: Sweep, ledger: Ledger
) -> None:
    chance, number = sweep.random("public archives"), sweep.cases(400)
    small = sorted(name for name, tar in archives.items() if len(tar) <= _SMALL_BYTES)

    def cases() -> Iterator[tuple[str, bytes]]:
        for _ in range(number):
            name = chance.choice(small)
            yield name, _resealed(mutated(archives[name], chance)) if chance.random() < 0.7 else archives[name]

    counts = Counter(compare(name, tar, reader) for name, tar in cases())
    assert counts["read alike"] > number // 10
    ledger.record("changed public tar archives", "cfsctl", number, told(counts))


def _resealed(tar: bytes) -> bytes:
    """With right checksums wherever a block looks like a header: otherwise most changes end there."""
    blocks = bytearray(tar)
    for at in range(0, len(blocks) - 511, 512):
        block = blocks[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 0x20
            blocks[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(blocks)
