"""Layouts that are not what they say they are."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from typing import Final

from real.corpus.case import TAG, Case, Verdict, add_plain, based, layout_case
from real.layers import regular
from real.oci_layout import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    Blob,
    Compression,
    Image,
    Layer,
    Layout,
    StoredLayer,
)

_REFUSED: Final = Verdict.REFUSED
_NO_DIGESTS: Final = "composefs-rs compares no blob of a layout with its digest."


def _digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _broken(name: str, damage: Callable[[Layout, Image], None], says: str, why: str = "") -> Case:
    """An image whose layout is damaged after it was made."""

    def make(layout: Layout) -> None:
        damage(layout, layout.add_image(TAG, [Layer(based(name, regular("usr/a", b"a" * 500)), Compression.NONE)]))

    return layout_case(name, make, ours=_REFUSED, theirs=Verdict.IMAGES if why else _REFUSED, says=says, why=why)


def _edit(layout: Layout, blob: Blob, change: Callable[[bytes], bytes]) -> None:
    path = layout.blob_path(blob.digest)
    path.write_bytes(change(path.read_bytes()))


def _flip(data: bytes) -> bytes:
    """Another content of the file `usr/a`, of the same length."""
    return data.replace(b"a" * 500, b"b" * 500)


def _flip_layer(layout: Layout, image: Image) -> None:
    _edit(layout, image.layers[0].blob, _flip)


def _shorten_layer(layout: Layout, image: Image) -> None:
    _edit(layout, image.layers[0].blob, lambda data: data[:-1024])


def _lengthen_layer(layout: Layout, image: Image) -> None:
    _edit(layout, image.layers[0].blob, lambda data: data + bytes(512))


def _remove(kind: str) -> Callable[[Layout, Image], None]:
    def remove(layout: Layout, image: Image) -> None:
        blob = {"layer": image.layers[0].blob, "config": image.config, "manifest": image.manifest}[kind]
        layout.blob_path(blob.digest).unlink()

    return remove


def _pipe(layout: Layout, image: Image) -> None:
    path = layout.blob_path(image.layers[0].blob.digest)
    path.unlink()
    os.mkfifo(path)


def _link(layout: Layout, image: Image) -> None:
    path = layout.blob_path(image.layers[0].blob.digest)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _garble(layout: Layout, _image: Image) -> None:
    (layout.path / "index.json").write_text('{"schemaVersion":2,"manifests":[')


def _no_index(layout: Layout, _image: Image) -> None:
    (layout.path / "index.json").unlink()


# Images that are wrong from the start


def _stored(layout: Layout, name: str) -> StoredLayer:
    return layout.add_layer(Layer(based(name, regular("usr/a", b"a" * 500)), Compression.NONE))


def _wrong_diff_id(layout: Layout) -> None:
    layer = _stored(layout, "wrong diff_id")
    layout.add_image(TAG, [StoredLayer(layer.blob, _digest(b"no tar has this digest"))])


def _wrong_size(layout: Layout) -> None:
    layer = _stored(layout, "wrong size")
    blob = Blob(layer.blob.media_type, layer.blob.digest, layer.blob.size_bytes + 1)
    layout.add_image(TAG, [StoredLayer(blob, layer.diff_id)])


def _gzip_of(layout: Layout, name: str, change: Callable[[bytes], bytes], end: str) -> None:
    content = based(name, regular("usr/a", bytes(range(256)) * 300))
    blob = layout.add_blob(change(gzip.compress(content, mtime=0)), LAYER_TYPE + end)
    layout.add_image(TAG, [StoredLayer(blob, _digest(content))])


def _counts(more: int) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        layers = [_stored(layout, f"counts {more}"), layout.add_layer(Layer(bytes(1024)))]
        told = layers[: 1 + more] if more < 1 else [*layers, *layers]
        layout.add_image(
            TAG, layers, config={"rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in told]}}
        )

    return make


def _sha512(layout: Layout) -> None:
    content = based("sha512")
    folder = layout.path / "blobs/sha512"
    folder.mkdir()
    digest = _digest(content, "sha512")
    (folder / digest.removeprefix("sha512:")).write_bytes(content)
    layout.add_image(TAG, [StoredLayer(Blob(LAYER_TYPE, digest, len(content)), _digest(content))])


def _media_type(kind: str) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        layer = _stored(layout, kind)
        layout.add_image(TAG, [StoredLayer(Blob(kind, layer.blob.digest, layer.blob.size_bytes), layer.diff_id)])

    return make


def _docker(layout: Layout) -> None:
    image = add_plain(layout, "docker", tag=None)
    manifest = json.loads(layout.blob_path(image.manifest.digest).read_text())
    manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    layout.set_tag(TAG, layout.add_json(manifest, "application/vnd.docker.distribution.manifest.v2+json"))


def _raw_config(data: bytes) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        config = layout.add_blob(data, CONFIG_TYPE)
        document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config.descriptor(), "layers": []}
        layout.set_tag(TAG, layout.add_json(document, MANIFEST_TYPE))

    return make


CASES: Final[tuple[Case, ...]] = (
    _broken("a layer of another digest", _flip_layer, "has the digest", _NO_DIGESTS),
    _broken("a layer cut short", _shorten_layer, "instead of"),
    _broken("a layer with more bytes than told", _lengthen_layer, "instead of"),
    _broken("a missing layer", _remove("layer"), "has no"),
    _broken("a missing config", _remove("config"), "has no"),
    _broken("a missing manifest", _remove("manifest"), "has no"),
    _broken("an index that is no JSON", _garble, "index.json"),
    _broken("a layout without an index", _no_index, "index.json"),
    _broken("a layer that is a symbolic link", _link, "cannot be opened", "A link may lead out of the layout."),
    layout_case(
        "a layer that is a pipe",
        lambda layout: _pipe(layout, layout.add_image(TAG, [_stored(layout, "pipe")])),
        ours=_REFUSED,
        theirs=Verdict.HANGS,
        says="no regular file",
        why="composefs-rs waits for somebody to write into the pipe.",
    ),
    layout_case(
        "a wrong diff_id",
        _wrong_diff_id,
        ours=_REFUSED,
        theirs=Verdict.IMAGES,
        says="unpacks to",
        why="composefs-rs compares no layer with its diff_id, so that an image can bring a false layer for another.",
    ),
    layout_case("a wrong size", _wrong_size, ours=_REFUSED, says="instead of"),
    layout_case(
        "a gzip stream cut short",
        lambda layout: _gzip_of(layout, "cut", lambda data: data[:-200], "+gzip"),
        ours=_REFUSED,
        says="cut short|gzip",
    ),
    layout_case(
        "a gzip stream with a wrong checksum",
        lambda layout: _gzip_of(layout, "checksum", lambda data: data[:-8] + bytes(4) + data[-4:], "+gzip"),
        ours=_REFUSED,
        says="gzip",
    ),
    layout_case(
        "a gzip stream with bytes behind it",
        lambda layout: _gzip_of(layout, "behind", lambda data: data + b"bytes", "+gzip"),
        ours=_REFUSED,
        says="gzip",
    ),
    layout_case(
        "gzip in place of zstd",
        lambda layout: _gzip_of(layout, "as zstd", lambda data: data, "+zstd"),
        ours=_REFUSED,
        says="zstd",
    ),
    layout_case(
        "gzip in place of a plain tar",
        lambda layout: _gzip_of(layout, "as tar", lambda data: data, ""),
        ours=_REFUSED,
        says="tar entry at byte 0",
    ),
    layout_case("fewer diff_ids than layers", _counts(0), ours=_REFUSED, says="1 diff_ids"),
    layout_case("more diff_ids than layers", _counts(1), ours=_REFUSED, says="4 diff_ids"),
    layout_case(
        "a layer with a SHA-512 digest",
        _sha512,
        theirs=_REFUSED,
        why="OCI registers the algorithm; composefs-rs looks for blobs in `blobs/sha256` alone.",
    ),
    layout_case(
        "a layer of an unknown media type",
        _media_type("application/octet-stream"),
        ours=_REFUSED,
        says="application/octet-stream",
    ),
    layout_case(
        "a layer of Docker's media type",
        _media_type("application/vnd.docker.image.rootfs.diff.tar"),
        ours=_REFUSED,
        says="docker",
    ),
    layout_case("a manifest of Docker", _docker, ours=_REFUSED, says="docker"),
    layout_case("a config that is no JSON", _raw_config(b"not JSON"), ours=_REFUSED, says="config"),
    layout_case(
        "a config without a rootfs",
        _raw_config(b'{"architecture":"amd64","os":"linux"}'),
        ours=_REFUSED,
        says="rootfs|/usr",
    ),
)
