from pathlib import Path

import pytest

from composefsd.deploy.loader import Loader, find, parse
from composefsd.deploy.volume import Volume


def binary(version: str, kind: str = "systemd-boot") -> bytes:
    return b"MZ\0\0" + f"#### LoaderInfo: {kind} {version} ####".encode() + b"\0" * 40


@pytest.mark.parametrize(
    ("version", "expected"),
    [("257.9-1~deb13u1", False), ("258", True), ("259~rc1-2", True), ("1000", True), ("v", False)],
)
def test_the_key_uki_is_for_systemd_boot_258_and_newer(version: str, *, expected: bool) -> None:
    loader = parse(binary(version))
    assert loader == Loader("systemd-boot", version)
    assert loader.knows_uki_key is expected


def test_other_binaries_are_no_loader_that_knows_the_key() -> None:
    assert parse(b"MZ GRUB") is None
    stub = parse(binary("260", kind="systemd-stub"))
    assert stub is not None
    assert not stub.knows_uki_key


def test_the_oldest_copy_on_the_esp_counts(tmp_path: Path) -> None:
    for path, version in (("EFI/systemd/systemd-bootx64.efi", "258.1"), ("EFI/BOOT/BOOTX64.EFI", "254")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(binary(version))
    (tmp_path / "EFI/systemd/drivers.efi").mkdir()
    (tmp_path / "EFI/BOOT/link.efi").symlink_to("/etc/shadow")
    with Volume.open(tmp_path) as esp:
        assert find(esp) == Loader("systemd-boot", "254")


def test_an_empty_esp_has_no_loader(tmp_path: Path) -> None:
    with Volume.open(tmp_path) as esp:
        assert find(esp) is None
