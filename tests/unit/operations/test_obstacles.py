"""Why an image cannot be deployed: all reasons, and none as long as one thing in it boots."""

from dataclasses import replace

from composefsd.digests import ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci.manifest import Descriptor, ImageConfig, Manifest, OciImage
from composefsd.oci.reference import Platform
from composefsd.oci.storage import ComposefsImage, ImageKind, StoredImage
from composefsd.operations.boot_facts import BootFact, FileFact
from composefsd.operations.facts import Facts
from composefsd.operations.obstacles import obstacles
from composefsd.tree.normative import XattrMode

BLOB = OciDigest("sha256", "cd" * 32)
BOOT, OTHER = ObjectId(bytes([1]) * 64), ObjectId(bytes([2]) * 64)


def stored(*images: ObjectId) -> StoredImage:
    config = ImageConfig(b"{}", BLOB, Platform("linux", "amd64"), 0, (), {})
    manifest = Manifest(b"{}", BLOB, Descriptor("", BLOB, 1, {}), (), {})
    made = (ComposefsImage(ImageKind.BOOT, FormatVersion.V1, XattrMode.ALLOWLIST_ONLY, one) for one in images)
    return StoredImage(OciImage(manifest, config), (), tuple(made))


def uki(digest: ObjectId, path: str = "/boot/EFI/Linux/a.efi", mark: str = "") -> BootFact:
    line = f"composefs.digest={mark}v1-sha512-12:{digest.hex}"
    return BootFact(
        "uki", path, "6.1", (FileFact(path, 900, "ab" * 64),), command_lines=(line,), claims=(digest.hex,)
    )


KERNEL = BootFact(
    "kernel", "/usr/lib/modules/6.1/vmlinuz", "6.1",
    (FileFact("/usr/lib/modules/6.1/vmlinuz", 900, "ab" * 64), FileFact("/initramfs.img", 900, "cd" * 64)),
)  # fmt: skip


def test_an_image_with_something_that_boots_has_none() -> None:
    for resources in (
        (uki(BOOT),),
        (uki(BOOT, mark="?"),),
        (KERNEL,),
        (uki(OTHER), KERNEL),
        (uki(OTHER), uki(BOOT, "/b.efi")),
    ):
        assert obstacles(stored(BOOT), Facts(resources=resources)) == ()


def test_every_reason_of_everything_that_could_boot_is_told() -> None:
    lone = replace(KERNEL, files=KERNEL.files[:1])
    found = obstacles(stored(BOOT), Facts(resources=(uki(OTHER), uki(OTHER, "/boot/EFI/Linux/b.efi"), lone)))
    for path in ("/boot/EFI/Linux/a.efi", "/boot/EFI/Linux/b.efi"):
        assert sum(f"{path}: the command line names another image: {OTHER}" in reason for reason in found) == 1
    assert any("vmlinuz has no initrd" in reason for reason in found)
    assert len(set(found)) == len(found)


def test_a_reason_against_one_policy_is_none_against_the_image() -> None:
    (reason,) = obstacles(stored(BOOT), Facts(resources=(uki(OTHER, mark="?"),)))
    assert "names another image" in reason


def test_what_the_image_itself_has_against_it_comes_unchanged() -> None:
    assert obstacles(stored(BOOT), Facts(resources=(uki(BOOT),), reasons=("one", "two"))) == ("one", "two")


def test_before_a_boot_image_was_made_nothing_is_compared() -> None:
    assert obstacles(stored(), Facts(resources=(uki(OTHER),))) == ()
