from dataclasses import replace

import pytest

from composefsd.boot.cmdline import ComposefsArgument, Spelling
from composefsd.deploy.loader import Loader
from composefsd.deploy.names import addon_path, initrd_path, kernel_path, uki_path
from composefsd.deploy.persistent import Layout
from composefsd.deploy.plan import (
    RESERVE_BYTES,
    Addon,
    BootImage,
    Content,
    Draft,
    Kernel,
    Plan,
    Request,
    Survey,
    Uki,
    lay_out,
    make_plan,
)
from composefsd.deploy.state import DeploymentType, VerityPolicy
from composefsd.deploy.volume import Space
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import NoSpaceError, NotBootableError, ReadOnlyError

V1, V2 = ObjectId.parse("1a" * 64), ObjectId.parse("2b" * 64)
FOREIGN = ObjectId.parse("3c" * 32)
MIB = 1 << 20


def line(digest: ObjectId = V1, version: int | None = 1, *, insecure: bool = False) -> str:
    return str(ComposefsArgument(digest, version, insecure=insecure))


def uki(*lines: str, addons: tuple[Addon, ...] = ()) -> Uki:
    return Uki("/boot/EFI/Linux/x.efi", Content("uki", 5 * MIB), lines or (f"quiet {line()}",), addons)


KERNEL = Kernel("/usr/lib/modules/6.12", Content("kernel", MIB), (Content("initrd", 2 * MIB),), "console=ttyS0")


def request(payload: Uki | Kernel | None = None, **changes: object) -> Request:
    base = Request(
        images=(BootImage(V1, 1), BootImage(V2, 2)),
        payload=payload or uki(),
        manifest_digest=OciDigest.parse("sha256:" + "12" * 32),
        tag="deployment",
        sealed=True,
        os_id="debian",
        title="Debian GNU/Linux 13 (trixie)",
        os_version="13",
    )
    return replace(base, **changes)  # type: ignore[arg-type] - the tests name fields of Request


EMPTY = Survey(
    boot="/efi",
    space=Space(4096, 100 * MIB, 200 * MIB, read_only=False),
    loader=None,
    last_seq=16,
    existing=None,
    broken=False,
    present=frozenset(),
    directories=frozenset(),
    state=Layout.MISSING,
)


def plan(wanted: Request, survey: Survey = EMPTY) -> Plan:
    return make_plan(wanted, lay_out(wanted), survey)


def reasons(wanted: Request) -> str:
    with pytest.raises(NotBootableError) as caught:
        plan(wanted).check()
    return str(caught.value)


def draft(wanted: Request) -> Draft:
    found = lay_out(wanted)
    assert found.reasons == ()
    return found


# What is written


def test_a_uki_lies_where_bootc_puts_it_and_an_entry_names_it() -> None:
    addon = Addon("a.addon.efi", Content("addon", 100))
    made = plan(request(uki(addons=(addon,))))
    assert [file.path for file in made.files] == [uki_path(V1.hex), addon_path(V1.hex, "a.addon.efi")]
    assert made.deployment.entry == "composefsd-debian-000017-1a1a1a1a1a1a.conf"
    assert made.deployment.entry_text == (
        "title      Debian GNU/Linux 13 (trixie) (deployment 17)\n"
        "version    17\n"
        "sort-key   composefsd-debian\n"
        f"efi        /{uki_path(V1.hex)}\n"
    )
    assert made.deployment.kernel_arguments == ("quiet", line())
    assert made.objections == ()


def test_the_key_uki_is_used_where_the_loader_knows_it() -> None:
    made = plan(request(), replace(EMPTY, loader=Loader("systemd-boot", "258.1")))
    assert f"uki        /{uki_path(V1.hex)}\n" in made.deployment.entry_text


def test_a_kernel_gets_its_own_directory_and_its_arguments_stand_in_the_entry() -> None:
    made = plan(request(KERNEL, kernel_arguments=("rw", 'dyndbg="a b"')))
    assert [file.path for file in made.files] == [kernel_path(V1.hex), initrd_path(V1.hex)]
    assert made.deployment.type is DeploymentType.TYPE1
    assert made.deployment.entry_text.splitlines()[3:] == [
        f"linux      /{kernel_path(V1.hex)}",
        f"initrd     /{initrd_path(V1.hex)}",
        f'options    console=ttyS0 rw dyndbg="a b" composefs.digest=v1-sha512-12:{V1.hex}',
    ]
    assert made.deployment.kernel_arguments[-2:] == ('dyndbg="a b"', f"composefs.digest=v1-sha512-12:{V1.hex}")


@pytest.mark.parametrize(
    ("image", "verity", "expected"),
    [
        (BootImage(V1, 1), VerityPolicy.REQUIRE, f"composefs.digest=v1-sha512-12:{V1.hex}"),
        (BootImage(V1, 0), VerityPolicy.REQUIRE, f"composefs.digest=v1-sha512-12:{V1.hex}"),
        (BootImage(V2, 2), VerityPolicy.REQUIRE, f"composefs={V2.hex}"),
        (BootImage(FOREIGN, 1), VerityPolicy.DEFERRED, f"composefs.digest=v1-sha256-12:{FOREIGN.hex}"),
        (BootImage(V1, 1), VerityPolicy.OPTIONAL, f"composefs.digest=?v1-sha512-12:{V1.hex}"),
        (BootImage(V2, 2), VerityPolicy.OPTIONAL, f"composefs=?{V2.hex}"),
    ],
)
def test_the_image_is_named_as_its_format_asks(image: BootImage, verity: VerityPolicy, expected: str) -> None:
    found = draft(request(KERNEL, images=(image,), verity=verity))
    assert found.kernel_arguments == ("console=ttyS0", expected)


def test_an_image_named_by_the_options_of_the_image_gives_way() -> None:
    inherited = replace(KERNEL, options=f"composefs={V2.hex} ro composefs.digest=garbage")
    assert draft(request(inherited)).kernel_arguments == ("ro", line())


def test_several_initrds_stand_in_their_order() -> None:
    initrds = tuple(Content(name, MIB) for name in ("microcode", "main", "main"))
    made = plan(request(replace(KERNEL, initrds=initrds)))
    paths = [initrd_path(V1.hex, number) for number in (1, 2, 3)]
    assert [(file.path, file.source) for file in made.files[1:]] == list(
        zip(paths, ("microcode", "main", "main"), strict=True)
    )
    assert [line for line in made.deployment.entry_text.splitlines() if line.startswith("initrd")] == [
        f"initrd     /{path}" for path in paths
    ]
    assert reasons(request(replace(KERNEL, initrds=initrds * 6))).count("18 initrds, where 16 are allowed") == 1


def test_arguments_are_merged_and_the_image_is_named_last() -> None:
    kernel = replace(
        KERNEL, options=f"console=tty0 ro quiet composefs={V2.hex}", defaults=("console=tty0", "debug", "splash")
    )
    added = ("console=ttyS0", "console=tty0", "ro")
    found = draft(request(kernel, kernel_arguments=added, removed_arguments=("quiet", "splash")))
    assert found.kernel_arguments == ("debug", *added, line())
    assert found.boots[-1] == ("options", f"debug console=ttyS0 console=tty0 ro {line()}")


@pytest.mark.parametrize("unwanted", ["nothing", "console=tty9", "composefs", "composefs.digest=x", "a b", ""])
def test_only_what_the_image_asks_for_can_be_left_out(unwanted: str) -> None:
    assert reasons(request(KERNEL, removed_arguments=(unwanted,)))


def test_an_argument_that_is_given_and_left_out_is_replaced() -> None:
    wanted = request(KERNEL, removed_arguments=("console",), kernel_arguments=("console=tty1",))
    assert draft(wanted).kernel_arguments == ("console=tty1", line())


def test_the_caller_may_say_how_the_image_is_named() -> None:
    assert draft(request(KERNEL, spelling=Spelling.LEGACY)).kernel_arguments[-1] == f"composefs={V1.hex}"
    described = request(KERNEL, spelling=Spelling.DESCRIBED, images=(BootImage(V2, 2),))
    assert draft(described).kernel_arguments[-1] == line(V2, 2)


# Which boot image


def test_the_boot_image_is_the_one_that_the_uki_names() -> None:
    found = draft(request(uki(line(V2, None))))
    assert (found.boot_digest, found.aliases) == (V2, ())
    assert found.files[0].path == uki_path(V2.hex)


def test_the_first_that_is_stored_is_mounted() -> None:
    images = (BootImage(V1, 1), BootImage(V2, 2, stored=False))
    found = draft(request(uki(f"{line(V2, 2)} {line(V1)}"), images=images))
    assert (found.boot_digest, found.aliases) == (V1, ())


def test_what_another_profile_mounts_is_an_alias() -> None:
    found = draft(request(uki(line(V1), f"single {line(V1)}", line(V2, None))))
    assert (found.boot_digest, found.aliases) == (V1, (V2,))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("quiet",), "names no composefs image"),
        ((line(ObjectId.parse("ff" * 64)),), "names another image"),
        ((f"{line()} {line(ObjectId.parse('ff' * 64))}",), "names another image"),
        ((line(), "debug"), "profile 1: the command line names no composefs image"),
        ((f"composefs=nonsense {line()}",), "not an fs-verity digest"),
        ((f"{line(FOREIGN)} {line()}",), "names another image"),
        ((f"{line()} " + "x" * 2048,), "longer than"),
        ((f"a\x0b{line()} {line()}",), "control characters"),
        ((line(V1, insecure=True),), "lets the system boot without fs-verity"),
    ],
)
def test_a_uki_that_does_not_boot_this_image_is_refused(lines: tuple[str, ...], expected: str) -> None:
    assert expected in reasons(request(uki(*lines)))


def test_a_uki_without_a_command_line_is_refused() -> None:
    assert "names no composefs image" in reasons(request(replace(uki(), command_lines=())))


def test_a_uki_that_names_no_image_is_refused_with_what_to_do() -> None:
    assert "only who builds the UKI" in reasons(request(uki("quiet")))
    below_usr = replace(uki("quiet"), path="/usr/lib/modules/6.12/x.efi")
    assert "the digest covers /usr" in reasons(request(below_usr))


def test_a_uki_that_names_only_a_format_that_is_not_stored_is_refused() -> None:
    images = (BootImage(V1, 1), BootImage(V2, 2, stored=False))
    assert "does not hold" in reasons(request(uki(line(V2, None)), images=images))


def test_every_reason_has_its_line() -> None:
    wanted = request(uki("quiet"), sealed=False, kernel_arguments=("debug",), reasons=("two reasons before",))
    assert len(reasons(wanted).splitlines()) == 4


# Policy


def test_an_unsealed_repository_is_refused_unless_the_caller_says_otherwise() -> None:
    assert "no fs-verity" in reasons(request(sealed=False))
    for payload in (uki(), KERNEL):
        assert lay_out(request(payload, sealed=False, verity=VerityPolicy.DEFERRED)).reasons == ()


def test_optional_accepts_only_a_uki_that_says_so_itself() -> None:
    assert "insists on fs-verity" in reasons(request(verity=VerityPolicy.OPTIONAL))
    marked = uki(line(V1, insecure=True))
    assert plan(request(marked, verity=VerityPolicy.OPTIONAL, sealed=False)).objections == ()
    assert "verity=deferred does not" in reasons(request(marked, verity=VerityPolicy.DEFERRED))


# Kernel arguments and files


@pytest.mark.parametrize(
    "argument", ["", "a b", 'a="b', "composefs=x", "composefs.digest=", '"composefs"=1', "a\x01"]
)
def test_kernel_arguments_are_one_token_each_and_name_no_image(argument: str) -> None:
    assert reasons(request(KERNEL, kernel_arguments=(argument,)))


def test_kernel_arguments_cannot_be_added_to_a_uki() -> None:
    assert "cannot be changed in a UKI" in reasons(request(kernel_arguments=("quiet",)))
    assert "cannot be changed in a UKI" in reasons(request(removed_arguments=("quiet",)))


def test_a_line_break_in_quotes_does_not_reach_the_entry() -> None:
    assert reasons(request(replace(KERNEL, options='a="\nlinux /evil\n"')))


def test_an_open_quote_in_the_options_of_the_image_is_refused() -> None:
    assert "open quote" in reasons(request(replace(KERNEL, options='a="b')))


def test_a_kernel_without_initrd_is_refused() -> None:
    assert "no initrd" in reasons(request(replace(KERNEL, initrds=())))


def test_an_image_without_payload_is_refused() -> None:
    nothing = replace(request(), payload=None)
    assert "neither a UKI nor a kernel" in reasons(nothing)
    assert reasons(replace(nothing, reasons=("two UKIs",))) == "two UKIs"


@pytest.mark.parametrize("name", ["../x.addon.efi", "x.efi", "x y.addon.efi", "a/b.addon.efi"])
def test_addons_of_strange_names_are_refused(name: str) -> None:
    assert reasons(request(uki(addons=(Addon(name, Content("a", 1)),))))


def test_addons_that_differ_in_case_only_are_refused() -> None:
    addons = tuple(Addon(name, Content("a", 1)) for name in ("a.addon.efi", "A.addon.efi"))
    assert "VFAT ignores case" in reasons(request(uki(addons=addons)))


def test_an_addon_may_add_arguments_but_name_no_other_image() -> None:
    content = Content("a", 1)
    found = draft(request(uki(addons=(Addon("a.addon.efi", content, "console=ttyS0"),))))
    assert found.kernel_arguments == ("quiet", line(), "console=ttyS0")
    assert lay_out(request(uki(addons=(Addon("a.addon.efi", content, line()),)))).reasons == ()
    assert "another image" in reasons(request(uki(addons=(Addon("a.addon.efi", content, line(FOREIGN)),))))
    assert reasons(request(uki(addons=(Addon("a.addon.efi", content, "composefs=x"),))))


def addon(name: str, text: str = "", *, shared: bool = False) -> Addon:
    return Addon(name, Content(name, 1), text, shared)


def test_addons_for_all_ukis_lie_beside_ours_and_come_first_as_the_stub_has_it() -> None:
    addons = (
        addon("0.addon.efi", "own"),
        addon("z.addon.efi", "all", shared=True),
        addon("a.addon.efi", shared=True),
    )
    found = draft(request(uki(addons=addons)))
    names = ["0-global-a.addon.efi", "0-global-z.addon.efi", "0.addon.efi"]
    assert [file.path for file in found.files[1:]] == [addon_path(V1.hex, name) for name in names]
    assert found.kernel_arguments == ("quiet", line(), "all", "own")


def test_equal_names_of_addons_for_one_and_for_all_do_not_clash() -> None:
    assert len(draft(request(uki(addons=(addon("A.addon.efi"), addon("a.addon.efi", shared=True))))).files) == 3
    clash = (addon("0-GLOBAL-a.addon.efi"), addon("a.addon.efi", shared=True))
    assert "VFAT ignores case" in reasons(request(uki(addons=clash)))


def test_an_addon_that_would_come_before_one_for_all_is_refused() -> None:
    addons = (addon("0+x.addon.efi"), addon("a.addon.efi", shared=True))
    assert "0+x.addon.efi would be loaded before" in reasons(request(uki(addons=addons)))
    assert draft(request(uki(addons=addons[:1])))


def test_what_addons_make_of_a_command_line_is_looked_at() -> None:
    assert "open quote" in reasons(request(uki(f'{line()} x="', addons=(addon("a.addon.efi", "quiet"),))))
    assert "open quote" in reasons(request(uki(addons=(addon("a.addon.efi", 'x="'), addon("b.addon.efi", '"')))))
    assert "longer than" in reasons(request(uki(addons=(addon("a.addon.efi", "x" * 2000),))))
    assert "control characters" in reasons(request(uki(addons=(addon("a.addon.efi", "x\x01"),))))


def test_addons_with_more_arguments_than_linux_takes_are_told_as_such_and_not_one_by_one() -> None:
    addons = tuple(addon(f"{number}.addon.efi", "composefs=x " * 90) for number in range(300))
    assert reasons(request(uki(addons=addons))).splitlines() == [
        "/boot/EFI/Linux/x.efi, with addons: the kernel command line is longer than the 2047 bytes that Linux takes"
    ]


def test_reasons_are_bounded_and_it_is_told() -> None:
    found = reasons(request(uki(*(f"composefs=x {number}" for number in range(300))))).splitlines()
    assert len(found) == 201
    assert found[-1] == "and 100 more reasons"


@pytest.mark.parametrize("size", [0, 1 << 32])
def test_a_file_that_vfat_cannot_hold_is_refused(size: int) -> None:
    assert "can have 1 to" in reasons(request(replace(uki(), content=Content("uki", size))))


# The machine


def test_the_plan_tells_what_it_would_do_in_order() -> None:
    made = plan(request(KERNEL))
    directory = f"EFI/Linux/bootc_composefs-{V1.hex}"
    assert made.actions == (
        ("create-state", f"state/deploy/{V1.hex}", 0),
        *[("create-directory", path, 4096) for path in ("EFI", "EFI/Linux", directory, "loader", "loader/entries")],
        ("write", kernel_path(V1.hex), MIB),
        ("write", initrd_path(V1.hex), 2 * MIB),
        ("write-entry", f"loader/entries/{made.deployment.entry}", len(made.deployment.entry_text)),
    )
    assert made.needed_bytes == 3 * MIB + 4096 + 5 * 4096
    assert made.free_after_bytes == 97 * MIB - 6 * 4096


def test_what_is_there_costs_nothing() -> None:
    present = frozenset({kernel_path(V1.hex), initrd_path(V1.hex)})
    directories = frozenset({"loader", "loader/entries"})
    made = plan(request(KERNEL), replace(EMPTY, present=present, directories=directories, state=Layout.OVERLAY))
    assert [action for action, _, _ in made.actions] == ["keep", "keep", "write-entry"]
    assert made.needed_bytes == 2 * 4096
    assert made.deployment.state_existed


def test_a_reserve_stays_free() -> None:
    needed = plan(request()).needed_bytes
    for free, fits in ((needed + RESERVE_BYTES, True), (needed + RESERVE_BYTES - 1, False)):
        made = plan(request(), replace(EMPTY, space=replace(EMPTY.space, free_bytes=free)))
        assert made.fits is fits
        if not fits:
            assert len(made.objections) == 1
            with pytest.raises(NoSpaceError) as caught:
                made.check()
            assert caught.value.facts == {"partition": "/efi", "needed_bytes": needed, "free_bytes": free}


def test_a_read_only_partition_is_named() -> None:
    made = plan(request(), replace(EMPTY, space=replace(EMPTY.space, read_only=True)))
    assert made.objections == ("/efi is mounted read-only",)
    with pytest.raises(ReadOnlyError):
        made.check()


def test_an_existing_deployment_stays_as_it_is() -> None:
    existing = plan(request()).deployment
    full = replace(EMPTY, existing=existing, space=Space(4096, 0, MIB, read_only=True))
    made = plan(request(), full)
    assert made.exists
    assert made.deployment is existing
    assert made.actions == (("keep-deployment", existing.entry, 0),)
    assert made.objections == ()
    made.check()


def test_other_kernel_arguments_for_what_is_deployed_are_not_passed_over() -> None:
    existing = plan(request(KERNEL, kernel_arguments=("debug",))).deployment
    survey = replace(EMPTY, existing=existing)
    assert plan(request(KERNEL, kernel_arguments=("debug",)), survey).objections == ()
    assert plan(request(KERNEL), survey).objections == ()
    for changes in (
        {"kernel_arguments": ("quiet",)},
        {"removed_arguments": ("console",)},
        {"spelling": Spelling.LEGACY},
    ):
        (objection,) = plan(request(KERNEL, **changes), survey).objections
        assert objection.startswith("it is deployed already, with other kernel arguments: console=ttyS0 debug ")


def test_another_payload_for_what_is_deployed_is_not_passed_over() -> None:
    survey = replace(EMPTY, existing=plan(request()).deployment)
    other = "it is deployed already, with something else of the image that boots"
    assert plan(request(KERNEL), survey).objections == ()
    assert plan(request(KERNEL, type=DeploymentType.TYPE1), survey).objections == (other,)
    assert plan(request(KERNEL, chosen=True), survey).objections == (other,)
    assert plan(request(type=DeploymentType.UKI, chosen=True), survey).objections == ()
    larger = replace(uki(), content=Content("uki", 6 * MIB))
    assert plan(request(larger), survey).objections == ()
    assert plan(request(larger, chosen=True), survey).objections == (other,)
    kernel = replace(EMPTY, existing=plan(request(KERNEL)).deployment)
    (objection,) = plan(request(replace(KERNEL, options="debug"), chosen=True), kernel).objections
    assert "with other kernel arguments: console=ttyS0" in objection


def test_a_deployment_that_does_not_boot_is_made_again_under_a_new_number() -> None:
    existing = replace(plan(request()).deployment, pinned=True)
    made = plan(request(), replace(EMPTY, existing=existing, broken=True, last_seq=17))
    assert not made.exists
    assert (made.deployment.seq, made.deployment.pinned) == (18, True)


def test_state_of_another_layout_and_foreign_directories_are_reasons() -> None:
    wanted = request()
    for survey in (replace(EMPTY, state=Layout.OTHER), replace(EMPTY, objection="not ours")):
        with pytest.raises(NotBootableError):
            plan(wanted, survey).check()
