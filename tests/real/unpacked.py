"""An OCI image unpacked by umoci, which shares no code with us."""

import shutil
import subprocess
from pathlib import Path

import zstandard
from real.oci_layout import Compression, Layer, Layout, StoredLayer


def _without_zstd(source: Layout, layer: StoredLayer, target: Layout) -> StoredLayer:
    """The same tar in the target layout, in a form that Debian 12's umoci can read."""
    blob = source.blob_path(layer.blob.digest)
    if not layer.blob.media_type.endswith("+zstd"):
        shutil.copyfile(blob, target.blob_path(layer.blob.digest))
        return layer
    tar = target.path.with_name("layer.tar")
    with blob.open("rb") as packed, tar.open("wb") as plain:
        zstandard.ZstdDecompressor().copy_stream(packed, plain)
    stored = target.add_layer(Layer(tar, Compression.NONE))
    tar.unlink()
    assert stored.diff_id == layer.diff_id
    return stored


def unpack(layout: Path, tag: str, folder: Path) -> Path:
    """The image's tree in a new directory below `folder`, owners and all: needs root."""
    source, target = Layout(layout), Layout(folder / "oci")
    layers = [_without_zstd(source, layer, target) for layer in source.read_image(tag).layers]
    target.add_image(tag, layers)
    command = ["umoci", "raw", "unpack", "--image", f"{target.path}:{tag}", str(folder / "tree")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "tree"
