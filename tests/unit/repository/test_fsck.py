"""fsck: each kind of damage is found by its code, and the check goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs import writer as erofs
from composefsd.erofs.format import FormatVersion
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import Code, Finding, Severity, check, check_objects
from composefsd.repository.links import Category
from composefsd.tree.table import ROOT, Stat, Tree

SHA256 = Algorithm.SHA256
MANIFEST = "oci-manifest-sha256:" + "5" * 64
LOST = bytes(32)


def image(repo: Repository, *digests: bytes) -> bytes:
    """Store and link an image that names these objects."""
    tree = Tree(SHA256)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, 1, 0))
    for number, digest in enumerate(digests):
        tree.insert(ROOT, b"file%d" % number, tree.add_external(Stat(0o644, 0, 0, 1, 0), 100, digest))
    tree.freeze()
    stored = repo.objects.store(b"".join(erofs.write(tree, FormatVersion.V1)))
    repo.link_image(stored)
    return stored


def fill(repo: Repository, stream: Any) -> None:
    """Some of everything, and all of it sound."""
    file = repo.objects.store(b"file")
    repo.objects.store(bytes(2 << 20))
    made = image(repo, file)
    stream(repo, MANIFEST, file, layer=stream(repo, "layer", file), image=made)
    repo.tag("name", MANIFEST)
    repo.set_ref(Category.IMAGES, "some/name", made.hex())


@pytest.fixture
def full(repo: Repository, stream: Any) -> Repository:
    fill(repo, stream)
    return repo


def found(repo: Repository, **options: Any) -> list[tuple[str, str]]:
    """Codes and subjects of all findings."""
    with repo.shared_lock(0):
        return [(f.code.value, f.subject) for f in check(repo, **({"objects": True} | options))]


def path_of(repo: Repository, digest: bytes) -> Path:
    return repo.path / "objects" / ObjectId(digest).path


def test_a_sound_repository_has_no_findings(full: Repository) -> None:
    assert found(full) == []
    assert found(full, objects=False) == []


def test_an_empty_repository_has_no_findings(repo: Repository) -> None:
    assert found(repo) == []


def test_progress_counts_objects(full: Repository) -> None:
    told: list[tuple[int, int]] = []
    assert list(check(full, objects=True, tick=lambda done, total: told.append((done, total)))) == []
    assert (told[0], told[-1]) == ((0, 5), (5, 5))


def test_the_objects_can_be_shared_out(full: Repository) -> None:
    digest = full.objects.store(b"shared")
    path_of(full, digest).write_bytes(b"other")
    halves = [list(check_objects(full, range(start, 256, 2))) for start in (0, 1)]
    assert [len(half) for half in halves] == ([1, 0] if digest[0] % 2 == 0 else [0, 1])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "metadata-parse-failed"),
        (Metadata.new(Algorithm.SHA512).serialize().decode(), "metadata-algorithm-mismatch"),
    ],
)
def test_metadata_that_changed_is_found(full: Repository, root: Path, text: str, code: str) -> None:
    (root / "meta.json").write_text(text)
    assert found(full) == [(code, "meta.json")]


def test_objects_that_are_not_what_they_say_are_found(full: Repository, root: Path) -> None:
    small, large = full.objects.store(b"small"), full.objects.store(bytes(3 << 20))
    for digest in (small, large):
        path_of(full, digest).write_bytes(b"x" * (2 << 20))
    (root / "objects/00").mkdir(exist_ok=True)
    (root / "objects/00/notes").touch()
    (root / "objects/00" / ("1" * 62)).symlink_to("/etc/passwd")
    (root / "objects/00" / ("2" * 62)).mkdir()
    assert sorted(found(full)) == sorted([
        ("object-digest-mismatch", f"objects/{ObjectId(small).path}"),
        ("object-digest-mismatch", f"objects/{ObjectId(large).path}"),
        ("object-invalid-name", "objects/00/notes"),
        ("object-open-failed", "objects/00/" + "1" * 62),
        ("object-verity-failed", "objects/00/" + "2" * 62),
    ])  # fmt: skip
    assert found(full, objects=False) == []


@pytest.mark.parametrize("category", ["streams", "images"])
def test_entries_that_are_no_links_to_objects_are_found(full: Repository, root: Path, category: str) -> None:
    directory = root / category
    (directory / "directory").mkdir()
    (directory / "file").touch()
    (directory / "gone").symlink_to(f"../objects/00/{'0' * 62}")
    (directory / "loop").symlink_to("loop")
    (directory / "odd").symlink_to("../meta.json")
    assert found(full) == [
        ("entry-not-symlink", f"{category}/directory"),
        ("entry-not-symlink", f"{category}/file"),
        ("broken-symlink", f"{category}/gone"),
        ("stat-failed", f"{category}/loop"),
        ("entry-not-an-object", f"{category}/odd"),
    ]


def test_streams_that_cannot_be_read_are_found(full: Repository) -> None:
    full.link_stream("a", full.objects.store(b"no splitstream"))
    assert found(full) == [("stream-open-failed", "streams/a")]


def test_missing_objects_of_streams_are_found_unless_nobody_asks(full: Repository, stream: Any) -> None:
    stream(full, "a", LOST, bytes([1]) * 32, named=LOST, again=bytes([2]) * 32)
    assert found(full) == [("missing-object-ref", "streams/a")] * 2 + [("missing-named-ref", "streams/a")] * 2
    assert found(full, objects=False, references=False) == []


def test_images_that_cannot_be_read_are_found(full: Repository, root: Path) -> None:
    rotten, broken = full.objects.store(b"will rot"), full.objects.store(b"no image" * 1000)
    for digest in (rotten, broken):
        full.link_image(digest)
    path_of(full, rotten).write_bytes(b"has rotten")
    (root / "images" / "name").symlink_to(f"../objects/{ObjectId(image(full)).path}")
    assert sorted(found(full, objects=False)) == sorted([
        ("image-read-failed", f"images/{rotten.hex()}"),
        ("image-invalid", f"images/{broken.hex()}"),
        ("image-name-mismatch", "images/name"),
    ])  # fmt: skip


def test_missing_objects_of_images_are_found(full: Repository) -> None:
    made = image(full, LOST, bytes([1]) * 32)
    assert found(full) == [("image-missing-object", f"images/{made.hex()}")] * 2
    assert found(full, objects=False, references=False) == []


def test_refs_that_garbage_collection_would_stumble_over_are_found(full: Repository, root: Path) -> None:
    refs = root / "streams/refs"
    (refs / "a").symlink_to("../gone")
    (refs / "b").symlink_to("../../meta.json")
    (refs / "c").touch()
    (refs / "deep/er").mkdir(parents=True)
    (refs / "deep/er/d").symlink_to("../../../gone")
    (refs / "loop").symlink_to("loop")
    assert found(full) == [
        ("broken-symlink", "streams/refs/a"),
        ("ref-not-an-entry", "streams/refs/b"),
        ("unexpected-file-type", "streams/refs/c"),
        ("stat-failed", "streams/refs/loop"),
        ("broken-symlink", "streams/refs/deep/er/d"),
    ]


def test_a_name_that_comes_during_the_check_is_no_damage(repo: Repository, root: Path, stream: Any) -> None:
    """Whoever shares the lock may add names meanwhile, and lead refs to them."""
    (root / "streams").mkdir()
    (root / "streams" / "a").write_bytes(b"no link")
    (root / "streams" / "refs").mkdir()
    findings = check(repo, objects=False)
    assert next(findings).code == Code.ENTRY_NOT_SYMLINK
    stream(repo, "late")
    repo.set_ref(Category.STREAMS, "ref", "late")
    assert list(findings) == []


def test_leftovers_are_warned_of(full: Repository, root: Path) -> None:
    names = [".symlink-" + "a" * 12, ".tmp-meta-" + "b" * 12, "objects/.tmp-object-" + "c" * 12]
    for name in names:
        (root / name).touch()
    findings = list(check(full, objects=True))
    assert [(f.severity, f.code, f.subject) for f in findings] == [
        (Severity.WARNING, Code.STRAY_TEMPORARY, name) for name in names
    ]


def test_names_that_are_no_text_come_out_as_text(full: Repository, root: Path) -> None:
    (root / "streams" / "caf\udce9").touch()
    assert found(full) == [("entry-not-symlink", "streams/caf�")]


def test_a_category_that_is_no_directory_is_found(repo: Repository, root: Path) -> None:
    (root / "objects").touch()
    (root / "streams").touch()
    codes = {(finding.code, finding.subject) for finding in check(repo, objects=True)}
    assert (Code.STAT_FAILED, "streams") in codes
    assert (Code.STAT_FAILED, "objects/00") in codes


# With fs-verity, played by the kernel in conftest


@pytest.fixture
def secure(root: Path, verity_kernel: Any, stream: Callable[..., bytes]) -> Iterator[Repository]:
    with Repository.create(root, Metadata.new(SHA256), insecure=False) as repo:
        fill(repo, stream)
    with Repository.open(root) as repo:
        yield repo


def test_a_sound_secure_repository_has_no_findings(secure: Repository) -> None:
    assert found(secure) == []


def test_objects_without_the_right_fs_verity_are_found(secure: Repository, verity_kernel: Any) -> None:
    none, other, hashed = (secure.objects.store(data) for data in (b"none", b"other", b"hashed"))
    verity_kernel.strip(path_of(secure, none))
    status = {digest: path_of(secure, digest).stat() for digest in (other, hashed)}
    verity_kernel.digests[status[other].st_dev, status[other].st_ino] = (1, LOST)
    verity_kernel.digests[status[hashed].st_dev, status[hashed].st_ino] = (2, bytes(64))
    assert sorted(found(secure)) == sorted([
        ("object-verity-missing", f"objects/{ObjectId(none).path}"),
        ("object-digest-mismatch", f"objects/{ObjectId(other).path}"),
        ("object-verity-missing", f"objects/{ObjectId(hashed).path}"),
    ])  # fmt: skip


def test_a_finding_is_a_value_that_a_person_can_read(full: Repository, root: Path) -> None:
    (root / "streams/gone").symlink_to("../objects/00/00")
    message = "it leads to ../objects/00/00, which is not there"
    facts = {"target": "../objects/00/00"}
    assert list(check(full, objects=False)) == [
        Finding(Severity.ERROR, Code.BROKEN_SYMLINK, "streams/gone", message, facts)
    ]
