"""What one side makes of an OCI layout, in terms that both sides share."""

from dataclasses import dataclass, field
from typing import Final

from real.corpus.case import Verdict

from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ImageKind
from composefsd.tree.normative import XattrMode

FORMATS: Final = (FormatVersion.V1, FormatVersion.V2)
KINDS: Final = (ImageKind.NORMATIVE, ImageKind.BOOT)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image, or its dump, that both sides are asked for."""

    kind: ImageKind
    mode: XattrMode
    format: FormatVersion = FormatVersion.V1

    def __str__(self) -> str:
        return f"{self.kind} {self.mode} {self.format.label}"


DUMPS: Final = tuple(Wanted(kind, mode) for kind in KINDS for mode in XattrMode)
DIGESTS: Final = tuple(Wanted(one.kind, one.mode, version) for one in DUMPS for version in FORMATS)


@dataclass(slots=True)
class Seen:
    """What one side makes of a layout with one hash.

    `manifest` and `config` are the digests of the documents; `recorded` are the images that a pull has stored, and
    `computed` those that were only measured, in hexadecimal.  `layers` are dumps by diff_id.
    """

    verdict: Verdict
    message: str = ""
    manifest: str = ""
    config: str = ""
    recorded: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    dumps: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, bytes] = field(default_factory=dict)


def difference(ours: dict[str, bytes], theirs: dict[str, bytes]) -> str:
    """The first line in which two sets of dumps differ; empty if they are equal."""
    for name in sorted({*ours, *theirs}):
        pair = ours.get(name), theirs.get(name)
        if pair[0] == pair[1]:
            continue
        if pair[0] is None or pair[1] is None:
            return f"only one side has {name}"
        lines = [dump.split(b"\n") for dump in pair if dump is not None]
        at = next((at for at, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), min(map(len, lines)))
        shown = [b"\n".join(dump[at : at + 1]).decode(errors="backslashreplace")[:600] for dump in lines]
        return f"{name}, line {at + 1}:\n  ours   {shown[0]}\n  theirs {shown[1]}"
    return ""
