"""The named references that keep composefs images."""

from itertools import product

import pytest

from composefsd.digests import ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ComposefsImage, ImageKind, parse_reference
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

DIGEST = ObjectId(bytes(64))
VERSIONS = (FormatVersion.V1, FormatVersion.V2)
BOOT = "composefs.image.boot"
"""What composefs-rs 0.9.4 keeps, whatever follows, when it writes a config anew (`take_boot_image_refs`)."""


@pytest.mark.parametrize(("kind", "version", "mode"), list(product(ImageKind, VERSIONS, XattrMode)))
@pytest.mark.parametrize("profile", Profile)
def test_an_image_is_read_back_from_the_name_of_its_reference(
    kind: ImageKind, version: FormatVersion, mode: XattrMode, profile: Profile
) -> None:
    image = ComposefsImage(kind, version, mode, DIGEST, profile)
    assert parse_reference(image.reference, DIGEST.digest) == image
    assert image.reference.startswith(BOOT) is (kind is ImageKind.BOOT)


def test_each_image_has_a_reference_of_its_own() -> None:
    every = [
        ComposefsImage(*one, digest=DIGEST, profile=profile).reference
        for one in product(ImageKind, VERSIONS, XattrMode)
        for profile in Profile
    ]
    assert len(every) == len(set(every)) == 2 * 2 * 2 * 3


def test_the_references_are_those_of_composefs_rs() -> None:
    keys = {
        ComposefsImage(ImageKind.BOOT, version, mode, DIGEST).reference for version in VERSIONS for mode in XattrMode
    }
    suffix = ".xattrs=keep-user-xattrs"
    assert keys == {BOOT, f"{BOOT}.v1", f"{BOOT}{suffix}", f"{BOOT}.v1{suffix}"}


def test_a_profile_stands_where_composefs_rs_still_reads_format_and_mode() -> None:
    old = ComposefsImage(ImageKind.BOOT, FormatVersion.V1, XattrMode.KEEP_USER, DIGEST, Profile.UP_TO_0_9_2)
    assert old.reference == "composefs.image.boot.v1.profile=0.9.2.xattrs=keep-user-xattrs"


@pytest.mark.parametrize(
    "name",
    ["sha256:00", f"{BOOT}.v3", f"{BOOT}.xattrs=all", f"{BOOT}.v1.profile=0.1", f"{BOOT}.v1.profile=current.x", "v1"],
)
def test_other_references_are_no_images(name: str) -> None:
    assert parse_reference(name, DIGEST.digest) is None
