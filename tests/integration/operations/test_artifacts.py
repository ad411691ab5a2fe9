"""Artifacts: pulled, listed, refused where an image is needed, checked, collected."""

import asyncio
import random
import tarfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real.layers import directory, regular, tar_layer
from real.oci_layout import LAYER_TYPE, Blob, Compression, Image, Layer, Layout

from composefsd import errors
from composefsd.deploy.state import VerityPolicy
from composefsd.digests import DiffId, OciDigest
from composefsd.oci.manifest import check_digest
from composefsd.oci.reference import Reference
from composefsd.oci.storage import ImageKind, layer_stream, load_image, manifest_stream
from composefsd.operations import images
from composefsd.operations.check import check
from composefsd.operations.collect import collect_garbage
from composefsd.operations.compute_id import Question, compute
from composefsd.operations.deploy import deploy, plan_deploy
from composefsd.operations.generate import compute_digest, generate
from composefsd.operations.host import Host
from composefsd.operations.model import DeployRequest, GenerateRequest, ImageInfo, PullRequest, PullResult
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.repository import Repository
from composefsd.repository.links import Category
from composefsd.splitstream import ContentType

Add = Callable[..., Image]
THING = "application/vnd.example.thing"
TAR = tar_layer((*map(directory, ("usr", "boot", "sysroot")), regular("usr/file", b"content " * 20)))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def do(host: Host, layout: Layout, tag: str = "thing", **changes: Any) -> PullResult:
    request = PullRequest(Reference.parse(f"oci:{layout.path}:{tag}"), name=tag)
    result = run(pull(host, replace(request, **changes), Silent()))
    assert isinstance(result, PullResult)
    return result


def the_image(host: Host, name: str = "thing") -> ImageInfo:
    return images.resolve(run(images.list_images(host)), name)


def assert_sound(host: Host) -> None:
    report = run(check(host, depth="full", image=None, max_findings=10, progress=Silent()))
    assert report.findings == ()


def content(repository: Repository, blob: Blob) -> tuple[int, bytes]:
    """What kind of stream a layer of an artifact is, and what it stands for."""
    stream = repository.read_stream(layer_stream(DiffId.parse(blob.digest)))
    data = bytearray()
    for chunk in stream.chunks():
        data += chunk if isinstance(chunk, bytes) else repository.objects.read(stream.object_refs[chunk], 1 << 30)
    return stream.content_type, bytes(data)


def test_blobs_of_all_sizes_are_kept_byte_for_byte(host: Host, layout: Layout) -> None:
    blobs = [random.Random(size).randbytes(size) for size in (0, 1, 64, 65, 4096, (9 << 20) + 5)]
    image = layout.add_artifact("thing", [layout.add_blob(data, THING) for data in blobs])
    result = do(host, layout)
    assert (str(result.manifest_digest), result.images) == (image.manifest.digest, ())
    assert (result.bytes_fetched, result.bytes_reused) == (sum(map(len, blobs)), 0)
    with Repository.open(host.settings.repository) as repository:
        for layer, data in zip(image.layers, blobs, strict=True):
            assert content(repository, layer.blob) == (ContentType.OCI_BLOB, data)
        assert repository.image_ids() == []
        assert repository.tags() == {"thing": f"oci-manifest-{image.manifest.digest}"}
    assert_sound(host)


@pytest.mark.parametrize("compression", Compression)
def test_a_tar_is_cut_into_files_and_goes_by_its_blob(host: Host, layout: Layout, compression: Compression) -> None:
    blob = layout.add_layer(Layer(TAR, compression)).blob
    layout.add_artifact("thing", [blob, layout.add_blob(b"beside it", THING)])
    do(host, layout)
    with Repository.open(host.settings.repository) as repository:
        assert content(repository, blob) == (ContentType.OCI_LAYER, TAR)
    assert_sound(host)
    assert do(host, layout, replace=True).bytes_fetched == 0


def test_an_artifact_may_be_nothing_but_its_type(host: Host, layout: Layout) -> None:
    layout.add_artifact("thing", [])
    do(host, layout)
    found = the_image(host)
    assert (found.artifact_type, found.layer_count, found.size_bytes) == (THING, 0, 0)
    assert_sound(host)


def test_a_blob_that_stands_twice_is_read_once(host: Host, layout: Layout) -> None:
    blob = layout.add_blob(b"twice", THING)
    layout.add_artifact("thing", [blob, layout.add_blob(b"once", THING), blob])
    result = do(host, layout)
    assert (result.bytes_fetched, result.bytes_reused) == (9, 5)
    assert the_image(host).layer_count == 3


def test_a_second_pull_reads_no_blob_and_adds_nothing(host: Host, layout: Layout) -> None:
    blob = layout.add_blob(b"data", THING)
    layout.add_artifact("thing", [blob])
    do(host, layout)
    layout.blob_path(blob.digest).unlink()
    result = do(host, layout)
    assert (result.bytes_fetched, result.bytes_reused, result.objects_added) == (0, 4, 0)


def test_an_artifact_tells_what_it_is_and_why_it_does_not_boot(host: Host, layout: Layout, add_demo: Add) -> None:
    config = layout.add_blob(b"\xff no JSON", "application/vnd.example.config")
    layout.add_artifact("thing", [layout.add_blob(b"data", THING)], config=config, artifact_type=None)
    do(host, layout)
    found = the_image(host)
    assert (found.artifact_type, found.names) == ("application/vnd.example.config", ("thing",))
    assert (found.os, found.architecture, found.images, found.bootable) == ("", "", (), False)
    assert found.reasons == ("an artifact of type application/vnd.example.config has nothing to boot",)
    assert run(images.document(host, found.manifest_digest, "config")) == b"\xff no JSON"
    add_demo("os")
    do(host, layout, "os")
    assert the_image(host, "os").artifact_type == ""


def test_what_needs_a_container_image_is_refused_in_one_way(host: Host, layout: Layout) -> None:
    layout.add_artifact("thing", [layout.add_blob(b"data", THING)])
    image = do(host, layout).manifest_digest
    request = GenerateRequest(frozenset(ImageKind))
    deferred = DeployRequest(verity=VerityPolicy.DEFERRED)
    refused = f"{image} is an artifact of type {THING}, not a container image"
    for attempt in (
        lambda: generate(host, image, request, Silent()),
        lambda: compute_digest(host, image, request, Silent()),
        lambda: plan_deploy(host, image, deferred, Silent()),
        lambda: deploy(host, image, deferred, Silent()),
    ):
        with pytest.raises(errors.UnsupportedError) as caught:
            run(attempt())
        assert caught.value.message == refused
    with pytest.raises(errors.UnsupportedError, match="not a container image"):
        compute(Question(f"oci:{layout.path}:thing"))
    with Repository.open(host.settings.repository) as repository:
        assert list(repository.tags()) == ["thing"]  # and no tag of a deployment


def change(layout: Layout, image: Image, data: bytes) -> None:
    layout.blob_path(image.layers[0].blob.digest).write_bytes(data)


def wrong_config(layout: Layout, image: Image) -> None:
    layout.blob_path(image.config.digest).write_bytes(b"[]")


def no_blob(layout: Layout, image: Image) -> None:
    layout.blob_path(image.layers[0].blob.digest).unlink()


BREAKS: dict[str, tuple[Callable[[Layout, Image], None], type[errors.ComposefsdError]]] = {
    "another blob": (lambda layout, image: change(layout, image, b"DATA"), errors.DigestMismatchError),
    "truncated blob": (lambda layout, image: change(layout, image, b"dat"), errors.FormatError),
    "longer blob": (lambda layout, image: change(layout, image, b"data!"), errors.FormatError),
    "no blob": (no_blob, errors.SourceNotFoundError),
    "another config": (wrong_config, errors.DigestMismatchError),
}


@pytest.mark.parametrize("case", BREAKS)
def test_an_artifact_that_is_not_what_it_says_is_refused_and_leaves_nothing(
    host: Host, layout: Layout, case: str
) -> None:
    image = layout.add_artifact("thing", [layout.add_blob(b"data", THING)])
    make, error = BREAKS[case]
    make(layout, image)
    with pytest.raises(error):
        do(host, layout)
    with Repository.open(host.settings.repository) as repository:
        assert list(repository.streams()) == []
        assert repository.tags() == {}
    assert [path for path in (host.settings.repository / "objects").rglob("*") if path.is_file()] == []


def test_a_packed_tar_that_is_not_the_promised_blob_gets_no_name(host: Host, layout: Layout) -> None:
    """Its name is the digest of what is not stored, so nothing could find out later."""
    good, evil = (layout.add_layer(Layer(tar)) for tar in (TAR, tar_layer((directory("usr"), directory("usr/x")))))
    layout.add_artifact("thing", [replace(good.blob, size_bytes=evil.blob.size_bytes)])
    layout.blob_path(good.blob.digest).write_bytes(layout.blob_path(evil.blob.digest).read_bytes())
    with pytest.raises(errors.DigestMismatchError):
        do(host, layout)
    with Repository.open(host.settings.repository) as repository:
        assert list(repository.streams()) == []


@pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
def test_what_only_says_that_it_is_a_tar_is_a_format_error(host: Host, layout: Layout, suffix: str) -> None:
    layout.add_artifact("thing", [layout.add_blob(b"no tar at all", LAYER_TYPE + suffix)])
    with pytest.raises(errors.FormatError):
        do(host, layout)
    assert list(host.settings.repository.rglob(".*")) == []


def test_an_image_is_not_made_of_a_blob_that_has_the_name_of_its_layer(host: Host, layout: Layout) -> None:
    stored = layout.add_layer(Layer(TAR, Compression.NONE))
    layout.add_artifact("thing", [replace(stored.blob, media_type=THING)])
    layout.add_image("os", [stored])
    do(host, layout)
    with pytest.raises(errors.UnsupportedError, match="stored as a blob of an artifact"):
        do(host, layout, "os")
    run(images.remove(host, the_image(host).manifest_digest, force=False))
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert len(do(host, layout, "os").images) == 2
    assert do(host, layout).bytes_fetched == 0  # the other way round the tar is the blob
    assert_sound(host)


def test_artifacts_are_named_removed_and_collected_like_images(host: Host, layout: Layout) -> None:
    """They share the empty config, so one that goes must take nothing of the other one with it."""
    digests = {}
    for name in ("one", "two"):
        layout.add_artifact(name, [layout.add_blob(name.encode() * 40, THING)])
        digests[name] = do(host, layout, name).manifest_digest
    run(images.tag(host, digests["one"], "other", replace=False))
    assert the_image(host, "other").names == ("one", "other")
    run(images.untag(host, "other", missing_ok=False))
    assert run(images.remove(host, digests["one"], force=False)) == ["one"]
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert [image.names for image in run(images.list_images(host))] == [("two",)]
    with Repository.open(host.settings.repository) as repository:
        assert len([name for name in repository.streams() if name.startswith("oci-layer-")]) == 1
    assert_sound(host)
    run(images.untag(host, "two", missing_ok=False))
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert [path for path in (host.settings.repository / "objects").rglob("*") if path.is_file()] == []


def test_what_an_artifact_is_said_to_refer_to_is_kept(host: Host, layout: Layout, add_demo: Add) -> None:
    """composefs-rs's library keeps artifacts by refs of their own; nobody has to name them."""
    add_demo("os")
    layout.add_artifact("thing", [layout.add_blob(b"signature", THING)])
    image, artifact = do(host, layout, "os").manifest_digest, do(host, layout).manifest_digest
    referrer = f"oci-referrers/{image}/{artifact}"
    with Repository.open(host.settings.repository) as repository:
        repository.set_ref(Category.STREAMS, referrer, manifest_stream(artifact))
    run(images.untag(host, "thing", missing_ok=False))
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    found = the_image(host, artifact.hex)
    assert (found.names, found.artifact_type) == ((), THING)
    assert_sound(host)
    with pytest.raises(errors.InUseError, match="oci-referrers"):
        run(images.remove(host, artifact, force=True))
    with Repository.open(host.settings.repository) as repository:
        assert repository.refs(Category.STREAMS)[referrer] == manifest_stream(artifact)


def test_an_artifact_in_an_archive_is_the_same(
    make_host: Callable[..., Host], layout: Layout, tmp_path: Path
) -> None:
    layout.add_artifact("thing", [layout.add_blob(b"data" * 500, THING), layout.add_layer(Layer(TAR)).blob])
    with tarfile.open(tmp_path / "thing.tar", "w") as tar:
        tar.add(layout.path, arcname=".")
    first = do(make_host(), layout)
    other = make_host(repository=tmp_path / "other", state=tmp_path / "other-state")
    second = do(other, layout, reference=Reference.parse(f"oci-archive:{tmp_path}/thing.tar:thing"))
    assert second.manifest_digest == first.manifest_digest
    objects = [
        {str(path.relative_to(top)) for path in (top / "objects").rglob("*") if path.is_file()}
        for top in (tmp_path / "repository", tmp_path / "other")
    ]
    assert objects[0] == objects[1]


def test_a_damaged_blob_is_found(host: Host, layout: Layout) -> None:
    data = b"precious " * 1000
    layout.add_artifact("thing", [layout.add_blob(data, THING)])
    digest = do(host, layout).manifest_digest
    with Repository.open(host.settings.repository) as repository:
        (stream,) = load_image(repository, digest).layers
        (ref,) = repository.read_stream_object(stream).object_refs
        path = host.settings.repository / "objects" / ref.hex()[:2] / ref.hex()[2:]
        check_digest(path.read_bytes(), OciDigest.parse(layout.add_blob(data, THING).digest), "the blob")
    path.chmod(0o600)
    path.write_bytes(b"Precious " * 1000)
    report = run(check(host, depth="full", image=digest, max_findings=10, progress=Silent()))
    assert report.findings
    assert {one.severity for one in report.findings} == {"error"}
