"""What a check has learnt of an OCI image: what is left of it, and what a repair has to bring back."""

from dataclasses import dataclass, field
from typing import Any, Self

from composefsd.digests import DiffId, ObjectId, OciDigest


@dataclass(frozen=True, slots=True)
class LayerState:
    """A layer of an image: its stream's digest if there is one, and whether that stream can be relied on."""

    diff_id: DiffId
    stream: bytes | None
    sound: bool


@dataclass(frozen=True, slots=True)
class RecordedState:
    """A composefs image that a config records, and whether its object can be relied on."""

    reference: str
    digest: ObjectId
    sound: bool


@dataclass(frozen=True, slots=True)
class ImageState:
    """What is left of an image.

    manifest and config are the objects of the JSON documents, None if they cannot be relied on.  `is_current` unless
    a reference is missing or leads to a stream that is not the current one.  links are what should be linked, and is
    not: names of streams, and the objects that they ought to lead to.
    """

    digest: OciDigest
    manifest: bytes | None = None
    config: bytes | None = None
    layers: tuple[LayerState, ...] = ()
    images: tuple[RecordedState, ...] = ()
    is_current: bool = True
    is_artifact: bool = False
    links: dict[str, bytes] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to be fetched or written anew."""
        documents = self.manifest is not None and self.config is not None
        parts = [layer.sound for layer in self.layers] + [image.sound for image in self.images]
        return documents and self.is_current and all(parts)

    def values(self) -> dict[str, Any]:
        """As plain values, for the way out of a worker."""
        return {
            "digest": str(self.digest),
            "manifest": self.manifest.hex() if self.manifest else None,
            "config": self.config.hex() if self.config else None,
            "layers": [[str(one.diff_id), one.stream and one.stream.hex(), one.sound] for one in self.layers],
            "images": [[one.reference, one.digest.hex, one.sound] for one in self.images],
            "is_current": self.is_current,
            "is_artifact": self.is_artifact,
            "links": {name: digest.hex() for name, digest in self.links.items()},
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """What `values` gave."""
        return cls(
            OciDigest.parse(values["digest"]),
            _bytes(values["manifest"]),
            _bytes(values["config"]),
            tuple(LayerState(DiffId.parse(name), _bytes(hexes), bool(ok)) for name, hexes, ok in values["layers"]),
            tuple(RecordedState(name, ObjectId.parse(hexes), bool(ok)) for name, hexes, ok in values["images"]),
            bool(values["is_current"]),
            bool(values["is_artifact"]),
            {name: bytes.fromhex(hexes) for name, hexes in values["links"].items()},
        )


def _bytes(hexes: str | None) -> bytes | None:
    return None if hexes is None else bytes.fromhex(hexes)
