"""The signs by which an image claims a digest, each compared with what the repository holds of the image.

A digest is compared with the images of its own hash and format.  The label tells no format: it is only wrong if
images of all formats were made and none is the one.  `composefs=` on a command line tells none either, but what boots
looks for an image of that digest here, so one that is not there is wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from composefsd import verity
from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError
from composefsd.oci import sealing
from composefsd.oci.manifest import ImageConfig, Manifest
from composefsd.oci.sealing import Claim, Claims, Role
from composefsd.oci.storage import ComposefsImage, ImageKind, StoredImage
from composefsd.operations.boot_facts import BootFact
from composefsd.operations.expected import Outcome
from composefsd.operations.model import LinkState, TrustLink

UKI_DIGEST: Final = "uki-digest"
LABEL: Final = "oci-label"
ANNOTATION: Final = "annotation"
ARTIFACT: Final = "artifact"

ARTIFACTS: Final = 16
"""The most metadata artifacts of an image that are looked at."""

_FORMATS: Final = (FormatVersion.V1, FormatVersion.V2)
_KINDS: Final = {Role.NORMATIVE: ImageKind.NORMATIVE, Role.BOOT: ImageKind.BOOT}
_VALUE_CHARACTERS: Final = 140


@dataclass(frozen=True, slots=True)
class Sign:
    """A link, and whether it claims a digest of the image; `boots` tells that the machine goes by it."""

    link: TrustLink
    claims: bool = False
    boots: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What the repository holds of an image: its composefs images, and documents by their digests.

    algorithm is the repository's.  vain are the digests that a search among all variants of the boot image has not
    found, and what it has told.
    """

    images: tuple[ComposefsImage, ...]
    manifest: Manifest
    documents: Mapping[Role, ObjectId]
    algorithm: Algorithm
    vain: Mapping[ObjectId, str]

    @classmethod
    def of(cls, stored: StoredImage, algorithm: Algorithm, outcomes: Sequence[Outcome]) -> "Measured":
        """Of an image that was loaded."""
        vain = {one.wanted: one.summary for one in outcomes if one.found is None}
        manifest, config = stored.content.manifest, stored.content.config
        documents = {
            role: verity.compute(data, algorithm)
            for role, data in ((Role.MANIFEST, manifest.data), (Role.CONFIG, config.data))
        }
        return cls(stored.images, manifest, documents, algorithm, vain)

    def kind(self, kind: ImageKind) -> list[ComposefsImage]:
        """The images of a kind."""
        return [image for image in self.images if image.kind is kind]


def formats_of(images: Sequence[ComposefsImage]) -> str:
    """The formats of images, in words."""
    return " and ".join(sorted({image.format.label for image in images}))


# The command lines of UKIs


def uki_digests(measured: Measured, uki: BootFact) -> Iterator[Sign]:
    """A sign for each command line of a UKI, or of an addon."""
    if uki.problem:
        text = f"{uki.path} cannot be used: {uki.problem.splitlines()[0]}"
        claims = any(map(_names_an_image, uki.command_lines))
        yield Sign(TrustLink(UKI_DIGEST, LinkState.UNKNOWN, text), claims=claims, boots=True)
        return
    lines = uki.command_lines or ("",)
    for line in lines:
        yield _line(measured, uki.path if len(lines) == 1 else f"{uki.path} ({_part(uki, line)})", line)


def _names_an_image(line: str) -> bool:
    """Whether a command line names an image, be it wrongly."""
    try:
        return bool(cmdline.find_all(line))
    except FormatError:
        return True


def _part(uki: BootFact, line: str) -> str:
    """Which part of a UKI boots with a command line."""
    profiles = [
        profile.id or profile.title or "without a name" for profile in uki.profiles if profile.cmdline == line
    ]
    return f"profile {', '.join(profiles)}" if profiles else "base"


def _line(measured: Measured, where: str, line: str) -> Sign:
    try:
        arguments = cmdline.find_all(line)
    except FormatError as error:
        return _claim(UKI_DIGEST, LinkState.BAD, f"{where} names an image wrongly: {error}", boots=True)
    if not arguments:
        text = f"{where} names no image on its command line"
        return Sign(TrustLink(UKI_DIGEST, LinkState.MISSING, text))
    found = [_argument(measured, argument) for argument in arguments]
    order = (LinkState.BAD, LinkState.NOT_CHECKED, LinkState.GOOD)  # any of them may be the one that boots
    state = next(state for state in order if state in dict(found))
    text = f"{where} names {', '.join(dict.fromkeys(words for _, words in found))}"
    return _claim(UKI_DIGEST, state, text, boots=True)


def _argument(measured: Measured, argument: ComposefsArgument) -> tuple[LinkState, str]:
    """What an argument of a command line names."""
    told = "" if argument.version is None else f"v{argument.version}"
    if argument.digest.algorithm is not measured.algorithm:
        return LinkState.NOT_CHECKED, f"an image by {argument.digest.algorithm.value}, which this repository has not"
    return _compared(measured, ImageKind.BOOT, argument.digest, told)


def _compared(measured: Measured, kind: ImageKind, digest: ObjectId, told: str) -> tuple[LinkState, str]:
    """What a digest is, that should be of an image of a kind, and of a format unless that is empty."""
    equal = next((image for image in measured.images if image.digest == digest), None)
    own = measured.kind(kind)
    if equal is not None and equal.kind is kind:
        return LinkState.GOOD, f"the {kind} image ({equal.format.label})"
    if equal is not None:
        return LinkState.BAD, f"the {equal.kind} image instead of the {kind} image"
    if digest in measured.vain:
        return LinkState.BAD, f"another {kind} image: {measured.vain[digest]}"
    if not own:
        return LinkState.NOT_CHECKED, f"a {kind} image, and none was made to compare"
    if told and told not in {image.format.label for image in own}:
        return LinkState.NOT_CHECKED, f"a {kind} image of format {told}, and only {formats_of(own)} was made"
    return LinkState.BAD, f"another {kind} image ({_short(digest)}) than the one that was made"


def _short(digest: ObjectId) -> str:
    return f"{digest.algorithm.value}:{digest.hex[:12]}…"


def _claim(name: str, state: LinkState, text: str, *, boots: bool = False) -> Sign:
    return Sign(TrustLink(name, state, text), claims=True, boots=boots)


# Labels, annotations, artifacts


def label_of(stored: StoredImage) -> str:
    """The digest in the label, cut to 140 characters; empty without one."""
    config = stored.content.config
    return config.labels.get(sealing.LABEL, "")[:_VALUE_CHARACTERS] if isinstance(config, ImageConfig) else ""


def label(measured: Measured, value: str) -> Sign:
    """The sign of the OCI label."""
    if not value:
        return Sign(TrustLink(LABEL, LinkState.MISSING, f"the image has no label {sealing.LABEL}"))
    try:
        digest = ObjectId.parse(value)
    except FormatError:
        return _claim(LABEL, LinkState.BAD, f"the OCI label is no digest: {value!r}")
    if digest.algorithm is not measured.algorithm:
        text = f"the OCI label names an image by {digest.algorithm.value}, which this repository has not"
        return _claim(LABEL, LinkState.NOT_CHECKED, text)
    state, text = _compared(measured, ImageKind.NORMATIVE, digest, "")
    made = {image.format for image in measured.kind(ImageKind.NORMATIVE)}
    lacking = [version.label for version in _FORMATS if version not in made]
    if state is LinkState.BAD and lacking and digest not in {image.digest for image in measured.images}:
        text = f"no normative image that was made; it tells no format, and {' and '.join(lacking)} was not made"
        state = LinkState.NOT_CHECKED
    return _claim(LABEL, state, f"the OCI label names {text}; nothing looks at it when the machine boots")


def annotations(measured: Measured) -> list[Sign]:
    """The signs of the annotations of the image's own manifest."""
    claims = sealing.of_manifest(measured.manifest)
    signs = _claims(measured, ANNOTATION, "the manifest", claims)
    if not signs:
        return [Sign(TrustLink(ANNOTATION, LinkState.MISSING, "the manifest has no digests in annotations"))]
    return signs


def artifacts(measured: Measured, found: Sequence[Manifest]) -> list[Sign]:
    """The signs of the metadata artifacts of the image."""
    signs: list[Sign] = []
    for one in found[:ARTIFACTS]:
        where = f"the metadata artifact {one.digest.algorithm}:{one.digest.hex[:12]}…"
        signs += _claims(measured, ARTIFACT, where, sealing.of_artifact(one)) or [
            Sign(TrustLink(ARTIFACT, LinkState.MISSING, f"{where} has no digests"))
        ]
    if len(found) > ARTIFACTS:
        text = f"{len(found) - ARTIFACTS} more metadata artifacts are not looked at"
        signs.append(Sign(TrustLink(ARTIFACT, LinkState.NOT_CHECKED, text)))
    if not signs:
        text = "the repository holds no metadata artifact of the image"
        signs.append(Sign(TrustLink(ARTIFACT, LinkState.MISSING, text)))
    return signs


def _claims(measured: Measured, name: str, where: str, claims: Claims) -> list[Sign]:
    signs = [_document(measured, name, where, claim) for claim in claims.found]
    for count, words in (
        (claims.layers, "digests of images of single layers, which composefsd does not make"),
        (claims.left_out, "more digests, which are not looked at"),
    ):
        if count:
            signs.append(Sign(TrustLink(name, LinkState.NOT_CHECKED, f"{where} has {count} {words}")))
    return signs


def _document(measured: Measured, name: str, where: str, claim: Claim) -> Sign:
    state, text = _judged(measured, claim)
    signed = "; its signature is for the kernel to check" if claim.signed else ""
    return _claim(name, state, f"{where} names {text}{signed}")


def _judged(measured: Measured, claim: Claim) -> tuple[LinkState, str]:
    kind = _KINDS.get(claim.role)
    what = f"{claim.role} digest" if kind is None else f"{kind} image"
    if not claim.is_in(measured.algorithm):
        return LinkState.NOT_CHECKED, f"a {what} by {claim.scheme}, which this repository has not"
    digest = claim.digest
    if digest is None:
        return LinkState.BAD, f"a {what} by what is no digest: {claim.value!r}"
    if kind is not None:
        return _compared(measured, kind, digest, claim.format)
    if measured.documents.get(claim.role) == digest:
        return LinkState.GOOD, f"the {claim.role}"
    return LinkState.BAD, f"another {claim.role} than that of the image"
