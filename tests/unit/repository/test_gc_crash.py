"""A collection that is stopped at every single step of its work, and the one that follows."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.random_repository import Maker, listing

from composefsd.errors import ComposefsdError, DeviceError
from composefsd.repository import Repository
from composefsd.repository.fsck import Severity, check
from composefsd.repository.gc import collect
from composefsd.repository.links import Category

CONFIG = "oci-config-sha256:" + "c" * 64


def manifest(digit: str) -> str:
    return f"oci-manifest-sha256:{digit * 64}"


def pull(repo: Repository, stream: Any, digit: str) -> None:
    """An OCI image of two layers; all have one layer and the config in common."""
    shared = stream(repo, "oci-layer-sha256:" + "0" * 64, repo.objects.store(b"shared"))
    own = stream(repo, "oci-layer-sha256:" + digit * 64, repo.objects.store(b"own " + digit.encode()))
    config = stream(repo, CONFIG, repo.objects.store(b"{}"), **{"sha256:0": shared, f"sha256:{digit}": own})
    stream(
        repo, manifest(digit), repo.objects.store(digit.encode()), **{"config:sha256:c": config, "sha256:0": shared}
    )
    repo.tag(f"tag {digit}", manifest(digit))


@pytest.fixture
def full(repo: Repository, root: Path, stream: Any) -> Path:
    """A sound repository of which the most is garbage: two of three images, a ref to nowhere, an object alone."""
    for digit in "123":
        pull(repo, stream, digit)
    repo.untag("tag 1")
    repo.untag("tag 2")
    repo.objects.store(b"alone")
    (root / "streams/refs/odd").mkdir()
    (root / "streams/refs/odd/way").symlink_to("../" + manifest("3"))
    return root


def errors(repo: Repository) -> list[str]:
    found = check(repo, objects=True)
    return sorted(f"{one.code} {one.subject}" for one in found if one.severity is Severity.ERROR)


def collect_in(root: Path) -> None:
    with Repository.open(root) as repo, repo.exclusive_lock(0):
        collect(repo, dry_run=False)


def test_a_collection_cut_off_at_any_step_leaves_a_sound_repository_and_the_next_one_finishes(
    full: Path, tmp_path: Path, disk: Any, power_cut: Any
) -> None:
    shutil.copytree(full, tmp_path / "undisturbed", symlinks=True)
    disk.heal()
    collect_in(tmp_path / "undisturbed")
    steps = len(disk.log)
    assert disk.log.count("syncfs") == 1
    assert disk.log.index("syncfs") == 4  # manifests and layers
    assert steps == 4 + 1 + 11 + 1  # the same, older configs, documents, files, an object alone; the ref last
    for at in range(steps):
        root = tmp_path / str(at)
        shutil.copytree(full, root, symlinks=True)
        disk.fail(at, power_cut())
        with pytest.raises(power_cut):
            collect_in(root)
        disk.heal()
        with Repository.open(root) as repo:
            assert [one for one in errors(repo) if "odd/way" not in one] == []
            assert repo.tags() == {"tag 3": manifest("3")}
        collect_in(root)
        assert listing(root) == listing(tmp_path / "undisturbed")
        with Repository.open(root) as repo:
            assert errors(repo) == []
            assert repo.read_stream(CONFIG).named_refs


def test_a_disk_that_fails_at_any_step_is_told_and_the_next_collection_finishes(
    full: Path, tmp_path: Path, disk: Any
) -> None:
    shutil.copytree(full, tmp_path / "undisturbed", symlinks=True)
    disk.heal()
    collect_in(tmp_path / "undisturbed")
    for at in range(len(disk.log)):
        root = tmp_path / str(at)
        shutil.copytree(full, root, symlinks=True)
        disk.fail(at, OSError(5, "input/output error"))
        with pytest.raises(DeviceError):
            collect_in(root)
        disk.heal()
        collect_in(root)
        assert listing(root) == listing(tmp_path / "undisturbed")


def test_random_repositories_lose_nothing_but_garbage_wherever_it_stops(
    tmp_path: Path, disk: Any, power_cut: Any
) -> None:
    stopped = 0
    for seed in range(15):
        disk.heal()
        origin = tmp_path / f"{seed}"
        Maker(origin, seed).make()
        whole = tmp_path / f"{seed} whole"
        shutil.copytree(origin, whole, symlinks=True)
        disk.heal()
        try:
            collect_in(whole)
        except ComposefsdError:  # it has something odd in it that stops a collection, before anything is removed
            assert disk.log == []
            continue
        known: set[str] = set()
        for path in (origin, whole):  # links that led nowhere; an image that a name in a config keeps, not its files
            with Repository.open(path) as repo:
                known |= set(errors(repo))
        steps = len(disk.log)
        for at in {0, steps // 3, steps // 2, steps - 1}:
            root = tmp_path / f"{seed} {at}"
            shutil.copytree(origin, root, symlinks=True)
            disk.fail(at, power_cut())
            with pytest.raises(power_cut):
                collect_in(root)
            disk.heal()
            assert listing(whole).items() <= listing(root).items()
            with Repository.open(root) as repo:
                assert set(errors(repo)) <= known
            collect_in(root)
            assert listing(root).items() <= listing(whole).items()
            if "streams/refs/odd/deep/way" not in listing(origin):  # which is a root only until it was removed
                assert listing(root) == listing(whole)
            stopped += 1
    assert stopped > 20


def test_a_ref_whose_way_is_wrong_keeps_its_entry_once_more(repo: Repository, root: Path, stream: Any) -> None:
    stream(repo, manifest("1"), repo.objects.store(b"{}"))
    (root / "streams/refs/odd").mkdir(parents=True)
    (root / "streams/refs/odd/way").symlink_to(f"../{manifest('1')}")
    collect_in(root)
    assert repo.refs(Category.STREAMS) == {}
    assert list(repo.streams()) == [manifest("1")]
    collect_in(root)
    assert list(repo.streams()) == []
