"""A collection that explains itself: what it tells beforehand is what happens, and of each root what it keeps."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.random_repository import Maker, listing

from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import ComposefsdError
from composefsd.repository import Repository
from composefsd.repository.gc import GcResult, Gone, What, collect, explain, temporaries
from composefsd.repository.links import Category
from composefsd.repository.marks import Origin, Root, Weight

SEEDS = range(60)
MANIFEST = "oci-manifest-sha256:" + "5" * 64


@dataclass
class Notes:
    """A witness that writes everything down."""

    gone: list[Gone] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)

    def stays(self, weight: Weight) -> None:
        self.weights.append(weight)

    def goes(self, gone: Gone) -> None:
        self.gone.append(gone)

    def sizes(self) -> dict[str, int]:
        sizes = {gone.path: gone.size_bytes for gone in self.gone}
        assert len(sizes) == len(self.gone), "something is told twice"
        return sizes


def look(repo: Repository, **options: Any) -> tuple[Notes, GcResult]:
    notes = Notes()
    with repo.shared_lock(0):
        return notes, collect(repo, dry_run=True, witness=notes, **options)


@contextmanager
def random_repository(root: Path, seed: int) -> Iterator[Repository]:
    Maker(root, seed, (Algorithm.SHA256, Algorithm.SHA512)[seed % 2]).make()
    with Repository.open(root) as repo:
        yield repo


def sound(root: Path, seeds: range, count: int) -> Iterator[Repository]:
    """The first repositories that a collector does not refuse for what is odd in them."""
    for seed in seeds:
        with random_repository(root / f"{seed}", seed) as repo:
            try:
                collect(repo, dry_run=True)
            except ComposefsdError:
                continue
            yield repo
            count -= 1
            if not count:
                return
    raise AssertionError("the collector refuses too many")


# What goes


def test_a_dry_run_lists_exactly_what_the_real_run_removes(tmp_path: Path) -> None:
    kinds: set[What] = set()
    for repo in sound(tmp_path, SEEDS, 24):
        before = listing(repo.path)
        told, expected = look(repo)
        left_behind = {gone.path: gone.size_bytes for gone in temporaries(repo)}
        assert listing(repo.path) == before
        done = Notes()
        with repo.exclusive_lock(0):
            assert collect(repo, dry_run=False, witness=done) == expected
            assert repo.clean_temporaries() == len(left_behind)
        after = listing(repo.path)
        assert after == {path: what for path, what in before.items() if path in after}
        removed = {path: what for path, what in before.items() if path not in after}
        assert set(told.sizes() | left_behind) == set(removed)
        assert done.gone == told.gone
        assert {path: removed[path] for path, size in told.sizes().items() if size} == {
            path: size for path, size in told.sizes().items() if size
        }
        kinds |= {gone.what for gone in told.gone}
    assert kinds == set(What) - {What.TEMPORARY}


def test_the_counts_are_those_of_the_list(tmp_path: Path) -> None:
    for repo in sound(tmp_path, SEEDS, 15):
        told, result = look(repo)
        objects = [gone for gone in told.gone if gone.what is What.OBJECT]
        links = [gone.path for gone in told.gone if gone.what is not What.OBJECT]
        images = sum(path.startswith("images/") for path in links)
        total = sum(gone.size_bytes for gone in objects)
        assert result == GcResult(len(objects), total, images, len(links) - images)


def test_what_is_removed_is_told_up_to_the_error_that_stops_it(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [repo.objects.store(b"%d" % number) for number in range(10)]
    notes = Notes()

    def give_up(gone: Gone) -> None:
        notes.gone.append(gone)
        if len(notes.gone) == 4:
            raise InterruptedError

    notes.goes = give_up  # type: ignore[method-assign] # a dataclass with a method is less to read than a class more
    with pytest.raises(InterruptedError):
        collect(repo, dry_run=False, witness=notes)
    left = {f"objects/{ObjectId(digest).path}" for digest in digests if repo.objects.has(digest)}
    assert len(left) == 6
    assert left.isdisjoint(gone.path for gone in notes.gone)


def test_temporary_names_are_told_and_those_of_others_are_not(repo: Repository, root: Path) -> None:
    repo.objects.store(b"something")
    (root / "objects/.tmp-object-abcdefABCDEF").write_bytes(b"four")
    (root / ".symlink-abcdefABCDEF").symlink_to("nowhere")
    (root / ".tmp-meta-abcdefABCDEF").write_bytes(b"{}")
    for other in ("objects/.tmp-object-short", ".symlink-abc", "notes"):
        (root / other).touch()
    expected = {"objects/.tmp-object-abcdefABCDEF": 4, ".symlink-abcdefABCDEF": 7, ".tmp-meta-abcdefABCDEF": 2}
    assert {gone.path: gone.size_bytes for gone in temporaries(repo)} == expected
    assert repo.clean_temporaries() == 3
    assert list(temporaries(repo)) == []


def test_a_temporary_name_that_its_writer_is_done_with_is_passed_over(repo: Repository, root: Path) -> None:
    """A dry run shares the lock with those who write."""
    names = [f".symlink-abcdefABCDE{number}" for number in range(3)]
    for name in names:
        (root / name).symlink_to("nowhere")
    found = temporaries(repo)
    first = next(found).path
    (root / names[1]).unlink()
    assert [first, *(gone.path for gone in found)] == [names[0], names[2]]


# What stays, and why


def remove_root(repo: Repository, root: Root) -> None:
    (repo.path / root.category / "refs" / root.name).unlink()


def test_a_root_keeps_alone_what_a_collection_without_it_would_take(tmp_path: Path) -> None:
    weighed = alone = 0
    for repo in sound(tmp_path, SEEDS, 8):
        notes, result = look(repo)
        for weight in notes.weights:
            copy = tmp_path / "copy"
            shutil.copytree(repo.path, copy, symlinks=True)
            with Repository.open(copy) as without:
                remove_root(without, weight.root)
                more = collect(without, dry_run=True)
            shutil.rmtree(copy)
            assert more.objects_removed - result.objects_removed == weight.objects_alone
            assert more.bytes_removed - result.bytes_removed == weight.bytes_alone
            weighed += 1
            alone += weight.objects_alone > 0
    assert weighed > alone > 0


def test_a_root_reaches_what_stays_if_it_is_the_only_one(tmp_path: Path) -> None:
    weighed = 0
    for repo in sound(tmp_path, SEEDS, 6):
        notes, _ = look(repo)
        for weight in notes.weights:
            copy = tmp_path / "copy"
            shutil.copytree(repo.path, copy, symlinks=True)
            with Repository.open(copy) as single:
                for other in notes.weights:
                    if other.root != weight.root:
                        remove_root(single, other.root)
                collect(single, dry_run=False)
                kept = [
                    size for path, size in listing(copy).items() if path.startswith("objects/") and ".tmp" not in path
                ]
            shutil.rmtree(copy)
            assert (len(kept), sum(map(int, kept))) == (weight.objects, weight.size_bytes)
            weighed += 1
    assert weighed > 6


def test_an_object_is_explained_by_the_roots_that_reach_it(tmp_path: Path) -> None:
    explained = unexplained = 0
    for repo in sound(tmp_path, SEEDS, 8):
        notes, _ = look(repo)
        dying = {gone.path for gone in notes.gone if gone.what is What.OBJECT}
        for path in [path for path in listing(repo.path) if path.startswith("objects/") and ".tmp" not in path]:
            found = explain(repo, bytes.fromhex(path.removeprefix("objects").replace("/", "")))
            assert (not found) == (path in dying)
            assert set(found) <= {weight.root for weight in notes.weights}
            explained += bool(found)
            unexplained += not found
    assert explained > 0
    assert unexplained > 0


def test_every_kind_of_root_tells_what_it_is(repo: Repository, stream: Any) -> None:
    layer = stream(repo, "layer", repo.objects.store(b"file"))
    stream(repo, MANIFEST, **{"sha256:1": layer})
    repo.tag("a/tag", MANIFEST)
    repo.set_ref(Category.STREAMS, "deep/er", "layer")
    notes, _ = look(repo, roots=["layer", "missing"])
    assert [weight.root for weight in notes.weights] == [
        Root(Origin.NAME, Category.STREAMS, "layer", "layer"),
        Root(Origin.REF, Category.STREAMS, "deep/er", "layer"),
        Root(Origin.REF, Category.STREAMS, "oci/a%2Ftag", MANIFEST),
    ]
    assert [(weight.objects, weight.objects_alone) for weight in notes.weights] == [(2, 0), (2, 0), (3, 1)]
    assert explain(repo, layer) == [weight.root for weight in notes.weights[1:]]


def test_two_names_of_one_image_keep_nothing_alone(repo: Repository, stream: Any) -> None:
    stream(repo, MANIFEST, repo.objects.store(b"{}"))
    repo.tag("one", MANIFEST)
    repo.tag("two", MANIFEST)
    notes, _ = look(repo)
    assert [(weight.objects, weight.objects_alone, weight.bytes_alone) for weight in notes.weights] == [(2, 0, 0)] * 2


def test_what_lives_and_is_not_there_weighs_nothing(repo: Repository, root: Path, stream: Any) -> None:
    file = repo.objects.store(b"file")
    manifest = stream(repo, MANIFEST, file)
    repo.tag("one", MANIFEST)
    (root / "objects" / ObjectId(file).path).unlink()
    notes, _ = look(repo)
    size = (root / "objects" / ObjectId(manifest).path).stat().st_size
    assert [(weight.objects, weight.size_bytes, weight.bytes_alone) for weight in notes.weights] == [(1, size, size)]
    assert [root.name for root in explain(repo, file)] == ["oci/one"]
