"""Indexes, manifests, configs and blobs: what a layout says about its layers, and how it packs them."""

import gzip
import hashlib
import json
from typing import Final

import zstandard
from real.corpus.case import TAG, Case, Verdict, add_plain, based, image_case, layout_case, tar
from real.layers import directory, regular, symlink
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
from real.rawtar import END

_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _packed(layout: Layout, content: bytes, packed: bytes, compression: Compression) -> StoredLayer:
    """A layer that was packed elsewhere."""
    return StoredLayer(layout.add_blob(packed, LAYER_TYPE + compression), _digest(content))


# Layers


def _add_packed(layout: Layout, name: str, packed: bytes, compression: Compression) -> None:
    layout.add_image(TAG, [_packed(layout, based(name, *_CONTENT), packed, compression)])


_CONTENT: Final = tuple(regular(f"usr/{number}", bytes([number]) * 3000) for number in range(40))


def _halves(name: str) -> tuple[bytes, bytes]:
    content = based(name, *_CONTENT)
    return content[:50_001], content[50_001:]


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=5).compress(data)


def _compressed(compression: Compression) -> Case:
    name = f"a layer with the compression {compression.name.lower()}"
    return layout_case(name, lambda layout: _add_one(layout, Layer(based(name, *_CONTENT), compression)))


def _add_one(layout: Layout, layer: Layer) -> None:
    layout.add_image(TAG, [layer])


def _multi_gzip(layout: Layout) -> None:
    first, second = _halves("members of gzip")
    _add_packed(
        layout, "members of gzip", gzip.compress(first, mtime=0) + gzip.compress(second, mtime=0), Compression.GZIP
    )


def _multi_zstd(layout: Layout) -> None:
    first, second = _halves("frames of zstd")
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"a TOC"
    _add_packed(layout, "frames of zstd", _zstd(first) + skipped + _zstd(second) + skipped, Compression.ZSTD)


def _empty_layers(layout: Layout) -> None:
    nothing = layout.add_layer(Layer(END))
    layout.add_image(
        TAG, [based("empty layers"), nothing, Layer(b"", Compression.NONE), nothing, Layer(bytes(512 * 20))]
    )


def _no_layers(layout: Layout) -> None:
    layout.add_image(TAG, [])


def _same_layer_twice(layout: Layout) -> None:
    twice = layout.add_layer(Layer(tar([directory("usr/d", mode=0o700), regular("usr/d/a", b"1" * 99)])))
    between = layout.add_layer(Layer(tar([regular("usr/d", b"a file now")])))
    layout.add_image(TAG, [based("the same layer twice"), twice, between, twice])


def _shared_layers(layout: Layout) -> None:
    other = add_plain(layout, "shared layers", [regular("usr/shared", b"s" * 500)], tag="other")
    layout.add_image(TAG, [*other.layers, tar([regular("usr/own", b"o")])])


def _many_layers(layout: Layout) -> None:
    more = (Layer(tar([regular(f"usr/{number % 50}", b"%d" % number)]), Compression.NONE) for number in range(299))
    layout.add_image(TAG, [based("three hundred layers"), *more])


_LAYERS: Final = (
    *map(_compressed, Compression),
    layout_case("a layer of several members of gzip", _multi_gzip),
    layout_case("a layer of several frames of zstd", _multi_zstd),
    layout_case("empty layers", _empty_layers),
    layout_case("no layers", _no_layers, ours=Verdict.REFUSED, says="/usr"),
    layout_case("the same layer twice", _same_layer_twice),
    layout_case("layers shared with another image", _shared_layers),
    layout_case("three hundred layers", _many_layers),
    image_case(
        "a change of everything in many layers",
        *((regular("usr/a", b"%d" % n), symlink(f"usr/{n}", "a")) for n in range(12)),
    ),
)


# Documents


def _reformatted(layout: Layout) -> None:
    """Documents with spaces, another order of keys, escapes, and keys that nobody knows."""
    image = add_plain(layout, "documents of another form", tag=None)
    config = json.loads(layout.blob_path(image.config.digest).read_text())
    odd = {
        "zzz": [1, 2.5, None, {"a": "\u20ac"}],
        **dict(reversed(config.items())),
        "config": {"Labels": None, "Unknown": 1},
    }
    config_blob = layout.add_blob(json.dumps(odd, indent=3, ensure_ascii=True).encode() + b"\n\n", CONFIG_TYPE)
    manifest = json.loads(layout.blob_path(image.manifest.digest).read_text())
    manifest = {
        "annotations": {"b": "2", "a": "\n"},
        **manifest,
        "config": {**config_blob.descriptor(), "urls": [], "annotations": {"x": "y"}},
    }
    layout.set_tag(TAG, layout.add_blob(b"\n" + json.dumps(manifest, indent="\t").encode(), MANIFEST_TYPE))


def _set_index(layout: Layout, *entries: dict[str, object]) -> Blob:
    document = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries}
    return layout.add_json(document, _INDEX_TYPE)


def _entry(image: Image, architecture: str, system: str = "linux", **more: str) -> dict[str, object]:
    return {**image.manifest.descriptor(), "platform": {"os": system, "architecture": architecture, **more}}


def _several_platforms(layout: Layout) -> None:
    arm = layout.add_image(None, [based("for arm")], config={"architecture": "arm64"})
    windows = layout.add_image(None, [based("for windows")], config={"os": "windows"})
    ours, second = add_plain(layout, "for us", tag=None), add_plain(layout, "for us, too", tag=None)
    entries = (
        _entry(arm, "arm64", variant="v8"),
        _entry(windows, "amd64", "windows"),
        _entry(ours, "amd64"),
        _entry(second, "amd64"),
    )
    layout.set_tag(TAG, _set_index(layout, *entries))


def _platforms_in_configs(layout: Layout) -> None:
    arm = layout.add_image(None, [based("for arm, untold")], config={"architecture": "arm64"})
    ours = add_plain(layout, "for us, untold", tag=None)
    layout.set_tag(TAG, _set_index(layout, arm.manifest.descriptor(), ours.manifest.descriptor()))


def _untold_first(layout: Layout) -> None:
    untold = add_plain(layout, "for us, untold and first", tag=None)
    told = add_plain(layout, "for us, told and second", tag=None)
    layout.set_tag(TAG, _set_index(layout, untold.manifest.descriptor(), _entry(told, "amd64")))


def _other_platform(layout: Layout) -> None:
    layout.add_image(TAG, [based("for arm alone")], config={"architecture": "arm64"})


def _other_platform_in_an_index(layout: Layout) -> None:
    arm = layout.add_image(None, [based("for arm alone, in an index")], config={"architecture": "arm64"})
    layout.set_tag(TAG, _set_index(layout, _entry(arm, "arm64")))


def _platform_of_another(layout: Layout) -> None:
    """The index says that it is for us, the config that it is not."""
    image = layout.add_image(None, [based("a platform that is not so")], config={"architecture": "arm64"})
    layout.set_tag(TAG, image.manifest, "linux/amd64")


def _nested(depth: int) -> Case:
    def make(layout: Layout) -> None:
        blob = add_plain(layout, f"in {depth} indexes", tag=None).manifest
        for _ in range(depth):
            blob = _set_index(layout, blob.descriptor())
        layout.set_tag(TAG, blob)

    name = f"an image in {depth} indexes"
    if depth < 2:
        return layout_case(name, make)
    return layout_case(name, make, ours=Verdict.REFUSED, says="nested")


def _no_tag(layout: Layout) -> str:
    add_plain(layout, "another tag", tag="other")
    return "missing"


_DOCUMENTS: Final = (
    layout_case("documents of another form", _reformatted),
    image_case(
        "labels and annotations",
        (),
        config={
            "config": {"Labels": {"containers.bootc": "1", "a": "ü\n"}, "Env": ["A=b"]},
            "created": "2025-01-02T03:04:05.678Z",
            "author": "x",
        },
        manifest={"annotations": {"org.opencontainers.image.title": "t"}},
    ),
    image_case("a manifest without a media type", (), manifest={"mediaType": None}),
    image_case(
        "a manifest with a subject", (), manifest={"subject": Blob(MANIFEST_TYPE, _digest(b"none"), 4).descriptor()}
    ),
    image_case("a config without a history and a config", (), config={"history": None, "config": None}),
    layout_case("an index of several platforms", _several_platforms),
    layout_case("an index that tells no platforms", _platforms_in_configs),
    layout_case(
        "an index whose first image tells no platform",
        _untold_first,
        theirs=Verdict.ANOTHER,
        why="An image that tells its platform is the better choice; composefs-rs takes the first in order.",
    ),
    layout_case("an image for another platform", _other_platform, ours=Verdict.REFUSED, says="arm64|platform"),
    layout_case(
        "an index for another platform",
        _other_platform_in_an_index,
        ours=Verdict.REFUSED,
        says="platform|no image for",
    ),
    layout_case(
        "a platform that the config denies",
        _platform_of_another,
        ours=Verdict.REFUSED,
        theirs=Verdict.IMAGES,
        says="arm64",
        why="The index says one platform, the config another.",
    ),
    *map(_nested, (1, 2)),
    layout_case("a tag that is not there", _no_tag, ours=Verdict.REFUSED, says="missing"),
)


# Artifacts


def _files(layout: Layout, *contents: bytes, media_type: str = "text/plain") -> list[Blob]:
    return [layout.add_blob(content, media_type) for content in contents]


def _config(layout: Layout, name: str) -> Blob:
    """A config that no other artifact has: composefs-rs mistakes artifacts of one config for each other."""
    return layout.add_json({"name": name}, "application/vnd.example.config+json")


def _artifact(layout: Layout) -> None:
    layout.add_artifact(TAG, _files(layout, b"a file", b"", b"x" * 5000), platform="linux/amd64")


def _artifact_of_a_tar(layout: Layout) -> None:
    layer = layout.add_layer(Layer(tar([regular("a", b"x" * 99)]), Compression.NONE))
    blobs = [layer.blob, *_files(layout, b"more")]
    layout.add_artifact(TAG, blobs, config=_config(layout, "tar"), platform="linux/amd64")


def _artifact_of_packed_tars(layout: Layout) -> None:
    packed = [
        layout.add_layer(Layer(tar([regular("a", kind.encode() * 99)]), kind)).blob for kind in Compression if kind
    ]
    layout.add_artifact(TAG, packed, config=_config(layout, "packed"), platform="linux/amd64")


def _artifact_with_a_config(layout: Layout) -> None:
    config = _config(layout, "alone")
    layout.add_artifact(TAG, _files(layout, b"b file"), config=config, artifact_type=None, platform="linux/amd64")


def _artifact_without_layers(layout: Layout) -> None:
    layout.add_artifact(TAG, [], config=_config(layout, "no layers"), platform="linux/amd64")


def _artifact_without_a_platform(layout: Layout) -> None:
    layout.add_artifact(TAG, _files(layout, b"c file"), config=_config(layout, "no platform"))


_ARTIFACT: Final = Verdict.ARTIFACT
_ARTIFACTS: Final = (
    layout_case("an artifact of files", _artifact, ours=_ARTIFACT),
    layout_case("an artifact of a tar", _artifact_of_a_tar, ours=_ARTIFACT),
    layout_case("an artifact with a config of its own", _artifact_with_a_config, ours=_ARTIFACT),
    layout_case("an artifact of packed tars", _artifact_of_packed_tars, ours=_ARTIFACT),
    layout_case("an artifact without layers", _artifact_without_layers, ours=_ARTIFACT),
    layout_case(
        "an artifact without a platform",
        _artifact_without_a_platform,
        ours=_ARTIFACT,
        theirs=Verdict.REFUSED,
        why="An artifact has no platform, so nothing tells against it; composefs-rs wants one all the same.",
    ),
)

CASES: Final[tuple[Case, ...]] = (*_LAYERS, *_DOCUMENTS, *_ARTIFACTS)
