"""What a repair did and what it could not do, and how that explains what became of each finding."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from composefsd.oci.fsck import Code as ImageCode
from composefsd.operations.check import Code as UseCode
from composefsd.operations.model import Finding
from composefsd.repository.fsck import Code
from composefsd.repository.links import Category
from composefsd.repository.objects import DIRECTORY

_TOGETHER: Final = "set right together with what it belongs to"
_NOT_OURS: Final = "no image that could be fetched again needs it"
_UNREPAIRED: Final[dict[str, str]] = {
    Code.METADATA_PARSE_FAILED: "nobody else knows what it said; restore meta.json from a backup",
    Code.METADATA_ALGORITHM_MISMATCH: "restore meta.json from a backup",
    Code.OBJECT_INVALID_NAME: "it is no object and may be anything; move it away by hand",
    Code.BROKEN_SYMLINK: "nothing tells where it ought to lead; `composefsctl gc` removes it",
    Code.REF_NOT_AN_ENTRY: "nothing tells where it ought to lead; remove it by hand",
    Code.UNEXPECTED_FILE_TYPE: "it may be anything; move it away by hand",
    ImageCode.INVALID_REF_NAME: "give the image another name, and remove this one by hand",
    ImageCode.TAG_DANGLING: "its image is not here any more; `composefsctl untag` removes the name",
    ImageCode.STREAM_NAME_INVALID: "nothing needs it; remove it by hand",
    ImageCode.REPAIR_UNFINISHED: "it keeps a layer, and not every image could be brought back",
    UseCode.IMAGE_DIFFERS: "whatever has the digest on record may need it; `composefsctl generate` makes the other",
    UseCode.IMAGE_UNUSABLE: "its layers are what they ought to be; pull another build of the image",
}
"""Why a finding is left, where no step has told more."""


@dataclass(slots=True)
class Notes:
    """What was done and what could not be, by what it was done to: a path, a digest of an image or of a layer."""

    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def succeed(self, key: str, how: str) -> None:
        self.done[key] = how
        self.failed.pop(key, None)

    def how(self, finding: Finding) -> str:
        """How a finding that is gone was dealt with."""
        return next((self.done[key] for key in keys_of(finding) if key in self.done), _TOGETHER)

    def why(self, finding: Finding) -> str:
        """Why a finding is still there."""
        told = next((self.failed[key] for key in keys_of(finding) if key in self.failed), None)
        told = told or _UNREPAIRED.get(finding.code)
        if told is None and self.failed:
            key, why = next(iter(self.failed.items()))
            told = f"what it belongs to was not brought back, perhaps {key}: {why}"
        return told or _NOT_OURS


def keys_of(finding: Finding) -> Iterator[str]:
    """What a finding is about, the nearest first."""
    yield finding.subject
    if "object" in finding.facts:
        hexes = finding.facts["object"]
        yield f"{Category.IMAGES}/{hexes}"
        yield f"{DIRECTORY}/{hexes[:2]}/{hexes[2:]}"
    path, _, name = finding.subject.partition("/")
    if path == Category.STREAMS:
        yield from (name.removeprefix(prefix) for prefix in ("oci-layer-", "oci-manifest-", "oci-config-"))
    yield from (finding.facts[name] for name in ("layer", "config", "image") if name in finding.facts)
