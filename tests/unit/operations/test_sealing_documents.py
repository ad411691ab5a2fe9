"""The documents of a sealed image, and its base again."""

import json
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import DiffId, OciDigest
from composefsd.errors import FormatError
from composefsd.oci.manifest import CONFIG_TYPE, MANIFEST_TYPE, Descriptor, ImageConfig, Manifest, OciImage
from composefsd.oci.reference import Platform
from composefsd.operations.sealing.documents import CREATED_BY, Base
from composefsd.operations.sealing.index import serialize
from composefsd.operations.sealing.layout import StagedLayout, WrittenLayer

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
INPUTS = "sha256:" + "7" * 64


def digest(digit: str) -> str:
    return f"sha256:{digit * 64}"


def written(digit: str) -> WrittenLayer:
    return WrittenLayer(Descriptor(LAYER_TYPE, OciDigest("sha256", digit * 64), 10, {}), DiffId("sha256", digit * 64))


def image(manifest: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> OciImage:
    """An image of one layer, with more members or other ones."""
    about = {"mediaType": CONFIG_TYPE, "digest": digest("c"), "size": 2}
    layer = {"mediaType": LAYER_TYPE, "digest": digest("1"), "size": 10}
    documents = (
        {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": about, "layers": [layer], **(manifest or {})},
        {"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": [digest("1")]}, **(config or {})},
    )
    return parsed(*map(serialize, documents))


def parsed(manifest: bytes, config: bytes) -> OciImage:
    named = OciDigest("sha256", "0" * 64)
    return OciImage(Manifest.parse(manifest, named), ImageConfig.parse(config, named))


def stored(base: Base, folder: Path) -> OciImage:
    """The image that the documents of a base are, read back."""
    layout = StagedLayout(folder)
    return parsed(*(layout.blob_path(one.digest).read_bytes() for one in base.write(layout)))


def test_a_seal_adds_a_layer_and_is_taken_off_again(tmp_path: Path) -> None:
    base = Base.of(image({"annotations": {"a": "b"}}, {"created": "2025-06-15T00:00:00Z", "x": [1, {"y": None}]}))
    sealed = stored(base.sealed(written("2"), INPUTS), tmp_path / "sealed")
    assert [str(one.digest) for one in sealed.manifest.layers] == [digest("1"), digest("2")]
    assert sealed.manifest.annotations == {"a": "b"}
    again = Base.of(sealed)
    assert (again.was, again.layers) == (INPUTS, base.layers)
    assert again.is_like(base)
    assert base.platform == Platform("linux", "arm64")


def test_sealing_twice_gives_the_documents_of_sealing_once(tmp_path: Path) -> None:
    once = stored(Base.of(image()).sealed(written("2"), INPUTS), tmp_path / "once")
    twice = stored(Base.of(once).sealed(written("2"), INPUTS), tmp_path / "twice")
    assert (twice.manifest.data, twice.config.data) == (once.manifest.data, once.config.data)


def test_a_layer_on_top_of_a_seal_makes_it_a_base_like_any_other(tmp_path: Path) -> None:
    sealed = Base.of(image()).sealed(written("2"), INPUTS)
    entry = sealed.config["history"][-1]
    topped = sealed.extended(written("3"), by="somebody")
    assert not Base.of(stored(topped, tmp_path / "told")).was
    del topped.config["history"][-1]
    assert topped.config["history"][-1] == entry
    assert not Base.of(stored(topped, tmp_path / "untold")).was


FOREIGN = f"layer {digest('9')} of inputs {INPUTS}"


@pytest.mark.parametrize(
    "entry",
    [None, 5, {}, {"created_by": CREATED_BY}, {"created_by": CREATED_BY, "comment": FOREIGN}],
)
def test_a_strange_history_is_no_seal_of_ours(entry: object) -> None:
    base = Base.of(image(config={"history": [entry]}))
    assert not base.was
    assert len(base.layers) == 1


def test_a_history_that_is_no_list_is_refused() -> None:
    with pytest.raises(FormatError, match="history"):
        Base.of(image(config={"history": {}}))
    assert Base.of(image(config={"history": None})).config["history"] == []


def test_a_number_that_json_cannot_have_is_refused(tmp_path: Path) -> None:
    found = image()
    config = found.config.data[:-1] + b',"x":1e999}'
    with pytest.raises(FormatError, match="out of range"):
        Base.of(parsed(found.manifest.data, config)).write(StagedLayout(tmp_path / "x"))


def test_half_a_surrogate_passes(tmp_path: Path) -> None:
    found = image()
    config = found.config.data[:-1] + b',"x":"\\ud800"}'
    written_back = stored(Base.of(parsed(found.manifest.data, config)), tmp_path / "x")
    assert json.loads(written_back.config.data)["x"] == "\ud800"


def test_claims_about_the_base_go_and_others_stay() -> None:
    claims = {"composefs.merged.erofs.v1.fsverity-sha512-12": "0", "composefs.manifest.fsverity-sha512-12.sig": "0"}
    about = {"mediaType": CONFIG_TYPE, "digest": digest("c"), "size": 2, "annotations": {"composefs.config.x": "0"}}
    labels = {"containers.composefs.fsverity": "0" * 128, "other": "stays"}
    base = Base.of(
        image({"annotations": {**claims, "composefs.x": "stays"}, "config": about}, {"config": {"Labels": labels}})
    )
    assert base.manifest["annotations"] == {"composefs.x": "stays"}
    assert "annotations" not in base.manifest["config"]
    assert base.config["config"] == {"Labels": {"other": "stays"}}


def test_annotations_come_and_go_with_the_seal(tmp_path: Path) -> None:
    base = Base.of(image())
    annotated = base.sealed(written("2"), INPUTS).annotated({"composefs.merged.erofs.v1.fsverity-sha512-12": "0"})
    found = stored(annotated, tmp_path / "x")
    assert found.manifest.annotations
    assert Base.of(found).is_like(base)
