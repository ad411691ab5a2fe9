"""`meta.json`: what composefs-rs writes, what it may say later, and what nobody should believe."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError, IncompatibleRepositoryError
from composefsd.repository.metadata import Metadata

V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512

CFSCTL_INIT = b"""{
  "version": 1,
  "algorithm": "fsverity-sha512-12",
  "features": {
    "compatible": [],
    "read-only-compatible": [
      "v1_erofs"
    ],
    "incompatible": []
  },
  "erofs_formats": {
    "default": 1
  }
}
"""
FLAGGED = {"read-only-compatible": ["v1_erofs"]}


def parsed(**changes: Any) -> Metadata:
    return Metadata.parse(json.dumps({"version": 1, "algorithm": "fsverity-sha256-12"} | changes).encode())


def test_the_default_is_what_cfsctl_init_writes() -> None:
    assert Metadata.new(SHA512).serialize() == CFSCTL_INIT
    assert Metadata.parse(CFSCTL_INIT) == Metadata.new(SHA512)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("formats", [(V0,), (V1,), (V2,), (V1, V2), (V2, V1, V0)])
def test_metadata_survives_the_round_trip(algorithm: Algorithm, formats: tuple[FormatVersion, ...]) -> None:
    made = Metadata.new(algorithm, formats)
    assert Metadata.parse(made.serialize()) == made
    assert made.formats == (formats[0], *sorted(formats[1:]))


def test_two_formats_are_written_as_bootc_writes_them() -> None:
    text = Metadata.new(SHA512, (V1, V2)).serialize()
    assert text == CFSCTL_INIT.replace(b'"default": 1\n', b'"default": 1,\n    "extra": [\n      2\n    ]\n')


def test_the_flag_is_there_exactly_if_format_1_is_the_default() -> None:
    assert Metadata.new(SHA256, (V1, V2)).features.read_only_compatible == ("v1_erofs",)
    assert Metadata.new(SHA256, (V2, V1)).features.read_only_compatible == ()


@pytest.mark.parametrize(
    ("changes", "formats"),
    [
        ({}, (V2,)),
        ({"features": FLAGGED}, (V1,)),
        ({"features": {"read-only-compatible": ["v1_erofs"]}, "erofs_formats": {"default": 2}}, (V1,)),
        ({"features": {"read-only-compatible": ["v1_erofs"]}, "erofs_formats": {"default": 0}}, (V0,)),
        (
            {"features": {"read-only-compatible": ["v1_erofs"]}, "erofs_formats": {"default": 2, "extra": [1]}},
            (V2, V1),
        ),
        ({"erofs_formats": {"default": 2, "extra": [1, 2, 0, 1]}}, (V2, V0, V1)),
    ],
)
def test_formats_are_read_as_composefs_rs_reads_them(
    changes: dict[str, Any], formats: tuple[FormatVersion, ...]
) -> None:
    assert parsed(**changes).formats == formats


def test_unknown_keys_and_compatible_features_are_ignored() -> None:
    assert parsed(later={"a": 1}, features={"compatible": ["new"], "later": 3}).unknown_read_only_features == ()


def test_unknown_read_only_features_are_told() -> None:
    found = parsed(features={"read-only-compatible": ["v1_erofs", "new"]})
    assert found.unknown_read_only_features == ("new",)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"algorithm": "fsverity-sha256-16"},
        {"algorithm": "sha3"},
        {"erofs_formats": {"default": 3}},
        {"erofs_formats": {"default": 1, "extra": [7]}},
        {"features": {"incompatible": ["new"]}},
    ],
)
def test_what_belongs_to_later_times_is_incompatible(changes: dict[str, Any]) -> None:
    with pytest.raises(IncompatibleRepositoryError):
        parsed(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": True},
        {"version": -1},
        {"version": 1.0},
        {"version": "1"},
        {"algorithm": 5},
        {"features": []},
        {"features": {"compatible": "v1_erofs"}},
        {"features": {"incompatible": [1]}},
        {"erofs_formats": {}},
        {"erofs_formats": {"default": True}},
        {"erofs_formats": {"default": 1, "extra": [True]}},
        {"erofs_formats": 1},
        {"features": None},
        {"features": {"compatible": None}},
        {"erofs_formats": None},
        {"erofs_formats": {"default": 1, "extra": None}},
    ],
)
def test_values_of_wrong_types_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parsed(**changes)


@pytest.mark.parametrize(
    "text",
    [
        CFSCTL_INIT.decode().encode("utf-16"),
        CFSCTL_INIT.decode().encode("utf-8-sig"),
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff{}",
        "{}".encode("utf-16"),
        b"[" * 60_000,
        b'{"version": 1, "version": 1, "algorithm": "fsverity-sha256-12"}',
        b'{"version": 1, "algorithm": "fsverity-sha256-12", "later": NaN}',
        b'{"version": ' + b"9" * 5000 + b', "algorithm": "fsverity-sha256-12"}',
        CFSCTL_INIT + b"{}",
    ],
)
def test_what_is_not_the_json_of_one_object_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        Metadata.parse(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hostile_bytes_raise_only_format_errors(data: st.DataObject) -> None:
    text = bytearray(CFSCTL_INIT)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(FormatError, IncompatibleRepositoryError):
        Metadata.parse(bytes(text))
