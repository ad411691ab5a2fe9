"""Mending: what is put in the place of something broken, in one step, and what is left alone."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs import writer as erofs
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, CorruptError, ObjectMissingError
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import check
from composefsd.repository.mend import adopt_file, link_image, link_stream
from composefsd.splitstream import Splitstream
from composefsd.tree.table import ROOT, Stat, Tree

SHA256 = Algorithm.SHA256
CONTENT = b"content" * 10


def image(mtime: int = 0) -> bytes:
    tree = Tree(SHA256)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, mtime, 0))
    tree.freeze()
    return b"".join(erofs.write(tree, FormatVersion.V1))


def path_of(repo: Repository, digest: bytes) -> Path:
    return repo.path / "objects" / ObjectId(digest).path


def codes(repo: Repository) -> list[str]:
    return [finding.code for finding in check(repo, objects=True)]


def rot(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


# Objects that are stored again


@pytest.mark.parametrize("damaged", [CONTENT[::-1], b"", CONTENT[:-1], CONTENT + b"x"])
def test_a_store_that_distrusts_replaces_what_is_wrong(repo: Repository, damaged: bytes) -> None:
    digest = repo.objects.store(CONTENT)
    rot(path_of(repo, digest), damaged)
    repo.objects.distrusts = True
    assert repo.objects.store(CONTENT) == digest
    assert repo.objects.read(digest, 1000) == CONTENT
    assert [name for name in os.listdir(repo.path / "objects") if name.startswith(".")] == []  # noqa: PTH208


def test_a_store_that_trusts_takes_a_file_of_the_right_size_for_right(repo: Repository) -> None:
    digest = repo.objects.store(CONTENT)
    rot(path_of(repo, digest), CONTENT[::-1])
    repo.objects.store(CONTENT)
    assert path_of(repo, digest).read_bytes() == CONTENT[::-1]


def test_what_is_right_stays_the_file_that_it_is(repo: Repository) -> None:
    before = path_of(repo, repo.objects.store(CONTENT)).stat().st_ino
    repo.objects.distrusts = True
    assert path_of(repo, repo.objects.store(CONTENT)).stat().st_ino == before
    assert (repo.objects.added, repo.objects.reused) == (1, 1)


def test_who_has_the_old_file_open_keeps_it(repo: Repository) -> None:
    digest = repo.objects.store(CONTENT)
    rot(path_of(repo, digest), b"rotten")
    repo.objects.distrusts = True
    with path_of(repo, digest).open("rb") as mounted:
        repo.objects.store(CONTENT)
        assert mounted.read() == b"rotten"
    assert repo.objects.read(digest, 1000) == CONTENT


def test_a_link_in_the_place_of_an_object_is_replaced_and_not_followed(repo: Repository, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not ours")
    digest = repo.objects.store(CONTENT)
    path_of(repo, digest).unlink()
    path_of(repo, digest).symlink_to(other)
    repo.objects.distrusts = True
    repo.objects.store(CONTENT)
    assert repo.objects.read(digest, 1000) == CONTENT
    assert other.read_bytes() == b"not ours"


def test_a_directory_in_the_place_of_an_object_is_left_alone(repo: Repository) -> None:
    digest = repo.objects.store(CONTENT)
    path_of(repo, digest).unlink()
    (path_of(repo, digest) / "precious").mkdir(parents=True)
    repo.objects.distrusts = True
    with pytest.raises(ComposefsdError):
        repo.objects.store(CONTENT)
    assert (path_of(repo, digest) / "precious").is_dir()
    assert codes(repo) == ["object-verity-failed"]


def test_an_object_that_cannot_be_read_is_replaced(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sector that has gone bad: every read of the old file fails."""
    digest = repo.objects.store(CONTENT)
    bad, preadv = path_of(repo, digest).stat().st_ino, os.preadv

    def failing(fd: int, *args: Any) -> int:
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, "bad sector")
        return preadv(fd, *args)

    monkeypatch.setattr(os, "preadv", failing)
    repo.objects.distrusts = True
    repo.objects.store(CONTENT)
    assert path_of(repo, digest).stat().st_ino != bad


def test_a_name_is_never_without_a_file_wherever_the_power_fails(
    repo: Repository, disk: Any, power_cut: type[BaseException]
) -> None:
    digest = repo.objects.store(CONTENT)
    repo.objects.distrusts = True
    for at in range(20):
        rot(path_of(repo, digest), b"rotten")
        disk.fail(at, power_cut())
        with suppress(power_cut):
            repo.objects.store(CONTENT)
        stopped = disk.failed
        disk.heal()
        assert path_of(repo, digest).read_bytes() in (b"rotten", CONTENT)
        if not stopped:
            break
    else:
        pytest.fail("the store never came to its end")
    assert repo.objects.read(digest, 1000) == CONTENT


# fs-verity, played by the kernel in conftest


@pytest.fixture
def secure(root: Path, verity_kernel: Any) -> Repository:
    Repository.create(root, Metadata.new(SHA256), insecure=False).close()
    return Repository.open(root)


def test_an_object_that_lacks_fs_verity_gets_it_and_stays_the_file_that_it_is(
    secure: Repository, verity_kernel: Any
) -> None:
    digest = secure.objects.store(CONTENT)
    verity_kernel.strip(path_of(secure, digest))
    before = path_of(secure, digest).stat().st_ino
    assert codes(secure) == ["object-verity-missing"]
    secure.objects.reseal(digest)
    assert codes(secure) == []
    assert path_of(secure, digest).stat().st_ino == before
    secure.objects.reseal(digest)
    assert codes(secure) == []


def test_an_object_with_fs_verity_of_another_hash_is_replaced_by_a_copy(
    secure: Repository, verity_kernel: Any
) -> None:
    digest = secure.objects.store(CONTENT)
    status = path_of(secure, digest).stat()
    verity_kernel.digests[status.st_dev, status.st_ino] = (2, bytes(64))
    secure.objects.reseal(digest)
    assert codes(secure) == []
    assert path_of(secure, digest).stat().st_ino != status.st_ino


def test_a_writer_that_holds_the_file_keeps_it_and_the_object_is_a_copy(
    secure: Repository, verity_kernel: Any
) -> None:
    digest = secure.objects.store(CONTENT)
    verity_kernel.strip(path_of(secure, digest))
    before = path_of(secure, digest).stat().st_ino
    with path_of(secure, digest).open("rb+"):
        secure.objects.reseal(digest)
    assert path_of(secure, digest).stat().st_ino != before
    assert codes(secure) == []


def test_wrong_content_does_not_get_fs_verity(secure: Repository, verity_kernel: Any) -> None:
    digest = secure.objects.store(CONTENT)
    rot(path_of(secure, digest), b"rotten")
    with pytest.raises(CorruptError, match="not what its name says"):
        secure.objects.reseal(digest)
    with pytest.raises(ObjectMissingError):
        secure.objects.reseal(bytes(32))
    assert path_of(secure, digest).read_bytes() == b"rotten"


def test_a_secure_store_that_distrusts_replaces_a_file_of_other_content(
    secure: Repository, verity_kernel: Any
) -> None:
    digest = secure.objects.store(CONTENT)
    rot(path_of(secure, digest), b"rotten")
    secure.objects.distrusts = True
    secure.objects.store(CONTENT)
    assert codes(secure) == []
    assert secure.objects.read(digest, 1000) == CONTENT


def test_a_full_check_has_the_kernel_read_every_block(
    secure: Repository, verity_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of a file is known to the kernel even if a block of it has rotted."""
    digest = secure.objects.store(CONTENT)
    bad, read = path_of(secure, digest).stat().st_ino, os.read

    def failing(fd: int, count: int) -> bytes:
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, "fs-verity: block differs")
        return read(fd, count)

    monkeypatch.setattr(os, "read", failing)
    assert codes(secure) == ["object-verity-failed"]


# Links


def test_an_image_is_linked_again_if_its_object_is_one(repo: Repository, root: Path) -> None:
    digest, other = repo.objects.store(image()), repo.objects.store(image(1))
    (root / "images").mkdir()
    (root / "images" / digest.hex()).symlink_to(f"../objects/{ObjectId(other).path}")
    link_image(repo, digest)
    assert codes(repo) == []
    for wrong in (repo.objects.store(b"no image" * 1000), bytes(32)):
        with pytest.raises(ComposefsdError):
            link_image(repo, wrong)
    assert repo.image_ids() == [digest]


def test_a_stream_is_linked_again_if_its_object_is_one(repo: Repository, root: Path, stream: Any) -> None:
    digest = stream(repo, "a")
    repo.unlink_stream("a")
    link_stream(repo, "a", digest)
    assert repo.stream("a") == digest
    with pytest.raises(CorruptError):
        link_stream(repo, "a", repo.objects.store(b"no stream"))
    assert repo.stream("a") == digest


def test_a_stream_takes_the_place_of_a_file_and_of_nothing_else(repo: Repository, root: Path, stream: Any) -> None:
    digest = stream(repo, "a")
    (root / "streams" / "file").write_bytes(b"whatever")
    link_stream(repo, "file", digest)
    assert repo.stream("file") == digest
    (root / "streams" / "directory").mkdir()
    os.mkfifo(root / "streams" / "pipe")
    for name in ("directory", "pipe"):
        with pytest.raises(ComposefsdError):
            link_stream(repo, name, digest)
    assert (root / "streams" / "directory").is_dir()
    assert (root / "streams" / "pipe").is_fifo()


def trusting(_name: str, _stream: Splitstream) -> None:
    """Of every stream that it is what its name says."""


def test_a_stream_in_place_of_a_link_has_to_be_what_its_name_says(repo: Repository, root: Path, stream: Any) -> None:
    path = root / "streams" / "b"
    path.write_bytes(path_of(repo, stream(repo, "a")).read_bytes())

    def refusing(name: str, found: Splitstream) -> None:
        raise CorruptError(f"{name} is not of {len(found.object_refs)} objects", subject=name)

    with pytest.raises(CorruptError, match="b is not of"):
        adopt_file(repo, "streams/b", refusing)
    assert path.is_file()
    assert not path.is_symlink()


def test_files_in_place_of_links_become_objects_and_links(repo: Repository, root: Path, stream: Any) -> None:
    """As after `cp -rL`, even if the objects are gone."""
    streamed, made = stream(repo, "a"), repo.objects.store(image())
    repo.link_image(made)
    for path, digest in ((root / "streams/a", streamed), (root / f"images/{made.hex()}", made)):
        data = path_of(repo, digest).read_bytes()
        path_of(repo, digest).unlink()
        path.unlink()
        path.write_bytes(data)
        adopt_file(repo, str(path.relative_to(root)), trusting)
    assert (repo.stream("a"), repo.image_ids()) == (streamed, [made])
    assert codes(repo) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"no stream"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/etc/passwd"),
    ],
)
def test_anything_else_in_place_of_a_link_is_left_alone(
    repo: Repository, root: Path, stream: Any, make: Callable[[Path], None]
) -> None:
    stream(repo, "a")
    path = root / "streams" / "b"
    make(path)
    kind = path.lstat().st_mode
    with pytest.raises(ComposefsdError):
        adopt_file(repo, "streams/b", trusting)
    assert path.lstat().st_mode == kind


def test_an_image_under_the_name_of_another_is_left_alone(repo: Repository, root: Path) -> None:
    (root / "images").mkdir()
    path = root / "images" / ("0" * 64)
    path.write_bytes(image())
    with pytest.raises(CorruptError, match="digest"):
        adopt_file(repo, f"images/{'0' * 64}", trusting)
    assert path.is_file()
    assert not path.is_symlink()
