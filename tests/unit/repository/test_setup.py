"""Repositories from before `meta.json`: what becomes of them, and of what only looks like one."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, IncompatibleRepositoryError, ReadOnlyError, VerityRequiredError
from composefsd.repository import Metadata, Repository, setup
from composefsd.splitstream import ContentType, Writer

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
NEW_HEADER = Struct("<11sBHBB2Q")  # magic, version, flags, algorithm, lg_blocksize, info start, info end
OLD_HEADER = Struct("<2QH11sBBB")  # the same fields as bootc wrote them up to 1.15: info, flags, magic and the rest


def make_old(root: Path, algorithm: Algorithm = SHA256, *, insecure: bool = True) -> bytes:
    """A repository without its metadata, with one object, one stream and one image; the digest of the object."""
    with Repository.create(root, Metadata.new(algorithm), insecure=insecure) as repo:
        digest = repo.objects.store(b"hello world")
        repo.link_stream("name", digest)
        repo.link_image(digest)
    (root / "meta.json").unlink()
    return digest


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_old_repository_is_upgraded_when_it_is_opened_for_writing(root: Path, algorithm: Algorithm) -> None:
    digest = make_old(root, algorithm)
    with Repository.open(root) as repo:
        assert (repo.algorithm, repo.verity, repo.writable) == (algorithm, False, True)
        assert repo.formats == (FormatVersion.V1,)
        assert (repo.stream("name"), repo.image_ids()) == (digest, [digest])
    assert (root / "meta.json").read_bytes() == Metadata.new(algorithm).serialize()
    assert stat.S_IMODE((root / "meta.json").stat().st_mode) == 0o644


def test_an_old_repository_whose_first_object_has_verity_becomes_a_secure_one(root: Path, verity_kernel: Any) -> None:
    make_old(root, insecure=False)
    with Repository.open(root) as repo:
        assert repo.verity


def test_an_old_repository_whose_first_object_has_none_becomes_an_insecure_one(
    root: Path, verity_kernel: Any
) -> None:
    make_old(root, insecure=False)
    verity_kernel.digests.clear()
    with Repository.open(root) as repo:
        assert not repo.verity


def test_reading_alone_upgrades_nothing(root: Path) -> None:
    make_old(root)
    with pytest.raises(IncompatibleRepositoryError, match="opened for reading only"):
        Repository.open(root, writable=False)
    assert not (root / "meta.json").exists()


def test_without_any_object_there_is_nothing_to_tell_what_it_is(root: Path) -> None:
    (root / "objects/ab").mkdir(parents=True)
    before = open_descriptors()
    for name in ("notes", "f" * 61, "f" * 63, "f" * 125, "ä" * 62):
        (root / "objects/ab" / name).touch()
    (root / "objects/ab" / ("f" * 62)).mkdir()
    (root / "objects/cd").symlink_to("ab")
    (root / "objects/.tmp-object-aaaaaaaaaaaa").touch()
    (root / "objects/abc").mkdir()
    (root / "objects/abc" / ("f" * 62)).touch()
    with pytest.raises(IncompatibleRepositoryError, match="no object that could tell"):
        Repository.open(root)
    assert not (root / "meta.json").exists()
    assert open_descriptors() == before


def test_an_algorithm_that_contradicts_the_objects_is_refused_and_nothing_written(root: Path) -> None:
    make_old(root, SHA256)
    with pytest.raises(IncompatibleRepositoryError, match="named by sha256, not by sha512 as configured"):
        Repository.open(root, algorithm=SHA512)
    assert not (root / "meta.json").exists()
    Repository.open(root, algorithm=SHA256).close()


def test_an_object_with_verity_of_another_hash_is_refused(root: Path, verity_kernel: Any) -> None:
    make_old(root, insecure=False)
    verity_kernel.digests = {file: (2, bytes(64)) for file in verity_kernel.digests}
    with pytest.raises(IncompatibleRepositoryError, match="hash number 2"):
        Repository.open(root)
    assert not (root / "meta.json").exists()


def test_creating_over_an_old_repository_takes_its_objects_into_account(root: Path) -> None:
    make_old(root, SHA256)
    with pytest.raises(IncompatibleRepositoryError, match="not named by fsverity-sha512-12"):
        Repository.create(root, Metadata.new(SHA512), insecure=True)
    with pytest.raises(VerityRequiredError):
        Repository.create(root, Metadata.new(SHA256), insecure=False)
    assert not (root / "meta.json").exists()
    with Repository.create(root, Metadata.new(SHA256, (FormatVersion.V2,)), insecure=True) as repo:
        assert repo.formats == (FormatVersion.V2,)


def test_who_comes_second_takes_what_the_first_has_written(root: Path) -> None:
    make_old(root)
    fd = os.open(root, os.O_RDONLY)
    try:
        assert setup.is_old(fd)
        assert setup.upgrade(fd)
        assert not setup.is_old(fd)
        assert not setup.upgrade(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("elsewhere"), lambda path: path.mkdir()])
def test_metadata_that_is_no_file_is_refused_by_an_error_of_ours(root: Path, make: Callable[[Path], None]) -> None:
    make_old(root)
    make(root / "meta.json")
    before = open_descriptors()
    with pytest.raises(ComposefsdError, match=r"meta\.json"):
        Repository.open(root)
    assert open_descriptors() == before


def test_a_directory_without_objects_is_no_old_repository(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleRepositoryError, match="is no repository"):
        Repository.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_power_cut_during_the_upgrade_leaves_an_old_repository_or_a_new_one(
    tmp_path: Path, disk: Any, power_cut: Any
) -> None:
    disk.heal()
    make_old(tmp_path / "undisturbed")
    disk.heal()
    Repository.open(tmp_path / "undisturbed").close()
    writes = len(disk.log)
    assert writes >= 4
    for at in range(writes):
        root = tmp_path / str(at)
        disk.heal()
        digest = make_old(root)
        disk.fail(at, power_cut())
        with pytest.raises(power_cut):
            Repository.open(root)
        disk.heal()
        with Repository.open(root) as repo:
            assert repo.objects.read(digest, 100) == b"hello world"
        assert (root / "meta.json").read_bytes() == Metadata.new(SHA256).serialize()


def test_unknown_features_for_readers_do_not_stop_an_upgraded_repository_from_being_read(root: Path) -> None:
    digest = make_old(root)
    Repository.open(root).close()
    value = json.loads((root / "meta.json").read_text())
    value["features"]["read-only-compatible"].append("frobnicated")
    (root / "meta.json").write_text(json.dumps(value))
    with Repository.open(root) as repo:
        assert repo.objects.read(digest, 100) == b"hello world"
        with pytest.raises(ReadOnlyError, match="'frobnicated'"):
            repo.objects.store(b"new")
        with repo.exclusive_lock(0), pytest.raises(ReadOnlyError, match="'frobnicated'"):
            repo.make_secure()


def test_streams_with_the_header_of_those_times_are_read(root: Path) -> None:
    make_old(root)
    writer = Writer(SHA256, ContentType.OCI_LAYER)
    writer.inline(b"a layer")
    magic, version, flags, number, bits, start, end = NEW_HEADER.unpack_from(data := writer.finish())
    old = OLD_HEADER.pack(start, end, flags, magic, version, number, bits) + data[NEW_HEADER.size :]
    with Repository.open(root) as repo:
        repo.link_stream("layer", repo.objects.store(old))
        assert b"".join(repo.read_stream("layer").chunks()) == b"a layer"  # type: ignore[arg-type] # all are inline
