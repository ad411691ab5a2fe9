"""Which payload of an image is deployed, and what speaks against it."""

import json
from dataclasses import replace

import pytest

from composefsd.deploy.plan import Kernel, Uki, lay_out
from composefsd.deploy.state import VerityPolicy
from composefsd.digests import ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.operations.deployment_order import BootImageFact, DeploymentOrder
from composefsd.operations.facts import BootFact, Facts, FileFact
from composefsd.operations.model import DeployRequest, PayloadType

BOOT = ObjectId(b"\xab" * 64)
OTHER = "cd" * 64


def uki(name: str = "os", digest: str = BOOT.hex, **changes: object) -> BootFact:
    path = f"/boot/EFI/Linux/{name}.efi"
    line = f"composefs.digest=v1-sha512-12:{digest} quiet"
    fact = BootFact("uki", path, "6.1", (FileFact(path, 1000, "11" * 64),), command_lines=(line,), claims=(digest,))
    return replace(fact, **changes)  # type: ignore[arg-type]  # the tests name fields


def kernel(version: str = "6.1", *, initrd: bool = True) -> BootFact:
    base = f"/usr/lib/modules/{version}"
    files = [FileFact(f"{base}/vmlinuz", 1000, "22" * 64)]
    if initrd:
        files.append(FileFact(f"{base}/initramfs.img", 2000, "33" * 64))
    return BootFact("kernel", f"{base}/vmlinuz", version, tuple(files))


def addon(path: str) -> BootFact:
    return BootFact("addon", path, "", (FileFact(path, 10, "44" * 64),))


def order(*resources: BootFact, **request: object) -> DeploymentOrder:
    wanted = replace(DeployRequest(verity=VerityPolicy.DEFERRED), **request)  # type: ignore[arg-type]  # as above
    return DeploymentOrder(
        OciDigest("sha256", "ee" * 32),
        "oci:/srv/os:1",
        (BootImageFact(BOOT, FormatVersion.V1, stored=True),),
        Facts(title="Debian 13", os_version="13", os_id="debian", resources=resources),
        sealed=False,
        request=wanted,
    )


def reasons(wanted: DeploymentOrder) -> str:
    return "\n".join(lay_out(wanted.for_room()).reasons)


def test_an_order_comes_back_from_the_wire_as_it_was() -> None:
    sent = order(uki(), kernel(), kargs=("quiet",), type=PayloadType.TYPE1)
    assert DeploymentOrder.from_wire(json.loads(json.dumps(sent.to_wire()))) == sent


def test_a_uki_is_preferred_to_a_kernel() -> None:
    assert isinstance(order(kernel(), uki()).for_room().payload, Uki)
    assert reasons(order(kernel(), uki())) == ""


def test_a_kernel_is_taken_if_asked_for_or_alone() -> None:
    assert isinstance(order(kernel(), uki(), type=PayloadType.TYPE1).for_room().payload, Kernel)
    assert isinstance(order(kernel()).for_room().payload, Kernel)


def test_only_the_addons_of_the_uki_itself_go_along() -> None:
    mine, other = (
        addon("/boot/EFI/Linux/os.efi.extra.d/a.addon.efi"),
        addon("/boot/EFI/Linux/x.efi.extra.d/a.addon.efi"),
    )
    payload = order(uki(), mine, other).for_room().payload
    assert isinstance(payload, Uki)
    assert [one.name for one in payload.addons] == ["a.addon.efi"]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            order(uki("a"), uki("b")),
            "2 UKIs; name one with the option uki: /boot/EFI/Linux/a.efi, /boot/EFI/Linux/b.efi",
        ),
        (order(kernel("1"), kernel("2")), "2 kernels"),
        (order(uki(), uki="/boot/EFI/Linux/none.efi"), "no UKI /boot/EFI/Linux/none.efi"),
        (order(kernel(), type=PayloadType.UKI), "nothing of the type uki"),
        (order(uki(problem="broken")), "nothing of the type auto"),
        (order(kernel(initrd=False)), "nothing of the type auto"),
        (order(uki(digest=OTHER)), OTHER[:12]),
        (order(uki(), verity=VerityPolicy.REQUIRE), "no fs-verity"),
        (order(uki(), verity=VerityPolicy.OPTIONAL), "?"),
        (order(uki(), kargs=("quiet",)), "cannot be added to a UKI"),
    ],
)
def test_what_speaks_against_it_is_said(wanted: DeploymentOrder, reason: str) -> None:
    assert reason in reasons(wanted)


def test_one_of_several_ukis_can_be_named() -> None:
    chosen = order(uki("a"), uki("b"), uki="/boot/EFI/Linux/b.efi")
    payload = chosen.for_room().payload
    assert isinstance(payload, Uki)
    assert payload.path == "/boot/EFI/Linux/b.efi"
    assert reasons(chosen) == ""
