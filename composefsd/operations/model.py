"""What goes into an operation and what comes out, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from composefsd.boot.cmdline import Spelling
from composefsd.deploy.state import VerityPolicy
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Platform, Reference
from composefsd.oci.storage import ComposefsImage, ImageKind
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

BOTH_KINDS = frozenset(ImageKind)


class TrustState(StrEnum):
    """How the digests that are claimed of an image relate to the images that we computed.

    unsealed: nothing claims a digest.  sealed: something does, and it could not be compared.  matching: what could be
    compared is equal, and that is all that decides what boots.  mismatch: something claims another digest.
    """

    UNSEALED = "unsealed"
    SEALED = "sealed"
    MATCHING = "matching"
    MISMATCH = "mismatch"


class LinkState(StrEnum):
    """Whether a link of a chain of trust holds.

    good: it does.  missing: there is none.  bad: it is there and wrong.  unknown: this machine does not tell.
    not-checked: it is there, and composefsd cannot judge it.
    """

    GOOD = "good"
    MISSING = "missing"
    BAD = "bad"
    UNKNOWN = "unknown"
    NOT_CHECKED = "not-checked"


@dataclass(frozen=True, slots=True)
class TrustLink:
    """A link of a chain of trust: its name, its state, and a clause in plain words (no capital, no full stop)."""

    name: str
    state: LinkState
    text: str


@dataclass(frozen=True, slots=True)
class Trust:
    """What vouches for an image.

    evidence has the claims themselves, by words of docs/trust.md.  chain goes from the firmware down to the files;
    the signs that nothing looks at when the machine boots come last.  ends tells in a sentence how far up it holds.
    """

    state: TrustState
    summary: str
    evidence: dict[str, str]
    chain: tuple[TrustLink, ...]
    ends: str


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
    trust: Trust
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
    """What a pull brought: bytes are of compressed blobs; notes tell of digests that UKIs of the image name."""

    manifest_digest: OciDigest
    config_digest: OciDigest
    name: str
    images: tuple[ComposefsImage, ...]
    bytes_fetched: int
    bytes_reused: int
    objects_added: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Options of generate and compute; None stands for what the repository uses.

    The profile is for the boot image alone.  With `claims` computing also gives the variants that UKIs of the image
    name; generating always does.
    """

    kinds: frozenset[ImageKind]
    format: FormatVersion | None = None
    algorithm: Algorithm | None = None
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    expect: ObjectId | None = None
    profile: Profile = Profile.CURRENT
    claims: bool = False


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
    """Options of Deploy and PlanDeploy; kernel arguments are for type 1 entries only.

    payload names what to boot: a boot resource by its path or the last name in it, or a kernel by its version; `uki`
    does so for UKIs alone.  kargs are added after kargs_delete were left out; karg_form is how the image is named.
    """

    verity: VerityPolicy = VerityPolicy.REQUIRE
    type: PayloadType = PayloadType.AUTO
    uki: str | None = None
    kargs: tuple[str, ...] = field(default=())
    payload: str | None = None
    kargs_delete: tuple[str, ...] = field(default=())
    karg_form: Spelling = Spelling.AUTO

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Self:
        """From what `asdict` and JSON made of a request."""
        return cls(
            VerityPolicy(values["verity"]),
            PayloadType(values["type"]),
            values["uki"],
            tuple(values["kargs"]),
            values["payload"],
            tuple(values["kargs_delete"]),
            Spelling(values["karg_form"]),
        )
