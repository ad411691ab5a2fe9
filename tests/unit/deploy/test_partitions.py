from pathlib import Path

import pytest

from composefsd.deploy.partitions import BootPartitions
from composefsd.errors import EspNotFoundError


def mountinfo(tmp_path: Path, *mounts: tuple[Path, str, str]) -> Path:
    """Lines of proc(5) for mount point, filesystem type and device."""
    lines = [
        f"{number} 1 {device} / {point} rw,nosuid shared:{number} - {kind} /dev/x rw\n"
        for number, (point, kind, device) in enumerate(mounts, 20)
    ]
    path = tmp_path / "mountinfo"
    path.write_text("".join(["20 1 8:1 / / rw - ext4 /dev/a rw\n", "malformed\n", *lines]))
    return path


def test_configured_directories_are_taken_as_they_are(tmp_path: Path) -> None:
    found = BootPartitions.find(tmp_path, None, sysroot=Path("/elsewhere"))
    assert found == BootPartitions(tmp_path, None)
    assert found.boot == tmp_path


def test_xbootldr_holds_entries_if_there_is_one(tmp_path: Path) -> None:
    xbootldr = tmp_path / "x"
    xbootldr.mkdir()
    assert BootPartitions.find(tmp_path, xbootldr, sysroot=tmp_path).boot == xbootldr


def test_a_configured_partition_must_exist(tmp_path: Path) -> None:
    with pytest.raises(EspNotFoundError, match="is not a directory"):
        BootPartitions.find(tmp_path / "none", None, sysroot=tmp_path)
    with pytest.raises(EspNotFoundError, match="XBOOTLDR"):
        BootPartitions.find(tmp_path, tmp_path / "none", sysroot=tmp_path)
    with pytest.raises(EspNotFoundError, match="no ESP"):
        BootPartitions.find(None, tmp_path, sysroot=tmp_path)


def test_the_esp_of_this_machine_is_never_guessed_for_another_sysroot(tmp_path: Path) -> None:
    (tmp_path / "efi").mkdir()
    info = mountinfo(tmp_path, (tmp_path / "efi", "vfat", "8:2"))
    with pytest.raises(EspNotFoundError, match="not the root of this machine"):
        BootPartitions.find(None, None, sysroot=tmp_path / "target", host=tmp_path, mountinfo=info)


@pytest.mark.parametrize(
    ("mounts", "esp", "xbootldr"),
    [
        ([("efi", "vfat", "8:2")], "efi", None),
        ([("boot", "vfat", "8:2")], "boot", None),
        ([("boot", "ext4", "8:3"), ("boot/efi", "vfat", "8:2")], "boot/efi", None),
        ([("efi", "vfat", "8:2"), ("boot", "vfat", "8:3")], "efi", "boot"),
        ([("boot", "vfat", "8:3"), ("boot/efi", "vfat", "8:2")], "boot/efi", "boot"),
        ([("efi", "vfat", "8:2"), ("boot", "vfat", "8:2")], "efi", None),  # one partition, mounted twice
        ([("efi", "autofs", "0:50"), ("efi", "vfat", "8:2")], "efi", None),
    ],
)
def test_vfat_at_the_conventional_places_is_found(
    tmp_path: Path, mounts: list[tuple[str, str, str]], esp: str, xbootldr: str | None
) -> None:
    info = mountinfo(tmp_path, *[(tmp_path / point, kind, device) for point, kind, device in mounts])
    found = BootPartitions.find(None, None, sysroot=Path("/sysroot"), host=tmp_path, mountinfo=info)
    assert found == BootPartitions(tmp_path / esp, tmp_path / xbootldr if xbootldr else None)


@pytest.mark.parametrize("mounts", [[], [("boot", "ext4", "8:3")], [("efi", "vfat", "8:2"), ("efi", "tmpfs", "0:9")]])
def test_without_a_vfat_mount_there_is_no_esp(tmp_path: Path, mounts: list[tuple[str, str, str]]) -> None:
    info = mountinfo(tmp_path, *[(tmp_path / point, kind, device) for point, kind, device in mounts])
    with pytest.raises(EspNotFoundError, match="no VFAT"):
        BootPartitions.find(None, None, sysroot=Path("/"), host=tmp_path, mountinfo=info)
