"""fs-verity digests against values that `fsverity digest` gave."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.verity import CHUNK_BYTES, Hasher, compute, compute_digest, compute_file


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


VECTORS = [
    (Algorithm.SHA256, b"", "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
    (Algorithm.SHA256, b"\0", "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551"),
    (Algorithm.SHA256, b"hello world", "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"),
    (Algorithm.SHA256, pattern(4095), "5f4953aad672b0188023d6cd6fbce9d09508eb7dad165b6298ce0086bc1e72db"),
    (Algorithm.SHA256, pattern(4096), "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157"),
    (Algorithm.SHA256, pattern(4097), "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa"),
    (Algorithm.SHA256, pattern(524288), "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4"),
    (Algorithm.SHA256, pattern(524289), "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4"),
    (Algorithm.SHA256, pattern(1048577), "89f2376c7699bfe271478a8e3356d434d4a35784edce47fac74c8e5bc7456c1d"),
    (
        Algorithm.SHA512, b"",
        ("ccf9e5aea1c2a64efa2f2354a6024b90dffde6bbc017825045dce374474e13d1"
         "0adb9dadcc6ca8e17a3c075fbd31336e8f266ae6fa93a6c3bed66f9e784e5abf"),
    ),
    (
        Algorithm.SHA512, b"\0",
        ("9fcf5172b085b1c8f9365eecb37a1869e193a4705654a5829f11939cd01d5c0f"
         "d97276be8cd9d49f76cfc8dcfeb80f8128e3548a1de50b56912b9e3fc7bde27b"),
    ),
    (
        Algorithm.SHA512, b"hello world",
        ("18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5"
         "14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409"),
    ),
    (
        Algorithm.SHA512, pattern(4096),
        ("7bf994782b368ecc4e20ce9144701b1a30524d5bbc90987625de22eebc8cf370"
         "ec846c1b5e77f9099c6f6cfc0b590359b9ac8083a43e5f7fa5ec05a25dab6e03"),
    ),
    (
        Algorithm.SHA512, pattern(4097),
        ("97a1e45daaa69bd7b31908cf835318ba36476984ffa7f4a5913c0187db04ce5f"
         "19dc80306f493741d4ad1cdd212b7a9d2691aa3d42563d35471363fbb0fc7f1c"),
    ),
    (
        Algorithm.SHA512, pattern(262144),
        ("f3d1adb48d9e641487f0674034e494b8e1ad589f9430b34f2a7e56acdf051807"
         "53d3f491f48c0958a8482edb1cda90fc82f0edd2bc6d22573bc743abd8e42a48"),
    ),
    (
        Algorithm.SHA512, pattern(262145),
        ("db774f463acc1e672e4da91d045eb146f2647efec545951fb7005067ff9899da"
         "3ae94dc206531b40985587ce4e5eb173a235d51b488074067d9e34131814b9de"),
    ),
    (
        Algorithm.SHA512, pattern(1048577),
        ("fcaffb1aaac7a827418e03bfde3a626f8a58abe522590c4fa6a9bd7edda64111"
         "1ae208857cf02a6a5b8dd433dbb9c8cfc5d030133d33cc2856e36776ccb23fc9"),
    ),
]  # fmt: skip
IDS = [f"{algorithm.value}-{len(data)}" for algorithm, data, _digest in VECTORS]


@pytest.mark.parametrize(("algorithm", "data", "digest"), VECTORS, ids=IDS)
def test_digests_are_those_of_the_fsverity_tool(algorithm: Algorithm, data: bytes, digest: str) -> None:
    assert compute(data, algorithm).hex == digest


@pytest.mark.parametrize(("algorithm", "data", "digest"), VECTORS, ids=IDS)
def test_pieces_give_the_digest_of_the_whole(algorithm: Algorithm, data: bytes, digest: str) -> None:
    hasher = Hasher(algorithm)
    for at in range(0, len(data), 100_001):
        hasher.update(memoryview(data)[at : at + 100_001])
    assert (hasher.digest().hex(), hasher.size_bytes) == (digest, len(data))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=12), st.sampled_from(Algorithm))
def test_the_cut_into_pieces_does_not_matter(sizes: list[int], algorithm: Algorithm) -> None:
    data = pattern(sum(sizes))
    hasher, at = Hasher(algorithm), 0
    for size in sizes:
        hasher.update(data[at : at + size])
        at += size
    assert hasher.digest() == compute_digest(data, algorithm)


def test_a_level_that_is_exactly_full_is_the_root_or_has_one_above() -> None:
    for blocks in (127, 128, 129, 128 * 128, 128 * 128 + 1):
        hasher = Hasher(Algorithm.SHA256)
        hasher.update(bytes(blocks * 4096))
        leaves = hashlib.sha256(bytes(4096)).digest() * blocks
        while len(leaves) > 32:
            chunks = [leaves[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(leaves), 4096)]
            leaves = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
        head = bytes((1, 1, 12, 0, 0, 0, 0, 0)) + (blocks * 4096).to_bytes(8, "little")
        assert hasher.digest() == hashlib.sha256((head + leaves).ljust(256, b"\0")).digest()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_file_is_read_from_its_start_and_its_offset_stays(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(pattern(size))
    with path.open("rb") as file:
        os.lseek(file.fileno(), 7, os.SEEK_SET)
        assert compute_file(file.fileno(), Algorithm.SHA512) == compute(pattern(size), Algorithm.SHA512)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 7
