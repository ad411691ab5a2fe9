"""A layout of the corpus: how it is made, and what we and composefs-rs make of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from real.layers import Entry, directory, regular, tar_layer
from real.oci_layout import Image, Json, Layer, Layout, StoredLayer
from real.rawtar import END

TAG: Final = "image"


class Verdict(Enum):
    """What becomes of a layout."""

    IMAGES = "has both images"
    NORMATIVE = "has no boot image"
    ARTIFACT = "is kept without images"
    REFUSED = "is refused"
    ANOTHER = "has images, but of another manifest"
    HANGS = "never ends"


@dataclass(frozen=True, slots=True)
class Case:
    """A layout with a name; `build` makes it in a folder and answers with the argument of a pull.

    `says` is a pattern of our message if anything is refused.  Verdicts that differ need a reason, `why`.
    """

    name: str
    build: Callable[[Path], str]
    ours: Verdict = Verdict.IMAGES
    theirs: Verdict = Verdict.IMAGES
    says: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        refuses = self.ours in (Verdict.REFUSED, Verdict.NORMATIVE)
        if bool(self.says) != refuses or bool(self.why) != (self.ours is not self.theirs):
            raise ValueError(f"{self.name}: a refusal says something, a difference has a reason, and nothing else")


Piece = Entry | bytes
"""A member of a tar, or ready blocks of one."""

LayerSource = Iterable[Piece] | Layer | StoredLayer

BASE: Final = (
    directory("usr", mode=0o755, mtime_sec=1_700_000_001, mtime_nsec=500_000_000, uid=1, gid=2),
    directory("boot", mode=0o700, mtime_sec=1_600_000_000, mtime_nsec=125_000_000),
    directory("etc", mtime_sec=5),
    directory("run", mode=0o750, mtime_sec=6),
    directory("sysroot", mtime_sec=7),
    directory("usr/lib", mtime_sec=8),
)
"""Directories that a bootable image has; each looks different."""


def blocks(pieces: Iterable[Piece]) -> bytes:
    """The pieces as a tar without its end."""
    return b"".join(piece if isinstance(piece, bytes) else tar_layer([piece])[: -len(END)] for piece in pieces)


def tar(pieces: Iterable[Piece]) -> bytes:
    """The pieces as a tar."""
    return blocks(pieces) + END


def based(name: str, *pieces: Piece) -> bytes:
    """A first layer with what every image needs, and then the pieces; no two cases share one."""
    return tar((*BASE, regular("usr/lib/case", name.encode()), *pieces))


def reference(layout: Layout, tag: str = TAG) -> str:
    """The argument of a pull."""
    return f"oci:{layout.path}:{tag}"


def _layer(source: LayerSource) -> Layer | StoredLayer | bytes:
    return source if isinstance(source, Layer | StoredLayer) else tar(source)


def image_case(
    name: str,
    *layers: LayerSource,
    config: Json | None = None,
    manifest: Json | None = None,
    ours: Verdict = Verdict.IMAGES,
    theirs: Verdict | None = None,
    says: str = "",
    why: str = "",
) -> Case:
    """An image of these layers on top of `BASE`, to which the first one belongs.

    The other side's verdict is the same unless told.
    """

    def build(folder: Path) -> str:
        first, *rest = layers or ((),)
        if isinstance(first, Layer | StoredLayer):
            raise TypeError("the first layer is made of pieces")
        layout = Layout(folder)
        layout.add_image(TAG, [based(name, *first), *map(_layer, rest)], config=config, manifest=manifest)
        return reference(layout)

    return Case(name, build, ours, theirs or ours, says, why)


def layout_case(
    name: str,
    make: Callable[[Layout], str | None],
    *,
    ours: Verdict = Verdict.IMAGES,
    theirs: Verdict | None = None,
    says: str = "",
    why: str = "",
) -> Case:
    """A layout that `make` fills; it answers with the tag to pull, None for `image`."""

    def build(folder: Path) -> str:
        layout = Layout(folder)
        return reference(layout, make(layout) or TAG)

    return Case(name, build, ours, theirs or ours, says, why)


def add_plain(layout: Layout, name: str, *more: Sequence[Piece], tag: str | None = TAG) -> Image:
    """Add an image of `BASE` and further layers."""
    return layout.add_image(tag, [based(name), *map(tar, more)])
