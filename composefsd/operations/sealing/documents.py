"""The documents of a sealed image: those of its base with one layer more, and the base again without it.

A seal's layer is known by the last entry of the config's history, which names its diff_id: so it is told apart from a
layer that somebody put on top of it.  All members of the base's documents stay as they are, but for claims about the
composefs image of the base, which the new layer makes wrong.  No time of the present goes into them, so that the same
base and layer always give the same documents.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from composefsd.digests import DiffId
from composefsd.document import Document
from composefsd.errors import FormatError
from composefsd.oci.manifest import CONFIG_TYPE, MANIFEST_TYPE, Descriptor, OciImage
from composefsd.oci.reference import Platform
from composefsd.oci.sealing import LABEL
from composefsd.operations.sealing.index import descriptor_json, serialize
from composefsd.operations.sealing.layout import StagedLayout, WrittenLayer

CREATED_BY: Final = "composefsctl seal"
_CLAIM: Final = re.compile(r"composefs\.(merged|manifest|config)\..*")
_COMMENT: Final = re.compile(r"layer (sha256:[0-9a-f]{64}) of inputs (sha256:[0-9a-f]{64})")
_EPOCH: Final = "1970-01-01T00:00:00Z"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Base:
    """An image without a seal: its documents, and its layers' blobs, bottom first.

    was is what its own seal was made from (`sha256:…`), empty if it had none.
    """

    manifest: Json
    config: Json
    layers: tuple[Descriptor, ...]
    was: str = ""

    @classmethod
    def of(cls, image: OciImage) -> Self:
        """An image as it was before we sealed it.  Raises FormatError for documents that cannot be extended."""
        manifest, config = json.loads(image.manifest.data), json.loads(image.config.data)
        if config.get("history") is None:
            config["history"] = []
        if not isinstance(config["history"], list):
            raise FormatError("the config of the image has a history that is no list")
        was = _own_inputs(config)
        if was:
            manifest["layers"].pop()
            config["rootfs"]["diff_ids"].pop()
            config["history"].pop()
        _drop_claims(manifest, config)
        return cls(manifest, config, image.manifest.layers[: len(manifest["layers"])], was)

    @classmethod
    def empty(cls, platform: Platform) -> Self:
        """An image without layers."""
        about = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            about["variant"] = platform.variant
        rootfs = {"type": "layers", "diff_ids": []}
        config = {"created": _EPOCH, **about, "config": {}, "rootfs": rootfs, "history": []}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE},
            "layers": [],
        }
        return cls(manifest, config, ())

    def is_like(self, other: "Base") -> bool:
        """Whether both are the same image."""
        mine, theirs = ({**one.manifest, "config": one.config} for one in (self, other))
        return serialize(mine) == serialize(theirs)

    def extended(self, layer: WrittenLayer, *, by: str, comment: str = "") -> Self:
        """The same with one layer more."""
        manifest, config = json.loads(serialize(self.manifest)), json.loads(serialize(self.config))
        manifest["layers"].append(descriptor_json(layer.blob))
        config["rootfs"]["diff_ids"].append(str(layer.diff_id))
        told = {"created": config.get("created"), "created_by": by, "comment": comment}
        config["history"].append({key: value for key, value in told.items() if value})
        return type(self)(manifest, config, (*self.layers, layer.blob))

    def sealed(self, layer: WrittenLayer, inputs: str) -> Self:
        """The same with the layer of a seal; inputs is the digest of all that it was made from."""
        return self.extended(layer, by=CREATED_BY, comment=f"layer {layer.diff_id} of inputs {inputs}")

    def annotated(self, annotations: Mapping[str, str]) -> Self:
        """The same with more annotations of the manifest."""
        manifest = dict(self.manifest)
        if annotations:
            manifest["annotations"] = {**(manifest.get("annotations") or {}), **annotations}
        return type(self)(manifest, self.config, self.layers)

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        about = Document.of(self.config, "the config of the image")
        return Platform(about.text("os", ""), about.text("architecture", ""), about.text("variant", ""))

    def write(self, layout: StagedLayout) -> tuple[Descriptor, Descriptor]:
        """Store the documents; answers with manifest and config."""
        about = self.manifest["config"]
        config = layout.add_document(serialize(self.config), about["mediaType"])
        manifest = serialize({**self.manifest, "config": {**about, **descriptor_json(config)}})
        return layout.add_document(manifest, MANIFEST_TYPE), config


def _own_inputs(config: Json) -> str:
    """What our seal on top of an image was made from; empty if the layer on top is none of ours."""
    last = config["history"][-1] if config["history"] else None
    if not isinstance(last, dict) or last.get("created_by") != CREATED_BY:
        return ""
    match = _COMMENT.fullmatch(str(last.get("comment")))
    diff_ids = config["rootfs"]["diff_ids"]
    if match is None or not diff_ids or DiffId.parse(match[1]) != DiffId.parse(diff_ids[-1]):
        return ""
    return match[2]


def _drop_claims(manifest: Json, config: Json) -> None:
    for place in (manifest, manifest["config"]):
        annotations = place.get("annotations") or {}
        stale = [key for key in annotations if _CLAIM.fullmatch(key)]
        for key in stale:
            del annotations[key]
        if stale and not annotations:
            del place["annotations"]
    labels = (config.get("config") or {}).get("Labels")
    if labels:
        labels.pop(LABEL, None)
