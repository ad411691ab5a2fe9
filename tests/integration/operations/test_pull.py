"""Pulling: what arrives, what is not read again, and what is refused without leaving a trace."""

import asyncio
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real.layers import directory, regular, tar_layer
from real.oci_layout import Blob, Image, Layer, Layout, StoredLayer

from composefsd import errors
from composefsd.digests import OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Platform, Reference
from composefsd.oci.storage import ImageKind, load_image
from composefsd.operations.check import check
from composefsd.operations.host import Host
from composefsd.operations.model import PullRequest, PullResult
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.repository import Repository
from composefsd.repository.links import Category

Add = Callable[..., Image]
BASE = (directory("usr"), directory("boot"), directory("sysroot"), regular("usr/file", b"content " * 20))


def request(layout: Layout, **changes: Any) -> PullRequest:
    return replace(PullRequest(Reference.parse(f"oci:{layout.path}:os"), name="os"), **changes)


def do(host: Host, wanted: PullRequest) -> PullResult:
    return asyncio.run(pull(host, wanted, Silent()))


def names(host: Host) -> dict[str, Any]:
    """Everything in the repository that has a name and a meaning."""
    with Repository.open(host.settings.repository) as repository:
        return {
            "streams": list(repository.streams()),
            "images": repository.image_ids(),
            "tags": repository.tags(),
            "refs": repository.refs(Category.STREAMS),
        }


def leftovers(host: Host) -> list[Path]:
    return [path for path in host.settings.repository.rglob("*") if path.name.startswith(".")]


def test_a_pull_gives_both_images_and_a_clean_repository(host: Host, layout: Layout, add_demo: Add) -> None:
    image = add_demo()
    result = do(host, request(layout))
    assert str(result.manifest_digest) == image.manifest.digest
    assert {one.kind for one in result.images} == set(ImageKind)
    assert result.bytes_fetched == sum(layer.blob.size_bytes for layer in image.layers)
    report = asyncio.run(check(host, depth="full", image=None, max_findings=10, progress=Silent()))
    assert report.findings == ()
    assert leftovers(host) == []


def test_a_second_pull_reads_no_layer_and_adds_nothing(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    first = do(host, request(layout))
    for path in (layout.path / "blobs" / "sha256").iterdir():
        if path.read_bytes()[:2] == b"\x1f\x8b":
            path.unlink()
    second = do(host, request(layout))
    assert (second.bytes_fetched, second.bytes_reused) == (0, first.bytes_fetched)
    assert (second.images, second.objects_added) == (first.images, 0)


def test_the_default_name_is_the_reference(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    result = do(host, request(layout, name=None))
    assert result.name == f"oci:{layout.path}:os"
    assert list(names(host)["tags"]) == [result.name]


def test_an_archive_gives_the_digests_of_its_layout(
    make_host: Callable[..., Host], tmp_path: Path, layout: Layout, add_demo: Add
) -> None:
    add_demo()
    archive = tmp_path / "os.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(layout.path, arcname=".")
    first = do(make_host(), request(layout))
    other = make_host(repository=tmp_path / "other", state=tmp_path / "other-state")
    second = do(other, request(layout, reference=Reference.parse(f"oci-archive:{archive}:os")))
    assert second.images == first.images


def test_both_formats_can_be_had_where_the_repository_has_both(
    make_host: Callable[..., Host], layout: Layout, add_demo: Add
) -> None:
    add_demo()
    host = make_host(formats=(FormatVersion.V1, FormatVersion.V2))
    one = do(host, request(layout, format=FormatVersion.V1))
    two = do(host, request(layout, format=FormatVersion.V2))
    assert {image.digest for image in one.images}.isdisjoint(image.digest for image in two.images)
    with Repository.open(host.settings.repository) as repository:
        assert {image.reference for image in load_image(repository, one.manifest_digest).images} == {
            "composefs.image", "composefs.image.v1", "composefs.image.boot", "composefs.image.boot.v1",
        }  # fmt: skip


def test_a_format_that_the_repository_lacks_is_unsupported(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    with pytest.raises(errors.UnsupportedError, match="v1, not v2"):
        do(host, request(layout, format=FormatVersion.V2))


def test_another_digest_than_required_is_refused(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    with pytest.raises(errors.DigestMismatchError):
        do(host, request(layout, require_digest=OciDigest("sha256", "0" * 64)))


def test_an_image_for_another_platform_is_not_found(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    with pytest.raises(errors.SourceNotFoundError, match="linux/s390x"):
        do(host, request(layout, platform=Platform("linux", "s390x")))


def test_a_taken_name_moves_only_if_told_so(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    do(host, request(layout))
    layout.add_image("os", [tar_layer(BASE)])
    before = names(host)
    with pytest.raises(errors.NameInUseError):
        do(host, request(layout))
    assert names(host) == before
    moved = do(host, request(layout, replace=True))
    assert names(host)["tags"] == {"os": f"oci-manifest-{moved.manifest_digest}"}


def test_a_layer_that_claims_the_diff_id_of_another_cannot_poison_it(host: Host, layout: Layout) -> None:
    honest = layout.add_layer(Layer(tar_layer(BASE)))
    evil = layout.add_layer(Layer(tar_layer((*BASE, regular("usr/backdoor", b"evil" * 40)))))
    layout.add_image("os", [StoredLayer(evil.blob, honest.diff_id)])
    with pytest.raises(errors.DigestMismatchError, match=honest.diff_id.removeprefix("sha256:")):
        do(host, request(layout))
    assert names(host)["streams"] == []
    layout.add_image("os", [honest])
    assert do(host, request(layout)).bytes_reused == 0


def break_layer(layout: Layout, change: Callable[[bytes], bytes], *, rename: bool = True) -> None:
    """The base image and then the same with its layer's blob changed; under its new digest if `rename`."""
    stored = layout.add_layer(Layer(tar_layer(BASE)))
    data = change(layout.blob_path(stored.blob.digest).read_bytes())
    if rename:
        blob = layout.add_blob(data, stored.blob.media_type)
    else:
        layout.blob_path(stored.blob.digest).write_bytes(data)
        blob = replace(stored.blob, size_bytes=len(data))
    layout.add_image("os", [StoredLayer(blob, stored.diff_id)])


def bad_tar(layout: Layout, tar: bytes) -> None:
    layout.add_image("os", [tar])


def without_config(layout: Layout) -> None:
    image = layout.add_image("os", [tar_layer(BASE)])
    layout.blob_path(image.config.digest).unlink()


def longer_than_told(layout: Layout) -> None:
    image = layout.add_image("os", [tar_layer(BASE)])
    path = layout.blob_path(image.layers[0].blob.digest)
    path.write_bytes(path.read_bytes() + b"\0")


def a_fifo_as_blob(layout: Layout) -> None:
    image = layout.add_image("os", [tar_layer(BASE)])
    path = layout.blob_path(image.layers[0].blob.digest)
    path.unlink()
    os.mkfifo(path)


def of_media_type(layout: Layout, media_type: str) -> None:
    stored = layout.add_layer(Layer(tar_layer(BASE)))
    layout.add_image(
        "os", [StoredLayer(Blob(media_type, stored.blob.digest, stored.blob.size_bytes), stored.diff_id)]
    )


BAD: dict[str, tuple[Callable[[Layout], None], type[errors.ComposefsdError]]] = {
    "truncated blob": (lambda layout: break_layer(layout, lambda data: data[:-30]), errors.FormatError),
    "truncated file": (lambda layout: break_layer(layout, lambda d: d[:-30], rename=False), errors.ComposefsdError),
    "changed blob": (
        lambda layout: break_layer(layout, lambda data: data[:5] + b"!" + data[6:], rename=False),
        errors.DigestMismatchError,
    ),
    "longer blob": (longer_than_told, errors.FormatError),
    "no tar": (lambda layout: bad_tar(layout, b"this is no tar" * 100), errors.FormatError),
    "dotdot": (lambda layout: bad_tar(layout, tar_layer((*BASE, regular("usr/../x", b"")))), errors.FormatError),
    "missing parent": (lambda layout: bad_tar(layout, tar_layer((*BASE, regular("a/b", b"")))), errors.FormatError),
    "no usr": (lambda layout: bad_tar(layout, tar_layer((directory("etc"),))), errors.FormatError),
    "missing config": (without_config, errors.SourceNotFoundError),
    "fifo": (a_fifo_as_blob, errors.FormatError),
    "unknown media type": (lambda layout: of_media_type(layout, "text/plain"), errors.UnsupportedError),
    "wrong compression": (
        lambda layout: of_media_type(layout, "application/vnd.oci.image.layer.v1.tar+zstd"),
        errors.FormatError,
    ),
    "no such tag": (lambda layout: layout.add_image("other", [tar_layer(BASE)]) and None, errors.SourceNotFoundError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_refused_by_name_and_nothing_changes(
    host: Host, layout: Layout, add_demo: Add, case: str
) -> None:
    add_demo("good")
    do(host, request(layout, reference=Reference.parse(f"oci:{layout.path}:good"), name="good"))
    before = names(host)
    make, error = BAD[case]
    make(layout)
    with pytest.raises(error) as caught:
        do(host, request(layout))
    assert caught.value.message
    assert names(host)["tags"] == before["tags"]
    assert names(host)["images"] == before["images"]
    assert set(names(host)["streams"]) - set(before["streams"]) <= {
        name for name in names(host)["streams"] if name.startswith("oci-layer-")
    }
    assert leftovers(host) == []
    report = asyncio.run(check(host, depth="full", image=None, max_findings=10, progress=Silent()))
    assert report.findings == ()


def test_an_absolute_name_is_taken_as_one_below_the_root(host: Host, layout: Layout) -> None:
    """As composefs-rs takes it: a leading slash is dropped, so nothing outside of the tree is meant."""
    plain = tar_layer((*BASE, regular("usr/x", b"1")))
    layout.add_image("os", [plain])
    first = do(host, request(layout, name="plain"))
    layout.add_image("os", [tar_layer((*BASE, regular("/usr/x", b"1")))])
    assert do(host, request(layout, name="absolute")).images == first.images


def test_a_repository_without_verity_is_not_pulled_into_unless_allowed(
    make_host: Callable[..., Host], layout: Layout, add_demo: Add
) -> None:
    add_demo()
    make_host()
    host = make_host(insecure=False)
    assert [name for name, _ in host.problems] == ["VerityRequired"]
    with pytest.raises(errors.VerityRequiredError, match="Insecure=yes"):
        do(host, request(layout))


def test_a_relative_path_is_refused(host: Host) -> None:
    with pytest.raises(errors.InvalidReferenceError, match="absolute"):
        do(host, PullRequest(Reference.parse("oci:somewhere")))
