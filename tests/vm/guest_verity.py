"""What the daemon does with a kernel that has fs-verity: it enables it, demands it, and believes nothing else."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vm.guest import IMAGE, Made, MakeHost, findings, flipped, has_verity, image_digest, tool, unseal

from composefsd.digests import Algorithm
from composefsd.errors import CorruptError, DeviceError, ReadOnlyError
from composefsd.oci.reference import Reference
from composefsd.operations.host import Host
from composefsd.operations.model import PullRequest
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.repository import Metadata, Repository


def name_of(made: Made, path: Path) -> str:
    return str(path.relative_to(made.root))


def digest_of(path: Path) -> str:
    return path.parent.name + path.name


@contextmanager
def mounted(made: Made, kind: str, folder: Path) -> Iterator[Path]:
    """The image as an initrd mounts it."""
    digest = image_digest(kind)
    erofs, root = folder / "erofs", folder / "root"
    for path in (erofs, root):
        path.mkdir()
    layers = f"lowerdir={erofs}::{made.root}/objects"
    tool("mount", "-t", "erofs", "-o", "ro", f"{made.root}/images/{digest}", str(erofs))
    options = f"ro,metacopy=on,redirect_dir=on,verity=require,{layers}"
    tool("mount", "-t", "overlay", "-o", options, f"composefs:{digest}", str(root))
    try:
        yield root
    finally:
        tool("umount", str(root), str(erofs))


def pulled(host: Host) -> Made:
    """Pull the image with all that belongs to it."""
    asyncio.run(pull(host, PullRequest(Reference.parse(IMAGE)), Silent()))
    return Made(host)


# A secure repository


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_object_of_a_pull_has_the_digest_of_its_name(make_host: MakeHost, algorithm: Algorithm) -> None:
    made = pulled(make_host(algorithm=algorithm))
    assert made.host.problems == ()
    assert len(made.objects) > 8
    for path in made.objects:
        assert tool("fsverity", "measure", str(path)).split()[0] == f"{algorithm.value}:{digest_of(path)}"


def test_the_metadata_of_a_secure_repository_has_verity(secure: Made) -> None:
    assert has_verity(secure.root / "meta.json")
    with Repository.open(secure.root) as repository:
        assert repository.verity


def test_a_check_of_a_secure_repository_finds_nothing(secure: Made) -> None:
    assert findings(secure.root) == set()


def test_the_kernel_lets_nobody_write_to_an_object(secure: Made) -> None:
    with pytest.raises(PermissionError):
        secure.objects[0].open("r+b")


def test_an_object_without_verity_is_refused_and_found(secure: Made) -> None:
    victim = secure.objects[0]
    unseal(victim)
    with Repository.open(secure.root) as repository, pytest.raises(CorruptError, match="has no fs-verity"):
        os.close(repository.objects.open(bytes.fromhex(digest_of(victim))))
    assert ("object-verity-missing", name_of(secure, victim)) in findings(secure.root)


def test_a_changed_object_with_verity_is_refused_and_found(secure: Made) -> None:
    victim = secure.objects[0]
    unseal(victim, flipped(victim))
    tool("fsverity", "enable", "--hash-alg=sha512", str(victim))
    with Repository.open(secure.root) as repository, pytest.raises(CorruptError, match="has the digest"):
        os.close(repository.objects.open(bytes.fromhex(digest_of(victim))))
    assert ("object-digest-mismatch", name_of(secure, victim)) in findings(secure.root)


def test_a_bit_that_flips_on_the_disk_is_found(small_disk: tuple[Path, Path]) -> None:
    image, folder = small_disk
    content = b"rot " * 5000 + os.urandom(16)
    with Repository.create(folder / "repository", Metadata.new(Algorithm.SHA512), insecure=False) as repository:
        digest = repository.objects.store(content)
    tool("umount", str(folder))
    _flip_on_disk(image, content[-16:])
    tool("mount", "-o", "loop", str(image), str(folder))
    with Repository.open(folder / "repository") as repository, pytest.raises(DeviceError):
        repository.objects.read(digest, len(content))


def _flip_on_disk(image: Path, content: bytes) -> None:
    data = image.read_bytes()
    (position,) = (at for at in range(0, len(data), 8) if data[at : at + len(content)] == content)
    with image.open("r+b") as disk:
        disk.seek(position)
        disk.write(bytes([content[0] ^ 1]))


# Mounting


@pytest.mark.parametrize("kind", ["normative", "boot"])
def test_an_image_is_read_through_a_mount_that_requires_verity(secure: Made, tmp_path: Path, kind: str) -> None:
    with mounted(secure, kind, tmp_path) as root:
        assert (root / "usr/bin/same-tool").read_bytes() == b"not a program\n" * 100
        assert (root / "etc/motd").read_bytes() == b"hello\n"


def test_a_mount_that_requires_verity_gives_no_byte_of_an_object_without(secure: Made, tmp_path: Path) -> None:
    for path in secure.objects:
        if path.read_bytes() == b"not a program\n" * 100:
            unseal(path)
    with mounted(secure, "normative", tmp_path) as root, pytest.raises(OSError, match="Input/output error"):
        (root / "usr/bin/tool").read_bytes()


# Repositories of other times, and filesystems of other kinds


def test_an_old_repository_whose_objects_have_verity_becomes_a_secure_one(secure: Made, make_host: MakeHost) -> None:
    (secure.root / "meta.json").unlink()
    assert make_host().problems == ()
    assert has_verity(secure.root / "meta.json")
    assert findings(secure.root) == set()


def test_an_old_repository_whose_objects_have_none_becomes_an_insecure_one(
    insecure: Made, make_host: MakeHost
) -> None:
    (insecure.root / "meta.json").unlink()
    assert [name for name, _ in make_host().problems] == ["VerityRequired"]
    assert not has_verity(insecure.root / "meta.json")


def test_a_read_only_mount_is_a_problem_and_can_be_checked(secure: Made, make_host: MakeHost) -> None:
    tool("mount", "--bind", "-o", "ro", str(secure.root), str(secure.root))
    try:
        host = make_host()
        assert [name for name, _ in host.problems] == ["ReadOnly"]
        assert findings(secure.root) == set()
        with Repository.open(secure.root) as repository, pytest.raises(ReadOnlyError):
            repository.objects.store(b"new")
    finally:
        tool("umount", str(secure.root))


def test_btrfs_serves_as_well(btrfs: Path) -> None:
    with Repository.create(btrfs / "repository", Metadata.new(Algorithm.SHA512), insecure=False) as repository:
        for size in (0, 1, 4096, 300_000):
            repository.objects.store(bytes(size))
    files = [path for path in (btrfs / "repository").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(map(has_verity, files))
    assert findings(btrfs / "repository") == set()
