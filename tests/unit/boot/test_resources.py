"""What an image carries for booting."""

from collections.abc import Callable
from functools import partialmethod
from struct import pack
from typing import Any

import pytest
from real import handmade
from real.uki_signing import sign, signer

from composefsd.boot import resources
from composefsd.boot.authenticode import State
from composefsd.boot.examination import Examiner
from composefsd.boot.resources import BootResource, File, ResourceType
from composefsd.errors import LimitExceededError, NotBootableError
from composefsd.tree.table import Kind

MakeImage = Callable[..., Any]
MakePe = Callable[..., bytes]

DIGEST = "ab" * 32
ENTRY = b"title Some OS\nversion 1\nlinux /usr/lib/modules/6.1/vmlinuz\ninitrd /usr/lib/modules/6.1/initramfs.img\n"


def _collected(made: Any) -> dict[str, BootResource]:
    found = resources.collect(made.tree, made.read, made.ranges)
    assert found == resources.collect(made.tree, made.read)
    return {resource.path.decode(): resource for resource in found}


def _uki(pe: MakePe, cmdline: str = f"composefs={DIGEST}") -> bytes:
    sections = [(b".osrel", b"NAME=Some\nVERSION_ID=2\n"), (b".cmdline", cmdline.encode()), (b".linux", b"k" * 4000)]
    return pe([*sections, (b".initrd", b"i")])


def test_an_image_without_anything_has_nothing(image: MakeImage) -> None:
    made = image({})
    assert resources.collect(made.tree, made.read) == ()
    resources.check(made.tree, made.read)


def test_no_more_than_a_bound_is_looked_into(image: MakeImage) -> None:
    made = image({f"/boot/EFI/Linux/{number}.addon.efi": b"" for number in range(resources.RESOURCES_LIMIT + 1)})
    resources.check(made.tree, made.read)
    with pytest.raises(LimitExceededError, match="501 things that boot"):
        resources.collect(made.tree, made.read)


def test_ukis_and_their_addons_are_found_at_any_depth(image: MakeImage, pe: MakePe) -> None:
    addon = pe([(b".cmdline", b"quiet")])
    made = image(
        {
            "/boot/EFI/Linux/os.efi": _uki(pe),
            "/boot/EFI/Linux/os.efi.extra.d/a.addon.efi": addon,
            "/boot/EFI/Linux/deep/er/other.efi": _uki(pe),
            "/boot/EFI/Linux/readme.txt": b"",
            "/boot/EFI/systemd/systemd-bootx64.efi": b"MZ",
            "/boot/loader/addons/b.addon.efi": addon,
            "/usr/lib/modules/6.1/kernel.efi": _uki(pe),
            "/usr/lib/modules/6.1/kernel.efi.extra.d/c.addon.efi": addon,
            "/usr/lib/modules/uki.extra.d/d.addon.efi": addon,
        }
    )
    found = _collected(made)
    assert {path: (resource.type, resource.kernel_version) for path, resource in found.items()} == {
        "/boot/EFI/Linux/os.efi": (ResourceType.UKI, None),
        "/boot/EFI/Linux/os.efi.extra.d/a.addon.efi": (ResourceType.ADDON, None),
        "/boot/EFI/Linux/deep/er/other.efi": (ResourceType.UKI, None),
        "/boot/loader/addons/b.addon.efi": (ResourceType.GLOBAL_ADDON, None),
        "/usr/lib/modules/6.1/kernel.efi": (ResourceType.UKI, "6.1"),
        "/usr/lib/modules/6.1/kernel.efi.extra.d/c.addon.efi": (ResourceType.ADDON, "6.1"),
        "/usr/lib/modules/uki.extra.d/d.addon.efi": (ResourceType.GLOBAL_ADDON, None),
    }
    uki = found["/boot/EFI/Linux/os.efi"]
    assert (uki.title, uki.version, uki.problem) == ("Some", "2", None)
    assert uki.uki is not None
    assert [argument.digest.hex for argument in uki.uki.arguments] == [DIGEST]
    resources.check(made.tree, made.read)


def test_of_a_large_uki_only_a_little_is_read(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/os.efi": _uki(pe)})
    resources.collect(made.tree, made.read, made.ranges)
    assert sum(made.reads) < 1000


def test_checking_reads_no_uki(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/os.efi": _uki(pe)})
    resources.check(made.tree, made.read)
    assert made.reads == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("os.efi", b"no PE file at all", "cut short"),
        ("os.efi", b"MZ" * 100, "PE"),
        ("os.addon.efi", b"", "cut short"),
    ],
)
def test_a_broken_pe_file_is_listed_with_its_problem_and_refused_by_nobody(
    image: MakeImage, name: str, content: bytes, problem: str
) -> None:
    made = image({f"/boot/EFI/Linux/{name}": content})
    (resource,) = _collected(made).values()
    assert resource.problem is not None
    assert problem in resource.problem
    assert resource.uki is None
    resources.check(made.tree, made.read)


def test_a_uki_needs_a_kernel_and_an_addon_must_not_have_one(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/a.efi": pe([(b".cmdline", b"")]), "/boot/EFI/Linux/b.addon.efi": _uki(pe)})
    assert [resource.problem for resource in _collected(made).values()] == [
        "no section .linux: not a UKI",
        "a section .linux: not an addon",
    ]


def test_all_problems_of_an_executable_are_told(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/a.efi": pe([(b".cmdline", b"composefs=x")])})
    (resource,) = _collected(made).values()
    assert resource.problem is not None
    assert [line[:10] for line in resource.problem.splitlines()] == ["no section", "not an fs-"]


def test_a_uki_without_modules_of_its_kernel_is_noted(image: MakeImage, pe: MakePe) -> None:
    sections = [(b".linux", b"k"), (b".uname", b"6.1"), (b".profile", b"ID=a"), (b".uname", b"6.2")]
    made = image({"/boot/EFI/Linux/os.efi": pe(sections), "/usr/lib/modules/6.2": None})
    (resource,) = _collected(made).values()
    assert resource.problem is None
    assert resource.notes == ("it is for the kernel 6.1, and the image has no /usr/lib/modules/6.1: no modules",)
    odd = image({"/boot/EFI/Linux/os.efi": pe(sections), "/usr/lib/modules": b""})
    (resource,) = _collected(odd).values()
    assert (len(resource.notes), resource.problem) == (2, None)


def test_an_addon_that_nothing_loads_is_noted(image: MakeImage, pe: MakePe) -> None:
    addon = pe([(b".cmdline", b"quiet")])
    made = image(
        {
            "/boot/EFI/Linux/os.efi": _uki(pe),
            "/boot/EFI/Linux/os.efi.extra.d/a.addon.efi": addon,
            "/boot/EFI/Linux/os.efi.extra.d/deeper/b.addon.efi": addon,
            "/boot/EFI/Linux/gone.efi.extra.d/c.addon.efi": addon,
            "/boot/EFI/Linux/d.addon.efi": addon,
            "/boot/loader/addons/e.addon.efi": addon,
        }
    )
    noted = {path.rpartition("/")[2] for path, one in _collected(made).items() if one.notes}
    assert noted == {"b.addon.efi", "c.addon.efi", "d.addon.efi"}


def test_notes_of_a_uki_are_notes_of_its_resource(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/os.efi": pe([(b".linux", b"k"), (b".sbat", b"x")])})
    (resource,) = _collected(made).values()
    assert resource.problem is None
    assert resource.notes == (".sbat, line 1: there are not six fields with text",)


def test_no_more_than_a_bound_is_compared_with_signatures(image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = sign(handmade.uki("quiet"), signer())
    monkeypatch.setattr(Examiner, "__init__", partialmethod(Examiner.__init__, hash_bytes=len(signed) + 1))
    made = image({"/boot/EFI/Linux/a.efi": signed, "/boot/EFI/Linux/b.efi": signed})
    states = [one.uki.signatures[0].state for one in _collected(made).values() if one.uki is not None]
    assert states == [State.GOOD, State.UNSUPPORTED]


def test_a_malformed_argument_is_a_problem(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/os.efi": _uki(pe, "composefs=x")})
    (resource,) = _collected(made).values()
    assert resource.problem is not None
    assert "not an fs-verity digest" in resource.problem


def test_kernels_are_found_with_upstreams_names_only(image: MakeImage) -> None:
    made = image(
        {
            "/usr/lib/modules/6.1/vmlinuz": b"kernel",
            "/usr/lib/modules/6.1/initramfs.img": b"initrd",
            "/usr/lib/modules/6.2/vmlinuz": b"kernel",
            "/usr/lib/modules/6.2/initrd.img": b"initrd",
            "/usr/lib/modules/6.3/vmlinuz": "/boot/vmlinuz-6.3",
            "/usr/lib/modules/6.4/vmlinuz-6.4": b"kernel",
            "/usr/lib/modules/file": b"",
            "/usr/lib/os-release": b"PRETTY_NAME='Some OS'\nVERSION_ID=3\n",
        }
    )
    found = _collected(made)
    assert list(found) == ["/usr/lib/modules/6.1/vmlinuz", "/usr/lib/modules/6.2/vmlinuz"]
    kernel = found["/usr/lib/modules/6.1/vmlinuz"]
    assert (kernel.type, kernel.kernel_version, kernel.problem) == (ResourceType.KERNEL, "6.1", None)
    assert (kernel.title, kernel.version) == ("Some OS", "3")
    assert [file.path for file in kernel.files] == [b"/usr/lib/modules/6.1/initramfs.img"]
    assert found["/usr/lib/modules/6.2/vmlinuz"].files == ()


def test_entries_are_found_with_the_files_they_name(image: MakeImage) -> None:
    made = image(
        {
            "/boot/loader/entries/os.conf": ENTRY,
            "/boot/loader/entries/readme": b"",
            "/usr/lib/modules/6.1/vmlinuz": b"kernel",
            "/usr/lib/modules/6.1/initramfs.img": b"initrd",
        }
    )
    found = _collected(made)
    entry = found["/boot/loader/entries/os.conf"]
    assert (entry.type, entry.title, entry.version, entry.problem) == (ResourceType.TYPE1, "Some OS", "1", None)
    kernel = found["/usr/lib/modules/6.1/vmlinuz"]
    assert entry.files == (File(b"/usr/lib/modules/6.1/vmlinuz", kernel.inode), *kernel.files)
    resources.check(made.tree, made.read)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"linux /none", "no file /none"),
        (b"initrd /none/x", "no directory /none"),
        (b"efi /boot", "not a regular file"),
        (b"linux ./kernel", "names no file"),
        (b"linux \n", "names no file"),
        (b"linux\t /kernel ", "no file /kernel "),
        (b"linux /kernel\r\n", "no file /kernel\r"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_an_entry_that_upstream_refuses_is_refused_and_listed(image: MakeImage, text: bytes, match: str) -> None:
    made = image({"/boot/loader/entries/os.conf": text, "/kernel": b""})
    with pytest.raises(NotBootableError) as error:
        resources.check(made.tree, made.read)
    assert match in str(error.value)
    assert "/boot/loader/entries/os.conf" in str(error.value)
    (resource,) = _collected(made).values()
    assert resource.problem is not None
    assert match in resource.problem


@pytest.mark.parametrize(
    "text", [b" linux /none", b"linuxx /none", b"#linux /none", b"uki /none", b"devicetree /none", b"linux"]
)
def test_lines_that_upstream_does_not_follow_are_none_of_ours(image: MakeImage, text: bytes) -> None:
    made = image({"/boot/loader/entries/os.conf": text})
    resources.check(made.tree, made.read)


def test_what_only_we_refuse_in_an_entry_is_a_problem_but_no_defect(image: MakeImage) -> None:
    made = image({"/boot/loader/entries/os.conf": b"title a\0b"})
    (resource,) = _collected(made).values()
    assert resource.problem is not None
    resources.check(made.tree, made.read)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        ({"/boot/loader/entries/os.conf": None}, "os.conf is not a regular file"),
        ({"/boot/loader/entries/os.conf": "target"}, "os.conf is not a regular file"),
        ({"/boot/loader/entries": b""}, "entries is not a directory"),
        ({"/boot/EFI/Linux/os.efi": "target"}, "os.efi is not a regular file"),
        ({"/usr/lib/modules/6.1/x/os.efi": Kind.FIFO}, "os.efi is not a regular file"),
        ({"/boot/EFI": "target"}, "EFI is not a directory"),
        ({"/boot": "target"}, "boot is not a directory"),
        ({"/usr/lib/modules": b""}, "modules is not a directory"),
        ({"/usr/lib/modules/\udcff/vmlinuz": b""}, "not UTF-8"),
    ],
)
def test_odd_things_in_the_way_are_refused(image: MakeImage, contents: dict[str, Any], match: str) -> None:
    made = image(contents)
    with pytest.raises(NotBootableError, match=match):
        resources.check(made.tree, made.read)
    resources.collect(made.tree, made.read)


def test_all_reasons_are_told(image: MakeImage) -> None:
    made = image({"/boot/loader/entries/os.conf": b"linux /a\ninitrd /b\n", "/boot/EFI/Linux/os.efi": "x"})
    with pytest.raises(NotBootableError) as error:
        resources.check(made.tree, made.read)
    assert len(str(error.value).split("\n")) == 3


def test_a_directory_with_the_name_of_a_uki_is_searched(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/EFI/Linux/os.efi/real.efi": _uki(pe)})
    assert list(_collected(made)) == ["/boot/EFI/Linux/os.efi/real.efi"]


def _android(**changes: int) -> bytes:
    header = {"page": 2048, "version": 2, "header": 1660} | changes
    return pack("<8s28xII1600xI12x", b"ANDROID!", header["page"], header["version"], header["header"]) + b"kernel"


def test_aboot_payloads_are_named(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/aboot-6.1.img": _android(), "/boot/vbmeta-6.1.img": b"v"})
    (resource,) = _collected(made).values()
    assert (resource.type, resource.kernel_version, resource.problem) == (ResourceType.ABOOT, "6.1", None)
    assert [file.path for file in resource.files] == [b"/boot/vbmeta-6.1.img"]
    resources.check(made.tree, made.read)
    made = image({"/boot/aboot-6.1.img": _uki(pe)})
    resources.check(made.tree, made.read)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        ({"/boot/aboot-1.img": b"nothing"}, "cut short"),
        ({"/boot/aboot-1.img": b"ANDROID!"}, "cut short"),
        ({"/boot/aboot-1.img": _android(version=3)}, "version 3"),
        ({"/boot/aboot-1.img": _android(header=4096)}, "contradicts"),
        ({"/boot/aboot-1.img": "target"}, "not a regular file"),
        ({"/boot/aboot-.img": _android()}, "no kernel version"),
        ({"/boot/vbmeta-1.img": b""}, "no aboot payload"),
        ({"/boot/aboot-1.img": _android(), "/boot/vbmeta-1.img": None}, "not a regular file"),
        ({"/boot/aboot-1.img": _android(), "/boot/aboot-2.img": _android()}, "more than one"),
        ({"/boot/aboot-1.img": _android(), "/usr/lib/modules/1/vmlinuz": b"k"}, "beside"),
    ],
)
def test_broken_aboot_payloads_are_refused(image: MakeImage, contents: dict[str, Any], match: str) -> None:
    made = image(contents)
    with pytest.raises(NotBootableError, match=match):
        resources.check(made.tree, made.read)


def test_a_uki_for_ukiboot_needs_kernel_and_initrd_and_no_vbmeta(image: MakeImage, pe: MakePe) -> None:
    made = image({"/boot/aboot-1.img": pe([(b".linux", b"k")])})
    with pytest.raises(NotBootableError, match=r"\.initrd"):
        resources.check(made.tree, made.read)
    made = image({"/boot/aboot-1.img": _uki(pe), "/boot/vbmeta-1.img": b""})
    with pytest.raises(NotBootableError, match="no vbmeta"):
        resources.check(made.tree, made.read)
