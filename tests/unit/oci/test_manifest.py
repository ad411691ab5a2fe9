"""Indexes, manifests and configs: what is taken from them, and what is refused."""

import hashlib
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.digests import OciDigest
from composefsd.document import DOCUMENT_BYTES, Document
from composefsd.errors import FormatError, LimitExceededError, SourceNotFoundError, UnsupportedError
from composefsd.oci.manifest import (
    CONFIG_TYPE,
    MANIFEST_TYPE,
    REF_NAME,
    Artifact,
    Compression,
    Descriptor,
    ImageConfig,
    Index,
    LayerForm,
    Manifest,
    OciImage,
    read_content,
    select,
)
from composefsd.oci.reference import Platform

DIGEST = "sha256:" + "ab" * 32
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": MANIFEST_TYPE, "digest": DIGEST, "size": 5} | changes


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": descriptor(mediaType=CONFIG_TYPE),
        "layers": [descriptor(mediaType=LAYER_TYPE + "+gzip")],
    } | changes


def parse(document: Any) -> Manifest:
    data = json.dumps(document).encode()
    return Manifest.parse(data, OciDigest("sha256", hashlib.sha256(data).hexdigest()))


def config(diff_ids: list[str], **changes: Any) -> ImageConfig:
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}} | changes
    return ImageConfig.parse(json.dumps(document).encode(), OciDigest.parse(DIGEST))


def test_a_manifest_keeps_the_bytes_it_was_parsed_from() -> None:
    parsed = parse(manifest())
    assert json.loads(parsed.data) == manifest()
    assert parsed.size_bytes == 5


@pytest.mark.parametrize(
    ("suffix", "compression"),
    [("", Compression.NONE), ("+gzip", Compression.GZIP), ("+zstd", Compression.ZSTD)],
)
def test_compression_is_told_by_the_media_type(suffix: str, compression: Compression) -> None:
    layer = parse(manifest(layers=[descriptor(mediaType=LAYER_TYPE + suffix)])).layers[0]
    assert layer.compression() is compression


@pytest.mark.parametrize("kind", ["", "text/plain", LAYER_TYPE + "+xz", LAYER_TYPE + "+gzip\n"])
def test_a_layer_of_another_type_is_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="no tar layer"):
        parse(manifest(layers=[descriptor(mediaType=kind)])).layers[0].compression()


@pytest.mark.parametrize(
    "broken",
    [
        [],
        manifest(schemaVersion=1),
        manifest(schemaVersion="2"),
        manifest(config=None),
        manifest(layers={}),
        manifest(layers=[1]),
        manifest(layers=[descriptor(size=-1)]),
        manifest(layers=[descriptor(size=1 << 63)]),
        manifest(layers=[descriptor(size=True)]),
        manifest(layers=[descriptor(digest="sha256:../../x")]),
        manifest(layers=[descriptor(digest="sha256:" + "AB" * 32)]),
        manifest(layers=[descriptor(digest="md5:" + "ab" * 16)]),
        manifest(annotations={"a": 1}),
        manifest(manifests=[]),
    ],
)
def test_a_broken_manifest_is_a_format_error(broken: Any) -> None:
    with pytest.raises(FormatError):
        parse(broken)


def test_a_manifest_of_docker_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="docker"):
        parse(manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json"))


@pytest.mark.parametrize(
    ("config", "told", "kind"),
    [
        (CONFIG_TYPE, None, ""),
        (CONFIG_TYPE, "application/vnd.example", ""),  # the config decides, as for composefs-rs
        (EMPTY_TYPE, "application/vnd.example", "application/vnd.example"),
        ("application/vnd.config", "application/vnd.example", "application/vnd.example"),
        ("application/vnd.config", None, "application/vnd.config"),
        ("application/vnd.config", "", "application/vnd.config"),
    ],
)
def test_another_config_makes_an_artifact(config: str, told: str | None, kind: str) -> None:
    assert parse(manifest(config=descriptor(mediaType=config), artifactType=told)).artifact_type == kind


@pytest.mark.parametrize("bad", ["", " ", "a\0b", "a\nb", "ä", "x" * 256])
def test_the_type_of_an_artifact_is_printable_and_short(bad: str) -> None:
    with pytest.raises(FormatError):
        parse(manifest(config=descriptor(mediaType=bad)))
    if bad:
        with pytest.raises(FormatError):
            parse(manifest(config=descriptor(mediaType=EMPTY_TYPE), artifactType=bad))


@pytest.mark.parametrize("bad", [1, [], {}, None])
def test_a_config_without_a_type_is_a_format_error(bad: Any) -> None:
    with pytest.raises(FormatError):
        parse(manifest(config=descriptor(mediaType=bad)))


def test_the_layers_of_an_artifact_go_by_their_blobs() -> None:
    kinds = {
        "text/plain": LayerForm.RAW,
        "": LayerForm.RAW,
        "application/vnd.docker.image.rootfs.diff.tar.gzip": LayerForm.RAW,
        LAYER_TYPE: LayerForm.TAR,
        LAYER_TYPE + "+gzip": LayerForm.PACKED,
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": LayerForm.PACKED,
    }
    layers = [descriptor(mediaType=kind) for kind in kinds]
    found = read_content(parse(manifest(config=descriptor(mediaType=EMPTY_TYPE), layers=layers)), b"\xff no JSON")
    assert isinstance(found, Artifact)
    assert found.config.data == b"\xff no JSON"
    assert [layer.form for layer in found.layers] == list(kinds.values())
    assert {str(layer.diff_id) for layer in found.layers} == {DIGEST}


def test_a_manifest_tells_what_it_is_about() -> None:
    assert parse(manifest()).subject is None
    assert parse(manifest(subject=descriptor())).subject == OciDigest.parse(DIGEST)
    for bad in ("", DIGEST, [], {}, descriptor(digest="sha256:ab"), descriptor(digest=None)):
        with pytest.raises(FormatError):
            parse(manifest(subject=bad))


def test_an_image_stays_one_whatever_its_layers_say() -> None:
    """A layer that is named after its blob would not be checked against the tar that it unpacks to."""
    parsed = parse(manifest(config=descriptor(mediaType=CONFIG_TYPE)))
    found = read_content(parsed, config([DIGEST]).data)
    assert [layer.form for layer in found.layers] == [LayerForm.TAR]


def test_more_than_a_thousand_layers_are_too_many() -> None:
    with pytest.raises(LimitExceededError):
        parse(manifest(layers=[descriptor(mediaType=LAYER_TYPE)] * 1001))


def test_a_document_over_four_mebibytes_is_not_parsed() -> None:
    with pytest.raises(LimitExceededError):
        Document.parse(b" " * (DOCUMENT_BYTES + 1), "test")


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b"[" * 100_000, b"{", b"\xff\xfe", b'{"a":NaN}x'])
def test_what_two_readers_might_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Document.parse(data, "test")


@given(st.binary(max_size=60))
def test_hostile_bytes_raise_nothing_but_our_errors(tail: bytes) -> None:
    with suppress(FormatError):
        Manifest.parse(b'{"schemaVersion":2,"layers":' + tail, OciDigest.parse(DIGEST))


@pytest.mark.parametrize(
    ("created", "seconds"),
    [("1970-01-01T00:00:01Z", 1), ("2026-01-02T03:04:05.678901234Z", 1767323045), ("yesterday", 0), ("", 0)],
)
def test_the_time_of_creation_is_read_leniently(created: str, seconds: int) -> None:
    assert config([], created=created).created == seconds


def test_layers_and_diff_ids_have_to_be_as_many() -> None:
    with pytest.raises(FormatError, match="1 layers, but its config 2"):
        OciImage(parse(manifest()), config([DIGEST, DIGEST]))


def index(*descriptors: dict[str, Any]) -> Index:
    return Index.parse(json.dumps({"schemaVersion": 2, "manifests": descriptors}).encode(), "index")


def test_a_tag_chooses_by_annotation() -> None:
    found = index(descriptor(annotations={REF_NAME: "a"}), descriptor(annotations={REF_NAME: "b"}))
    assert [one.annotations[REF_NAME] for one in found.named("b", "here")] == ["b"]


def test_a_tag_that_is_missing_is_answered_with_those_that_exist() -> None:
    with pytest.raises(SourceNotFoundError, match="it has 'a'"):
        index(descriptor(annotations={REF_NAME: "a"})).named("c", "here")


def platforms(*triples: tuple[str, str, str]) -> tuple[Descriptor, ...]:
    return index(
        *(
            descriptor(platform={"os": os, "architecture": architecture, "variant": variant})
            for os, architecture, variant in triples
        )
    ).manifests


def test_the_best_variant_of_the_platform_comes_first() -> None:
    have = platforms(("linux", "arm", "v5"), ("linux", "arm", "v7"), ("linux", "amd64", ""), ("linux", "arm", "v6"))
    chosen = select(have, Platform("linux", "arm", "v7"))
    assert [one.platform.variant for one in chosen if one.platform] == ["v7", "v6", "v5"]


def test_attestations_are_no_images() -> None:
    assert select(platforms(("unknown", "unknown", "")), Platform("linux", "amd64")) == []
