"""What a UKI brings for TPMs."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import pcrs
from composefsd.boot.pcrs import PcrKey, PcrSignature
from composefsd.errors import FormatError, LimitExceededError

VECTORS = Path(__file__).parents[2] / "vectors" / "uki"
KEY = (VECTORS / "pcrpkey.pem").read_bytes()
ONE = {"pcrs": [11], "pkfp": "ab" * 32, "pol": "CD" * 32, "sig": "AAAA"}


def test_the_signatures_of_systemd_measure_name_the_key_that_goes_with_them() -> None:
    found = pcrs.parse_signatures((VECTORS / "pcrsig.json").read_bytes())
    assert [(one.bank, one.pcrs) for one in found] == [("sha1", (11,))] * 2 + [("sha256", (11,))] * 2
    assert found[2].policy == "0e709b026f5ef8bbd839bec76fc3201959cbebac537118ac958f70f090371d6f"
    key = PcrKey.parse(KEY)
    assert {one.key for one in found} == {key.short}
    assert key.fingerprint == "41854f0519dc1fd97fcefba4876bce69298ea2a1d9cb0236cfbaf475a8c8798f"


def test_unknown_banks_are_passed_over_and_digests_are_in_lower_case() -> None:
    found = pcrs.parse_signatures(json.dumps({"sha512": [ONE], "sha3": [7]}).encode())
    assert found == (PcrSignature("sha512", (11,), "cd" * 32, "ab" * 32),)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"sha256": {}},
        {"sha256": [7]},
        *({"sha256": [ONE | {key: None}]} for key in ONE),
        {"sha256": [ONE | {"pcrs": [24]}]},
        {"sha256": [ONE | {"pcrs": []}]},
        {"sha256": [ONE | {"pcrs": [-1]}]},
        {"sha256": [ONE | {"pcrs": [True]}]},
        {"sha256": [ONE | {"pcrs": [1] * 25}]},
        {"sha256": [ONE | {"pol": "xy"}]},
        {"sha256": [ONE | {"pkfp": ""}]},
        {"sha256": [ONE | {"sig": "\x1b"}]},
    ],
)
def test_what_systemd_measure_would_not_write_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        pcrs.parse_signatures(json.dumps(value).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 10_000, b'{"sha256": NaN}', b'{"sha256":[],"sha256":[]}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        pcrs.parse_signatures(data)


def test_the_number_of_signatures_is_bounded() -> None:
    with pytest.raises(LimitExceededError):
        pcrs.parse_signatures(json.dumps({"sha256": [ONE] * (pcrs.SIGNATURES_LIMIT + 1)}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        KEY.replace(b"PUBLIC KEY", b"CERTIFICATE"),
        KEY[:200],
        KEY.replace(b"MIIB", b"MIIC"),
    ],
)
def test_what_is_no_public_key_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"\.pcrpkey"):
        PcrKey.parse(data)


@given(st.lists(st.tuples(st.integers(0, len(KEY) - 1), st.integers(0, 255)), max_size=5))
def test_hostile_keys_raise_nothing_but_format_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(KEY)
    for at, value in changes:
        data[at] = value
    with suppress(FormatError):
        assert len(PcrKey.parse(bytes(data)).fingerprint) == 64
