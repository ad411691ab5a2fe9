"""An OCI image layout (a directory) written tersely, whole or deliberately wrong.

    layout = Layout(tmp_path / "oci")
    image = layout.add_image("os", [tar_layer([regular("etc/motd", b"hello")]), Layer(tar, Compression.ZSTD)])

Layout and media types as in the OCI image specification 1.1.  The same input always gives the same bytes, as far as
the compression libraries do.
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
TAG: Final = "org.opencontainers.image.ref.name"
_PIECE_BYTES: Final = 1 << 20

Json = Mapping[str, object]


class Compression(StrEnum):
    """How a layer's tar is packed; the value is the end of its media type."""

    NONE = ""
    GZIP = "+gzip"
    ZSTD = "+zstd"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be added: the plain tar, or the path of one, and how to pack it."""

    tar: bytes | Path
    compression: Compression = Compression.GZIP


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of the layout as a descriptor names it; the digest is `sha256:…`."""

    media_type: str
    digest: str
    size_bytes: int

    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer that the layout holds: its blob, and the digest of its plain tar (`sha256:…`).

    A layer of an artifact goes by the digest of its blob.
    """

    blob: Blob
    diff_id: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was added."""

    manifest: Blob
    config: Blob
    layers: tuple[StoredLayer, ...]


class _Hashed:
    """A file being written, of which the digest and the size are known at the end."""

    def __init__(self, output: BinaryIO | None = None) -> None:
        self._output = output
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size_bytes += len(data)
        return self._output.write(data) if self._output else len(data)

    def flush(self) -> None:
        """Nothing is kept back."""

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _open_packer(output: _Hashed, compression: Compression) -> object:
    """A context manager whose `write` packs into `output`."""
    sink = cast("BinaryIO", output)
    if compression is Compression.GZIP:
        return gzip.GzipFile("", "wb", 3, sink, mtime=0)
    if compression is Compression.ZSTD:
        return zstandard.ZstdCompressor(level=3).stream_writer(sink, closefd=False)
    return nullcontext(sink)


@contextmanager
def _packer(output: _Hashed, compression: Compression) -> Iterator[BinaryIO]:
    with cast("BinaryIO", _open_packer(output, compression)) as packer:
        yield packer


def _pieces(tar: bytes | Path) -> Iterator[bytes]:
    if isinstance(tar, bytes):
        yield tar
        return
    with tar.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


class Layout:
    """An image layout in the directory `path`, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        if not self._index.exists():
            self._write_index([])

    @property
    def _index(self) -> Path:
        return self.path / "index.json"

    def _write_index(self, manifests: Sequence[Json]) -> None:
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
        self._index.write_text(json.dumps(index, indent=1))

    def blob_path(self, digest: str) -> Path:
        """Where the blob `sha256:…` lies, whether it is there or not."""
        return self._blobs / digest.removeprefix("sha256:")

    def add_blob(self, data: bytes, media_type: str) -> Blob:
        """Store `data` under its digest."""
        blob = Blob(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        self.blob_path(blob.digest).write_bytes(data)
        return blob

    def add_json(self, document: Json, media_type: str) -> Blob:
        """Store a document, serialized in one way."""
        return self.add_blob(json.dumps(document, separators=(",", ":")).encode(), media_type)

    def add_layer(self, layer: Layer) -> StoredLayer:
        """Pack and store a layer; a tar given by its path is never held in memory as a whole."""
        with tempfile.NamedTemporaryFile(dir=self._blobs, delete=False) as file:
            plain, packed = _Hashed(), _Hashed(cast("BinaryIO", file))
            with _packer(packed, layer.compression) as packer:
                for piece in _pieces(layer.tar):
                    plain.write(piece)
                    packer.write(piece)
        Path(file.name).chmod(0o644)
        Path(file.name).rename(self.blob_path(packed.digest))
        return StoredLayer(Blob(LAYER_TYPE + layer.compression, packed.digest, packed.size_bytes), plain.digest)

    def adopt(self, source: "Layout", image: Image) -> Image:
        """Take over another layout's blobs of `image`, untagged, by hard links where that is possible."""
        for blob in (image.manifest, image.config, *(layer.blob for layer in image.layers)):
            target = self.blob_path(blob.digest)
            target.unlink(missing_ok=True)
            try:
                os.link(source.blob_path(blob.digest), target)
            except OSError:  # other file system, or one without hard links
                shutil.copyfile(source.blob_path(blob.digest), target)
        return image

    def set_tag(self, tag: str | None, manifest: Blob, platform: str | None = None) -> None:
        """Let `tag` name a manifest, in place of what it named before; None lists it without a name.

        `platform` (`linux/amd64`) goes into its descriptor.
        """
        document = json.loads(self._index.read_text())
        kept = [
            entry for entry in document["manifests"] if tag is None or entry.get("annotations", {}).get(TAG) != tag
        ]
        told: dict[str, object] = {"annotations": {TAG: tag}} if tag is not None else {}
        if platform is not None:
            told["platform"] = dict(zip(("os", "architecture"), platform.split("/"), strict=True))
        self._write_index([*kept, {**manifest.descriptor(), **told}])

    def read_image(self, tag: str) -> Image:
        """The image that `tag` names in a layout that this module wrote."""
        (entry,) = (
            entry for entry in json.loads(self._index.read_text())["manifests"] if entry["annotations"][TAG] == tag
        )
        manifest = json.loads(self.blob_path(entry["digest"]).read_text())
        config = json.loads(self.blob_path(manifest["config"]["digest"]).read_text())
        layers = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        stored = tuple(StoredLayer(_blob(layer), diff_id) for layer, diff_id in layers)
        return Image(_blob(entry), _blob(manifest["config"]), stored)

    def add_image(
        self,
        tag: str | None,
        layers: Sequence[Layer | StoredLayer | bytes],
        *,
        config: Json | None = None,
        manifest: Json | None = None,
    ) -> Image:
        """Add an image of `layers` (plain tars are packed with gzip) and tag it.

        `config` and `manifest` replace or add top-level members of the documents; a member of value None is left out.
        """
        stored = tuple(
            layer
            if isinstance(layer, StoredLayer)
            else self.add_layer(Layer(layer) if isinstance(layer, bytes) else layer)
            for layer in layers
        )
        config_blob = self.add_json(_merged(_config(stored), config), CONFIG_TYPE)
        manifest_blob = self.add_json(_merged(_manifest(config_blob, stored), manifest), MANIFEST_TYPE)
        self.set_tag(tag, manifest_blob)
        return Image(manifest_blob, config_blob, stored)

    def add_artifact(
        self,
        tag: str | None,
        blobs: Sequence[Blob],
        *,
        config: Blob | None = None,
        artifact_type: str | None = "application/vnd.example.thing",
        platform: str | None = None,
        manifest: Json | None = None,
    ) -> Image:
        """Add an artifact of `blobs` (see `add_blob`) and tag it; its config is the empty one unless told.

        A platform goes into the descriptor that the index has of it.
        """
        config = config or self.add_blob(b"{}", EMPTY_TYPE)
        stored = tuple(StoredLayer(blob, blob.digest) for blob in blobs)
        document = {**_manifest(config, stored), "artifactType": artifact_type}
        manifest_blob = self.add_json(_merged(document, manifest), MANIFEST_TYPE)
        self.set_tag(tag, manifest_blob, platform)
        return Image(manifest_blob, config, stored)


def _blob(descriptor: Mapping[str, Any]) -> Blob:
    return Blob(descriptor["mediaType"], descriptor["digest"], descriptor["size"])


def _config(layers: Sequence[StoredLayer]) -> Json:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }


def _manifest(config: Blob, layers: Sequence[StoredLayer]) -> Json:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.descriptor(),
        "layers": [layer.blob.descriptor() for layer in layers],
    }


def _merged(document: Json, changes: Json | None) -> Json:
    merged = {**document, **(changes or {})}
    return {key: value for key, value in merged.items() if value is not None}
