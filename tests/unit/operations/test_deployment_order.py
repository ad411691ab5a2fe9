"""Which payload of an image is deployed, and what speaks against it."""

import json
from dataclasses import replace

import pytest

from composefsd.boot.cmdline import Spelling
from composefsd.boot.kargs import DropIn
from composefsd.deploy.plan import Kernel, Uki, lay_out
from composefsd.deploy.state import DeploymentType, VerityPolicy
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


def entry(name: str = "os", **changes: object) -> BootFact:
    path = f"/boot/loader/entries/{name}.conf"
    files = (path, "/usr/lib/k", "/usr/lib/microcode", "/usr/lib/i")
    named = tuple(FileFact(file, 1000, f"{number}5" * 64) for number, file in enumerate(files))
    fact = BootFact("type1", path, "", named, options="ro console=tty0")
    return replace(fact, **changes)  # type: ignore[arg-type]  # the tests name fields


def addon(path: str, kind: str = "addon", **changes: object) -> BootFact:
    fact = BootFact(kind, path, "", (FileFact(path, 10, "44" * 64),))
    return replace(fact, **changes)  # type: ignore[arg-type]  # the tests name fields


def order(*resources: BootFact, drop_ins: tuple[DropIn, ...] = (), **request: object) -> DeploymentOrder:
    wanted = replace(DeployRequest(verity=VerityPolicy.DEFERRED), **request)  # type: ignore[arg-type]  # as above
    return DeploymentOrder(
        OciDigest("sha256", "ee" * 32),
        "oci:/srv/os:1",
        (BootImageFact(BOOT, FormatVersion.V1, stored=True),),
        Facts(title="Debian 13", os_version="13", os_id="debian", resources=resources, kargs=drop_ins),
        sealed=False,
        request=wanted,
        architecture="amd64",
    )


def reasons(wanted: DeploymentOrder) -> str:
    return "\n".join(lay_out(wanted.for_room()).reasons)


def test_an_order_comes_back_from_the_wire_as_it_was() -> None:
    sent = order(
        uki(),
        kernel(),
        drop_ins=(DropIn("/a.toml", ("quiet",), ("x86_64",)), DropIn("/b.toml", problem="broken")),
        kargs=("quiet",),
        kargs_delete=("rw",),
        karg_form=Spelling.LEGACY,
        payload="os.efi",
        type=PayloadType.TYPE1,
    )
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
            "2 UKIs; name one with the option payload: /boot/EFI/Linux/a.efi, /boot/EFI/Linux/b.efi",
        ),
        (order(kernel("1"), kernel("2")), "2 kernels"),
        (order(uki(), uki="/boot/EFI/Linux/none.efi"), "no UKI /boot/EFI/Linux/none.efi"),
        (order(kernel(), type=PayloadType.UKI), "nothing of the type uki"),
        (order(uki(problem="broken")), "nothing of the type auto"),
        (order(kernel(initrd=False)), "nothing of the type auto"),
        (order(entry("a"), entry("b")), "2 entries; name one with the option payload"),
        (order(kernel("1", initrd=False), payload="1"), "/1/vmlinuz has no initrd"),
        (order(uki(problem="broken"), payload="os.efi"), "/boot/EFI/Linux/os.efi: broken"),
        (order(uki(), payload="os.efi", type=PayloadType.TYPE1), "no boot resource os.efi of the type type1"),
        (order(entry(problem="a device tree")), "nothing of the type auto"),
        (order(entry(architecture="aa64"), payload="os.conf"), "for the architecture aa64, and the image is for x64"),
        (
            order(uki(architecture="aa64")),
            "os.efi: an executable for the architecture aa64, and the image is for x64",
        ),
        (order(uki(command_lines=("quiet",), claims=())), "names no composefs image"),
        (
            order(replace(kernel(), files=(FileFact("/k", 9, ""), FileFact("/i", 9, "33" * 64)))),
            "nothing that could boot",
        ),
        (order(uki(), addon("/boot/EFI/Linux/os.efi.extra.d/a.addon.efi", problem="no PE file")), "efi: no PE file"),
        (
            order(uki(), addon("/boot/loader/addons/a.addon.efi", "global-addon", architecture="aa64")),
            "a.addon.efi: an executable for the architecture aa64, and the image is for x64",
        ),
        (order(uki(digest=OTHER)), OTHER[:12]),
        (order(uki(), verity=VerityPolicy.REQUIRE), "no fs-verity"),
        (order(uki(), verity=VerityPolicy.OPTIONAL), "?"),
        (order(uki(), kargs=("quiet",)), "cannot be changed in a UKI"),
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


def payload_of(*resources: BootFact, **request: object) -> str:
    payload = order(*resources, **request).for_room().payload  # type: ignore[arg-type]  # the tests name fields
    assert payload is not None
    return payload.path


def test_an_entry_of_the_image_comes_after_a_uki_and_before_a_kernel() -> None:
    assert payload_of(kernel(), entry(), uki()) == "/boot/EFI/Linux/os.efi"
    assert payload_of(kernel(), entry()) == "/usr/lib/k"
    assert payload_of(kernel(), entry(), uki(), type=PayloadType.TYPE1) == "/usr/lib/k"
    assert payload_of(kernel(), entry(problem="a device tree")) == "/usr/lib/modules/6.1/vmlinuz"
    assert payload_of(kernel(), entry(architecture="aa64")) == "/usr/lib/modules/6.1/vmlinuz"
    assert payload_of(kernel(), entry(architecture="x64")) == "/usr/lib/k"


def test_a_uki_that_names_no_image_comes_last() -> None:
    unsealed = uki(command_lines=("quiet",), claims=())
    assert payload_of(kernel(), unsealed) == "/usr/lib/modules/6.1/vmlinuz"
    assert payload_of(kernel(initrd=False), unsealed) == "/boot/EFI/Linux/os.efi"
    assert payload_of(uki(digest=OTHER), kernel()) == "/boot/EFI/Linux/os.efi"  # which is refused


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/boot/EFI/Linux/b.efi", "/boot/EFI/Linux/b.efi"),
        ("b.efi", "/boot/EFI/Linux/b.efi"),
        ("os.conf", "/usr/lib/k"),
        ("/boot/loader/entries/os.conf", "/usr/lib/k"),
        ("6.2", "/usr/lib/modules/6.2/vmlinuz"),
        ("/usr/lib/modules/6.1/vmlinuz", "/usr/lib/modules/6.1/vmlinuz"),
    ],
)
def test_anything_that_boots_can_be_named(name: str, path: str) -> None:
    everything = (uki("a"), uki("b"), entry(), kernel("6.1"), kernel("6.2"))
    assert payload_of(*everything, payload=name) == path
    assert reasons(order(*everything, payload=name)) == ""


def test_a_name_that_several_things_have_is_refused() -> None:
    assert "2 kernels with an initrd; name one" in reasons(order(kernel("1"), kernel("2"), payload="vmlinuz"))


def test_an_entry_brings_its_kernel_its_initrds_and_its_arguments() -> None:
    payload = order(entry()).for_room().payload
    assert isinstance(payload, Kernel)
    assert [one.source for one in payload.initrds] == ["/usr/lib/microcode", "/usr/lib/i"]
    found = lay_out(order(entry(), kargs=("quiet",)).for_room())
    assert found.kernel_arguments == ("ro", "console=tty0", "quiet", f"composefs.digest=v1-sha512-12:{BOOT.hex}")
    assert {file.path for file in order(entry()).contents()} >= {file.source for file in found.files}


def test_drop_ins_count_on_their_architecture_and_for_type_1_alone() -> None:
    drop_ins = (DropIn("a", ("quiet",), ("x86_64",)), DropIn("b", ("splash",), ("aarch64",)), DropIn("c", ("rw",)))
    found = lay_out(order(kernel(), drop_ins=drop_ins, kargs_delete=("rw",)).for_room())
    assert found.kernel_arguments == ("quiet", f"composefs.digest=v1-sha512-12:{BOOT.hex}")
    assert lay_out(order(uki(), drop_ins=drop_ins).for_room()).kernel_arguments[-1] == "quiet"


def test_a_broken_drop_in_counts_against_a_kernel_but_not_against_a_uki() -> None:
    broken = (DropIn("/usr/lib/bootc/kargs.d/a.toml", problem="no key 'kargs'"),)
    for payload in (kernel(), entry()):
        assert reasons(order(payload, drop_ins=broken)) == "/usr/lib/bootc/kargs.d/a.toml: no key 'kargs'"
    assert reasons(order(uki(), drop_ins=broken)) == ""


def test_addons_for_all_ukis_go_along_unless_they_are_for_another_kernel() -> None:
    paths = (
        "/boot/loader/addons/a.addon.efi",
        "/usr/lib/modules/uki.extra.d/b.addon.efi",
        "/boot/loader/addons/deeper/c.addon.efi",
    )
    shared = [addon(path, "global-addon", uname="6.1") for path in paths]
    other = addon("/boot/loader/addons/d.addon.efi", "global-addon", uname="6.2")
    assert "d.addon.efi" in str(order(uki(), other).for_room().payload)  # the UKI does not say which kernel it has
    payload = order(uki(uname="6.1"), *shared, other).for_room().payload
    assert isinstance(payload, Uki)
    assert [(one.name, one.shared) for one in payload.addons] == [("a.addon.efi", True), ("b.addon.efi", True)]


def test_what_the_caller_has_chosen_is_told() -> None:
    asked = [
        order(uki(), **changes).for_room()  # type: ignore[arg-type]  # the tests name fields
        for changes in ({}, {"type": PayloadType.UKI}, {"payload": "os.efi"}, {"uki": "os.efi"})
    ]
    assert [(one.type, one.chosen) for one in asked] == [
        (None, False),
        (DeploymentType.UKI, False),
        (None, True),
        (None, True),
    ]


def test_a_uki_below_the_modules_has_its_addons_beside_it() -> None:
    path = "/usr/lib/modules/6.1/os.efi"
    mine = addon(f"{path}.extra.d/a.addon.efi", kernel_version="6.1")
    payload = order(uki(path=path), mine).for_room().payload
    assert isinstance(payload, Uki)
    assert [(one.name, one.shared) for one in payload.addons] == [("a.addon.efi", False)]
