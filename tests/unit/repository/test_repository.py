"""The facade: creating, opening, locking, cleaning up."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import (
    FormatError,
    IncompatibleRepositoryError,
    LimitExceededError,
    LockedError,
    ReadOnlyError,
    VerityRequiredError,
)
from composefsd.linux import fsverity
from composefsd.repository import Metadata, Repository
from composefsd.repository.links import Category

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
V1, V2 = FormatVersion.V1, FormatVersion.V2
DEFAULT = Metadata.new(SHA256)
MANIFEST = "oci-manifest-sha256:" + "5" * 64

CREATOR = """
import sys
from pathlib import Path
from composefsd.digests import Algorithm
from composefsd.repository import Metadata, Repository
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    Repository.create(Path(sys.argv[1]) / str(number), Metadata.new(Algorithm.SHA512), insecure=True).close()
"""


# Creating and opening


def test_a_new_repository_is_what_cfsctl_init_makes(root: Path) -> None:
    old = os.umask(0o027)
    try:
        Repository.create(root, Metadata.new(SHA512), insecure=True).close()
    finally:
        os.umask(old)
    assert [path.name for path in root.iterdir()] == ["meta.json"]
    assert root.stat().st_mode & 0o7777 == 0o700
    assert (root / "meta.json").stat().st_mode & 0o7777 == 0o644
    assert (root / "meta.json").read_bytes() == Metadata.new(SHA512).serialize()


def test_an_existing_directory_keeps_its_mode(root: Path) -> None:
    root.mkdir(mode=0o755)
    Repository.create(root, DEFAULT, insecure=True).close()
    assert root.stat().st_mode & 0o7777 == 0o755


def test_creating_the_same_repository_again_opens_it(repo: Repository, root: Path) -> None:
    digest = repo.objects.store(b"hello world")
    with Repository.create(root, DEFAULT, insecure=True) as again:
        assert again.objects.has(digest)


@pytest.mark.parametrize("other", [Metadata.new(SHA512), Metadata.new(SHA256, (V2,)), Metadata.new(SHA256, (V1, V2))])
def test_creating_another_repository_over_one_is_refused(repo: Repository, root: Path, other: Metadata) -> None:
    with pytest.raises(IncompatibleRepositoryError, match="cannot be changed"):
        Repository.create(root, other, insecure=True)


def test_many_creators_at_once_make_one_repository(tmp_path: Path) -> None:
    creators = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for creator in creators:
        assert creator.stdout is not None
        assert creator.stdout.readline() == b"ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write(b"go\n")
        creator.stdin.flush()
    for creator in creators:
        creator.communicate()
        assert creator.returncode == 0
    for number in range(50):
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["meta.json"]


def test_a_secure_repository_needs_fs_verity(root: Path, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    has_verity = fsverity.probe(fd, SHA256)
    os.close(fd)
    if has_verity:
        with Repository.create(root, DEFAULT, insecure=False) as repo:
            assert repo.verity
    else:
        with pytest.raises(VerityRequiredError):
            Repository.create(root, DEFAULT, insecure=False)
        assert list(root.iterdir()) == []


def test_the_mode_is_the_fs_verity_state_of_the_metadata(root: Path, verity_kernel: Any) -> None:
    with Repository.create(root, DEFAULT, insecure=False) as repo:
        assert repo.verity
    with Repository.create(root, DEFAULT, insecure=True) as repo:
        assert repo.verity
    verity_kernel.strip(root / "meta.json")
    with Repository.open(root) as repo:
        assert not repo.verity
    with pytest.raises(VerityRequiredError, match="made without"):
        Repository.create(root, DEFAULT, insecure=False)


def test_metadata_with_fs_verity_of_another_hash_is_refused(root: Path, verity_kernel: Any) -> None:
    Repository.create(root, DEFAULT, insecure=False).close()
    (key,) = verity_kernel.digests
    verity_kernel.digests[key] = (2, bytes(64))
    with pytest.raises(IncompatibleRepositoryError):
        Repository.open(root)


def test_a_directory_without_metadata_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleRepositoryError, match="there is no repository at"):
        Repository.open(tmp_path / "missing")
    with pytest.raises(IncompatibleRepositoryError, match="no repository: it has no"):
        Repository.open(tmp_path)
    (tmp_path / "objects").mkdir()
    with pytest.raises(IncompatibleRepositoryError, match=r"from before meta\.json"):
        Repository.open(tmp_path)


def test_an_older_repository_becomes_one_that_fits_its_objects(repo: Repository, root: Path) -> None:
    repo.objects.store(b"hello world")
    (root / "meta.json").unlink()
    with pytest.raises(IncompatibleRepositoryError, match="not named by fsverity-sha512-12"):
        Repository.create(root, Metadata.new(SHA512), insecure=True)
    with pytest.raises(VerityRequiredError):
        Repository.create(root, DEFAULT, insecure=False)
    with Repository.create(root, DEFAULT, insecure=True) as upgraded:
        assert upgraded.algorithm is SHA256


def test_hostile_metadata_is_refused_with_the_descriptor_closed(repo: Repository, root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for text, error in ((b"{", FormatError), (b" " * 70_000, LimitExceededError)):
        (root / "meta.json").write_bytes(text)
        with pytest.raises(error):
            Repository.open(root)
    (root / "meta.json").unlink()
    os.mkfifo(root / "meta.json")
    with pytest.raises(FormatError):
        Repository.open(root)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_unknown_read_only_features_forbid_writing(repo: Repository, root: Path) -> None:
    value = json.loads((root / "meta.json").read_text())
    value["features"]["read-only-compatible"].append("new")
    (root / "meta.json").write_text(json.dumps(value))
    digest = repo.objects.store(b"hello world")
    with Repository.open(root) as reader:
        assert not reader.writable
        assert reader.objects.read(digest, 100) == b"hello world"
        for write in WRITES:
            with pytest.raises(ReadOnlyError, match="new"):
                write(reader)


WRITES: tuple[Callable[[Repository], object], ...] = (
    lambda repo: repo.objects.store(b"x"),
    lambda repo: repo.link_stream("name", bytes(32)),
    lambda repo: repo.link_image(bytes(32)),
    lambda repo: repo.unlink_image(bytes(32)),
    lambda repo: repo.tag("name", MANIFEST),
    lambda repo: repo.untag("name"),
    lambda repo: repo.set_ref(Category.IMAGES, "name", "entry"),
    lambda repo: repo.remove_ref(Category.IMAGES, "name"),
    lambda repo: repo.clean_temporaries(),
)


def test_an_inherited_descriptor_is_a_repository(repo: Repository, root: Path) -> None:
    digest = repo.objects.store(b"hello world")
    with Repository.adopt(os.open(root, os.O_RDONLY)) as adopted:
        assert adopted.objects.read(digest, 100) == b"hello world"
        assert adopted.formats == (V1,)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(adopted.fd)


# Locks


def test_a_lock_holds_for_its_block_and_for_each_handle_alone(repo: Repository, root: Path) -> None:
    with Repository.open(root) as other:
        with repo.shared_lock(), other.shared_lock(0), repo.shared_lock(0):
            for owner in (repo, other):
                with pytest.raises(LockedError), owner.exclusive_lock(0):
                    pass
        with repo.exclusive_lock(0), pytest.raises(LockedError), other.shared_lock(0.01):
            pass
        with other.exclusive_lock(0):
            pass


def test_leftovers_of_the_dead_are_cleaned_and_nothing_else(repo: Repository, root: Path) -> None:
    repo.objects.store(b"hello world")
    strays = [".symlink-" + "a" * 12, ".tmp-meta-" + "B" * 12, "objects/.tmp-object-" + "9" * 12]
    others = [".symlink-short", ".symlink-" + "-" * 12, "objects/.tmp-other-" + "a" * 12, "objects/notes"]
    for name in strays + others:
        (root / name).touch()
    with repo.exclusive_lock():
        assert repo.clean_temporaries() == 3
        assert repo.clean_temporaries() == 0
    assert [name for name in strays + others if (root / name).exists()] == others
