"""What vouches for an image and what a deployment enforces, on the bus and on the command line."""

import asyncio
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import Stage
from helpers.client import Call, Client, connect
from real import handmade, uki_signing
from real.layers import directory, regular, tar_layer
from real.oci_layout import Layout

from composefsd.boot.signature_list import X509
from composefsd.service import names

CTL = str(Path(sys.executable).parent / "composefsctl")
SIGNER = "the \x1b[31mbuilder"
PATH = "/boot/EFI/Linux/os.efi"


def ctl(stage: Stage, *arguments: str) -> str:
    command = [CTL, f"--bus={stage.address}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def enroll(folder: Path, certificate: bytes) -> None:
    """EFI variables as efivarfs has them: Secure Boot is on, and db has a certificate."""
    folder.mkdir()
    (folder / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\x06\0\0\0\1")
    sizes = struct.pack("<III", 44 + len(certificate), 0, 16 + len(certificate))
    variable = b"\x06\0\0\0" + X509.bytes_le + sizes + bytes(16) + certificate
    (folder / "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f").write_bytes(variable)


@pytest.fixture(scope="module")
def sealed(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A daemon that knows the firmware's keys, and has pulled `os`, whose UKI is signed, and `plain` without one."""
    folder = tmp_path_factory.mktemp("layout")
    layout = Layout(folder / "oci")
    signer = uki_signing.signer(SIGNER)
    enroll(folder / "efivars", signer.certificate)
    shared_stage.stop()
    shared_stage.config.write_text(f"[Daemon]\nInsecure=yes\nEFIVariables={folder}/efivars\n")
    shared_stage.start()
    plain = layout.add_image("plain", list(handmade.layers()))
    digest = ctl(shared_stage, "compute-id", "--bootable", f"oci:{layout.path}:plain").strip()
    folders = [directory(name) for name in ("boot/EFI", "boot/EFI/Linux")]
    uki = uki_signing.sign(handmade.uki(f"composefs.digest=v1-sha512-12:{digest} rw"), signer)
    layout.add_image("os", [*plain.layers, tar_layer((*folders, regular(PATH[1:], uki)))])
    for tag in ("plain", "os"):
        ctl(shared_stage, "pull", f"oci:{layout.path}:{tag}", f"--name={tag}")
    ctl(shared_stage, "deploy", "os", "--verity=deferred")
    return shared_stage


def get_all(stage: Stage, name: str) -> dict[str, Any]:
    """The properties of an image."""

    async def ask(client: Client) -> dict[str, Any]:
        (path,) = await client.ask(Call(names.MANAGER, "GetImage", "s", [name]))
        return await client.get_all(path, names.IMAGE)

    async def connected() -> dict[str, Any]:
        async with connect(stage.address) as client:
            return await ask(client)

    return asyncio.run(connected())


def test_an_image_tells_its_chain_of_trust_and_where_it_ends(sealed: Stage) -> None:
    state, summary, evidence = get_all(sealed, "os")["Trust"]
    assert (state, summary) == ("matching", "every digest that could be compared is right (uki-digest)")
    told = {name: value.value if isinstance(value, Variant) else value for name, value in evidence.items()}
    assert [(name, link_state) for name, link_state, _ in told["chain"]] == [
        ("firmware", "good"),
        ("uki-signature", "good"),
        ("uki-digest", "good"),
        ("boot-image", "good"),
        ("verity", "missing"),
        ("oci-label", "missing"),
        ("annotation", "missing"),
        ("artifact", "missing"),
    ]
    assert told["ends"].startswith("ends below the files: ")
    fingerprint = hashlib.sha256(uki_signing.signer(SIGNER).certificate).hexdigest()
    assert f"sha256:{fingerprint}" in told["uki-signature"]
    assert set(told) == {"chain", "ends", "uki-digest", "uki-signature"}


def test_inspect_shows_the_chain_link_by_link_and_the_details_of_what_boots(sealed: Stage) -> None:
    lines = ctl(sealed, "inspect", "os").splitlines()
    start = lines.index("chain of trust")
    assert [line.split()[:2] for line in lines[start + 1 : start + 9]] == [
        ["firmware", "good"],
        ["uki-signature", "good"],
        ["uki-digest", "good"],
        ["boot-image", "good"],
        ["verity", "missing"],
        ["oci-label", "missing"],
        ["annotation", "missing"],
        ["artifact", "missing"],
    ]
    assert lines[start + 9].startswith("  ends below the files: ")
    assert f"  uki {PATH} {handmade.KERNEL_VERSION}" in lines
    assert ["signed", "yes"] in [line.split() for line in lines]
    assert all(line.isprintable() for line in lines)


def test_inspect_lists_deployments_with_what_they_enforce(sealed: Stage) -> None:
    lines = ctl(sealed, "inspect", "os").splitlines()
    below = [line.split(maxsplit=1) for line in lines[lines.index("deployments") + 2 :]]
    told = {pair[0]: pair[1] for pair in below}
    assert (told["type"], told["verity"], told["digest"]) == ("uki", "deferred", "signed")
    assert told["enforces"].endswith("the digest is covered by the UKI's signature")


def test_json_has_everything(sealed: Stage) -> None:
    image = json.loads(ctl(sealed, "inspect", "os", "--json"))
    assert image["trust"]["chain"][0]["name"] == "firmware"
    assert set(image["trust"]["chain"][0]) == {"name", "state", "text"}
    assert image["trust"]["ends"]
    (deployment,) = json.loads(ctl(sealed, "deployments", "--json"))
    summary = deployment["enforcement"].pop("summary")
    assert deployment["enforcement"] == {
        "type": "uki", "verity": "deferred", "digest": "signed", "repository_verity": False,
    }  # fmt: skip
    assert "the repository does not demand it" in summary


def test_an_image_without_a_uki_is_unsealed_and_told_why(sealed: Stage) -> None:
    state, _, evidence = get_all(sealed, "plain")["Trust"]
    chain = evidence["chain"].value if isinstance(evidence["chain"], Variant) else evidence["chain"]
    assert state == "unsealed"
    assert {name: link_state for name, link_state, _ in chain}["uki-digest"] == "missing"
