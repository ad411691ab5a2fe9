"""The lists of keys in EFI variables: found in order, and hostile sizes refused."""

import struct
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot.signature_list import LIMIT_BYTES, X509, certificates
from composefsd.errors import FormatError, LimitExceededError

SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
OWNER = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b").bytes_le


def signature_list(kind: UUID, *data: bytes, header: bytes = b"") -> bytes:
    """An EFI_SIGNATURE_LIST of signatures of one length."""
    each = 16 + len(data[0])
    sizes = struct.pack("<III", 28 + len(header) + each * len(data), len(header), each)
    return kind.bytes_le + sizes + header + b"".join(OWNER + one for one in data)


def test_certificates_of_all_lists_come_in_order_and_hashes_are_passed_over() -> None:
    variable = (
        signature_list(X509, b"first")
        + signature_list(SHA256, bytes(32))
        + signature_list(X509, b"22", b"33", header=b"header")
    )
    assert list(certificates(variable)) == [b"first", b"22", b"33"]
    assert list(certificates(b"")) == []


@pytest.mark.parametrize(
    ("list_bytes", "header_bytes", "each_bytes"),
    [
        (27, 0, 20),  # shorter than its own header
        (0, 0, 20),  # it would never end
        (49, 0, 20),  # beyond the variable
        (48, 30, 20),  # the header beyond the list
        (48, 0, 16),  # an owner without data
        (48, 0, 0),
        (48, 0, 15),  # no whole number of signatures
        (48, 0xFFFFFFFF, 20),
        (0xFFFFFFFF, 0, 20),
    ],
)
def test_sizes_that_do_not_fit_are_refused(list_bytes: int, header_bytes: int, each_bytes: int) -> None:
    data = X509.bytes_le + struct.pack("<III", list_bytes, header_bytes, each_bytes) + bytes(20)
    with pytest.raises(FormatError):
        list(certificates(data))


def test_a_list_that_is_cut_short_is_refused() -> None:
    whole = signature_list(X509, b"certificate")
    for length in range(1, len(whole)):
        with pytest.raises(FormatError):
            list(certificates(whole[:length]))


def test_a_variable_larger_than_any_firmware_has_is_refused() -> None:
    with pytest.raises(LimitExceededError):
        list(certificates(bytes(LIMIT_BYTES + 1)))


@given(st.binary(max_size=120))
def test_hostile_bytes_raise_nothing_but_format_error(tail: bytes) -> None:
    with suppress(FormatError):
        found = list(certificates(X509.bytes_le + tail))
        assert all(found)
