"""What the firmware says of Secure Boot, read from files as efivarfs has them."""

import hashlib
import struct
from pathlib import Path

import pytest

from composefsd.boot.signature_list import LIMIT_BYTES, X509
from composefsd.operations.firmware import Firmware

SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
DATABASES = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"


def variable(folder: Path, name: str, value: bytes) -> None:
    (folder / name).write_bytes(b"\x06\0\0\0" + value)


def keys(*certificates: bytes) -> bytes:
    return b"".join(
        X509.bytes_le + struct.pack("<III", 44 + len(one), 0, 16 + len(one)) + bytes(16) + one for one in certificates
    )


def fingerprint(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()


@pytest.mark.parametrize(("value", "state"), [(b"\1", True), (b"\0", False), (b"", None), (b"\1\0", None)])
def test_secure_boot_is_on_off_or_not_known(tmp_path: Path, value: bytes, state: bool | None) -> None:  # noqa: FBT001
    variable(tmp_path, SECURE_BOOT, value)
    assert Firmware.load(tmp_path).secure_boot is state


def test_the_certificates_of_db_and_dbx_are_known_by_their_fingerprints(tmp_path: Path) -> None:
    variable(tmp_path, SECURE_BOOT, b"\1")
    variable(tmp_path, f"db-{DATABASES}", keys(b"one", b"two"))
    assert Firmware.load(tmp_path).revoked == frozenset()
    variable(tmp_path, f"dbx-{DATABASES}", keys(b"two"))
    found = Firmware.load(tmp_path)
    assert found.trusted == {fingerprint(b"one"), fingerprint(b"two")}
    assert found.revoked == {fingerprint(b"two")}


@pytest.mark.parametrize("damage", [b"garbage", bytes(LIMIT_BYTES + 1)])
def test_a_database_that_cannot_be_read_is_not_known(tmp_path: Path, damage: bytes) -> None:
    variable(tmp_path, SECURE_BOOT, b"\1")
    assert Firmware.load(tmp_path).trusted is None
    for name in ("db", "dbx"):
        variable(tmp_path, f"{name}-{DATABASES}", damage)
    found = Firmware.load(tmp_path)
    assert (found.secure_boot, found.trusted, found.revoked) == (True, None, None)


def test_a_dbx_that_cannot_be_read_is_none_that_revokes_nothing(tmp_path: Path) -> None:
    variable(tmp_path, SECURE_BOOT, b"\1")
    (tmp_path / f"dbx-{DATABASES}").mkdir()
    assert Firmware.load(tmp_path).revoked is None


def test_without_efi_variables_nothing_is_known_and_it_is_told_why(tmp_path: Path) -> None:
    missing = Firmware.load(tmp_path / "missing")
    assert missing.secure_boot is None
    assert "no EFI variable SecureBoot" in missing.why
    assert "not the one that runs here" in Firmware.load(None).why
