"""A directory as a tree.  Trees with devices and root's attributes were compared with cfsctl by hand."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.errors import ComposefsdError, FormatError, LimitExceededError
from composefsd.linux import scan as module
from composefsd.linux.scan import scan
from composefsd.tree.table import ROOT, Kind, Tree

SECOND = 1_000_000_000
SHA512 = Algorithm.SHA512


def paths(tree: Tree) -> list[bytes]:
    return [path for path, _entry, _inode in tree.walk()]


def inode(tree: Tree, path: bytes) -> int:
    found = tree.find(path)
    assert found is not None
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "small").write_bytes(b"x" * 64)
    (tmp_path / "large").write_bytes(b"x" * 65)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to("../nowhere")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # the name of a socket has to be short
        listener.bind("socket")
    tree = scan(tmp_path, SHA512)
    kinds = {path: Kind(tree.kind[inode]) for path, _entry, inode in tree.walk()}
    assert kinds == {
        b"/dir": Kind.DIRECTORY, b"/small": Kind.INLINE, b"/large": Kind.EXTERNAL, b"/empty": Kind.INLINE,
        b"/link": Kind.SYMLINK, b"/fifo": Kind.FIFO, b"/socket": Kind.SOCKET,
    }  # fmt: skip
    assert tree.text(inode(tree, b"/small")) == b"x" * 64
    assert tree.text(inode(tree, b"/link")) == b"../nowhere"
    large = inode(tree, b"/large")
    assert (tree.size[large], tree.object_id(large)) == (65, verity.compute(b"x" * 65, SHA512))


def test_metadata_is_kept_to_the_nanosecond_and_of_the_mode_the_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    file.chmod(0o4711)
    os.utime(file, ns=(0, 17 * SECOND + 5))
    tmp_path.chmod(0o750)
    os.utime(tmp_path, ns=(0, -1))
    tree = scan(tmp_path, SHA512)
    stat = tree.stat(inode(tree, b"/file"))
    assert (stat.mode, stat.mtime, stat.nsec) == (0o4711, 17, 5)
    assert (stat.uid, stat.gid) == (os.getuid(), os.getgid())
    root = tree.stat(ROOT)
    assert (root.mode, root.mtime, root.nsec) == (0o750, -1, SECOND - 1)


def test_the_mode_and_time_of_a_symbolic_link_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    os.utime(tmp_path / "link", ns=(0, 9 * SECOND), follow_symlinks=False)
    tree = scan(tmp_path, SHA512)
    assert (tree.stat(inode(tree, b"/link")).mode, tree.mtime[inode(tree, b"/link")]) == (0o777, 9)


def test_extended_attributes_are_read_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    expected = []
    with suppress(OSError):  # not every filesystem has them
        for name, value in (("user.b", b"\0="), ("user.a", b"")):
            os.setxattr(tmp_path / "file", name, value)
            expected.insert(0, (name.encode(), value))
    tree = scan(tmp_path, SHA512)
    found = tree.stat(inode(tree, b"/file")).xattrs
    assert [pair for pair in found if pair[0].startswith(b"user.")] == expected


def test_names_that_share_an_inode_are_hard_links(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "dir" / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"x" * 100)
    stored: list[int] = []

    def store(fd: int, size: int) -> bytes:
        stored.append(size)
        return verity.compute_file(fd, SHA512).digest

    tree = scan(tmp_path, SHA512, store)
    assert inode(tree, b"/a") == inode(tree, b"/dir/b") != inode(tree, b"/c")
    assert stored == [100, 100]


def test_names_are_bytes(tmp_path: Path) -> None:
    for name in (b"\xff\xfe", "é".encode(), b"a b\n", b"-"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert paths(scan(tmp_path, SHA512)) == [b"/-", b"/a b\n", "/é".encode(), b"/\xff\xfe"]


def test_the_store_can_read_the_file_and_its_digest_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    tree = scan(tmp_path, Algorithm.SHA256, lambda fd, size: os.read(fd, size)[:32])
    assert tree.digest(inode(tree, b"/file")) == b"x" * 32


def test_directories_that_become_links_meanwhile_do_not_lead_out(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    names = [f"d{number}" for number in range(8)]
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "large").write_bytes(b"x" * 100)

    def store(_fd: int, _size: int) -> bytes:
        for number, name in enumerate(names):
            if not (root / name).is_symlink():
                (root / name).rename(tmp_path / f"gone{number}")
                (root / name).symlink_to(outside)
        return b"d" * 64

    tree = scan(root, SHA512, store)
    assert [tree.kind[inode(tree, b"/" + name.encode())] for name in names].count(Kind.SYMLINK) == 7
    assert not [path for path in paths(tree) if b"secret" in path]


def test_a_root_that_is_a_link_or_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file", "none"):
        with pytest.raises(ComposefsdError, match=name):
            scan(tmp_path / name, SHA512)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)

    def store(_fd: int, size: int) -> bytes:
        file.write_bytes(b"x" * (size + 1))
        return b"d" * 64

    with pytest.raises(FormatError, match="changed") as caught:
        scan(tmp_path, SHA512, store)
    assert caught.value.facts["subject"] == "file"


def test_a_name_that_vanishes_is_an_error_that_tells_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x" * 100)

    def store(_fd: int, _size: int) -> bytes:
        for name in ("a", "b", "c"):
            (tmp_path / name).unlink(missing_ok=True)
        return b"d" * 64

    with pytest.raises(ComposefsdError, match="No such file"):
        scan(tmp_path, SHA512, store)


def test_depth_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DEPTH", 4)
    (tmp_path / "a/b/c").mkdir(parents=True)
    assert paths(scan(tmp_path, SHA512)) == [b"/a", b"/a/b", b"/a/b/c"]
    (tmp_path / "a/b/c/d").mkdir()
    with pytest.raises(LimitExceededError, match="a/b/c/d"):
        scan(tmp_path, SHA512)


def test_no_descriptor_stays_open_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x" * 100)

    def store(_fd: int, _size: int) -> bytes:
        raise FormatError("no")

    before = descriptors()
    scan(tmp_path, SHA512)
    with pytest.raises(FormatError):
        scan(tmp_path, SHA512, store)
    with pytest.raises(ComposefsdError):
        scan(tmp_path / "none", SHA512)
    assert descriptors() == before
