"""Digests in annotations: which keys are claims, what is kept of them, and how much."""

import pytest

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci import sealing
from composefsd.oci.manifest import Descriptor, Manifest
from composefsd.oci.sealing import CLAIMS, Claim, Role

HEX = "ab" * 64
BLOB = OciDigest("sha256", "cd" * 32)
SUBJECT = OciDigest("sha256", "ef" * 32)
NORMATIVE = "composefs.merged.erofs.v1.fsverity-sha512-12"
BOOT = "composefs.merged.bootable.erofs.v1.fsverity-sha512-12"


def layer(annotations: dict[str, str], media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type, BLOB, 1, annotations)


def manifest(
    annotations: dict[str, str] | None = None,
    *layers: Descriptor,
    config: dict[str, str] | None = None,
    kind: str = "",
    subject: OciDigest | None = None,
) -> Manifest:
    return Manifest(b"{}", BLOB, layer(config or {}), layers, annotations or {}, kind, subject)


def test_each_place_has_its_claims() -> None:
    found = sealing.of_manifest(
        manifest(
            {NORMATIVE: HEX, BOOT: HEX, f"{BOOT}.sig": "MII", "org.opencontainers.image.title": "x"},
            layer({"composefs.layer.erofs.v1.fsverity-sha512-12": HEX}),
            config={"composefs.config.fsverity-sha256-12": HEX[:64]},
        )
    )
    assert found.found == (
        Claim(Role.BOOT, "v1", "fsverity-sha512-12", HEX, signed=True),
        Claim(Role.NORMATIVE, "v1", "fsverity-sha512-12", HEX),
        Claim(Role.CONFIG, "", "fsverity-sha256-12", HEX[:64]),
    )
    assert (found.layers, found.left_out) == (1, 0)


@pytest.mark.parametrize(
    "key",
    [
        "composefs.merged.erofs.v1.fsverity-sha512-12",
        "composefs.merged.bootable.erofs.v2.fsverity-sha256-12",
        "composefs.config.fsverity-sha512-16",
        "composefs.manifest.fsverity-sha512-12",
    ],
)
def test_a_claim_tells_the_key_that_it_stood_under(key: str) -> None:
    (claim,) = sealing.of_manifest(manifest({key: HEX})).found
    assert claim.key == key


@pytest.mark.parametrize(
    "key",
    [
        "composefs.merged.fsverity-sha512-12",
        "composefs.config.erofs.v1.fsverity-sha512-12",
        "composefs.merged.erofs.v1.sha512-12",
        "composefs.merged.erofs.v1.fsverity-sha512-12.sig",
        "composefs.merged.erofs.v1.fsverity-sha512-12\n",
        f"composefs.merged.erofs.v1.fsverity-{'a' * 21}-12",
        "Composefs.merged.erofs.v1.fsverity-sha512-12",
    ],
)
def test_other_keys_are_no_claims(key: str) -> None:
    assert sealing.of_manifest(manifest({key: HEX})).found == ()


def test_a_digest_is_only_one_if_it_fits_the_scheme() -> None:
    def digest(scheme: str, value: str) -> ObjectId | None:
        return Claim(Role.NORMATIVE, "v1", scheme, value).digest

    assert digest("fsverity-sha512-12", HEX) == ObjectId(bytes.fromhex(HEX))
    assert digest("fsverity-sha256-12", HEX[:64]) == ObjectId(bytes.fromhex(HEX[:64]))
    for scheme, value in (
        ("fsverity-sha512-12", HEX[:64]),
        ("fsverity-sha512-12", HEX.upper()),
        ("fsverity-sha512-16", HEX),
        ("fsverity-md5-12", HEX[:32]),
    ):
        assert digest(scheme, value) is None


def test_hash_and_format_are_told_apart() -> None:
    claim = Claim(Role.NORMATIVE, "v1", "fsverity-sha512-12", HEX)
    assert (claim.is_in(Algorithm.SHA512), claim.is_in(Algorithm.SHA256)) == (True, False)
    assert (claim.is_of(FormatVersion.V1), claim.is_of(FormatVersion.V2)) == (True, False)


def test_many_claims_are_cut_and_counted_and_a_long_value_too() -> None:
    annotations = {f"composefs.merged.erofs.v{number}.fsverity-sha512-12": "x" * 999 for number in range(CLAIMS + 5)}
    found = sealing.of_manifest(manifest(annotations))
    assert (len(found.found), found.left_out) == (CLAIMS, 5)
    assert {len(claim.value) for claim in found.found} == {140}


def test_an_artifact_has_its_claims_at_its_layers_and_is_about_its_subject() -> None:
    kind = sealing.ARTIFACT_TYPE
    signed = layer({NORMATIVE: HEX}, sealing.SIGNATURE_TYPE)
    plain = layer({"composefs.manifest.fsverity-sha512-12": HEX})
    artifact = manifest({BOOT: HEX}, signed, plain, kind=kind, subject=SUBJECT)
    assert sealing.of_artifact(artifact).found == (
        Claim(Role.NORMATIVE, "v1", "fsverity-sha512-12", HEX, signed=True),
        Claim(Role.MANIFEST, "", "fsverity-sha512-12", HEX),
    )
    other = manifest(kind="application/vnd.example", subject=SUBJECT)
    assert sealing.by_subject([manifest(), artifact, manifest(kind=kind), other]) == {SUBJECT: [artifact]}
