"""The three kinds of digest, and what their text forms refuse."""

import pytest

from composefsd.digests import Algorithm, DiffId, ObjectId, OciDigest
from composefsd.errors import FormatError

HEX32 = "ab" * 32
HEX64 = "cd" * 64


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_algorithm_is_found_by_its_label_and_by_the_number_of_the_kernel(algorithm: Algorithm) -> None:
    assert Algorithm.from_label(algorithm.label) is algorithm
    assert Algorithm.from_kernel_number(algorithm.kernel_number) is algorithm


def test_labels_are_those_of_meta_json() -> None:
    assert [algorithm.label for algorithm in Algorithm] == ["fsverity-sha256-12", "fsverity-sha512-12"]


@pytest.mark.parametrize("label", ["", "sha256", "fsverity-sha256-16", "fsverity-SHA256-12", "fsverity-md5-12"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(FormatError):
        Algorithm.from_label(label)


@pytest.mark.parametrize("number", [0, 3, 255])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(FormatError):
        Algorithm.from_kernel_number(number)


def test_an_object_is_found_below_the_first_two_digits_of_its_id() -> None:
    assert ObjectId.parse(HEX32).path == f"ab/{HEX32[2:]}"


def test_the_width_of_an_object_id_tells_its_algorithm() -> None:
    assert str(ObjectId.parse(HEX32)) == f"sha256:{HEX32}"
    assert str(ObjectId.parse(HEX64)) == f"sha512:{HEX64}"


@pytest.mark.parametrize(
    "text", ["", HEX32[:-1], HEX32 + "0", HEX32.upper(), f"sha256:{HEX32}", " " + HEX32[1:], HEX32[:-1] + "\n"]
)
def test_an_object_id_is_bare_lower_case_hexadecimal(text: str) -> None:
    with pytest.raises(FormatError):
        ObjectId.parse(text)


def test_an_object_id_of_the_other_width_is_refused_where_the_algorithm_is_known() -> None:
    with pytest.raises(FormatError):
        ObjectId.parse(HEX32, Algorithm.SHA512)
    with pytest.raises(FormatError):
        ObjectId(b"x" * 33)


@pytest.mark.parametrize("text", [f"sha256:{HEX32}", f"sha512:{HEX64}"])
def test_oci_digests_keep_their_text(text: str) -> None:
    assert str(OciDigest.parse(text)) == text
    assert str(DiffId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256", "sha256:", HEX32, f"sha256:{HEX64}", f"sha512:{HEX32}", f"sha256:{HEX32.upper()}",
        f"md5:{HEX32[:32]}", f"sha256:{HEX32}\n", f"SHA256:{HEX32}", "sha256:../../../v2/other/blobs/" + HEX32,
        "sha256:" + "\uff10" * 64,
    ],
)  # fmt: skip
def test_what_is_no_oci_digest_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        OciDigest.parse(text)
    with pytest.raises(FormatError):
        DiffId.parse(text)


def test_digests_of_different_kinds_are_never_equal() -> None:
    text = f"sha256:{HEX32}"
    assert len({OciDigest.parse(text), DiffId.parse(text), ObjectId.parse(HEX32), text}) == 4
