"""The vectors of tests/vectors/erofs: what stands in their index, what we write and what the peers write is the same.

Where C composefs is known to differ (`c_and_rust_differ`) it differs exactly as the index says.
"""

import json
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from real import c_tool
from real.harness import Harness, RefusedError
from real.ledger import Ledger

from composefsd.digests import Algorithm
from composefsd.erofs import FormatVersion, compute_id
from composefsd.errors import FormatError
from composefsd.tree import dumpfile

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "erofs"
V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm

Vector = dict[str, Any]


def read_index() -> list[Vector]:
    vectors: list[Vector] = json.loads((VECTORS / "index.json").read_bytes())["vectors"]
    return vectors


def text_of(vector: Vector, algorithm: Algorithm) -> bytes:
    name = vector["dump"] if algorithm is SHA256 else vector.get("dump_sha512", vector["dump"])
    return (VECTORS / str(name)).read_bytes()


@pytest.fixture(scope="module")
def vectors() -> list[Vector]:
    return read_index()


def test_vectors_have_the_digests_of_the_index(vectors: list[Vector], harness: Harness, ledger: Ledger) -> None:
    cases = indexed = 0
    for vector in vectors:
        for version, algorithm in product(FormatVersion, Algorithm):  # the index has no V0 with SHA-512
            text = text_of(vector, algorithm)
            digest = compute_id(dumpfile.parse(BytesIO(text), algorithm), version).hex
            where = f"{vector['name']}, {version.label}, {algorithm.value}"
            assert harness.digest(text, version, algorithm) == digest, where
            expected = vector.get(f"v{version}_{algorithm.value}")
            if expected is not None:
                assert digest == expected, where
                indexed += 1
            cases += 1
    assert indexed == 5 * len(vectors)
    ledger.record("Image digests of the vectors, V0, V1, V2, SHA-256 and SHA-512", "composefs-rs", cases, "equal")


def test_c_agrees_except_where_the_index_says_so(
    vectors: list[Vector], mkcomposefs: list[str], ledger: Ledger
) -> None:
    cases = differing = 0
    for vector in vectors:
        text = text_of(vector, SHA256)
        differs = vector.get("c_and_rust_differ", False)
        for version in (V0, V1):
            ours, theirs = vector[f"v{version}_sha256"], c_tool.digest(mkcomposefs, text, version)
            assert theirs == (vector[f"c_v{version}_sha256"] if differs else ours), (vector["name"], version)
            differing += theirs != ours
            cases += 1
    result = f"{cases - differing:,} equal; {differing} differ as documented"
    ledger.record("Image digests of the vectors, V0 and V1, SHA-256", "C composefs", cases, result)


def test_c_raises_the_version_of_images_with_whiteouts_unless_told_otherwise(
    vectors: list[Vector], mkcomposefs: list[str], ledger: Ledger
) -> None:
    raised = [vector for vector in vectors if "c_default_sha256" in vector]
    for vector in raised:
        theirs = c_tool.digest(mkcomposefs, text_of(vector, SHA256), None)
        assert theirs == vector["c_default_sha256"]
        assert vector["c_default_composefs_version"] == 1
        if not vector.get("c_and_rust_differ", False):
            assert theirs == vector["v1_sha256"]
    assert raised
    ledger.record("Image digests of the vectors, C's default version", "C composefs", len(raised), "V1 for whiteouts")


ROOT_LINE: Final = b"/ 0 40755 2 0 0 0 1.0 - - -\n"
FILE: Final = b"/f 0 100644 1 0 0 0 1.0 - - -"
WITHOUT_VECTOR: Final = {
    "more than 1024 chunks": b"/f %d 100644 1 0 0 0 1.0 - - -\n" % ((1 << 53) + 1),
    "attributes of more than 32 kB": FILE + b" user.a=" + b"v" * 33_000 + b"\n",
    "attributes of more than 64 kB as text": FILE + b" user.a=" + b"\\x00" * 16_500 + b"\n",
    "an attribute without a name": FILE + b" =v\n",
    "a path that occurs twice": b"/d 0 40755 2 0 0 0 1.0 - - -\n/d 0 40700 2 0 0 0 1.0 - - -\n",
}
"""What C refuses."""


def test_c_refuses_what_no_vector_can_show(harness: Harness, mkcomposefs: list[str], ledger: Ledger) -> None:
    for name, lines in WITHOUT_VECTOR.items():
        text = ROOT_LINE + lines
        ours = compute_id(dumpfile.parse(BytesIO(text), SHA256), V1).hex
        assert harness.digest(text, V1, SHA256) == ours, name
        with pytest.raises(c_tool.RefusedError):
            c_tool.digest(mkcomposefs, text, V1)
    ledger.record("Dumps that composefs-rs takes and C refuses", "both", len(WITHOUT_VECTOR), "as documented")


def test_of_an_attribute_that_a_line_has_twice_c_takes_the_last(
    harness: Harness, mkcomposefs: list[str], ledger: Ledger
) -> None:
    twice, largest, last = (ROOT_LINE + FILE + values + b"\n" for values in (b" a=2 a=1", b" a=2", b" a=1"))
    ours = compute_id(dumpfile.parse(BytesIO(twice), SHA256), V1).hex
    assert ours == harness.digest(twice, V1, SHA256) == harness.digest(largest, V1, SHA256)
    assert c_tool.digest(mkcomposefs, twice, V1) == c_tool.digest(mkcomposefs, last, V1) != ours
    ledger.record("A dump with an attribute twice on a line", "both", 1, "differ as documented")


TOO_MANY: Final = {
    "256 shared attributes": b"".join(
        b"/%d 0 100644 1 0 0 0 1.0 - - -%s\n" % (file, b"".join(b" user.%d=" % number for number in range(256)))
        for file in range(2)
    ),
    "more than 262,140 bytes of attributes": FILE
    + b"".join(b" user.%d=%s" % (number, b"v" * 65_535) for number in range(4))
    + b"\n",
}


def test_what_composefs_rs_writes_and_does_not_read_we_do_not_write(harness: Harness, ledger: Ledger) -> None:
    for lines in TOO_MANY.values():
        for version in FormatVersion:
            with pytest.raises(RefusedError):
                harness.check(harness.image(ROOT_LINE + lines, version, SHA256), SHA256)
            with pytest.raises(FormatError, match="more extended attributes"):
                compute_id(dumpfile.parse(BytesIO(ROOT_LINE + lines), SHA256), version)
    ledger.record("Dumps of what composefs-rs cannot read back", "composefs-rs", len(TOO_MANY), "refused by us")
