"""The object store: what is stored, under which name, and what never becomes visible."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from composefsd import verity
from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import (
    ComposefsdError,
    CorruptError,
    DeviceError,
    DigestMismatchError,
    LimitExceededError,
    LockedError,
    NoSpaceError,
    ObjectMissingError,
    ReadOnlyError,
)
from composefsd.repository import Metadata, Repository

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
HELLO = bytes.fromhex("1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64")

STORER = """
import sys
from pathlib import Path
from composefsd.repository import Repository
with Repository.open(Path(sys.argv[1])) as repo:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(300):
        repo.objects.store(b"object %d " % number * number)
    print(repo.objects.added, repo.objects.reused)
"""


def stored(root: Path) -> dict[str, bytes]:
    """All files below `objects`, by their paths there."""
    objects = root / "objects"
    return {str(path.relative_to(objects)): path.read_bytes() for path in objects.rglob("*") if path.is_file()}


def secure(root: Path, algorithm: Algorithm = SHA256) -> Repository:
    return Repository.create(root, Metadata.new(algorithm), insecure=False)


def test_an_object_is_named_by_its_fs_verity_digest(repo: Repository, root: Path) -> None:
    assert repo.objects.store(b"hello world") == HELLO
    assert stored(root) == {"1e/" + HELLO.hex()[2:]: b"hello world"}
    assert repo.objects.has(HELLO)
    assert repo.objects.read(HELLO, 11) == b"hello world"


def test_sha512_objects_have_long_names(root: Path) -> None:
    with Repository.create(root, Metadata.new(SHA512), insecure=True) as repo:
        digest = repo.objects.store(memoryview(b"hello world"))
    assert stored(root) == {ObjectId(digest).path: b"hello world"}
    assert len(digest) == 64


def test_an_empty_object_is_an_object(repo: Repository) -> None:
    assert repo.objects.read(repo.objects.store(b""), 0) == b""


def test_the_umask_does_not_show(repo: Repository, root: Path) -> None:
    old = os.umask(0o077)
    try:
        repo.objects.store(b"hello world")
        with repo.objects.writer() as writer:
            writer.write(b"other")
            writer.commit()
    finally:
        os.umask(old)
    for path in (root / "objects").rglob("*"):
        assert path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644), path
    assert (root / "objects").stat().st_mode & 0o7777 == 0o755


def test_the_same_object_is_stored_once_and_counted(repo: Repository, root: Path) -> None:
    inode = None
    for _ in range(2):
        path = root / "objects" / ObjectId(repo.objects.store(b"hello world")).path
        assert inode in (None, path.stat().st_ino)
        inode = path.stat().st_ino
    assert (repo.objects.added, repo.objects.reused, repo.objects.bytes_added) == (1, 1, 11)


def test_an_object_that_comes_in_pieces_is_the_same_object(repo: Repository, root: Path) -> None:
    data = os.urandom(600_000)
    with repo.objects.writer(len(data)) as writer:
        for at in range(0, len(data), 70_001):
            writer.write(data[at : at + 70_001])
        digest = writer.commit()
    assert digest == verity.compute_digest(data, SHA256)
    assert repo.objects.read(digest, len(data)) == data
    assert repo.objects.store(data) == digest
    assert (repo.objects.added, repo.objects.reused) == (1, 1)
    with repo.objects.writer() as writer:
        writer.write(data)
        assert writer.commit() == digest
    assert len(stored(root)) == 1


def test_a_writer_that_is_not_committed_leaves_nothing(repo: Repository, root: Path) -> None:
    with repo.objects.writer() as writer:
        writer.write(b"data")
    writer = repo.objects.writer()
    writer.abort()
    writer.abort()
    assert stored(root) == {}


def test_an_object_larger_than_the_free_space_is_refused_before_it_comes(repo: Repository) -> None:
    with pytest.raises(NoSpaceError) as caught:
        repo.objects.writer(1 << 60)
    assert caught.value.facts["needed_bytes"] == 1 << 60
    assert caught.value.facts["partition"] == "repository"


def test_a_file_that_another_process_wrote_is_adopted(repo: Repository, root: Path) -> None:
    for _ in range(2):
        fd = repo.objects.temporary()
        script = f"import os; os.write({fd}, b'hello world')"
        subprocess.run([sys.executable, "-c", script], pass_fds=[fd], check=True)
        repo.objects.adopt(fd, HELLO)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert list(stored(root).values()) == [b"hello world"]
    assert (repo.objects.added, repo.objects.reused) == (1, 1)


def test_a_discarded_file_leaves_nothing(repo: Repository, root: Path) -> None:
    fd = repo.objects.temporary()
    os.write(fd, b"data")
    repo.objects.discard(fd)
    repo.objects.temporary()
    repo.close()
    assert stored(root) == {}


def test_a_missing_object_is_an_error_that_names_it(repo: Repository) -> None:
    assert not repo.objects.has(HELLO)
    for read in (lambda: repo.objects.open(HELLO), lambda: repo.objects.read(HELLO, 100)):
        with pytest.raises(ObjectMissingError) as caught:
            read()
        assert caught.value.facts["subject"] == HELLO.hex()


def test_reading_is_bounded(repo: Repository) -> None:
    repo.objects.store(b"hello world")
    with pytest.raises(LimitExceededError):
        repo.objects.read(HELLO, 10)


def test_content_that_rotted_is_not_handed_out(repo: Repository, root: Path) -> None:
    path = root / "objects" / ObjectId(repo.objects.store(b"hello world")).path
    path.write_bytes(b"hello World")
    with pytest.raises(CorruptError):
        repo.objects.read(HELLO, 100)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_regular_file_is_not_opened(repo: Repository, root: Path, make: Any) -> None:
    path = root / "objects" / ObjectId(HELLO).path
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(ComposefsdError):
        repo.objects.open(HELLO)


def test_an_object_that_a_power_cut_emptied_is_replaced(repo: Repository, root: Path) -> None:
    path = root / "objects" / ObjectId(repo.objects.store(b"hello world")).path
    for store in (repo.objects.store, lambda data: repo.objects.adopt(filled(repo, data), HELLO)):
        path.write_bytes(b"hel")
        store(b"hello world")
        assert stored(root) == {ObjectId(HELLO).path: b"hello world"}
    assert repo.objects.added == 3


def filled(repo: Repository, data: bytes) -> int:
    fd = repo.objects.temporary()
    os.write(fd, data)
    return fd


def store_three(repo: Repository) -> None:
    """One object each way."""
    repo.objects.store(b"hello world")
    with repo.objects.writer() as writer:
        writer.write(b"in pieces")
        writer.commit()
    fd = repo.objects.temporary()
    os.pwrite(fd, b"filled", 0)
    repo.objects.adopt(fd, verity.compute_digest(b"filled", SHA256))


THREE = {
    ObjectId(verity.compute_digest(data, SHA256)).path: data for data in (b"hello world", b"in pieces", b"filled")
}


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EROFS, ReadOnlyError),
        (errno.EIO, DeviceError),
    ],
)
def test_whatever_call_fails_is_reported_and_nothing_stays(
    tmp_path: Path, disk: Any, number: int, error: type[ComposefsdError]
) -> None:
    for at in range(100):
        disk.heal()
        root = tmp_path / str(at)
        with Repository.create(root, Metadata.new(SHA256), insecure=True) as repo:
            disk.fail(at, OSError(number, os.strerror(number)))
            with suppress(error):
                store_three(repo)
            assert stored(root).items() <= THREE.items()
        if not disk.failed:
            break
    assert at > 15
    assert stored(root) == THREE


def test_without_o_tmpfile_objects_get_a_temporary_name_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Any
) -> None:
    opened = os.open

    def no_tmpfile(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", no_tmpfile)
    for at in range(100):
        disk.heal()
        root = tmp_path / str(at)
        with Repository.create(root, Metadata.new(SHA256), insecure=True) as repo:
            disk.fail(at, OSError(errno.ENOSPC, "full"))
            with suppress(NoSpaceError):
                store_three(repo)
            failed = disk.failed and disk.log[at]
            disk.heal()
            # the name cannot go if the disk will not let it
            assert repo.clean_temporaries() == (failed == "unlink")
            assert stored(root).items() <= THREE.items()
        if not failed:
            break
    assert at > 20
    assert stored(root) == THREE


def test_processes_that_store_the_same_objects_share_them(repo: Repository, root: Path) -> None:
    storers = [
        subprocess.Popen(
            [sys.executable, "-c", STORER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for storer in storers:
        assert storer.stdout is not None
        assert storer.stdout.readline() == "ready\n"
    counts = [[*map(int, storer.communicate("go\n")[0].split())] for storer in storers]
    assert [storer.returncode for storer in storers] == [0, 0, 0]
    assert sum(added for added, _ in counts) == 300
    assert all(added + reused == 300 for added, reused in counts)
    assert len(stored(root)) == 300
    for name, data in stored(root).items():
        assert ObjectId(verity.compute_digest(data, SHA256)).path == name


def test_a_repository_opened_for_reading_takes_nothing(repo: Repository, root: Path) -> None:
    with Repository.open(root, writable=False) as reader:
        for write in (lambda: reader.objects.store(b"x"), reader.objects.writer, reader.objects.temporary):
            with pytest.raises(ReadOnlyError, match="opened for reading"):
                write()
    assert stored(root) == {}


# With fs-verity, played by the kernel in conftest


def test_secure_objects_get_fs_verity_before_their_name(root: Path, verity_kernel: Any, disk: Any) -> None:
    with secure(root) as repo:
        digest = repo.objects.store(b"hello world")
        with repo.objects.writer() as writer:
            writer.write(b"in pieces")
            writer.commit()
        repo.objects.adopt(filled(repo, b"filled"), verity.compute_digest(b"filled", SHA256))
        os.close(repo.objects.open(digest))
    assert sorted(stored(root).values()) == [b"filled", b"hello world", b"in pieces"]
    assert len(verity_kernel.digests) == 4  # and meta.json


def test_a_writer_elsewhere_makes_us_go_on_with_a_copy(root: Path, verity_kernel: Any) -> None:
    with secure(root) as repo:
        verity_kernel.busy = 5
        assert repo.objects.store(b"hello world") == HELLO
        assert repo.objects.read(HELLO, 100) == b"hello world"
        verity_kernel.busy = 10_000
        with pytest.raises(LockedError):
            repo.objects.store(b"other")
    assert list(stored(root).values()) == [b"hello world"]


def test_a_file_that_is_not_what_was_promised_is_not_adopted(root: Path, verity_kernel: Any) -> None:
    with secure(root) as repo:
        with pytest.raises(DigestMismatchError) as caught:
            repo.objects.adopt(filled(repo, b"hello World"), HELLO)
        assert caught.value.facts["expected"] == HELLO.hex()
    assert stored(root) == {}


def test_an_existing_object_without_fs_verity_gets_it(root: Path, verity_kernel: Any) -> None:
    with secure(root) as repo:
        path = root / "objects" / ObjectId(repo.objects.store(b"hello world")).path
        verity_kernel.strip(path)
        with pytest.raises(CorruptError, match="no fs-verity"):
            repo.objects.open(HELLO)
        repo.objects.store(b"hello world")
        os.close(repo.objects.open(HELLO))


@pytest.mark.parametrize("content", [b"hello World", b"hel"])
def test_an_existing_object_of_other_content_is_corruption(root: Path, verity_kernel: Any, content: bytes) -> None:
    with secure(root) as repo:
        path = root / "objects" / ObjectId(repo.objects.store(b"hello world")).path
        verity_kernel.strip(path)
        path.write_bytes(content)
        with pytest.raises(CorruptError):
            repo.objects.store(b"hello world")
        with pytest.raises(CorruptError):
            repo.objects.adopt(filled(repo, b"hello world"), HELLO)


def test_an_insecure_repository_uses_fs_verity_where_there_is_some(repo: Repository, verity_kernel: Any) -> None:
    repo.objects.store(b"hello world")
    assert [digest for _, digest in verity_kernel.digests.values()] == [HELLO]
    assert repo.objects.read(HELLO, 100) == b"hello world"
