"""The chain of trust of an image: from the firmware's keys down to its files, link by link, and where it ends.

    firmware        Secure Boot is on, and its keys vouch for the certificate that signed the UKI
    uki-signature   the signature fits the UKI
    uki-digest      the UKI's command line names the boot image
    boot-image      the repository holds that image
    verity          the repository demands fs-verity, so that its files are those that the image names

The chain is as long as it holds from the files upwards.  Beside it stand the signs that nothing looks at when a
machine boots: `oci-label`, `annotation` and `artifact`.  docs/trust.md explains all of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot import cmdline
from composefsd.boot.authenticode import State
from composefsd.boot.resources import ResourceType
from composefsd.digests import Algorithm
from composefsd.errors import FormatError
from composefsd.oci import sealing
from composefsd.oci.manifest import Manifest
from composefsd.oci.storage import ImageKind, StoredImage
from composefsd.operations import signs
from composefsd.operations.boot_facts import BootFact, SignatureFact
from composefsd.operations.expected import Outcome
from composefsd.operations.facts import Facts
from composefsd.operations.firmware import Firmware
from composefsd.operations.model import LinkState, Trust, TrustLink, TrustState
from composefsd.operations.signs import UKI_DIGEST, Measured, Sign

FIRMWARE: Final = "firmware"
UKI_SIGNATURE: Final = "uki-signature"
BOOT_IMAGE: Final = "boot-image"
VERITY: Final = "verity"

_ADDONS: Final = (ResourceType.ADDON, ResourceType.GLOBAL_ADDON)

LINKS: Final = 64
"""The most links of one name that are shown: an image may have hundreds of UKIs, each with a hundred profiles."""

_EVIDENCE_CHARACTERS: Final = 8192
_TEXT_CHARACTERS: Final = 4096

_SIGNATURE_STATES: Final = {State.GOOD: LinkState.GOOD, State.UNSUPPORTED: LinkState.NOT_CHECKED}
"""Those that are not here are bad."""

_ENDS: Final = (
    (VERITY, "ends below the files: their digests are names that nothing enforces, since"),
    (BOOT_IMAGE, "ends at the files: each is what its digest says, but"),
    (UKI_DIGEST, "ends at the boot image: its digest binds the root file system, but"),
    (UKI_SIGNATURE, "ends at the UKI: its digest binds the root file system, but"),
    (FIRMWARE, "ends at the UKI's signature: it covers the digest that binds the root file system, but"),
)
"""The links from the files upwards, and what holds if this one is the first that does not."""

_WHOLE: Final = "ends at the firmware: its keys vouch for the UKI, whose digest binds the root file system"


@dataclass(frozen=True, slots=True)
class Place:
    """What this machine adds to what is known of an image: the repository's hash and demands, and the firmware."""

    algorithm: Algorithm
    verity: bool
    firmware: Firmware


def judge(
    stored: StoredImage,
    facts: Facts,
    artifacts: Sequence[Manifest],
    place: Place,
    outcomes: Sequence[Outcome] = (),
) -> Trust:
    """The trust in an image, by all that is known of it; outcomes tell of searches for what its UKIs name."""
    manifest = stored.content.manifest
    if manifest.artifact_type:
        return Trust(TrustState.UNSEALED, "an artifact, which has no tree that could be vouched for", {}, (), "")
    measured = Measured.of(stored, place.algorithm, outcomes)
    ukis = [one for one in facts.resources if one.type == ResourceType.UKI]
    addons = [one for one in facts.resources if one.type in _ADDONS and one.claims]
    value = signs.label_of(stored)
    digests = [sign for one in (*ukis, *addons) for sign in signs.uki_digests(measured, one)]
    others = [signs.label(measured, value), *signs.annotations(measured), *signs.artifacts(measured, artifacts)]
    chain = (
        *_firmware(ukis, place.firmware),
        *_signatures(ukis),
        *(sign.link for sign in (*(() if ukis else (_no_uki(),)), *digests)),
        _boot_image(measured),
        *_verity((*ukis, *addons), demanded=place.verity),
    )
    state, summary = _state((*digests, *others))
    evidence = _evidence(facts, ukis, value, measured, artifacts)
    links = tuple(_bounded((*chain, *(sign.link for sign in others))))
    return Trust(state, _clipped(summary), evidence, links, _clipped(_end(chain)))


def _bounded(links: Sequence[TrustLink]) -> Iterator[TrustLink]:
    """The first links of each name, in their order, with texts of bounded length; how many more there are is told."""
    seen: Counter[str] = Counter()
    for at, link in enumerate(links):
        seen[link.name] += 1
        if seen[link.name] <= LINKS:
            yield replace(link, text=_clipped(link.text))
        elif at + 1 == len(links) or links[at + 1].name != link.name:
            text = f"{seen[link.name] - LINKS} more are not shown"
            yield TrustLink(link.name, LinkState.NOT_CHECKED, text)


def _clipped(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - 1] + "…"


# State


def _state(found: Sequence[Sign]) -> tuple[TrustState, str]:
    claims = [sign for sign in found if sign.claims]
    if not claims:
        return TrustState.UNSEALED, "no UKI, label, annotation or artifact of the image names a digest"
    if bad := [sign.link.text for sign in claims if sign.link.state is LinkState.BAD]:
        return TrustState.MISMATCH, "; ".join(bad[:3]) + ("; and more" if len(bad) > 3 else "")
    good = [sign for sign in claims if sign.link.state is LinkState.GOOD]
    open_ = [sign for sign in claims if sign.boots and sign.link.state is not LinkState.GOOD]
    if open_ or not good:
        return TrustState.SEALED, "; ".join(sign.link.text for sign in (open_ or claims)[:3])
    names = ", ".join(dict.fromkeys(sign.link.name for sign in good))
    return TrustState.MATCHING, f"every digest that could be compared is right ({names})"


def _evidence(
    facts: Facts, ukis: Sequence[BootFact], value: str, measured: Measured, artifacts: Sequence[Manifest]
) -> dict[str, str]:
    """The claims themselves, for programs; without what there is not."""
    signatures = [_signer(signature) for one in ukis for signature in one.signatures if signature.state == State.GOOD]
    found = {
        UKI_DIGEST: sorted(facts.claimed_digests),
        UKI_SIGNATURE: sorted(set(signatures)),
        signs.LABEL: [value],
        signs.ANNOTATION: [f"{claim.key}={claim.value}" for claim in sealing.of_manifest(measured.manifest).found],
        signs.ARTIFACT: [str(one.digest) for one in artifacts[: signs.ARTIFACTS]],
    }
    texts = {name: ", ".join(filter(None, values)) for name, values in found.items()}
    return {name: text[:_EVIDENCE_CHARACTERS] for name, text in texts.items() if text}


# Links


def _firmware(ukis: Sequence[BootFact], firmware: Firmware) -> Iterator[TrustLink]:
    if firmware.secure_boot is None:
        text = f"whether the firmware checks signatures is not known: {firmware.why}"
        yield TrustLink(FIRMWARE, LinkState.UNKNOWN, text)
    elif not firmware.secure_boot:
        text = "Secure Boot is off, so the firmware of this machine starts any UKI"
        yield TrustLink(FIRMWARE, LinkState.MISSING, text)
    elif not ukis:
        text = "Secure Boot is on, and the image has no UKI that it could check"
        yield TrustLink(FIRMWARE, LinkState.MISSING, text)
    else:
        yield from (_vouched(one, firmware) for one in ukis)


def _vouched(uki: BootFact, firmware: Firmware) -> TrustLink:
    """Whether the firmware, with Secure Boot on, knows a certificate of those that signed a UKI."""
    good = [one for one in uki.signatures if one.state == State.GOOD]
    if not good:
        text = f"Secure Boot is on, and {uki.path} has no signature that it could go by"
        return TrustLink(FIRMWARE, LinkState.MISSING, text)
    if firmware.trusted is None or firmware.revoked is None:
        text = "Secure Boot is on, but the certificates in the firmware's db and dbx cannot be read"
        return TrustLink(FIRMWARE, LinkState.UNKNOWN, text)
    if any(one.fingerprint in firmware.revoked for one in good):
        text = f"the firmware's dbx revokes the certificate that signed {uki.path}"
        return TrustLink(FIRMWARE, LinkState.BAD, text)
    known = [one for one in good if one.fingerprint in firmware.trusted]
    if known:
        text = f"Secure Boot is on, and the firmware's db has the certificate that signed {uki.path}"
        return TrustLink(FIRMWARE, LinkState.GOOD, text)
    text = (
        f"Secure Boot is on, but the firmware's db has not the certificate that signed {uki.path}; whether it has "
        "that of its issuer, or shim another list, is not looked at"
    )
    return TrustLink(FIRMWARE, LinkState.MISSING, text)


def _signatures(ukis: Sequence[BootFact]) -> Iterator[TrustLink]:
    for uki in ukis:
        if uki.signatures:
            yield _signature(uki)
        else:
            yield TrustLink(UKI_SIGNATURE, LinkState.MISSING, f"nobody has signed {uki.path}")
    if not ukis:
        yield TrustLink(UKI_SIGNATURE, LinkState.MISSING, "there is no UKI that could be signed")


def _signature(uki: BootFact) -> TrustLink:
    """One good signature is enough: firmware passes over those that it cannot use."""
    states = [_SIGNATURE_STATES.get(State(one.state), LinkState.BAD) for one in uki.signatures]
    order = (LinkState.GOOD, LinkState.NOT_CHECKED, LinkState.BAD)
    state = next(state for state in order if state in states)
    one = uki.signatures[states.index(state)]
    words = {
        LinkState.GOOD: f"{uki.path} is signed by {_signer(one)}",
        LinkState.NOT_CHECKED: f"the signature of {uki.path} cannot be checked: {one.problem}",
        LinkState.BAD: f"the signature of {uki.path} is wrong: {one.problem}",
    }
    return TrustLink(UKI_SIGNATURE, state, words[state])


def _signer(signature: SignatureFact) -> str:
    """Who has signed, as the certificate says, and its SHA-256."""
    if not signature.fingerprint:
        return ""
    return f"{signature.subject or 'a certificate without a name'} (sha256:{signature.fingerprint})"


def _no_uki() -> Sign:
    text = "the image has no UKI; an entry that names it is written on the machine, and no signature covers that"
    return Sign(TrustLink(UKI_DIGEST, LinkState.MISSING, text))


def _boot_image(measured: Measured) -> TrustLink:
    made = measured.kind(ImageKind.BOOT)
    if not made:
        return TrustLink(BOOT_IMAGE, LinkState.MISSING, "no boot image was made")
    text = f"the repository has the boot image ({signs.formats_of(made)})"
    return TrustLink(BOOT_IMAGE, LinkState.GOOD, text)


def _verity(executables: Sequence[BootFact], *, demanded: bool) -> Iterator[TrustLink]:
    if not demanded:
        yield TrustLink(VERITY, LinkState.MISSING, "the repository does not demand fs-verity of its objects")
        return
    lax = [one.path for one in executables if any(map(_is_lax, one.command_lines))]
    if lax:
        text = f"{', '.join(lax)} lets the system boot without fs-verity (`?` on the command line)"
        yield TrustLink(VERITY, LinkState.MISSING, text)
        return
    yield TrustLink(VERITY, LinkState.GOOD, "the repository demands fs-verity of every object")


def _is_lax(command_line: str) -> bool:
    """Whether a command line lets the system boot without fs-verity; one that cannot be read does not boot."""
    try:
        return any(argument.insecure for argument in cmdline.find_all(command_line))
    except FormatError:
        return False


def _end(chain: Sequence[TrustLink]) -> str:
    """How far the chain holds from the files upwards, and what is wrong with the first link that does not."""
    for name, words in _ENDS:
        for link in chain:
            if link.name == name and link.state is not LinkState.GOOD:
                return f"{words} {link.text}"
    return _WHOLE
