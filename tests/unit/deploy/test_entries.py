from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import bls
from composefsd.deploy import entries
from composefsd.deploy.entries import entry_text, in_menu_order, menu_title, naming, objection, scan
from composefsd.deploy.names import DeploymentName, uki_path
from composefsd.deploy.volume import Volume
from composefsd.errors import LimitExceededError, UnsupportedError

B = "0123456789abcdef" * 8


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Volume]:
    with Volume.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "loader/entries"
    made.mkdir(parents=True)
    return made


def ours(seq: int, counters: str = "") -> str:
    return f"{DeploymentName.make('debian', seq, B)}{counters}.conf"


def text(seq: int, sort_key: str = "debian") -> str:
    return entry_text(f"Debian {seq}", sort_key, seq, [("uki", f"/{uki_path(B)}")])


def test_an_entry_is_what_systemd_boot_reads() -> None:
    assert text(17) == (
        f"title      Debian 17\nversion    17\nsort-key   composefsd-debian\nuki        /{uki_path(B)}\n"
    )


@given(st.text(max_size=60))
def test_any_title_becomes_one_line(title: str) -> None:
    parsed = bls.Entry.parse(entry_text(menu_title(title, 3), "x", 3, []).encode("utf-8", "replace"))
    assert (parsed.value("title") or "").endswith("(deployment 3)")
    assert len(parsed.fields) == 3


def test_entries_are_found_whatever_their_counters(boot: Volume, directory: Path) -> None:
    (directory / ours(7, "+2-1")).write_text(text(7))
    (found,) = scan(boot)
    assert found.is_of(7, B)
    assert not found.is_of(8, B)
    assert not found.is_of(7, "ff" * 64)
    assert found.name is not None
    assert (found.name.left, found.name.done) == (2, 1)
    assert found.boot_digest == B
    assert entries.remove(boot, 7, B) == len(text(7))
    assert list(directory.iterdir()) == []


def test_the_newest_number_boots_unless_its_tries_are_used_up(boot: Volume, directory: Path) -> None:
    for seq, counters in ((9, ""), (10, ""), (11, "+0-3"), (2, "")):
        (directory / ours(seq, counters)).write_text(text(seq))
    (directory / "arch.conf").write_text("title Arch\nlinux /vmlinuz\n")
    (directory / "nothing.conf").write_text("title Nothing to start\nsort-key a\n")
    (directory / "garbage.conf").write_bytes(b"\xff\0")
    order = [found.file_name for found in in_menu_order(scan(boot))]
    assert order == [ours(10), ours(9), ours(2), "arch.conf", ours(11, "+0-3")]


def test_an_entry_keeps_the_payload_that_it_names_in_any_spelling(boot: Volume, directory: Path) -> None:
    (directory / "bootc_x-1-1.conf").write_text(f"efi \\efi\\linux\\BOOTC\\BOOTC_COMPOSEFS-{B.upper()}.EFI\n")
    (directory / "other.conf").write_text("linux /vmlinuz\n")
    present = scan(boot)
    assert [found.file_name for found in naming(present, f"bootc_composefs-{B}")] == ["bootc_x-1-1.conf"]


def test_an_entry_that_cannot_be_read_may_name_anything(boot: Volume, directory: Path) -> None:
    (directory / "long.conf").write_bytes(b"x" * ((64 << 10) + 1))
    (directory / "link.conf").symlink_to("/etc/shadow")
    (directory / "directory.conf").mkdir()
    present = scan(boot)
    assert [found.file_name for found in naming(present, "anything")] == ["link.conf", "long.conf"]
    assert in_menu_order(present) == []


def test_more_entries_than_any_loader_shows_are_refused(
    boot: Volume, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_MAX_TOTAL_BYTES", 100)
    for number in range(3):
        (directory / f"{number}.conf").write_bytes(b"x" * 40)
    with pytest.raises(LimitExceededError):
        scan(boot)


def test_a_new_directory_is_marked_as_following_the_specification(boot: Volume, tmp_path: Path) -> None:
    assert objection(boot, scan(boot)) is None
    entries.write(boot, ours(1), text(1))
    assert (tmp_path / "loader/entries.srel").read_bytes() == b"type1\n"
    assert (tmp_path / "loader/entries" / ours(1)).read_text() == text(1)
    assert objection(boot, scan(boot)) is None


@pytest.mark.parametrize("content", [b"", b"grub\n", b"type1 type2\n", b"x" * 200])
def test_a_directory_of_other_rules_is_left_alone(
    boot: Volume, tmp_path: Path, directory: Path, content: bytes
) -> None:
    (tmp_path / "loader/entries.srel").write_bytes(content)
    assert "does not follow" in (objection(boot, []) or "")


def test_entries_of_others_without_the_mark_are_an_objection(boot: Volume, directory: Path) -> None:
    (directory / "fedora.conf").write_text("linux /vmlinuz\n")
    assert "fedora.conf" in (objection(boot, scan(boot)) or "")
    (directory.parent / "entries.srel").write_text("type1\n")
    assert objection(boot, scan(boot)) is None


def test_an_entry_never_replaces_another(boot: Volume, directory: Path) -> None:
    (directory / ours(1)).write_text("theirs")
    with pytest.raises(UnsupportedError):
        entries.write(boot, ours(1), text(1))
    assert (directory / ours(1)).read_text() == "theirs"


def test_only_temporary_files_of_ours_are_swept(boot: Volume, directory: Path) -> None:
    boot.stage(f"loader/entries/{ours(1)}", [b"x"])
    boot.stage("loader/entries.srel", [b"x"])
    for name in (".#foreign", "kept.conf"):
        (directory / name).touch()
    entries.sweep(boot)
    assert {path.name for path in directory.iterdir()} == {".#foreign", "kept.conf"}
    assert [path.name for path in directory.parent.iterdir()] == ["entries"]
