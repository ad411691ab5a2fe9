import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.deploy.names import (
    ADDON_NAME,
    PAYLOAD_PATH,
    DeploymentName,
    addon_path,
    ancestors,
    initrd_path,
    kernel_path,
    reduced_os_id,
    uki_path,
)

B = "0123456789abcdef" * 8


def test_an_entry_has_os_number_and_digest_in_its_name() -> None:
    assert str(DeploymentName.make("opensuse-microos", 17, B)) == "composefsd-opensuse_microos-000017-0123456789ab"


@given(st.text(max_size=40), st.integers(1, 10**9 - 1))
def test_names_of_entries_are_read_back(os_id: str, seq: int) -> None:
    name = DeploymentName.make(os_id, seq, B)
    assert DeploymentName.parse(str(name)) == name
    assert DeploymentName.parse(str(name).upper()) == name  # VFAT may have kept a name in upper case


@pytest.mark.parametrize(
    "stem",
    [
        "bootc_debian-13-1",
        "composefsd-debian-1-0123456789ab",
        "composefsd-debian-000001-0123456789ab.conf",
        "composefsd-debian-000001-0123456789ab+3",
        "composefsd-deb-ian-000001-0123456789ab",
        ".#composefsd-debian-000001-0123456789ab",
    ],
)
def test_names_of_others_are_not_ours(stem: str) -> None:
    assert DeploymentName.parse(stem) is None


@pytest.mark.parametrize(
    ("os_id", "expected"),
    [
        ("debian", "debian"),
        ("Fedora Linux", "fedoralinux"),
        ("opensuse-leap", "opensuse_leap"),
        ("a.b+3", "ab3"),
        ("…", "linux"),
        ("x" * 40, "x" * 24),
    ],
)
def test_os_ids_are_reduced_to_what_a_name_may_hold(os_id: str, expected: str) -> None:
    assert reduced_os_id(os_id) == expected


def test_payload_is_named_as_bootc_names_it() -> None:
    assert uki_path(B) == f"EFI/Linux/bootc/bootc_composefs-{B}.efi"
    assert addon_path(B, "a.addon.efi") == f"EFI/Linux/bootc/bootc_composefs-{B}.efi.extra.d/a.addon.efi"
    assert kernel_path(B) == f"EFI/Linux/bootc_composefs-{B}/vmlinuz"
    assert initrd_path(B) == f"EFI/Linux/bootc_composefs-{B}/initrd"


def test_no_path_of_an_initrd_is_a_part_of_another() -> None:
    paths = [initrd_path(B, number) for number in range(1, 17)]
    assert paths[1].endswith("/2-initrd")
    assert [(a, b) for a in paths for b in paths if a is not b and f"/{a}" in f"/{b}"] == []
    assert all(PAYLOAD_PATH.fullmatch(path) for path in paths)


def test_only_payload_has_a_payload_path() -> None:
    for path in (uki_path(B), addon_path(B, "a.addon.efi"), kernel_path(B), initrd_path(B)):
        assert PAYLOAD_PATH.fullmatch(path)
    for path in (
        "EFI/BOOT/BOOTX64.EFI",
        f"EFI/Linux/bootc_composefs-{B}/../x",
        "EFI/Linux/debian.efi",
        uki_path(B[1:]),
    ):
        assert not PAYLOAD_PATH.fullmatch(path)


def test_addon_names_are_of_the_specification_s_characters() -> None:
    assert ADDON_NAME.fullmatch("50-console.addon.efi")
    for name in (".addon.efi", "a/b.addon.efi", "a b.addon.efi", "..", "a.efi", "x" * 200 + ".addon.efi"):
        assert not ADDON_NAME.fullmatch(name)


def test_ancestors_of_directories_are_told_without_the_root() -> None:
    assert ancestors({"loader/entries", "EFI"}) == {"loader", "loader/entries", "EFI"}
