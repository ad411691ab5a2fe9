import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefsd.deploy import volume
from composefsd.deploy.volume import Volume, is_temporary, split, temporary_name
from composefsd.errors import (
    DeviceError,
    FormatError,
    LimitExceededError,
    NoSpaceError,
    ReadOnlyError,
    UnsupportedError,
)


@pytest.fixture
def steps() -> list[str]:
    return []


@pytest.fixture
def tree(tmp_path: Path, steps: list[str]) -> Iterator[Volume]:
    with Volume.open(tmp_path, steps.append) as opened:
        yield opened


def test_a_file_is_durable_before_it_has_its_name_and_its_name_before_the_call_returns(
    tree: Volume, steps: list[str]
) -> None:
    tree.ensure_directory("EFI/Linux")
    steps.clear()
    tree.stage("EFI/Linux/a.efi", [b"one", b"two"])
    tree.publish("EFI/Linux/a.efi")
    assert steps == [
        "create EFI/Linux/a.efi",
        "write EFI/Linux/a.efi at 0",
        "write EFI/Linux/a.efi at 3",
        "sync EFI/Linux/a.efi",
        "rename EFI/Linux/a.efi",
        "sync EFI/Linux/",
    ]


def test_a_staged_file_has_a_temporary_name_in_its_directory(tree: Volume, tmp_path: Path) -> None:
    size, sha256 = tree.stage("entry.conf", [b"title x\n"])
    assert [path.name for path in tmp_path.iterdir()] == [".#entry.conf.composefsd"]
    assert is_temporary(temporary_name("entry.conf"))
    tree.publish("entry.conf")
    assert tree.digest("entry.conf") == (size, sha256) == (8, sha256)
    assert (tmp_path / "entry.conf").read_bytes() == b"title x\n"


def test_publishing_never_replaces_a_file(tree: Volume, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"theirs")
    tree.stage("a", [b"ours"])
    with pytest.raises(UnsupportedError, match="cannot rename a: File exists"):
        tree.publish("a")
    assert (tmp_path / "a").read_bytes() == b"theirs"


def test_publishing_never_replaces_a_file_where_the_kernel_lacks_the_flag(
    tree: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "_RENAME_NOREPLACE", 1 << 20)  # a flag that no filesystem has: EINVAL
    tree.write_new("new", b"ours")
    assert (tmp_path / "new").read_bytes() == b"ours"
    (tmp_path / "old").write_bytes(b"theirs")
    with pytest.raises(UnsupportedError):
        tree.write_new("old", b"ours")
    assert (tmp_path / "old").read_bytes() == b"theirs"


def test_replacing_leaves_one_file_with_the_new_content(tree: Volume, tmp_path: Path) -> None:
    tree.ensure_directory("d")
    (tmp_path / "d" / temporary_name("r")).write_bytes(b"left over")
    for content in (b"1", b"2"):
        tree.replace("d/r", content)
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == {"r": b"2"}


def test_links_are_never_followed(tree: Volume, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "EFI").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside / "secret")
    for attempt in (
        lambda: tree.read("EFI/secret", 100),
        lambda: tree.read("file", 100),
        lambda: tree.digest("file"),
        lambda: tree.names("EFI"),
        lambda: tree.stage("EFI/new", [b"x"]),
        lambda: tree.remove("EFI/secret"),
        lambda: tree.ensure_directory("EFI/Linux"),
    ):
        with pytest.raises(UnsupportedError):
            attempt()
    assert [path.name for path in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize("path", ["../x", "a/../b", "/a", "a//b", "a/", ".", "a\\b", "a\0b", "x" * 256])
def test_paths_stay_inside_the_volume(tree: Volume, path: str) -> None:
    for attempt in (lambda: split(path), lambda: tree.read(path, 1), lambda: tree.remove(path)):
        with pytest.raises(FormatError):
            attempt()


def test_special_files_do_not_hang_us(tree: Volume, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsupportedError, match="not a regular file"):
        tree.read("fifo", 100)


def test_reading_is_bounded(tree: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long").write_bytes(b"12345")
    assert tree.read("long", 5) == b"12345"
    with pytest.raises(LimitExceededError):
        tree.read("long", 4)
    monkeypatch.setattr(volume, "_MAX_NAMES", 1)
    (tmp_path / "second").touch()
    with pytest.raises(LimitExceededError):
        tree.names("")


def test_what_is_missing_is_no_error(tree: Volume) -> None:
    assert tree.read("no/such", 1) is None
    assert tree.digest("no") is None
    assert tree.stat("no/such") is None
    assert tree.names("no") == []
    assert tree.remove("no/such") is None
    assert not tree.remove_directory("no")


def test_a_directory_with_something_in_it_stays(tree: Volume, tmp_path: Path) -> None:
    tree.ensure_directory("a/b")
    assert not tree.remove_directory("a")
    assert tree.remove_directory("a/b")
    assert tree.remove_directory("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EROFS, ReadOnlyError),
        (errno.EIO, DeviceError),
        (errno.ELOOP, UnsupportedError),
    ],
)
def test_system_errors_become_ours_and_name_volume_and_path(
    tmp_path: Path, code: int, expected: type[Exception]
) -> None:
    def fail(_step: str) -> None:
        raise OSError(code, os.strerror(code))

    with Volume.open(tmp_path, fail) as tree, pytest.raises(expected, match=f"{tmp_path}: cannot write a"):
        tree.stage("a", [b""])


def test_a_full_volume_tells_how_much_is_free(tmp_path: Path) -> None:
    def fail(_step: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    with Volume.open(tmp_path, fail) as tree, pytest.raises(NoSpaceError) as caught:
        tree.ensure_directory("a")
    free_bytes = caught.value.facts["free_bytes"]
    assert caught.value.facts["partition"] == str(tmp_path)
    assert isinstance(free_bytes, int)
    assert abs(free_bytes - tree_free(tmp_path)) < 1 << 30  # others use the same disk meanwhile


def tree_free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_sizes_are_rounded_to_clusters() -> None:
    space = volume.Space(4096, 0, 0, read_only=False)
    assert [space.rounded(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
