"""An insecure repository becomes secure, whole or not at all, with a kernel that plays fs-verity."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm
from composefsd.errors import CorruptError, LockedError, ReadOnlyError
from composefsd.repository import Metadata, Repository, secure
from composefsd.repository.fsck import Severity, check
from composefsd.repository.secure import Count

SHA256 = Algorithm.SHA256

LOCKING = """
import os, signal, socket, sys
from pathlib import Path
from composefsd.repository import Repository
with Repository.open(Path(sys.argv[1])) as repo, repo.exclusive_lock(0) as fd:
    socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"!"], [fd])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def silent(_done: Count, _total: Count) -> None:
    pass


def has_verity(path: Path, kernel: Any) -> bool:
    status = path.stat()
    return (status.st_dev, status.st_ino) in kernel.digests


def objects(root: Path) -> list[Path]:
    return sorted(path for path in (root / "objects").rglob("*") if path.is_file())


@pytest.fixture
def bare(root: Path, verity_kernel: Any) -> Iterator[Repository]:
    """An insecure repository with some objects, none with fs-verity."""
    with Repository.create(root, Metadata.new(SHA256), insecure=True) as repo:
        for number in range(200):
            repo.objects.store(b"%d" % number * 50)
    verity_kernel.digests.clear()
    with Repository.open(root) as opened:
        yield opened


def make_secure(root: Path) -> int:
    """All the steps, in their order."""
    with Repository.open(root) as repo, repo.exclusive_lock(0):
        repo.clean_temporaries()
        assert list(secure.damages(repo, silent)) == []
        enabled = secure.enable(repo, silent)
        repo.sync()
        repo.make_secure()
        assert repo.verity
    return enabled


def test_every_object_and_the_metadata_get_verity(bare: Repository, root: Path, verity_kernel: Any) -> None:
    text = (root / "meta.json").read_bytes()
    assert make_secure(root) == 200
    assert all(has_verity(path, verity_kernel) for path in objects(root))
    assert has_verity(root / "meta.json", verity_kernel)
    assert (root / "meta.json").read_bytes() == text
    assert (root / "meta.json").stat().st_mode & 0o7777 == 0o644
    with Repository.open(root) as repo:
        assert repo.verity
        assert [found for found in check(repo, objects=True) if found.severity is Severity.ERROR] == []


def test_unknown_keys_of_the_metadata_survive(bare: Repository, root: Path) -> None:
    text = (root / "meta.json").read_bytes().replace(b"{\n", b'{\n  "later": [1, 2],\n', 1)
    (root / "meta.json").write_bytes(text)
    make_secure(root)
    assert (root / "meta.json").read_bytes() == text


def test_a_secure_repository_is_made_durable_and_nothing_else(bare: Repository, root: Path) -> None:
    make_secure(root)
    before = (root / "meta.json").stat()
    with Repository.open(root) as repo, repo.exclusive_lock(0):
        repo.make_secure()
    assert (root / "meta.json").stat() == before


def test_objects_with_verity_are_not_read(bare: Repository, root: Path, verity_kernel: Any) -> None:
    with Repository.open(root) as repo:
        secure.enable(repo, silent)
    victim = objects(root)[0]
    victim.chmod(0o600)
    victim.write_bytes(b"not what the kernel would have let anybody write")
    with Repository.open(root) as repo:
        assert list(secure.damages(repo, silent)) == []


def test_everybody_who_opened_it_before_demands_verity_once_it_has_the_lock(
    bare: Repository, root: Path, verity_kernel: Any
) -> None:
    digest = bare.objects.store(b"stored without")
    make_secure(root)
    verity_kernel.strip(root / "objects" / digest.hex()[:2] / digest.hex()[2:])
    assert not bare.verity
    os.close(bare.objects.open(digest))
    with bare.shared_lock(0):
        assert bare.verity
        with pytest.raises(CorruptError, match="no fs-verity"):
            bare.objects.open(digest)


def test_a_copy_of_the_locks_descriptor_outlives_the_process_that_took_it(bare: Repository, root: Path) -> None:
    ours, theirs = socket.socketpair()
    program = [sys.executable, "-c", LOCKING, str(root), str(theirs.fileno())]
    with ours, theirs:
        assert subprocess.run(program, pass_fds=[theirs.fileno()], check=False).returncode == -signal.SIGKILL
        _, (copy,), _, _ = socket.recv_fds(ours, 1, 1)
    with pytest.raises(LockedError), bare.exclusive_lock(0):
        pass
    os.close(copy)
    with bare.exclusive_lock(0):
        pass


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "directory", "link", "unreadable name"])
def test_every_damage_is_told_and_nothing_is_changed(
    bare: Repository, root: Path, verity_kernel: Any, damage: str
) -> None:
    victim = objects(root)[3]
    content = victim.read_bytes()
    match damage:
        case "flipped":
            victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "cut":
            victim.write_bytes(content[:-1])
        case "empty":
            victim.write_bytes(b"")
        case "directory":
            victim.unlink()
            victim.mkdir()
        case "link":
            victim.rename(root / "elsewhere")
            victim.symlink_to(root / "elsewhere")
        case _:
            victim = victim.rename(victim.with_name("notes\udcff"))
    with Repository.open(root) as repo:
        (found,) = secure.damages(repo, silent)
    assert found.subject == os.fsencode(victim.relative_to(root)).decode(errors="replace")
    found.message.encode()
    assert verity_kernel.digests == {}


def test_a_name_in_upper_case_is_one_to_composefs_rs_and_here(bare: Repository, root: Path) -> None:
    victim = next(path for path in objects(root) if not path.name.isdecimal())
    victim.rename(victim.with_name(victim.name.upper()))
    assert make_secure(root) == 200


def test_an_object_that_changes_after_it_was_checked_stops_it(bare: Repository, root: Path) -> None:
    victim = objects(root)[-1]
    victim.write_bytes(b"changed")
    with Repository.open(root) as repo, pytest.raises(CorruptError, match="has the digest"):
        secure.enable(repo, silent)
    with Repository.open(root) as repo:
        assert not repo.verity


def test_an_object_that_is_open_for_writing_stops_it(bare: Repository, root: Path) -> None:
    victim = objects(root)[7]
    with victim.open("r+b"), Repository.open(root) as repo, pytest.raises(LockedError, match=victim.name):
        secure.enable(repo, silent)
    assert make_secure(root) > 0


def test_progress_counts_objects_and_bytes(bare: Repository, root: Path) -> None:
    told: list[tuple[Count, Count]] = []
    with Repository.open(root) as repo:
        assert list(secure.damages(repo, lambda done, total: told.append((done, total)))) == []
    total = Count(200, sum(path.stat().st_size for path in objects(root)))
    assert {total for _, total in told} == {total}
    assert told[0][0] == Count()
    assert told[-1][0] == total
    assert [done.objects for done, _ in told] == [0, 64, 128, 192, 200]


def test_a_repository_for_reading_is_not_made_secure(bare: Repository, root: Path) -> None:
    with Repository.open(root, writable=False) as repo, pytest.raises(ReadOnlyError):
        repo.make_secure()


def test_after_a_power_cut_at_any_write_it_is_insecure_and_completed_by_the_next_call_or_secure(
    tmp_path: Path, verity_kernel: Any, disk: Any, power_cut: Any
) -> None:
    def made(root: Path) -> None:
        with Repository.create(root, Metadata.new(SHA256), insecure=True) as repo:
            for number in range(5):
                repo.objects.store(b"%d" % number)
        for path in (root / "meta.json", *objects(root)):  # the first may have the inode of one that is gone
            verity_kernel.strip(path)

    disk.heal()
    made(tmp_path / "undisturbed")
    disk.heal()
    make_secure(tmp_path / "undisturbed")
    writes = len(disk.log)
    assert writes >= 6
    for at in range(writes):
        root = tmp_path / str(at)
        disk.heal()
        made(root)
        disk.fail(at, power_cut())
        with pytest.raises(power_cut):
            make_secure(root)
        disk.heal()
        with Repository.open(root) as repo:
            # only the flush of the directory comes after the switch
            assert repo.verity == (at == writes - 1)
            assert [found for found in check(repo, objects=True) if found.severity is Severity.ERROR] == []
        make_secure(root)
        assert has_verity(root / "meta.json", verity_kernel)
        assert sorted(path.name for path in root.iterdir()) == ["meta.json", "objects"]
