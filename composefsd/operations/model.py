"""What goes into an operation and what comes out, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from composefsd.deploy.state import VerityPolicy
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Platform, Reference
from composefsd.oci.storage import ComposefsImage, ImageKind
from composefsd.tree.normative import XattrMode

BOTH_KINDS = frozenset(ImageKind)


class TrustState(StrEnum):
    """How the digest that a UKI of the image claims relates to the boot image that we computed."""

    UNSEALED = "unsealed"
    SEALED = "sealed"
    MATCHING = "matching"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True)
class BootResourceInfo:
    """A UKI, addon or kernel that an image carries; details are plain values for people and programs."""

    type: str
    path: str
    kernel_version: str
    details: dict[str, str | int | bool | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An OCI image of the repository: the properties of an Image object.

    artifact_type is empty for a container image; an artifact has no platform, no composefs images, and never boots.
    """

    manifest_digest: OciDigest
    config_digest: OciDigest
    artifact_type: str
    names: tuple[str, ...]
    references: tuple[str, ...]
    architecture: str
    os: str
    title: str
    os_version: str
    created: int
    size_bytes: int
    layer_count: int
    images: tuple[ComposefsImage, ...]
    trust: TrustState
    trust_summary: str
    trust_evidence: dict[str, str]
    bootable: bool
    reasons: tuple[str, ...]
    boot_resources: tuple[BootResourceInfo, ...]


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Options of a pull; `name` is the tag, by default the reference itself."""

    reference: Reference
    name: str | None = None
    require_digest: OciDigest | None = None
    platform: Platform | None = None
    kinds: frozenset[ImageKind] = BOTH_KINDS
    format: FormatVersion | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull brought: bytes are of compressed blobs."""

    manifest_digest: OciDigest
    config_digest: OciDigest
    name: str
    images: tuple[ComposefsImage, ...]
    bytes_fetched: int
    bytes_reused: int
    objects_added: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Options of generate and compute; None stands for what the repository uses."""

    kinds: frozenset[ImageKind]
    format: FormatVersion | None = None
    algorithm: Algorithm | None = None
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    expect: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class CollectResult:
    """What a collection removed, or would remove; bytes are apparent sizes.

    The refs that lead nowhere count among the images and streams.  unlisted is the number of lines that its listing
    had no room for.
    """

    objects_removed: int
    bytes_freed: int
    images_pruned: int
    streams_pruned: int
    unlisted: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found: severity is `error` or `warning`, code a word, subject a name.

    facts are what a program needs of it, by words such as `object` or `expected`; docs/fsck.md has them all.
    """

    severity: str
    code: str
    subject: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repaired:
    """A finding that a repair has dealt with, and how."""

    code: str
    subject: str
    how: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The findings of a check, cut to the number asked for, how many there were, and how many of them are errors.

    Of a repair the findings are those that are left, each with the fact `unrepaired`, which says why.
    """

    findings: tuple[Finding, ...]
    findings_total: int
    objects_checked: int = 0
    repaired: tuple[Repaired, ...] = ()
    errors_total: int = 0


class PayloadType(StrEnum):
    """Which of an image's boot resources to deploy."""

    AUTO = "auto"
    UKI = "uki"
    TYPE1 = "type1"


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """Options of Deploy and PlanDeploy; kernel arguments are for type 1 entries only."""

    verity: VerityPolicy = VerityPolicy.REQUIRE
    type: PayloadType = PayloadType.AUTO
    uki: str | None = None
    kargs: tuple[str, ...] = field(default=())

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """From what `asdict` and JSON made of a request."""
        return cls(VerityPolicy(values["verity"]), PayloadType(values["type"]), values["uki"], tuple(values["kargs"]))
