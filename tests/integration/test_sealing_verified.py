"""What `composefsctl verify-seal` finds."""

from pathlib import Path
from typing import Any

import pytest
from real.handmade import pe_file
from real.layers import Entry, directory, regular, tar_layer
from real.oci_layout import Layout
from real.sealing import MODULES, OS_RELEASE, UKI, run, seal, verify
from real.ukify import Tools

OTHER = "0" * 128


def kernel(tools: Tools, *more: Entry) -> bytes:
    """A layer with a kernel, and with these entries in /boot/EFI/Linux or beside it."""
    folders = ("usr", "usr/lib", "usr/lib/modules", MODULES, "sysroot", "boot", "boot/EFI", "boot/EFI/Linux")
    files = {
        f"{MODULES}/vmlinuz": tools.stub.read_bytes(),
        f"{MODULES}/initramfs.img": b"not an initrd\n" * 100,
        "usr/lib/os-release": OS_RELEASE,
    }
    return tar_layer([*map(directory, folders), *(regular(*file) for file in files.items()), *more])


def refusal(tools: Tools, folder: Path, name: str) -> str:
    """What sealing an image of a layout says when it is refused."""
    done = run(tools, "seal", f"oci:{folder / 'layout'}:{name}", "-o", f"oci:{folder / name}", f"--stub={tools.stub}")
    assert done.returncode == 1
    return str(done.stderr)


@pytest.fixture(scope="module")
def argument(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The argument that names the boot image of `kernel`."""
    folder = tmp_path_factory.mktemp("plain")
    Layout(folder / "layout").add_image("os", [kernel(tools)])
    return str(seal(tools, f"oci:{folder / 'layout'}:os", f"oci:{folder / 'out'}")["karg"])


def build(tools: Tools, folder: Path, cmdline: str, *profiles: tuple[str, str]) -> bytes:
    """A UKI by the real ukify; the first profile is that of the base, whose command line it inherits."""
    (folder / "initrd").write_bytes(b"not an initrd\n" * 100)
    options = [f"--linux={tools.stub}", f"--initrd={folder / 'initrd'}", "--os-release=ID=x\n", "--uname=6.1"]
    options += [f"--cmdline={cmdline}", "--profile=ID=main\nTITLE=Main\n"]
    for number, (about, line) in enumerate(profiles):
        joined = folder / f"{number}.efi"
        tools.build_addon(joined, f"--profile={about}\n", f"--cmdline={line}")
        options.append(f"--join-profile={joined}")
    tools.build(folder / "uki.efi", *options)
    return (folder / "uki.efi").read_bytes()


def report(tools: Tools, folder: Path, uki: bytes) -> dict[str, Any]:
    Layout(folder / "layout").add_image("os", [kernel(tools, regular("boot/EFI/Linux/x.efi", uki))])
    return verify(tools, f"oci:{folder / 'layout'}:os")


def test_every_profile_has_to_name_the_image(tools: Tools, argument: str, tmp_path: Path) -> None:
    uki = build(
        tools, tmp_path, f"{argument} rw", ("ID=reset", f"{argument} reset"), ("TITLE=Again", f"{argument} rw")
    )
    found = report(tools, tmp_path, uki)
    assert found["right"], found["problems"]
    lines = {one["text"]: one["profiles"] for one in found["ukis"][0]["command_lines"]}
    assert lines == {f"{argument} rw": ["main", "Again"], f"{argument} reset": ["reset"]}
    said = run(tools, "verify-seal", f"oci:{tmp_path / 'layout'}:os").stdout
    assert f"  boots with  profile reset: {argument} reset\n" in said


def test_the_profile_that_is_wrong_is_named(tools: Tools, argument: str, tmp_path: Path) -> None:
    lines = [("ID=bad", f"composefs={OTHER}"), ("TITLE=Untold", "quiet"), ("X=y", argument.replace("=", "=?", 1))]
    found = report(tools, tmp_path, build(tools, tmp_path, argument, *lines))
    place = "/boot/EFI/Linux/x.efi: profile"
    assert found["problems"] == [
        f"{place} bad: the command line names another image: sha512:{OTHER}",
        f"{place} Untold: the command line names no composefs image",
        f"{place} 3: the command line has the mark ?, so the image is mounted without fs-verity, too",
    ]


def test_a_profile_without_any_command_line_is_found(tools: Tools, argument: str, tmp_path: Path) -> None:
    sections = {
        ".linux": b"x" * 100, ".profile": b"ID=one\n", ".cmdline": argument.encode(), ".prof2": b"ID=two\n"
    }  # fmt: skip
    uki = pe_file(sections).replace(b".prof2\0\0", b".profile", 1)
    assert report(tools, tmp_path, uki)["problems"] == [
        "/boot/EFI/Linux/x.efi: profile two: the command line names no composefs image"
    ]


@pytest.mark.parametrize("folder", [f"{UKI}.extra.d", "boot/loader/addons"])
def test_an_addon_may_not_name_another_image(folder: str, tools: Tools, argument: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    folders = [directory("boot/loader"), directory(folder)]
    for name, line in {"same": argument, "none": "debug", "other": f"composefs={OTHER}"}.items():
        tools.build_addon(tmp_path / "a.efi", f"--cmdline={line}")
        addon = regular(f"{folder}/a.addon.efi", (tmp_path / "a.efi").read_bytes())
        layout.add_image(name, [kernel(tools, *folders, addon)])
    for name in ("same", "none"):
        seal(tools, f"oci:{layout.path}:{name}", f"oci:{tmp_path / name}")
        assert verify(tools, f"oci:{tmp_path / name}")["right"]
    assert f"/{folder}/a.addon.efi: the command line names another image" in refusal(tools, tmp_path, "other")


def test_everything_that_is_wrong_is_told_at_once(tools: Tools, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    digest = "0" * 128
    lines = {
        "a.efi": f"composefs=?{digest} rw",
        "b.efi": "rw quiet",
        "c.efi": "composefs.digest=v1-sha512-12:xyz",
    }
    ukis = [
        regular(f"boot/EFI/Linux/{name}", pe_file({".linux": b"x" * 100, ".cmdline": line.encode()}))
        for name, line in lines.items()
    ]
    folders = [directory(name) for name in ("usr", "sysroot", "boot", "boot/EFI", "boot/EFI/Linux")]
    layout.add_image("bad", [tar_layer([*folders, *ukis])])
    report = verify(tools, f"oci:{layout.path}:bad")
    found = "\n".join(report["problems"])
    assert "a.efi: the command line names another image" in found
    assert "a.efi: the command line has the mark ?" in found
    assert "b.efi: the command line names no composefs image" in found
    assert "c.efi: not an fs-verity digest: 'xyz'" in found
    assert {words for one in report["computed"] for words in [one["variant"]]} >= {"boot v1", "boot v2"}


def test_an_image_without_a_uki_is_not_sealed(tools: Tools, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add_image("plain", [tar_layer([directory("usr")])])
    report = verify(tools, f"oci:{layout.path}:plain")
    assert report["problems"][0] == "there is no UKI in /boot/EFI/Linux: the image is not sealed"
    assert any("/boot" in problem for problem in report["problems"][1:])
    assert run(tools, "verify-seal", str(tmp_path)).returncode == 2
