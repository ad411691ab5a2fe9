"""The chain of trust of images in a repository, from layouts with every sign, right and wrong."""

import asyncio
import hashlib
import struct
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from real import handmade, uki_signing
from real.layers import Entry, directory, regular, tar_layer
from real.oci_layout import Layout

from composefsd import verity
from composefsd.boot.signature_list import X509
from composefsd.deploy.state import VerityPolicy
from composefsd.digests import Algorithm
from composefsd.oci import sealing
from composefsd.oci.reference import Reference
from composefsd.operations import images
from composefsd.operations.compute_id import Question, compute
from composefsd.operations.deploy import deploy, list_deployments
from composefsd.operations.enforcement import Cover, Enforcement, enforcement
from composefsd.operations.host import Host
from composefsd.operations.model import DeployRequest, ImageInfo, LinkState, PayloadType, PullRequest, TrustState
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull

GOOD, MISSING, BAD = LinkState.GOOD, LinkState.MISSING, LinkState.BAD
UNKNOWN, NOT_CHECKED = LinkState.UNKNOWN, LinkState.NOT_CHECKED

UKI: Final = "boot/EFI/Linux/demo.efi"
MERGED: Final = "composefs.merged.erofs.v1.fsverity-sha512-12"
BOOTABLE: Final = "composefs.merged.bootable.erofs.v1.fsverity-sha512-12"
WRONG: Final = "cd" * 64
VARIABLES: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"

MakeHost = Callable[..., Host]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def do_pull(host: Host, layout: Layout, tag: str = "os") -> None:
    run(pull(host, PullRequest(Reference.parse(f"oci:{layout.path}:{tag}"), name=tag), Silent()))


def the_image(host: Host, name: str = "os") -> ImageInfo:
    return images.resolve(run(images.list_images(host)), name)


def states(image: ImageInfo, name: str) -> list[LinkState]:
    return [link.state for link in image.trust.chain if link.name == name]


def uki_layer(*ukis: bytes) -> bytes:
    folders = map(directory, ("boot/EFI", "boot/EFI/Linux"))
    files: list[Entry] = [
        regular(UKI.replace("demo", f"demo{number or ''}"), content) for number, content in enumerate(ukis)
    ]
    return tar_layer((*folders, *files))


def add(layout: Layout, tag: str, ukis: Sequence[bytes] = (), **claims: Any) -> None:
    """The hand-made image with UKIs, a label, and annotations."""
    label, annotations = claims.get("label"), claims.get("annotations")
    layers = [*handmade.layers(), *([uki_layer(*ukis)] if ukis else [])]
    config = None if label is None else {"config": {"Labels": {sealing.LABEL: label}}}
    layout.add_image(tag, layers, config=config, manifest={"annotations": annotations})


def boot_digest(layout: Layout) -> str:
    """The digest of the boot image, which is the same with and without UKIs."""
    add(layout, "base")
    return compute(Question(f"oci:{layout.path}:base", bootable=True)).hex


def argument(digest: str) -> str:
    return f"composefs.digest=v1-sha512-12:{digest}"


def enroll(folder: Path, *certificates: bytes, secure_boot: bytes = b"\1") -> Path:
    """EFI variables as efivarfs has them, with Secure Boot and these certificates in db."""
    folder.mkdir()
    attributes = b"\x06\0\0\0"
    (folder / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(attributes + secure_boot)
    lists = (
        X509.bytes_le + struct.pack("<III", 44 + len(one), 0, 16 + len(one)) + bytes(16) + one for one in certificates
    )
    (folder / f"db-{VARIABLES}").write_bytes(attributes + b"".join(lists))
    return folder


def test_a_signed_uki_whose_key_is_enrolled_is_vouched_for_up_to_the_firmware(
    make_host: MakeHost, layout: Layout, tmp_path: Path
) -> None:
    signer = uki_signing.signer("the builder")
    signed = uki_signing.sign(handmade.uki(argument(boot_digest(layout))), signer)
    add(layout, "os", [signed])
    host = make_host(efivars=enroll(tmp_path / "efivars", b"other", signer.certificate))
    do_pull(host, layout)
    image = the_image(host)
    chain = [(link.name, link.state) for link in image.trust.chain[:5]]
    assert chain == [
        ("firmware", GOOD),
        ("uki-signature", GOOD),
        ("uki-digest", GOOD),
        ("boot-image", GOOD),
        ("verity", MISSING),  # a scratch folder has no fs-verity
    ]
    fingerprint = hashlib.sha256(signer.certificate).hexdigest()
    assert image.trust.evidence["uki-signature"] == f"CN=the builder (sha256:{fingerprint})"
    assert image.trust.ends.startswith("ends below the files: ")
    assert image.bootable


@pytest.mark.parametrize(
    ("secure_boot", "certificates", "state"),
    [(b"\1", (b"another",), MISSING), (b"\0", (), MISSING), (None, (), UNKNOWN)],
)
def test_a_firmware_that_does_not_know_the_key_vouches_for_nothing(
    make_host: MakeHost,
    layout: Layout,
    tmp_path: Path,
    secure_boot: bytes | None,
    certificates: tuple[bytes, ...],
    state: LinkState,
) -> None:
    add(layout, "os", [uki_signing.sign(handmade.uki("quiet"), uki_signing.signer())])
    folder = tmp_path / "efivars"
    host = make_host(efivars=folder)
    if secure_boot is not None:
        enroll(folder, *certificates, secure_boot=secure_boot)
    do_pull(host, layout)
    assert states(the_image(host), "firmware") == [state]
    assert states(the_image(host), "uki-signature") == [GOOD]


def test_a_uki_that_was_changed_after_it_was_signed_is_told(host: Host, layout: Layout) -> None:
    signed = uki_signing.sign(handmade.uki(argument(boot_digest(layout))), uki_signing.signer())
    add(layout, "os", [signed.replace(b"not a kernel", b"another one!")])
    do_pull(host, layout)
    image = the_image(host)
    assert (states(image, "uki-signature"), image.trust.state) == ([BAD], TrustState.MATCHING)


def test_each_uki_is_judged_and_all_reasons_are_told_if_none_boots(host: Host, layout: Layout) -> None:
    wrong = [handmade.uki(argument(digest * 64)) for digest in ("ab", "cd")]
    folders = [directory(name) for name in ("usr", "usr/lib", "boot", "boot/EFI", "boot/EFI/Linux", "sysroot")]
    files = [regular(f"boot/EFI/Linux/{number}.efi", content) for number, content in enumerate(wrong)]
    layout.add_image("os", [tar_layer((*folders, *files))])
    do_pull(host, layout)
    image = the_image(host)
    assert states(image, "uki-digest") == [BAD, BAD]
    assert image.trust.state is TrustState.MISMATCH
    assert not image.bootable
    for number, digest in enumerate(("ab", "cd")):
        path = f"/boot/EFI/Linux/{number}.efi"
        assert any(reason.startswith(path) and digest * 6 in reason for reason in image.reasons)
        assert path in image.trust.summary


def test_signs_that_are_right_are_told_to_be(host: Host, layout: Layout) -> None:
    boot = boot_digest(layout)
    ukis = [handmade.uki(argument(boot))]
    add(layout, "base", ukis)
    normative = compute(Question(f"oci:{layout.path}:base")).hex
    add(layout, "os", ukis, label=normative, annotations={MERGED: normative, BOOTABLE: boot})
    attach(layout, "about", {MERGED: normative}, {BOOTABLE: boot})
    for tag in ("os", "about"):
        do_pull(host, layout, tag)
    image = the_image(host)
    assert image.trust.state is TrustState.MATCHING
    for name, wanted in (("uki-digest", 1), ("oci-label", 1), ("annotation", 2), ("artifact", 2)):
        assert states(image, name) == [GOOD] * wanted
    assert image.trust.evidence["oci-label"] == normative
    assert image.trust.evidence["artifact"] == str(the_image(host, "about").manifest_digest)
    assert the_image(host, "about").trust.chain == ()


def attach(layout: Layout, tag: str, *annotations: dict[str, str], subject: str = "os") -> None:
    """A metadata artifact about an image, with a layer for each dictionary of annotations."""
    blobs = [
        layout.add_blob(f"signature {number} of {tag}".encode(), sealing.SIGNATURE_TYPE)
        for number, _ in enumerate(annotations)
    ]
    about = layout.read_image(subject).manifest.descriptor()
    layers = [blob.descriptor() | {"annotations": one} for blob, one in zip(blobs, annotations, strict=True)]
    changes = {"subject": about, "layers": layers}
    layout.add_artifact(tag, blobs, artifact_type=sealing.ARTIFACT_TYPE, manifest=changes)


@pytest.mark.parametrize(
    ("claims", "name", "state", "words"),
    [
        ({"annotations": {MERGED: WRONG}}, "annotation", BAD, "another normative image"),
        ({"annotations": {BOOTABLE: WRONG}}, "annotation", BAD, "another boot image"),
        ({"annotations": {MERGED.replace("v1", "v2"): WRONG}}, "annotation", NOT_CHECKED, "format v2"),
        ({"annotations": {MERGED.replace("512", "256"): WRONG[:64]}}, "annotation", NOT_CHECKED, "sha256"),
        ({"label": WRONG}, "oci-label", NOT_CHECKED, "v2 was not made"),
        ({"label": "nonsense"}, "oci-label", BAD, "no digest"),
    ],
)
def test_signs_that_are_wrong_or_of_another_kind_are_told_apart(
    host: Host, layout: Layout, claims: dict[str, Any], name: str, state: LinkState, words: str
) -> None:
    add(layout, "os", [handmade.uki(argument(boot_digest(layout)))], **claims)
    do_pull(host, layout)
    image = the_image(host)
    assert states(image, name) == [state]
    (text,) = (link.text for link in image.trust.chain if link.name == name)
    assert words in text
    assert image.trust.state is (TrustState.MISMATCH if state is BAD else TrustState.MATCHING)
    assert states(image, "uki-digest") == [GOOD]
    assert image.bootable  # what boots goes by the UKI alone


def test_all_artifacts_about_an_image_are_told_and_no_others(host: Host, layout: Layout) -> None:
    add(layout, "os")
    add(layout, "other", [handmade.uki("quiet")])
    manifest = layout.blob_path(layout.read_image("os").manifest.digest).read_bytes()
    measured = verity.compute(manifest, Algorithm.SHA512).hex
    attach(layout, "right", {"composefs.manifest.fsverity-sha512-12": measured})
    attach(layout, "wrong", {"composefs.config.fsverity-sha512-12": WRONG})
    attach(layout, "elsewhere", {MERGED: WRONG}, subject="other")
    for tag in ("os", "right", "wrong", "elsewhere"):
        do_pull(host, layout, tag)
    image = the_image(host)
    assert sorted(states(image, "artifact")) == sorted([GOOD, BAD])
    assert image.trust.state is TrustState.MISMATCH
    assert "another config" in image.trust.summary


def enforced(host: Host) -> Enforcement:
    """What the only deployment enforces."""
    (made,) = run(list_deployments(host))
    found = {image.manifest_digest: image for image in run(images.list_images(host))}
    return enforcement(made, found[made.manifest_digest], verity=run(images.demands_verity(host)))


def test_a_deployed_uki_is_covered_by_its_signature(host: Host, layout: Layout) -> None:
    add(layout, "os", [uki_signing.sign(handmade.uki(argument(boot_digest(layout))), uki_signing.signer())])
    do_pull(host, layout)
    run(deploy(host, the_image(host).manifest_digest, DeployRequest(VerityPolicy.DEFERRED), Silent()))
    assert enforced(host) == Enforcement("uki", "deferred", Cover.SIGNED, repository_verity=False)


def test_an_entry_is_read_from_the_boot_partition_whatever_the_journal_says(host: Host, layout: Layout) -> None:
    add(layout, "os")
    do_pull(host, layout)
    request = DeployRequest(VerityPolicy.DEFERRED, PayloadType.TYPE1)
    run(deploy(host, the_image(host).manifest_digest, request, Silent()))
    assert enforced(host) == Enforcement("type1", "deferred", Cover.LOCAL, repository_verity=False)
    assert host.settings.esp is not None
    (entry,) = (host.settings.esp / "loader/entries").glob("*.conf")
    entry.write_text(entry.read_text().replace("composefs.digest=", "composefs.digest=?"))
    assert enforced(host).verity == "optional"
