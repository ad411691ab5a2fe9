"""Finding what a reference means: by tag, by platform, image or artifact."""

import asyncio
from pathlib import Path

import pytest
from real.oci_layout import MANIFEST_TYPE, Blob, Image, Layout

from composefsd.digests import OciDigest
from composefsd.errors import DigestMismatchError, LimitExceededError, SourceNotFoundError, UnsupportedError
from composefsd.oci.manifest import DELTA_TYPE, DOCKER_CONFIG_TYPE, INDEX_TYPE, Artifact
from composefsd.oci.reference import Platform
from composefsd.oci.resolve import find_image
from composefsd.oci.transport.layout import LayoutSource

OURS = Platform("linux", "amd64")
THING = "application/vnd.example.thing"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "oci")


def find(layout: Layout, tag: str = "", wanted: str | None = None) -> str:
    """The digest of the manifest that is meant."""
    source = LayoutSource(layout.path)
    try:
        required = OciDigest.parse(wanted) if wanted else None
        return str(asyncio.run(find_image(source, tag, OURS, required)).manifest.digest)
    finally:
        source.close()


def add_image(layout: Layout, tag: str | None, architecture: str = "amd64", *, platform: bool = False) -> Image:
    """An image without layers; its platform stands in its config, and in the index if asked for."""
    image = layout.add_image(None, [], config={"architecture": architecture})
    layout.set_tag(tag, image.manifest, f"linux/{architecture}" if platform else None)
    return image


def add_index(layout: Layout, tag: str | None, entries: list[dict[str, object]]) -> None:
    layout.set_tag(tag, layout.add_json({"schemaVersion": 2, "manifests": entries}, INDEX_TYPE))


def other_layout(tmp_path: Path, layout: Layout) -> Layout:
    """A layout whose blobs those of `layout` are: what is added there is in no index here."""
    other = Layout(tmp_path / "other")
    other._blobs = layout._blobs
    return other


def test_a_lone_artifact_needs_no_platform_and_no_tag(layout: Layout) -> None:
    digest = layout.add_artifact("thing", [layout.add_blob(b"data", THING)]).manifest.digest
    assert find(layout, "thing") == find(layout) == digest
    with pytest.raises(DigestMismatchError):
        find(layout, "thing", "sha256:" + "0" * 64)


def test_an_artifact_for_this_platform_is_taken_and_one_for_another_is_not(layout: Layout) -> None:
    ours = layout.add_artifact("ours", [], platform="linux/amd64")
    layout.add_artifact("theirs", [], platform="linux/s390x", manifest={"annotations": {"a": "b"}})
    assert find(layout, "ours") == find(layout) == ours.manifest.digest
    with pytest.raises(SourceNotFoundError, match="no image for linux/amd64"):
        find(layout, "theirs")


def test_a_signature_beside_an_image_is_not_taken_for_it(layout: Layout) -> None:
    image = add_image(layout, None)
    layout.add_artifact(None, [layout.add_blob(b"signature", THING)])
    assert find(layout) == image.manifest.digest


def test_an_artifact_does_not_stand_in_for_an_image_of_another_platform(layout: Layout, tmp_path: Path) -> None:
    other = other_layout(tmp_path, layout)
    image = add_image(other, None, "arm64")
    artifact = other.add_artifact(None, [])
    arm = {"os": "linux", "architecture": "arm64"}
    add_index(layout, "both", [{**image.manifest.descriptor(), "platform": arm}, artifact.manifest.descriptor()])
    with pytest.raises(SourceNotFoundError, match="is an artifact, of which nothing tells the platform"):
        find(layout, "both")


def test_of_images_without_a_platform_in_the_index_the_config_chooses(layout: Layout, tmp_path: Path) -> None:
    other = other_layout(tmp_path, layout)
    images = [add_image(other, None, architecture) for architecture in ("arm64", "amd64", "s390x")]
    add_index(layout, "all", [image.manifest.descriptor() for image in images])
    assert find(layout, "all") == find(layout) == images[1].manifest.digest
    for image in images:
        layout.set_tag(None, image.manifest)
    assert find(layout) == images[1].manifest.digest


def test_what_was_looked_at_is_told(layout: Layout) -> None:
    image = add_image(layout, "arm", "arm64")
    with pytest.raises(SourceNotFoundError, match=f"{image.manifest.digest} is an image for linux/arm64"):
        find(layout, "arm")


def test_several_things_without_a_tag_are_too_many(layout: Layout) -> None:
    add_image(layout, "one")
    layout.add_image("two", [], manifest={"annotations": {"a": "b"}})
    with pytest.raises(SourceNotFoundError, match="several images"):
        find(layout)
    layout.add_artifact("three", [], platform="linux/amd64")
    assert find(layout, "three")


def test_artifacts_without_a_tag_are_told_apart_by_nothing(layout: Layout) -> None:
    for number in range(2):
        layout.add_artifact(str(number), [], manifest={"annotations": {"number": str(number)}})
    with pytest.raises(SourceNotFoundError, match="an artifact"):
        find(layout)


def test_a_thing_under_two_tags_is_one_thing(layout: Layout) -> None:
    artifact = layout.add_artifact("one", [])
    layout.set_tag("two", artifact.manifest)
    assert find(layout) == artifact.manifest.digest


@pytest.mark.parametrize("platform", [None, "linux/amd64"])
def test_a_docker_image_is_not_stored_as_an_artifact(layout: Layout, platform: str | None) -> None:
    config = layout.add_blob(b'{"os":"linux","architecture":"amd64"}', DOCKER_CONFIG_TYPE)
    layout.add_artifact("docker", [], config=config, artifact_type=None, platform=platform)
    with pytest.raises(UnsupportedError, match="convert it to OCI"):
        find(layout, "docker")


def test_a_delta_is_not_stored_as_an_artifact(layout: Layout) -> None:
    layout.add_artifact("delta", [], artifact_type=DELTA_TYPE)
    with pytest.raises(UnsupportedError, match="OCI delta"):
        find(layout, "delta")


def test_no_more_manifests_are_read_than_a_daemon_has_time_for(layout: Layout, tmp_path: Path) -> None:
    other = other_layout(tmp_path, layout)
    made = [other.add_artifact(None, [], manifest={"annotations": {"number": str(number)}}) for number in range(17)]
    entries = [one.manifest.descriptor() for one in made]
    add_index(layout, "few", entries[:15])
    with pytest.raises(SourceNotFoundError):
        find(layout, "few")
    add_index(layout, "many", entries)
    with pytest.raises(LimitExceededError, match="16 manifests"):
        find(layout, "many")


def test_the_config_of_an_artifact_may_be_anything_of_the_right_digest(layout: Layout) -> None:
    config = layout.add_blob(b"\xff\0 no JSON", "application/octet-stream")
    layout.add_artifact("thing", [], config=config, artifact_type=None)
    source = LayoutSource(layout.path)
    found = asyncio.run(find_image(source, "thing", OURS, None))
    source.close()
    assert isinstance(found, Artifact)
    assert (found.config.data, found.manifest.artifact_type) == (b"\xff\0 no JSON", "application/octet-stream")
    layout.blob_path(config.digest).write_bytes(b"\xff\1 no JSON")
    with pytest.raises(DigestMismatchError):
        find(layout, "thing")


def test_a_manifest_that_only_an_index_calls_one_is_unsupported(layout: Layout) -> None:
    image = add_image(layout, "one")
    layout.set_tag("two", Blob("text/plain", image.manifest.digest, image.manifest.size_bytes))
    with pytest.raises(UnsupportedError, match="text/plain"):
        find(layout, "two")
    assert image.manifest.media_type == MANIFEST_TYPE
