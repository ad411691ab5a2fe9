"""The chain of trust of an image: every state of every link, where it ends, and what becomes of the whole."""

import re
from dataclasses import replace

import pytest

from composefsd import verity
from composefsd.boot.authenticode import State
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci import sealing
from composefsd.oci.manifest import Artifact, ArtifactConfig, Descriptor, ImageConfig, Manifest, OciImage
from composefsd.oci.reference import Platform
from composefsd.oci.storage import ComposefsImage, ImageKind, StoredImage
from composefsd.operations.boot_facts import BootFact, FileFact, ProfileFact, SignatureFact
from composefsd.operations.expected import Outcome
from composefsd.operations.facts import Facts
from composefsd.operations.firmware import Firmware
from composefsd.operations.model import LinkState, Trust, TrustLink, TrustState
from composefsd.operations.signs import ARTIFACTS
from composefsd.operations.trust import LINKS, Place, judge
from composefsd.operations.variants import ImageOrder
from composefsd.tree.normative import XattrMode

GOOD, MISSING, BAD = LinkState.GOOD, LinkState.MISSING, LinkState.BAD
UNKNOWN, NOT_CHECKED = LinkState.UNKNOWN, LinkState.NOT_CHECKED

BLOB = OciDigest("sha256", "cd" * 32)
V1, V2 = FormatVersion.V1, FormatVersion.V2
NORMATIVE, BOOT, OTHER = (ObjectId(bytes([number]) * 64) for number in (1, 2, 3))
FOREIGN = ObjectId(bytes(32))
KEY = "5e" * 32
SIGNED = SignatureFact(State.GOOD, "CN=Somebody", fingerprint=KEY)
ON = Firmware(secure_boot=True, trusted=frozenset({KEY}), revoked=frozenset())
PLACE = Place(Algorithm.SHA512, verity=True, firmware=ON)
CONFIG = b'{"config":{}}'
MERGED = "composefs.merged.erofs.v1.fsverity-sha512-12"
BOOTABLE = "composefs.merged.bootable.erofs.v1.fsverity-sha512-12"


def made(kind: ImageKind, digest: ObjectId, version: FormatVersion = V1) -> ComposefsImage:
    return ComposefsImage(kind, version, XattrMode.ALLOWLIST_ONLY, digest)


IMAGES = (made(ImageKind.NORMATIVE, NORMATIVE), made(ImageKind.BOOT, BOOT))


def stored(
    *images: ComposefsImage, label: str | None = None, annotations: dict[str, str] | None = None
) -> StoredImage:
    """An image of the repository, with the label and the annotations that it shall have."""
    labels = {} if label is None else {sealing.LABEL: label}
    config = ImageConfig(CONFIG, BLOB, Platform("linux", "amd64"), 0, (), labels)
    manifest = Manifest(b"{}", BLOB, Descriptor("", BLOB, 1, {}), (), annotations or {})
    return StoredImage(OciImage(manifest, config), (), images or IMAGES)


def artifact(*layers: dict[str, str], number: int = 0, kind: str = sealing.SIGNATURE_TYPE) -> Manifest:
    """A metadata artifact about the image."""
    blobs = tuple(Descriptor(kind, BLOB, 1, annotations) for annotations in layers)
    digest = OciDigest("sha256", f"{number:064x}")
    config = Descriptor("", BLOB, 1, {})
    return Manifest(b"{}", digest, config, blobs, {}, sealing.ARTIFACT_TYPE, BLOB)


def uki(*lines: str, signatures: tuple[SignatureFact, ...] = (SIGNED,), path: str = "/boot/a.efi") -> BootFact:
    """A UKI of a base and profiles with these command lines."""
    claims = tuple(
        token.rpartition(":")[2].rpartition("=")[2] for line in lines for token in line.split() if "=" in token
    )
    profiles = tuple(ProfileFact(f"p{number}", "", line, "") for number, line in enumerate(lines[1:], 1))
    return BootFact(
        "uki", path, "6.1", (FileFact(path, 9, "ab" * 64),),
        command_lines=lines, claims=claims, profiles=profiles, signatures=signatures,
    )  # fmt: skip


def naming(digest: ObjectId, mark: str = "", version: int = 1) -> str:
    return f"composefs.digest={mark}v{version}-{digest.algorithm.value}-12:{digest.hex}"


SEALED = uki(naming(BOOT))


def trust(
    *resources: BootFact, image: StoredImage | None = None, artifacts: tuple[Manifest, ...] = (), place: Place = PLACE
) -> Trust:
    return judge(image or stored(), Facts(resources=resources), artifacts, place)


def links(found: Trust, name: str) -> list[TrustLink]:
    return [link for link in found.chain if link.name == name]


def states(found: Trust, name: str) -> list[LinkState]:
    return [link.state for link in links(found, name)]


# The chain as a whole


def test_a_sealed_image_on_a_host_that_enforces_all_has_a_chain_up_to_the_firmware() -> None:
    found = trust(SEALED)
    assert [(link.name, link.state) for link in found.chain] == [
        ("firmware", GOOD),
        ("uki-signature", GOOD),
        ("uki-digest", GOOD),
        ("boot-image", GOOD),
        ("verity", GOOD),
        ("oci-label", MISSING),
        ("annotation", MISSING),
        ("artifact", MISSING),
    ]
    assert found.ends == ("ends at the firmware: its keys vouch for the UKI, whose digest binds the root file system")
    assert (found.state, found.summary) == (
        TrustState.MATCHING, "every digest that could be compared is right (uki-digest)",
    )  # fmt: skip
    assert found.evidence == {"uki-digest": BOOT.hex, "uki-signature": f"CN=Somebody (sha256:{KEY})"}


@pytest.mark.parametrize(
    ("resources", "place", "end"),
    [
        ((SEALED,), replace(PLACE, verity=False), "ends below the files: .*since the repository does not demand"),
        ((uki(naming(BOOT, "?")),), PLACE, "ends below the files: .*since /boot/a.efi lets the system boot without"),
        ((uki("quiet"),), PLACE, "ends at the boot image: .*but /boot/a.efi names no image"),
        ((), PLACE, "ends at the boot image: .*but the image has no UKI"),
        ((replace(SEALED, signatures=()),), PLACE, "ends at the UKI: .*but nobody has signed /boot/a.efi"),
        ((SEALED,), replace(PLACE, firmware=Firmware()), "ends at the UKI's signature: .*is not known"),
    ],
)
def test_the_chain_ends_at_the_first_link_from_below_that_does_not_hold(
    resources: tuple[BootFact, ...], place: Place, end: str
) -> None:
    found = trust(*resources, place=place).ends
    assert re.match(end, found)


def test_without_a_boot_image_the_chain_ends_at_the_files() -> None:
    found = trust(SEALED, image=stored(IMAGES[0]))
    assert states(found, "boot-image") == [MISSING]
    assert found.ends == "ends at the files: each is what its digest says, but no boot image was made"


def test_of_several_ukis_the_weakest_decides_where_the_chain_ends() -> None:
    other = uki(naming(BOOT), signatures=(), path="/boot/b.efi")
    found = trust(SEALED, other)
    assert states(found, "uki-signature") == [GOOD, MISSING]
    assert found.ends.endswith("nobody has signed /boot/b.efi")


def test_an_artifact_has_no_chain() -> None:
    manifest = replace(stored().content.manifest, artifact_type="application/vnd.example")
    found = trust(image=StoredImage(Artifact(manifest, ArtifactConfig(b"{}", BLOB)), (), ()))
    assert (found.state, found.chain, found.ends, found.evidence) == (TrustState.UNSEALED, (), "", {})


# The firmware and the signature


@pytest.mark.parametrize(
    ("firmware", "state", "words"),
    [
        (ON, GOOD, "db has the certificate"),
        (Firmware(secure_boot=False), MISSING, "Secure Boot is off"),
        (Firmware(why="no variables"), UNKNOWN, "not known: no variables"),
        (replace(ON, trusted=frozenset()), MISSING, "db has not the certificate"),
        (replace(ON, trusted=None), UNKNOWN, "cannot be read"),
        (replace(ON, revoked=None), UNKNOWN, "cannot be read"),
        (replace(ON, revoked=frozenset({KEY})), BAD, "dbx revokes"),
    ],
)
def test_the_firmware_vouches_or_it_is_told_why_not(firmware: Firmware, state: LinkState, words: str) -> None:
    (link,) = links(trust(SEALED, place=replace(PLACE, firmware=firmware)), "firmware")
    assert link.state is state
    assert words in link.text


def test_secure_boot_has_nothing_to_go_by_without_a_good_signature() -> None:
    bad = SignatureFact(State.BAD, "CN=Somebody", fingerprint=KEY, problem="not made with the key")
    for signatures in ((), (bad,)):
        (link,) = links(trust(replace(SEALED, signatures=signatures)), "firmware")
        assert (link.state, "no signature that it could go by" in link.text) == (MISSING, True)
    (link,) = links(trust(), "firmware")
    assert (link.state, "no UKI" in link.text) == (MISSING, True)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ((), MISSING),
        ((State.GOOD,), GOOD),
        ((State.BAD,), BAD),
        ((State.DOES_NOT_FIT,), BAD),
        ((State.MALFORMED,), BAD),
        ((State.UNSUPPORTED,), NOT_CHECKED),
        ((State.BAD, State.UNSUPPORTED), NOT_CHECKED),
        ((State.BAD, State.GOOD), GOOD),
    ],
)
def test_one_good_signature_is_enough(told: tuple[State, ...], state: LinkState) -> None:
    signatures = tuple(SignatureFact(one, fingerprint=KEY, problem=f"why {one}") for one in told)
    (link,) = links(trust(replace(SEALED, signatures=signatures)), "uki-signature")
    assert link.state is state
    if state in (BAD, NOT_CHECKED):
        assert "why " in link.text


# Digests on command lines


@pytest.mark.parametrize(
    ("line", "state", "whole", "words"),
    [
        (naming(BOOT), GOOD, TrustState.MATCHING, "names the boot image (v1)"),
        (f"composefs={BOOT.hex}", GOOD, TrustState.MATCHING, "names the boot image (v1)"),
        (f"{naming(FOREIGN)} {naming(BOOT)}", NOT_CHECKED, TrustState.SEALED, "the boot image (v1)"),
        (f"{naming(BOOT)} {naming(OTHER, version=2)}", NOT_CHECKED, TrustState.SEALED, "only v1 was made"),
        (naming(OTHER), BAD, TrustState.MISMATCH, "another boot image (sha512:030303030303…)"),
        (f"composefs={OTHER.hex}", BAD, TrustState.MISMATCH, "another boot image"),
        (f"{naming(BOOT)} {naming(OTHER)}", BAD, TrustState.MISMATCH, "the boot image (v1), another boot image"),
        (naming(NORMATIVE), BAD, TrustState.MISMATCH, "the normative image instead of the boot image"),
        ("composefs=nonsense", BAD, TrustState.MISMATCH, "names an image wrongly"),
        (naming(OTHER, version=2), NOT_CHECKED, TrustState.SEALED, "format v2, and only v1 was made"),
        (naming(FOREIGN), NOT_CHECKED, TrustState.SEALED, "by sha256, which this repository has not"),
        ("quiet", MISSING, TrustState.UNSEALED, "names no image"),
    ],
)
def test_a_command_line_is_compared_with_the_boot_images(
    line: str, state: LinkState, whole: TrustState, words: str
) -> None:
    found = trust(uki(line))
    (link,) = links(found, "uki-digest")
    assert (link.state, found.state) == (state, whole)
    assert words in link.text
    if whole is TrustState.MISMATCH:
        assert found.summary == link.text


def test_without_a_boot_image_there_is_nothing_to_compare() -> None:
    found = trust(SEALED, image=stored(IMAGES[0]))
    assert (states(found, "uki-digest"), found.state) == ([NOT_CHECKED], TrustState.SEALED)
    assert "none was made to compare" in found.summary


def test_what_was_searched_in_vain_is_wrong_in_any_format_and_told_with_the_closest_variant() -> None:
    tried = made(ImageKind.BOOT, BOOT)
    outcome = Outcome(OTHER, None, (tried,), ImageOrder.of(tried), "a dumpfile", ("/usr: mode 0755 -> 0700",), 1, ())
    facts = Facts(resources=(uki(naming(OTHER, version=2)),))
    found = judge(stored(), facts, (), PLACE, [outcome])
    (link,) = links(found, "uki-digest")
    assert (link.state, found.state) == (BAD, TrustState.MISMATCH)
    assert "digest of none of 1 variants; by a dumpfile, boot v1 comes closest: /usr: mode 0755 -> 0700" in link.text


def test_each_profile_of_a_uki_has_a_link_of_its_own() -> None:
    found = trust(uki(naming(BOOT), naming(OTHER), "quiet"))
    assert [(link.state, link.text.partition(" names")[0]) for link in links(found, "uki-digest")] == [
        (GOOD, "/boot/a.efi (base)"),
        (BAD, "/boot/a.efi (profile p1)"),
        (MISSING, "/boot/a.efi (profile p2)"),
    ]
    assert found.state is TrustState.MISMATCH


def test_a_uki_that_cannot_be_used_is_told_and_claims_nothing() -> None:
    found = trust(replace(uki(), problem="not a PE file\nat all"))
    (link,) = links(found, "uki-digest")
    assert (link.state, link.text) == (UNKNOWN, "/boot/a.efi cannot be used: not a PE file")
    assert found.state is TrustState.UNSEALED


@pytest.mark.parametrize("line", [naming(BOOT), f"{naming(BOOT)} composefs=nonsense"])
def test_a_uki_that_cannot_be_used_and_names_an_image_has_made_a_claim(line: str) -> None:
    found = trust(replace(uki(line), problem="no section .linux: not a UKI"))
    assert (found.state, states(found, "uki-digest")) == (TrustState.SEALED, [UNKNOWN])
    assert found.summary == "/boot/a.efi cannot be used: no section .linux: not a UKI"


def test_an_addon_without_any_uki_makes_no_chain() -> None:
    found = trust(replace(SEALED, type="addon", path="/boot/a.efi.extra.d/x.addon.efi"))
    assert states(found, "uki-digest") == [MISSING, GOOD]
    assert re.match("ends at the boot image: .*but the image has no UKI", found.ends)


def test_only_who_made_a_good_signature_is_evidence() -> None:
    other = SignatureFact(State.DOES_NOT_FIT, "CN=Other", fingerprint="6f" * 32, problem="of other content")
    assert trust(replace(SEALED, signatures=(other, SIGNED))).evidence["uki-signature"].startswith("CN=Somebody (")
    assert "uki-signature" not in trust(replace(SEALED, signatures=(other,))).evidence


def test_links_are_bounded_in_number_and_length_and_it_is_told() -> None:
    path = f"/boot/{'d' * 9000}.efi"
    found = trust(uki(*(f"{naming(BOOT)} {number}" for number in range(LINKS + 3)), path=path), SEALED)
    digests = links(found, "uki-digest")
    assert len(digests) == LINKS + 1
    assert (digests[-1].state, digests[-1].text) == (NOT_CHECKED, "4 more are not shown")
    assert max(len(link.text) for link in found.chain) <= 4096
    assert [link.name for link in found.chain[-5:]] == ["boot-image", "verity", "oci-label", "annotation", "artifact"]
    assert found.state is TrustState.MATCHING


def test_an_addon_counts_only_if_it_names_an_image() -> None:
    path = "/boot/a.efi.extra.d/x.addon.efi"
    silent = replace(uki("quiet", path=path), type="addon", claims=())
    naming_other = replace(uki(naming(OTHER), path=path), type="addon")
    assert states(trust(SEALED, silent), "uki-digest") == [GOOD]
    assert states(trust(SEALED, naming_other), "uki-digest") == [GOOD, BAD]
    lax = replace(uki(naming(BOOT, "?"), path=path), type="addon")
    assert states(trust(SEALED, lax), "verity") == [MISSING]


# Label


@pytest.mark.parametrize(
    ("label", "images", "state", "whole"),
    [
        (NORMATIVE.hex, IMAGES, GOOD, TrustState.MATCHING),
        (OTHER.hex, IMAGES, NOT_CHECKED, TrustState.SEALED),  # it may be of format v2, which was not made
        (OTHER.hex, (*IMAGES, made(ImageKind.NORMATIVE, FOREIGN, V2)), BAD, TrustState.MISMATCH),
        (BOOT.hex, IMAGES, BAD, TrustState.MISMATCH),
        (OTHER.hex, IMAGES[1:], NOT_CHECKED, TrustState.SEALED),
        (FOREIGN.hex, IMAGES, NOT_CHECKED, TrustState.SEALED),
        ("nonsense\x1b", IMAGES, BAD, TrustState.MISMATCH),
        ("", IMAGES, MISSING, TrustState.UNSEALED),
    ],
)
def test_the_label_is_compared_with_the_normative_images(
    label: str, images: tuple[ComposefsImage, ...], state: LinkState, whole: TrustState
) -> None:
    found = trust(image=stored(*images, label=label))
    (link,) = links(found, "oci-label")
    assert (link.state, found.state) == (state, whole)
    assert found.evidence.get("oci-label", "") == label


def test_a_wrong_label_is_a_mismatch_that_is_told_apart_from_one_of_the_uki() -> None:
    found = trust(SEALED, image=stored(label=BOOT.hex))
    assert found.state is TrustState.MISMATCH
    assert found.summary.startswith("the OCI label names the boot image instead of the normative image")
    assert states(found, "uki-digest") == [GOOD]
    assert found.ends.startswith("ends at the firmware")  # nothing at boot looks at the label


def test_a_right_label_does_not_make_up_for_a_uki_that_could_not_be_compared() -> None:
    found = trust(uki(naming(FOREIGN)), image=stored(label=NORMATIVE.hex))
    assert found.state is TrustState.SEALED
    assert "sha256" in found.summary


# Annotations and artifacts


@pytest.mark.parametrize(
    ("key", "value", "state"),
    [
        (MERGED, NORMATIVE.hex, GOOD),
        (BOOTABLE, BOOT.hex, GOOD),
        (MERGED, OTHER.hex, BAD),
        (BOOTABLE, OTHER.hex, BAD),
        (MERGED, BOOT.hex, BAD),
        (BOOTABLE, NORMATIVE.hex, BAD),
        (MERGED, OTHER.hex[:64], BAD),
        (MERGED.replace(".v1.", ".v2."), OTHER.hex, NOT_CHECKED),
        (MERGED.replace("sha512", "sha256"), OTHER.hex[:64], NOT_CHECKED),
        (MERGED.replace("-12", "-16"), NORMATIVE.hex, NOT_CHECKED),
        ("composefs.config.fsverity-sha512-12", verity.compute(CONFIG, Algorithm.SHA512).hex, GOOD),
        ("composefs.config.fsverity-sha512-12", OTHER.hex, BAD),
        ("composefs.manifest.fsverity-sha512-12", verity.compute(b"{}", Algorithm.SHA512).hex, GOOD),
        ("composefs.manifest.fsverity-sha512-12", OTHER.hex, BAD),
        ("composefs.layer.erofs.v1.fsverity-sha512-12", OTHER.hex, NOT_CHECKED),
    ],
)
def test_a_claim_is_compared_with_what_it_is_about(key: str, value: str, state: LinkState) -> None:
    of_manifest = trust(image=stored(annotations={key: value}))
    of_artifact = trust(artifacts=(artifact({key: value}),))
    assert states(of_manifest, "annotation") == states(of_artifact, "artifact") == [state]
    wanted = {GOOD: TrustState.MATCHING, BAD: TrustState.MISMATCH}.get(state, TrustState.SEALED)
    if ".layer." in key:
        wanted = TrustState.UNSEALED  # composefsd has no such image that could be sealed
    assert of_manifest.state is of_artifact.state is wanted
    assert "metadata artifact sha256:000000000000…" in links(of_artifact, "artifact")[0].text


def test_a_signature_is_told_and_left_to_the_kernel() -> None:
    words = "its signature is for the kernel to check"
    (link,) = links(trust(artifacts=(artifact({MERGED: NORMATIVE.hex}),)), "artifact")
    assert words in link.text
    (link,) = links(trust(artifacts=(artifact({MERGED: NORMATIVE.hex}, kind="text/plain"),)), "artifact")
    assert words not in link.text
    inline = stored(annotations={MERGED: NORMATIVE.hex, f"{MERGED}.sig": "MII"})
    assert words in links(trust(image=inline), "annotation")[0].text


def test_all_artifacts_of_an_image_are_told_up_to_a_bound() -> None:
    found = tuple(artifact({MERGED: NORMATIVE.hex}, number=number) for number in range(ARTIFACTS + 3))
    told = trust(artifacts=found)
    assert states(told, "artifact") == [*[GOOD] * ARTIFACTS, NOT_CHECKED]
    assert links(told, "artifact")[-1].text == "3 more metadata artifacts are not looked at"
    assert told.evidence["artifact"].count("sha256:") == ARTIFACTS


def test_an_artifact_without_digests_is_told_as_such() -> None:
    (link,) = links(trust(artifacts=(artifact(),)), "artifact")
    assert (link.state, link.text.endswith("has no digests")) == (MISSING, True)


def test_claims_beyond_the_bound_are_counted() -> None:
    annotations = {MERGED.replace(".v1.", f".v{number}."): OTHER.hex for number in range(3, 40)}
    found = links(trust(image=stored(annotations=annotations)), "annotation")
    assert found[-1].text == "the manifest has 5 more digests, which are not looked at"
