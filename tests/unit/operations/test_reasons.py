"""Roots in words, and what somebody means who asks about a name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import NoSuchObjectError, ObjectMissingError
from composefsd.operations import explaining
from composefsd.operations.explaining import find, reasons_for
from composefsd.operations.reasons import Reason, Why, reason
from composefsd.repository import Metadata, Repository
from composefsd.repository.links import Category
from composefsd.repository.marks import Origin, Root
from composefsd.splitstream import ContentType, Writer

HEX = "5" * 64
MANIFEST = f"oci-manifest-sha256:{HEX}"
CONFIG = f"oci-config-sha256:{'c' * 64}"


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("oci/os", MANIFEST, Reason(Why.TAG, "os")),
        ("oci/registry.example%2Fos:1%25", MANIFEST, Reason(Why.TAG, "registry.example/os:1%")),
        (f"oci/deployment%2F{HEX}", MANIFEST, Reason(Why.DEPLOYMENT, f"sha256:{HEX}")),
        ("oci/os", "layer", Reason(Why.STREAM_REF, "streams/refs/oci/os")),
        ("oci-referrers/sha256:1/sha256:2", MANIFEST, Reason(Why.REFERRER, "sha256:1/sha256:2")),
        ("oci-referrers/alone", MANIFEST, Reason(Why.STREAM_REF, "streams/refs/oci-referrers/alone")),
        (f"composefsd-held/{'c' * 64}", CONFIG, Reason(Why.HELD, CONFIG)),
        (f"composefsd-repair/{'d' * 64}", "oci-layer-sha256:d", Reason(Why.HELD, "oci-layer-sha256:d")),
        ("deep/er/still", "layer", Reason(Why.STREAM_REF, "streams/refs/deep/er/still")),
        ("odd\udcff", "layer", Reason(Why.STREAM_REF, "streams/refs/odd\\xff")),
    ],
)
def test_a_ref_is_told_as_what_it_is_to_those_who_made_it(name: str, entry: str, expected: Reason) -> None:
    assert reason(Root(Origin.REF, Category.STREAMS, name, entry)) == expected


def test_refs_of_images_and_names_of_the_caller_are_told_as_such() -> None:
    assert reason(Root(Origin.REF, Category.IMAGES, "oci/os", HEX)) == Reason(Why.IMAGE_REF, "images/refs/oci/os")
    assert reason(Root(Origin.NAME, Category.STREAMS, "layer", "layer")) == Reason(Why.NAME, "layer")
    assert reason(Root(Origin.IMAGE, Category.IMAGES, HEX, HEX)) == Reason(Why.NAME, HEX)


# What is asked about


@pytest.fixture(params=list(Algorithm))
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Repository]:
    """A tagged manifest with a document and a layer, and garbage."""
    metadata = Metadata.new(request.param, (FormatVersion.V1,))
    with Repository.create(tmp_path / "repository", metadata, insecure=True) as repository:
        layer = add(repository, f"oci-layer-sha256:{'1' * 64}", b"file")
        config = add(repository, CONFIG, b"config", layer=layer)
        add(repository, MANIFEST, b"manifest", layer=layer, config=config)
        repository.tag("os", MANIFEST)
        repository.objects.store(b"garbage")
        yield repository


def add(repository: Repository, name: str, content: bytes, **named: bytes) -> bytes:
    writer = Writer(repository.algorithm, ContentType.OCI_LAYER)
    writer.external(repository.objects.store(content), len(content))
    for key, digest in named.items():
        writer.add_reference(key, digest)
    digest = repository.objects.store(writer.finish())
    repository.link_stream(name, digest)
    return digest


def test_everything_can_be_named_in_all_its_ways(repository: Repository) -> None:
    manifest = repository.stream(MANIFEST)
    for what in ("os", MANIFEST, f"sha256:{HEX}", HEX):
        assert find(repository, what) == manifest
    assert find(repository, "sha256:" + "c" * 64) == repository.stream(CONFIG)
    assert find(repository, "1" * 64) == repository.stream(f"oci-layer-sha256:{'1' * 64}")
    file = repository.objects.store(b"file")
    name = repository.algorithm.value
    for what in (file.hex(), f"{name}:{file.hex()}", f"fsverity-{name}:{file.hex()}"):
        assert find(repository, what) == file


@pytest.mark.parametrize(
    "what", ["", "other", "refs", "../meta.json", "x\0y", "\udcff", "sha512:" + "0" * 128, "0" * 64, "a" * 5000]
)
def test_what_names_nothing_is_an_error(repository: Repository, what: str) -> None:
    with pytest.raises(NoSuchObjectError):
        reasons_for(repository, what)


def test_what_is_kept_has_reasons_and_garbage_has_none(repository: Repository) -> None:
    file, garbage = repository.objects.store(b"file"), repository.objects.store(b"garbage")
    assert reasons_for(repository, file.hex()) == [Reason(Why.TAG, "os")]
    assert reasons_for(repository, garbage.hex()) == []
    repository.untag("os")
    assert reasons_for(repository, MANIFEST) == []


def test_a_name_that_leads_nowhere_is_told_as_such(repository: Repository) -> None:
    add(repository, "other", b"other")
    digest = (repository.stream("other") or b"").hex()
    (repository.path / "objects" / digest[:2] / digest[2:]).unlink()
    with pytest.raises(ObjectMissingError, match="'other' leads to object"):
        reasons_for(repository, "other")


def test_too_many_reasons_are_cut_and_said_to_be(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "MOST_REASONS", 2)
    for number in range(4):
        repository.tag(f"name {number}", MANIFEST)
    found = reasons_for(repository, MANIFEST)
    assert found == [Reason(Why.TAG, "name 0"), Reason(Why.TAG, "name 1"), Reason(Why.MORE, "3 more roots")]
