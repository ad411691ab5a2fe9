"""Garbage collection: what stays, what goes, and that it rather refuses than guesses."""

import os
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs import writer as erofs
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, CorruptError, ObjectMissingError, ReadOnlyError
from composefsd.repository import Repository, gc
from composefsd.repository.gc import GcResult, collect
from composefsd.repository.links import Category
from composefsd.tree.table import ROOT, Stat, Tree

SHA256 = Algorithm.SHA256
MANIFEST = "oci-manifest-sha256:" + "5" * 64
NOTHING = GcResult(0, 0, 0, 0)


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


def run(repo: Repository, **options: Any) -> GcResult:
    """Look first, then do it; both must count the same."""
    with repo.shared_lock(0):
        expected = collect(repo, dry_run=True, **options)
    with repo.exclusive_lock(0):
        result = collect(repo, dry_run=False, **options)
        assert result == expected
        assert collect(repo, dry_run=False, **options) == NOTHING
    return result


def test_an_empty_repository_has_no_garbage(repo: Repository) -> None:
    assert run(repo) == NOTHING


def test_objects_that_nothing_names_go(repo: Repository) -> None:
    gone = [repo.objects.store(data) for data in (b"one", b"two!")]
    assert run(repo) == GcResult(2, 7, 0, 0)
    assert not any(map(repo.objects.has, gone))


def test_first_level_links_are_no_roots(repo: Repository, root: Path, stream: Any) -> None:
    file = repo.objects.store(b"file")
    stream(repo, "layer", file)
    image(repo, file)
    result = run(repo)
    assert (result.objects_removed, result.images_pruned, result.streams_pruned) == (3, 1, 1)
    assert list((root / "images").iterdir()) == list((root / "streams").iterdir()) == []


def test_a_dry_run_removes_nothing_and_counts_what_will_go(repo: Repository, stream: Any) -> None:
    stream(repo, "layer", repo.objects.store(b"file"))
    with Repository.open(repo.path, writable=False) as reader:
        assert collect(reader, dry_run=True).streams_pruned == 1
        with pytest.raises(ReadOnlyError):
            collect(reader, dry_run=False)
    assert list(repo.streams()) == ["layer"]


def test_a_tag_keeps_all_that_its_manifest_leads_to(repo: Repository, stream: Any) -> None:
    file, inner, document = (repo.objects.store(data) for data in (b"file", b"file of the image", b"{}"))
    layer = stream(repo, "oci-layer-sha256:1", file)
    made = image(repo, inner)
    config = stream(repo, "oci-config-sha256:2", document, **{"sha256:1": layer, "composefs.image.v1": made})
    stream(repo, MANIFEST, document, **{"config:sha256:2": config, "sha256:1": layer})
    repo.tag("name", MANIFEST)
    # The image lives by its name in the config, but not what it names: only the layers keep that.
    assert run(repo) == GcResult(1, len(b"file of the image"), 0, 0)
    assert repo.has_image(made)
    assert repo.objects.has(file)
    repo.untag("name")
    result = run(repo)
    assert (result.objects_removed, result.images_pruned, result.streams_pruned) == (6, 1, 3)


def test_a_named_reference_to_an_older_splitstream_keeps_only_that_object(repo: Repository, stream: Any) -> None:
    file = repo.objects.store(b"file")
    layer = stream(repo, "oci-layer-sha256:1", file)
    stream(repo, MANIFEST, **{"sha256:1": layer})
    stream(repo, "oci-layer-sha256:1", repo.objects.store(b"other"))
    repo.tag("name", MANIFEST)
    run(repo)
    assert repo.objects.has(layer)
    assert not repo.objects.has(file)
    assert list(repo.streams()) == [MANIFEST]


def test_streams_that_name_each_other_end_the_walk(repo: Repository, stream: Any) -> None:
    first = stream(repo, "first")
    second = stream(repo, "second", again=first, itself=first)
    stream(repo, MANIFEST, one=second, two=first)
    repo.tag("name", MANIFEST)
    assert run(repo) == NOTHING


def test_an_image_ref_keeps_the_image_and_its_files(repo: Repository) -> None:
    file = repo.objects.store(b"file")
    made = image(repo, file)
    repo.set_ref(Category.IMAGES, "some/name", made.hex())
    assert run(repo) == NOTHING
    repo.remove_ref(Category.IMAGES, "some/name")
    assert run(repo).objects_removed == 2


def test_roots_by_name_and_images_by_digest_stay(repo: Repository, stream: Any) -> None:
    one, two, three = (repo.objects.store(data) for data in (b"one", b"two", b"three"))
    stream(repo, "layer", one)
    first, second = image(repo, two), image(repo, three)
    keep = {"roots": ["layer", first.hex(), "missing"], "extra_images": [second]}
    assert run(repo, **keep) == NOTHING
    assert run(repo, roots=["layer"]).images_pruned == 2


def test_objects_with_upper_case_names_live_as_composefs_rs_reads_them(
    repo: Repository, root: Path, stream: Any
) -> None:
    digest = repo.objects.store(b"upper")
    path = root / "objects" / ObjectId(digest).path
    path.rename(path.with_name(path.name.upper()))
    stream(repo, MANIFEST, digest)
    repo.tag("name", MANIFEST)
    assert run(repo) == NOTHING


def test_dangling_links_are_removed_and_counted(repo: Repository, root: Path) -> None:
    run(repo)
    (root / "images").mkdir()
    (root / "images" / ("0" * 64)).symlink_to(f"../objects/00/{'0' * 62}")
    refs = root / "streams/refs/deep"
    refs.mkdir(parents=True)
    (refs / "up").symlink_to("../../../../nowhere/..")
    with repo.shared_lock():
        assert collect(repo, dry_run=True) == GcResult(0, 0, 1, 1)
    assert run(repo) == GcResult(0, 0, 1, 1)
    assert refs.is_dir()


def test_a_link_out_of_the_repository_stays_while_it_leads_somewhere(repo: Repository, root: Path) -> None:
    elsewhere = root.parent / "elsewhere" / "00"
    elsewhere.mkdir(parents=True)
    (elsewhere / ("0" * 62)).touch()
    (root / "streams").mkdir()
    (root / "streams" / "odd").symlink_to(f"../../elsewhere/00/{'0' * 62}")
    assert run(repo) == NOTHING


# What stops it


def refuses(repo: Repository, *kinds: type[ComposefsdError], match: str) -> None:
    """Both forms fail, and nothing goes."""
    before = {path: path.lstat().st_ino for path in repo.path.rglob("*")}
    for dry_run in (True, False):
        with pytest.raises(kinds, match=match):
            collect(repo, dry_run=dry_run)
    assert {path: path.lstat().st_ino for path in repo.path.rglob("*")} == before


@pytest.fixture
def tagged(repo: Repository, stream: Any) -> Repository:
    """A repository with a tagged manifest, and garbage."""
    stream(repo, MANIFEST, layer=stream(repo, "layer", repo.objects.store(b"file")))
    repo.tag("name", MANIFEST)
    image(repo)
    repo.objects.store(b"garbage")
    return repo


def object_path(repo: Repository, name: str) -> Path:
    return repo.path / "objects" / ObjectId(repo.stream(name) or b"").path


def test_a_live_stream_that_is_missing_stops_it(tagged: Repository) -> None:
    object_path(tagged, "layer").unlink()
    refuses(tagged, ObjectMissingError, match="stream layer: object .* is missing")


def test_a_live_stream_that_rotted_stops_it(tagged: Repository) -> None:
    path = object_path(tagged, MANIFEST)
    data = bytearray(path.read_bytes())
    data[150] ^= 1  # within a table of digests: still a splitstream, but one that would send us astray
    path.write_bytes(data)
    refuses(tagged, CorruptError, match=f"stream {MANIFEST}: ")


def test_a_live_stream_that_is_none_stops_it(tagged: Repository) -> None:
    tagged.link_stream(MANIFEST, tagged.objects.store(b"no splitstream"))
    refuses(tagged, CorruptError, match="no splitstream")


def test_a_live_image_that_is_none_stops_it(tagged: Repository) -> None:
    digest = tagged.objects.store(b"no image" * 1000)
    tagged.link_image(digest)
    tagged.set_ref(Category.IMAGES, "name", digest.hex())
    refuses(tagged, CorruptError, match=f"image {digest.hex()}: ")
    tagged.remove_ref(Category.IMAGES, "name")
    with pytest.raises(ObjectMissingError, match="image 0000"):
        collect(tagged, dry_run=True, extra_images=[bytes(32)])


def test_a_missing_file_of_a_live_layer_does_not_stop_it(tagged: Repository, root: Path) -> None:
    stream = tagged.read_stream("layer")
    (root / "objects" / ObjectId(stream.object_refs[0]).path).unlink()
    assert collect(tagged, dry_run=False).objects_removed == 2


def test_a_stray_file_among_the_objects_stops_it(tagged: Repository, root: Path) -> None:
    stray = root / "objects" / "00" / "notes"
    stray.parent.mkdir(exist_ok=True)
    stray.touch()
    refuses(tagged, CorruptError, match="objects/00/notes is not the name of an object")


def test_a_directory_among_the_objects_stops_it(tagged: Repository, root: Path) -> None:
    (root / "objects" / "00" / ("0" * 62)).mkdir(parents=True)
    refuses(tagged, CorruptError, match="is a directory")


@pytest.mark.parametrize("path", ["streams/file", "images/file", "streams/refs/oci/file", "images/refs/file"])
def test_a_file_among_the_links_stops_it(tagged: Repository, root: Path, path: str) -> None:
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).touch()
    refuses(tagged, CorruptError, match=path)


@pytest.mark.parametrize("text", ["../../missing", "../../refs", "../../../objects/00/00"])
def test_a_ref_to_no_entry_stops_it(tagged: Repository, root: Path, text: str) -> None:
    (root / "streams/refs/oci/other").symlink_to(text)
    refuses(tagged, ObjectMissingError, match="streams/refs/oci/other leads to")


def test_a_live_entry_that_leads_nowhere_by_its_way_stops_it(tagged: Repository, root: Path) -> None:
    path = ObjectId(tagged.stream("layer") or b"").path
    (root / "streams/layer").unlink()
    (root / "streams/layer").symlink_to(f"../objects/../{path}")
    refuses(tagged, ObjectMissingError, match="streams/layer lives, and leads nowhere")


def test_a_link_that_leads_to_itself_stops_it(tagged: Repository, root: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        (root / f"images/{name}").symlink_to(f"../images/{other}/../{'0' * 2}/{'0' * 62}")
    refuses(tagged, ComposefsdError, match="following images/one")


def test_an_entry_that_names_no_object_stops_it(tagged: Repository, root: Path) -> None:
    (root / "streams/odd").symlink_to("../meta.json")
    refuses(tagged, CorruptError, match="streams/odd leads to")


# Progress and power


def test_progress_is_told_and_may_end_it(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "_TICK_OBJECTS", 3)
    for number in range(10):
        repo.objects.store(b"%d" % number)
    told: list[tuple[int, int]] = []

    def tick(done: int, total: int) -> None:
        told.append((done, total))
        if done == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        collect(repo, dry_run=False, tick=tick)
    assert told == [(0, 10), (3, 10), (6, 10)]
    assert collect(repo, dry_run=False).objects_removed == 4


def test_links_are_gone_from_the_disk_before_what_they_led_to(repo: Repository, stream: Any, disk: Any) -> None:
    stream(repo, "layer", repo.objects.store(b"file"))
    image(repo)
    disk.heal()
    collect(repo, dry_run=False)
    assert disk.log == ["unlink", "unlink", "syncfs", "unlink", "unlink", "unlink"]


def test_a_dead_link_to_a_directory_of_refs_is_never_followed(repo: Repository, root: Path, stream: Any) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "link").symlink_to("../../missing")
    stream(repo, MANIFEST)
    (root / "streams/refs").mkdir()
    os.symlink(outside, root / "streams/refs/way")  # noqa: PTH211 - as short as the other
    refuses(repo, ObjectMissingError, match="streams/refs/way leads to streams/outside")
