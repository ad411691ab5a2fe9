"""Links: the texts that composefs-rs goes by, streams, images, tags and refs, and what is on the disk when."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.errors import (
    CorruptError,
    FormatError,
    InvalidNameError,
    NoSuchObjectError,
    ObjectMissingError,
)
from composefsd.repository import Repository, links, refs
from composefsd.repository.links import Category
from composefsd.splitstream import ContentType

SHA256 = Algorithm.SHA256
MANIFEST = "oci-manifest-sha256:" + "5" * 64
OTHER = "oci-manifest-sha256:" + "6" * 64


def link_texts(root: Path) -> dict[str, str]:
    """All symbolic links of a repository, and their texts."""
    return {str(p.relative_to(root)): str(p.readlink()) for p in root.rglob("*") if p.is_symlink()}


# Links


@pytest.mark.parametrize(
    ("path", "target", "text"),
    [
        ("images/DIGEST", "objects/XX/REST", "../objects/XX/REST"),
        ("images/refs/a", "images/DIGEST", "../DIGEST"),
        ("images/refs/a/b", "images/DIGEST", "../../DIGEST"),
        ("streams/NAME", "objects/XX/REST", "../objects/XX/REST"),
        ("streams/refs/oci/TAG", "streams/NAME", "../../NAME"),
        ("streams/refs/oci-referrers/SUBJECT/ARTIFACT", "streams/oci-manifest-A", "../../../oci-manifest-A"),
    ],
)
def test_link_texts_are_those_of_composefs_rs(path: str, target: str, text: str) -> None:
    assert links.link_text(path, target) == text


def test_all_links_of_a_repository_have_the_right_texts(repo: Repository, root: Path, stream: Any) -> None:
    digest = stream(repo, MANIFEST)
    hexadecimal = digest.hex()
    image = repo.objects.store(b"an image, as far as links go")
    repo.link_image(image)
    repo.tag("quay.io/a%b:latest", MANIFEST)
    repo.set_ref(Category.IMAGES, "plain", image.hex())
    repo.set_ref(Category.IMAGES, "deep/down", image.hex())
    repo.set_ref(Category.STREAMS, "oci-referrers/sha256:s/sha256:a", MANIFEST)
    assert link_texts(root) == {
        f"streams/{MANIFEST}": f"../objects/{hexadecimal[:2]}/{hexadecimal[2:]}",
        f"images/{image.hex()}": f"../objects/{image.hex()[:2]}/{image.hex()[2:]}",
        "streams/refs/oci/quay.io%2Fa%25b:latest": f"../../{MANIFEST}",
        "streams/refs/oci-referrers/sha256:s/sha256:a": f"../../../{MANIFEST}",
        "images/refs/plain": f"../{image.hex()}",
        "images/refs/deep/down": f"../../{image.hex()}",
    }
    for path in (p for name in ("images", "streams") for p in (root / name).rglob("*") if p.is_dir()):
        assert path.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("../objects/" + "aa/" + "b" * 62, "aa" + "b" * 62),
        ("../AA/" + "B" * 62, "aa" + "b" * 62),
        ("../../elsewhere/xx" + "aa/" + "b" * 62, "aa" + "b" * 62),
        ("objects/" + "aa/" + "b" * 62, None),
        ("../objects/" + "aa/" + "b" * 61, None),
        ("../objects/" + "aa/" + "b" * 61 + "g", None),
        ("../objects/" + "aa/" + "b" * 62 + "\n", None),
        ("../objects/" + "aa" + "b" * 63, None),
        ("../", None),
    ],
)
def test_the_object_is_read_from_the_end_of_the_text(text: str, found: str | None) -> None:
    digest = links.object_in_text(text, SHA256)
    assert (digest.hex() if digest else None) == found


@pytest.mark.parametrize(
    ("text", "name"),
    [("../a", "a"), ("../../a/", "a"), ("../a/.", "a"), ("a/..", None), ("..", None), ("/", None), ("", None)],
)
def test_the_name_at_the_end_of_a_ref_is_the_one_rust_finds(text: str, name: str | None) -> None:
    assert links.last_component(text) == name


def test_a_link_is_replaced_in_one_step(repo: Repository, root: Path, stream: Any, disk: Any) -> None:
    first = stream(repo, "name")
    second = repo.objects.store(b"second")
    disk.heal()
    repo.link_stream("name", second)
    assert disk.log == ["syncfs", "symlink", "symlink", "rename"]
    assert repo.stream("name") == second != first
    disk.heal()
    repo.link_stream("name", second)
    assert disk.log == ["symlink"]
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_streams_are_found_by_name(repo: Repository, stream: Any) -> None:
    assert repo.stream("a") is None
    assert list(repo.streams()) == []
    digest = stream(repo, "a", bytes(32), ref=bytes(range(32)))
    stream(repo, "b:c")
    assert repo.stream("a") == digest
    assert list(repo.streams()) == ["a", "b:c"]
    assert repo.read_stream("a", ContentType.OCI_LAYER).named_refs == {"ref": bytes(range(32))}
    assert repo.read_stream_object(digest).object_refs == (bytes(32),)
    with pytest.raises(FormatError):
        repo.read_stream("a", ContentType.OCI_MANIFEST)
    with pytest.raises(NoSuchObjectError):
        repo.read_stream("missing")


def test_what_is_no_stream_is_told_from_one_that_is_not_there(repo: Repository, root: Path) -> None:
    repo.link_stream("text", repo.objects.store(b"no splitstream"))
    (root / "streams" / "odd").symlink_to("../objects/xy")
    (root / "streams" / "file").touch()
    with pytest.raises(CorruptError, match="no splitstream"):
        repo.read_stream("text")
    with pytest.raises(CorruptError, match="no object"):
        repo.stream("odd")
    with pytest.raises(CorruptError, match="not a symbolic link"):
        repo.stream("file")
    (root / "streams" / "gone").symlink_to("../objects/00/" + "0" * 62)
    with pytest.raises(ObjectMissingError):
        repo.read_stream("gone")


@pytest.mark.parametrize("name", ["", ".", "..", "refs", "a/b", "a\0b", "x" * 256, "\ud800"])
def test_stream_names_that_cannot_be_are_refused(repo: Repository, name: str) -> None:
    with pytest.raises(InvalidNameError):
        repo.stream(name)
    with pytest.raises(InvalidNameError):
        repo.link_stream(name, bytes(32))


def test_links_to_objects_that_are_not_there_are_refused(repo: Repository, root: Path) -> None:
    for link in (lambda: repo.link_stream("name", bytes(32)), lambda: repo.link_image(bytes(32))):
        with pytest.raises(ObjectMissingError):
            link()
    assert link_texts(root) == {}


def test_images_come_and_go(repo: Repository, root: Path) -> None:
    digest = repo.objects.store(b"image")
    assert not repo.has_image(digest)
    repo.link_image(digest)
    (root / "images" / "not a digest").symlink_to("../objects/00/" + "0" * 62)
    assert repo.has_image(digest)
    assert repo.image_ids() == [digest]
    assert repo.read_image(digest) == b"image"
    assert repo.unlink_image(digest)
    assert not repo.unlink_image(digest)
    assert repo.image_ids() == []


# Tags and refs


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("latest", "latest"),
        ("a/b", "a%2Fb"),
        ("%2F", "%252F"),
        ("docker://quay.io/foo:1", "docker:%2F%2Fquay.io%2Ffoo:1"),
    ],
)
def test_tags_are_encoded_as_composefs_rs_encodes_them(name: str, encoded: str) -> None:
    assert refs.encode_tag(name) == encoded
    assert refs.decode_tag(encoded) == name


@given(st.text())
def test_every_tag_survives_its_encoding(name: str) -> None:
    assert refs.decode_tag(refs.encode_tag(name)) == name


@pytest.mark.parametrize(
    ("encoded", "name"),
    [("%2f", "%2f"), ("%41", "%41"), ("a%", "a%"), ("%2", "%2"), ("%%2F", "%%2F"), ("%252F", "%2F")],
)
def test_other_escapes_stay_as_they_are(encoded: str, name: str) -> None:
    assert refs.decode_tag(encoded) == name


@pytest.mark.parametrize("name", ["", "@sha256:0", "a\0b", ".", "..", "/" * 86, "ü" * 128, "\ud800"])
def test_tags_that_cannot_be_are_refused(repo: Repository, name: str) -> None:
    for call in (lambda: repo.tag(name, MANIFEST), lambda: repo.untag(name)):
        with pytest.raises(InvalidNameError):
            call()


def test_tags_are_listed_moved_and_removed(repo: Repository, root: Path, stream: Any) -> None:
    stream(repo, MANIFEST)
    stream(repo, OTHER)
    assert repo.tags() == {}
    for name in ("a/b:1", "x" * 255, "ü", "~"):
        repo.tag(name, MANIFEST)
    repo.tag("a/b:1", OTHER)
    nested = root / "streams/refs/oci/nested"
    nested.mkdir()
    (nested / "deep%2Fdown").symlink_to(f"../../../{OTHER}")
    (nested / "config").symlink_to("../../../oci-config-sha256:0")
    (nested / os.fsdecode(b"\xff")).symlink_to(f"../../../{OTHER}")
    assert repo.tags() == {
        "a/b:1": OTHER, "nested/deep/down": OTHER, "ü": MANIFEST, "x" * 255: MANIFEST, "~": MANIFEST,
    }  # fmt: skip
    assert repo.untag("a/b:1")
    assert not repo.untag("a/b:1")
    assert "a/b:1" not in repo.tags()


def test_a_tag_needs_a_manifest_that_is_there(repo: Repository, root: Path, stream: Any) -> None:
    with pytest.raises(NoSuchObjectError):
        repo.tag("name", MANIFEST)
    stream(repo, "oci-config-sha256:0")
    with pytest.raises(InvalidNameError):
        repo.tag("name", "oci-config-sha256:0")
    assert repo.tags() == {}


def test_refs_of_both_categories_are_listed(repo: Repository, stream: Any) -> None:
    stream(repo, MANIFEST)
    repo.tag("name", MANIFEST)
    repo.set_ref(Category.STREAMS, "other/ref", MANIFEST)
    assert repo.refs(Category.STREAMS) == {"oci/name": MANIFEST, "other/ref": MANIFEST}
    assert repo.refs(Category.IMAGES) == {}
    assert repo.remove_ref(Category.STREAMS, "other/ref")
    assert not repo.remove_ref(Category.STREAMS, "other/ref")
    for name in ("", "a//b", "../a", "/a", "a/.."):
        with pytest.raises(InvalidNameError):
            repo.set_ref(Category.STREAMS, name, MANIFEST)
    with pytest.raises(NoSuchObjectError):
        repo.set_ref(Category.STREAMS, "name", "refs")


# Durability


def test_objects_are_synced_before_links_and_links_before_refs(repo: Repository, stream: Any, disk: Any) -> None:
    stream(repo, MANIFEST)
    repo.tag("name", MANIFEST)
    log = [name for name in disk.log if name in ("link", "syncfs", "symlink", "fsync")]
    # object; barrier; link of the stream; streams/ and the repository; the ref; then it and all directories above
    assert log == ["link", "syncfs", "symlink", "fsync", "fsync", "symlink", *["fsync"] * 4]
    disk.heal()
    repo.link_stream("again", repo.stream(MANIFEST) or b"")
    assert "syncfs" not in disk.log
    disk.heal()
    repo.untag("name")
    assert disk.log == ["unlink", *["fsync"] * 4]
