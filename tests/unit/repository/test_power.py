"""The power fails at every single write of a repository's life; what is left is a repository each time."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs import writer as erofs
from composefsd.erofs.format import FormatVersion
from composefsd.errors import IncompatibleRepositoryError, NoSpaceError
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import Severity, check
from composefsd.repository.gc import collect
from composefsd.repository.links import Category
from composefsd.splitstream import ContentType, Writer
from composefsd.tree.table import ROOT, Stat, Tree

METADATA = Metadata.new(Algorithm.SHA256)
OLD = "oci-manifest-sha256:" + "1" * 64
NEW = "oci-manifest-sha256:" + "2" * 64


def stored_image(repo: Repository, digest: bytes) -> bytes:
    tree = Tree(repo.algorithm)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, 1, 0))
    tree.insert(ROOT, b"file", tree.add_external(Stat(0o644, 0, 0, 1, 0), 100, digest))
    tree.freeze()
    with repo.objects.writer() as writer:
        for piece in erofs.write(tree, FormatVersion.V2):
            writer.write(piece)
        return writer.commit()


def stored_stream(repo: Repository, objects: list[bytes], named: dict[str, bytes]) -> bytes:
    writer = Writer(repo.algorithm, ContentType.OCI_LAYER)
    for digest in objects:
        writer.external(digest, 100)
    for name, digest in named.items():
        writer.add_reference(name, digest)
    return repo.objects.store(writer.finish())


def pull(repo: Repository, manifest: str) -> None:
    """What a pull does to a repository, with an image that has little in it."""
    with repo.shared_lock(0):
        files = [repo.objects.store(f"{manifest} {number}".encode() * 20) for number in range(3)]
        layer = stored_stream(repo, files, {})
        made = stored_image(repo, files[0])
        config = stored_stream(repo, files[:1], {"layer": layer, "composefs.image.v1": made})
        top = stored_stream(repo, files[1:2], {"config": config, "layer": layer})
        repo.sync()
        repo.link_stream(f"layer of {manifest}", layer)
        repo.link_image(made)
        repo.link_stream("oci-config-sha256:0", config)
        repo.link_stream(manifest, top)
        repo.tag("system", manifest)


def live(root: Path) -> None:
    """The life of a repository: made, pulled into, pulled again, cleaned, and an image given a name and taken it."""
    with Repository.create(root, METADATA, insecure=True) as repo:
        pull(repo, OLD)
        image = repo.image_ids()[0]
        repo.set_ref(Category.IMAGES, "kept/image", image.hex())
        pull(repo, NEW)
        repo.remove_ref(Category.IMAGES, "kept/image")
        with repo.exclusive_lock(0):
            collect(repo, dry_run=False)
        repo.untag("system")
        pull(repo, OLD)
        with repo.exclusive_lock(0):
            collect(repo, dry_run=False)


def listing(root: Path) -> dict[str, str | bytes]:
    """A repository in full: files with their content, links with their texts."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if not path.is_dir()
    }


def survivor_is_sound(root: Path) -> None:
    """Nothing is wrong with what the power cut left but names that a cleaning takes away."""
    try:
        repo = Repository.open(root)
    except IncompatibleRepositoryError:
        assert not root.exists() or [path for path in root.iterdir() if not path.name.startswith(".tmp-meta-")] == []
        return
    with repo:
        assert [found for found in check(repo, objects=True) if found.severity is Severity.ERROR] == []
        with repo.exclusive_lock(0):
            repo.clean_temporaries()
        assert not list(root.rglob(".*"))
        for stream in repo.tags().values():
            repo.read_stream(stream)


def test_a_repository_survives_a_power_cut_at_every_write(tmp_path: Path, disk: Any, power_cut: Any) -> None:
    disk.heal()
    live(tmp_path / "undisturbed")
    expected = listing(tmp_path / "undisturbed")
    writes = len(disk.log)
    assert writes > 100
    for at in range(writes):
        root = tmp_path / str(at)
        disk.fail(at, power_cut())
        with pytest.raises(power_cut):
            live(root)
        disk.heal()
        survivor_is_sound(root)
        if at % 5 == 0:
            live(root)
            assert listing(root) == expected, at


def test_a_full_disk_at_any_write_leaves_no_temporary_name(tmp_path: Path, disk: Any) -> None:
    disk.heal()
    live(tmp_path / "undisturbed")
    for at in range(0, len(disk.log), 4):
        root = tmp_path / str(at)
        disk.fail(at, OSError(28, "no space left"))
        with suppress(NoSpaceError):
            live(root)
        disk.heal()
        assert not list(root.rglob(".*"))
        survivor_is_sound(root)
