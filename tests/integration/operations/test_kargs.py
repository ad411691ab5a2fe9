"""Kernel arguments, entries and addons of an image, on the way from its layers to the boot partition."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from dbus_next import Variant
from real import handmade
from real.bus import BOOT, OBJECT, Bus, BusError
from real.layers import Entry, directory, regular, tar_layer
from real.oci_layout import Image, Layout
from real.stage import Stage

from composefsd.deploy.state import Deployment
from composefsd.errors import NotBootableError
from composefsd.oci.reference import Reference
from composefsd.operations.compute_id import Question, compute
from composefsd.operations.deploy import deploy, plan_deploy
from composefsd.operations.host import Host
from composefsd.operations.images import list_images
from composefsd.operations.model import DeployRequest, PullRequest, VerityPolicy
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull

MODULES: Final = f"usr/lib/modules/{handmade.KERNEL_VERSION}"
MICROCODE: Final = b"not microcode\n" * 100
DEFERRED: Final = DeployRequest(verity=VerityPolicy.DEFERRED)

CONSOLE: Final = b'# for machines\nkargs = ["console=ttyS0,115200n8 quiet", "mitigations=auto"]\n'
ELSEWHERE: Final = b'kargs = ["earlycon"]\nmatch-architectures = ["aarch64"]\n'
ENTRY: Final = f"""\
# written by the image's builder
title    An entry
version  7
sort-key zzz
architecture x64
linux    /{MODULES}/vmlinuz
initrd   /usr/lib/microcode.img
initrd   /{MODULES}/initramfs.img
options  root=LABEL="my root" composefs={"0" * 128}
options  rw quiet
""".encode()


def drop_ins(**contents: bytes) -> list[Entry]:
    folders = [directory("usr/lib/bootc"), directory("usr/lib/bootc/kargs.d")]
    return [*folders, *(regular(f"usr/lib/bootc/kargs.d/{name}.toml", data) for name, data in contents.items())]


def entry(content: bytes = ENTRY) -> list[Entry]:
    folders = [directory("boot/loader"), directory("boot/loader/entries")]
    files = [regular("usr/lib/microcode.img", MICROCODE), regular("boot/loader/entries/os.conf", content)]
    return [*folders, *files]


@pytest.fixture
def add_os(layout: Layout) -> Callable[..., Image]:
    """Adds the hand-made image as `os`, with more files in a last layer."""
    return lambda *more: layout.add_image("os", [*handmade.layers(), tar_layer(more)])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def deployed(host: Host, layout: Layout, request: DeployRequest = DEFERRED) -> Deployment:
    run(pull(host, PullRequest(Reference.parse(f"oci:{layout.path}:os"), name="os"), Silent()))
    (image,) = run(list_images(host))
    made = run(deploy(host, image.manifest_digest, request, Silent()))
    assert isinstance(made, Deployment)
    return made


def test_a_kernel_gets_the_arguments_of_the_image_s_drop_ins(
    host: Host, layout: Layout, add_os: Callable[..., Image]
) -> None:
    add_os(*drop_ins(**{"50-console": CONSOLE, "40-arm": ELSEWHERE, "60-more": b'kargs = ["quiet", "rw"]'}))
    made = deployed(host, layout)
    expected = ("console=ttyS0,115200n8", "quiet", "mitigations=auto", "rw")
    assert made.kernel_arguments == (*expected, f"composefs.digest=v1-sha512-12:{made.id}")


def test_a_broken_drop_in_is_a_reason_against_a_kernel(
    host: Host, layout: Layout, add_os: Callable[..., Image]
) -> None:
    add_os(*drop_ins(**{"50-console": CONSOLE, "60-broken": b"kargs = 7"}))
    with pytest.raises(NotBootableError, match=r"kargs\.d/60-broken\.toml: 'kargs' is not an array of strings"):
        deployed(host, layout)
    (image,) = run(list_images(host))
    plan = run(plan_deploy(host, image.manifest_digest, DEFERRED, Silent()))
    assert len(plan.objections) == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (b"devicetree /usr/lib/microcode.img\n", "device tree"),
        (b"extra /usr/lib/microcode.img\n", "extra files"),
        (b"linux /usr/lib/microcode.img\n", "2 lines `linux`"),
    ],
)
def test_an_entry_that_cannot_be_carried_over_is_refused_in_words(
    host: Host, layout: Layout, add_os: Callable[..., Image], more: bytes, reason: str
) -> None:
    add_os(*entry(ENTRY + more))
    with pytest.raises(NotBootableError, match=reason):
        deployed(host, layout, DeployRequest(verity=VerityPolicy.DEFERRED, payload="os.conf"))


def test_a_uki_takes_the_addons_of_the_image_along_and_no_drop_ins(host: Host, layout: Layout) -> None:
    base = [*handmade.layers(), tar_layer(drop_ins(**{"50-console": CONSOLE}))]
    layout.add_image("base", base)
    digest = compute(Question(f"oci:{layout.path}:base", bootable=True)).hex
    uki = "boot/EFI/Linux/os.efi"
    folders = ("boot/EFI", "boot/EFI/Linux", f"{uki}.extra.d", "boot/loader", "boot/loader/addons")
    addons = {f"{uki}.extra.d/a.addon.efi": b"own", "boot/loader/addons/z.addon.efi": b"all\0"}
    files = [regular(path, handmade.pe_file({".cmdline": text})) for path, text in addons.items()]
    files.append(regular(uki, handmade.uki(f"composefs.digest=v1-sha512-12:{digest} rw")))
    layout.add_image("os", [*base, tar_layer((*map(directory, folders), *files))])
    made = deployed(host, layout)
    assert made.kernel_arguments == (f"composefs.digest=v1-sha512-12:{digest}", "rw", "all", "own")
    names = [Path(file.path).name for file in made.files]
    assert names == [f"bootc_composefs-{digest}.efi", "0-global-z.addon.efi", "a.addon.efi"]
    for file, content in zip(made.files[1:], (b"all\0", b"own"), strict=True):
        assert (host.settings.esp or Path()).joinpath(file.path).read_bytes() == handmade.pe_file(
            {".cmdline": content}
        )


# On the bus, and by the command line


def entry_on(esp: Path) -> dict[str, list[str]]:
    """The fields of the only entry on a boot partition."""
    (path,) = (esp / "loader/entries").glob("*.conf")
    fields: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        fields.setdefault(key, []).append(value.strip())
    return fields


@pytest.fixture
def stage(tmp_path: Path, layout: Layout, add_os: Callable[..., Image]) -> Iterator[Stage]:
    """A daemon that has pulled an image with an entry, two initrds and drop-ins."""
    add_os(*entry(), *drop_ins(**{"50-console": CONSOLE, "40-arm": ELSEWHERE}))
    with Stage(tmp_path) as running:
        running.ask("pull", f"oci:{layout.path}:os", "--name=os")
        yield running


def test_an_entry_of_the_image_is_written_anew_with_its_initrds_and_all_arguments(stage: Stage) -> None:
    planned = stage.ask("deploy", "os", "--verity=deferred", "--dry-run")
    made = stage.ask("deploy", "os", "--verity=deferred")
    digest = stage.digests("os")["boot"]
    folder = f"/EFI/Linux/bootc_composefs-{digest}"
    fields = entry_on(stage.esp)
    assert made["boot_digest"].endswith(digest)
    assert fields["title"] == ["Hand-made demo, boots nothing 1 (deployment 1)"]
    assert fields["sort-key"] == ["composefsd-handmade"]
    assert fields["linux"] == [f"{folder}/vmlinuz"]
    assert fields["initrd"] == [f"{folder}/initrd", f"{folder}/2-initrd"]
    arguments = 'console=ttyS0,115200n8 mitigations=auto root=LABEL="my root" rw quiet'
    line = f"{arguments} composefs.digest=v1-sha512-12:{digest}"
    assert fields["options"] == [line]
    contents = [stage.esp.joinpath(path[1:]).read_bytes() for path in (*fields["initrd"], *fields["linux"])]
    assert contents == [MICROCODE, b"not an initrd\n" * 1000, b"not a kernel\n" * 1000]
    (listed,) = stage.ask("deployments")
    assert " ".join(listed["kernel_arguments"]) == " ".join(planned["kernel_arguments"]) == line
    assert "with other kernel arguments" in stage.run("deploy", "os", "--verity=deferred", "--kargs=debug").stderr
    stage.ask("undeploy", listed["id"])
    assert list((stage.esp / "EFI/Linux").iterdir()) == []


def test_the_caller_chooses_what_boots_and_changes_its_arguments(stage: Stage) -> None:
    changes = ("--kargs-delete=console mitigations=auto", "--kargs=console=tty1 debug", "--karg-form=legacy")
    stage.ask("deploy", "os", "--verity=deferred", f"--payload={handmade.KERNEL_VERSION}", *changes)
    fields = entry_on(stage.esp)
    assert len(fields["initrd"]) == 1
    assert fields["options"] == [f"quiet console=tty1 debug composefs={stage.digests('os')['boot']}"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--payload=none.conf",), "no boot resource none.conf"),
        (("--kargs-delete=splash",), "no kernel argument 'splash'"),
        (("--kargs=composefs=x",), "which image is mounted"),
        (("--type=uki",), "nothing of the type uki"),
    ],
)
def test_what_cannot_be_done_is_told_by_plan_and_deploy_alike(
    stage: Stage, options: tuple[str, ...], reason: str
) -> None:
    for more in (("--dry-run",), ()):
        done = stage.run("deploy", "os", "--verity=deferred", *options, *more)
        assert done.returncode != 0
        assert reason in done.stderr
    assert list(stage.esp.iterdir()) == []


def test_unknown_forms_are_refused_by_the_daemon(stage: Stage) -> None:
    with Bus(stage.address) as bus, pytest.raises(BusError, match="'x' is none of auto, legacy, described"):
        bus.call(OBJECT, BOOT, "PlanDeploy", "sa{sv}", "os", {"karg-form": Variant("s", "x")})
