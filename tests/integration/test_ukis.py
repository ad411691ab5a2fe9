"""UKIs as builders of images make them, with Debian's ukify and sbsign: what composefsd reads in them, and shows."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real import apt, handmade, ukify
from real.layers import directory, regular, tar_layer
from real.oci_layout import Layer, Layout
from real.stage import Stage

from composefsd.boot import uki
from composefsd.boot.authenticode import State
from composefsd.boot.uki import Uki

VECTORS = Path(__file__).parents[1] / "vectors" / "uki"
CMDLINE = "quiet rw"


@dataclass(frozen=True, slots=True)
class Built:
    """Executables by name, the tools that made them, and the keys that signed them."""

    folder: Path
    tools: ukify.Tools
    keys: tuple[ukify.Key, ukify.Key]

    def data(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read(self, name: str) -> Uki:
        return uki.parse(self.data(name))

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = dict(self.tools.environment)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def fingerprint(self, key: ukify.Key) -> str:
        """The SHA-256 of its certificate, as openssl has it."""
        said = self.run("openssl", "x509", "-in", key.certificate, "-noout", "-fingerprint", "-sha256").stdout
        return said.partition("=")[2].strip().replace(":", "").lower()


def _signing(key: ukify.Key) -> list[str]:
    files = [f"--secureboot-private-key={key.private}", f"--secureboot-certificate={key.certificate}"]
    return ["--signtool=sbsign", "--no-sign-kernel", *files]


def _build(folder: Path) -> Built:
    tools = ukify.ensure()
    keys = (ukify.make_key(folder, "first key"), ukify.make_key(folder, "second key"))
    for name, content in {
        "vmlinuz": b"kernel\n" * 400,
        "initrd": b"initrd\n" * 40,
        "os": b"ID=test\nNAME=Test\n",
    }.items():
        (folder / name).write_bytes(content)
    base = [f"--linux={folder}/vmlinuz", f"--initrd={folder}/initrd", f"--os-release=@{folder}/os"]
    base += [f"--uname={handmade.KERNEL_VERSION}", f"--cmdline={CMDLINE}"]
    tools.build(folder / "plain.efi", *base)
    tools.build(folder / "signed.efi", *base, *_signing(keys[0]))
    tools.build_addon(folder / "reset.efi", "--profile=ID=reset\nTITLE=Reset all\n", "--cmdline=reset")
    pcr = [f"--pcrpkey={VECTORS}/pcrpkey.pem", f"--section=.pcrsig:@{VECTORS}/pcrsig.json"]
    profiles = ["--profile=ID=main\nTITLE=Main\n", f"--join-profile={folder}/reset.efi"]
    tools.build(folder / "profiles.efi", *base, *pcr, *profiles, *_signing(keys[0]))
    tools.build_addon(folder / "debug.addon.efi", "--cmdline=debug", *_signing(keys[1]))
    return Built(folder, tools, keys)


@pytest.fixture(scope="module")
def built(scratch: Path) -> Built:
    folder = scratch / "ukis"
    folder.mkdir()
    try:
        return _build(folder)
    except apt.UnavailableError as error:
        pytest.skip(f"needs Debian's ukify and sbsign: {error}")


@pytest.mark.parametrize("name", ["plain.efi", "signed.efi", "debug.addon.efi"])
def test_every_section_is_found_as_ukify_finds_it(built: Built, name: str) -> None:
    said = json.loads(built.run(built.tools.ukify, "inspect", built.folder / name, "--json=short").stdout)
    data, parsed = built.data(name), built.read(name)
    found = {one.name.decode(): data[one.offset : one.offset + one.size_bytes] for one in parsed.sections}
    assert {".cmdline", ".sbat"} <= said.keys() <= found.keys()
    for section, told in said.items():
        content = found[section]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (told["size"], told["sha256"])
    assert parsed.cmdline == said[".cmdline"]["text"].rstrip("\n\0")
    assert [f"{one.component},{one.generation}" for one in parsed.sbat] == [
        ",".join(line.split(",")[:2]) for line in said[".sbat"]["text"].strip("\0").splitlines()
    ]


def test_a_uki_tells_its_system_kernel_and_machine(built: Built) -> None:
    parsed = built.read("plain.efi")
    assert parsed.os_release is not None
    assert (parsed.os_release.title, parsed.uname, parsed.cmdline) == ("Test", handmade.KERNEL_VERSION, CMDLINE)
    assert parsed.architecture.value == built.tools.stub.name.removeprefix("linux").partition(".")[0]
    assert parsed.has_kernel
    assert (parsed.signatures, parsed.profiles, parsed.notes) == ((), (), ())
    assert not built.read("debug.addon.efi").has_kernel


def test_profiles_are_told_apart_with_what_they_inherit(built: Built) -> None:
    parsed = built.read("profiles.efi")
    assert [(one.id, one.title, one.cmdline, one.uname, one.own) for one in parsed.profiles] == [
        ("main", "Main", CMDLINE, handmade.KERNEL_VERSION, ()),
        ("reset", "Reset all", "reset", handmade.KERNEL_VERSION, (".cmdline",)),
    ]
    assert parsed.pcr_key is not None
    assert {one.key for one in parsed.pcr_signatures} == {parsed.pcr_key.short}
    assert [one.pcr_signatures for one in parsed.profiles] == [parsed.pcr_signatures] * 2
    assert parsed.notes == ()


def test_a_signature_is_good_for_us_if_and_only_if_it_is_for_sbverify(built: Built) -> None:
    signed, keys = built.folder / "signed.efi", built.keys
    assert built.run("sbverify", "--cert", keys[0].certificate, signed).returncode == 0
    (found,) = built.read("signed.efi").signatures
    assert (found.state, found.subject, found.fingerprint) == (
        State.GOOD,
        "CN=first key",
        built.fingerprint(keys[0]),
    )
    data = built.data("signed.efi")
    section = built.read("signed.efi").section(uki.LINUX)
    assert section is not None
    changed = built.folder / "changed.efi"
    changed.write_bytes(data[: section.offset] + b"K" + data[section.offset + 1 :])
    assert built.run("sbverify", "--cert", keys[0].certificate, changed).returncode != 0
    assert [one.state for one in built.read("changed.efi").signatures] == [State.DOES_NOT_FIT]


def test_several_signatures_are_told_in_their_order(built: Built) -> None:
    twice, key = built.folder / "twice.efi", built.keys[1]
    options = ("--key", key.private, "--cert", key.certificate, "--output", twice)
    assert built.run("sbsign", *options, built.folder / "signed.efi").returncode == 0
    found = built.read("twice.efi").signatures
    assert [(one.state, one.fingerprint) for one in found] == [
        (State.GOOD, built.fingerprint(one)) for one in built.keys
    ]


# On the bus


@pytest.fixture(scope="module")
def stage(built: Built, scratch: Path) -> Iterator[Stage]:
    folder = scratch / "ukis-stage"
    folder.mkdir()
    with Stage(folder) as found:
        yield found


@pytest.fixture
def pull(built: Built, stage: Stage, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Pulls an image with further files in its last layer, and answers with what `inspect` says."""

    def pull(name: str, files: dict[str, bytes], *options: str) -> dict[str, Any]:
        folders = sorted({str(one) for path in files for one in list(Path(path).parents)[:-1]})
        members = [directory(one) for one in folders] + [regular(path, data) for path, data in files.items()]
        layout = Layout(tmp_path / "oci")
        layout.add_image(name, [*map(Layer, handmade.layers()), Layer(tar_layer(members))])
        stage.ask("pull", f"oci:{layout.path}:{name}", f"--name={name}", *options)
        inspected: dict[str, Any] = stage.ask("inspect", name)
        return inspected

    return pull


def resources_of(inspected: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["path"]: one["details"] for one in inspected["boot_resources"]}


def test_inspect_shows_all_that_a_uki_and_its_addons_say(built: Built, pull: Callable[..., dict[str, Any]]) -> None:
    addon = built.data("debug.addon.efi")
    files = {
        "boot/EFI/Linux/os.efi": built.data("profiles.efi"),
        "boot/EFI/Linux/os.efi.extra.d/own.addon.efi": addon,
        "boot/EFI/Linux/lost.addon.efi": addon,
        "boot/loader/addons/all.addon.efi": addon,
        "usr/lib/modules/uki.extra.d/vendor.addon.efi": addon,
    }
    inspected = pull("shown", files)
    types = {one["path"]: one["type"] for one in inspected["boot_resources"] if one["path"].endswith(".efi")}
    assert types == {
        "/boot/EFI/Linux/os.efi": "uki",
        "/boot/EFI/Linux/os.efi.extra.d/own.addon.efi": "addon",
        "/boot/EFI/Linux/lost.addon.efi": "addon",
        "/boot/loader/addons/all.addon.efi": "global-addon",
        "/usr/lib/modules/uki.extra.d/vendor.addon.efi": "global-addon",
    }
    found = resources_of(inspected)
    shown = found["/boot/EFI/Linux/os.efi"]
    assert shown["signatures"] == [f"good; CN=first key, sha256:{built.fingerprint(built.keys[0])}; sha256"]
    assert shown["profiles"] == [f"main: Main ({CMDLINE})", "reset: Reset all (reset)"]
    assert shown["command_lines"] == [CMDLINE, "reset"]
    assert shown["uname"] == handmade.KERNEL_VERSION
    assert "uki 1" in shown["sbat"]
    assert len(shown["pcr_signatures"]) == 4
    assert shown["pcr_key"] == "sha256:41854f0519dc1fd97fcefba4876bce69298ea2a1d9cb0236cfbaf475a8c8798f"
    assert "notes" not in shown
    lost = found["/boot/EFI/Linux/lost.addon.efi"]
    assert lost["notes"] == ["it is in no directory NAME.efi.extra.d beside a UKI NAME.efi: nothing loads it"]
    assert lost["signatures"] == [f"good; CN=second key, sha256:{built.fingerprint(built.keys[1])}; sha256"]


def test_inspect_says_of_a_changed_uki_that_its_signature_does_not_fit(
    built: Built, pull: Callable[..., dict[str, Any]]
) -> None:
    data = bytearray(built.data("signed.efi"))
    data[data.index(CMDLINE.encode())] ^= 0x20
    shown = resources_of(pull("changed", {"boot/EFI/Linux/os.efi": bytes(data)}))["/boot/EFI/Linux/os.efi"]
    (signature,) = shown["signatures"]
    assert signature.startswith("does-not-fit-the-file; CN=first key")


def test_inspect_tells_every_reason_why_an_image_cannot_boot(
    built: Built, pull: Callable[..., dict[str, Any]]
) -> None:
    files = {
        "boot/EFI/Linux/cut.efi": built.data("signed.efi")[:700],
        "boot/EFI/Linux/addon.efi": built.data("debug.addon.efi"),
        "boot/loader/entries/a.conf": b"linux /none\ninitrd /nothing\n",
        "boot/loader/entries/b.conf": b"efi /usr/bin/tool\n",
        f"usr/lib/modules/{handmade.KERNEL_VERSION}/.wh.initramfs.img": b"",
    }
    inspected = pull("broken", files, "--generate=normative")
    assert inspected["bootable"] is False
    reasons = "\n".join(inspected["reasons"])
    for text in (
        "/boot/EFI/Linux/cut.efi: ",
        "/boot/EFI/Linux/addon.efi: no section .linux",
        "/boot/loader/entries/a.conf: the image has no file /none",
        "/boot/loader/entries/a.conf: the image has no file /nothing",
        "/boot/loader/entries/b.conf: ",
        f"/usr/lib/modules/{handmade.KERNEL_VERSION}/vmlinuz has no initramfs.img",
    ):
        assert text in reasons
