"""What `composefsctl seal` makes is sealed for composefs-rs, too, after a way through skopeo."""

import json
import subprocess
from pathlib import Path

import pytest
from interop.oci_theirs import Theirs
from real import apt, sealing, ukify
from real.layers import directory, regular, tar_layer
from real.ledger import Ledger
from real.oci_layout import Layout
from real.ukify import Tools

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion

WAYS = [(FormatVersion.V1, Algorithm.SHA512), (FormatVersion.V2, Algorithm.SHA256)]


@pytest.fixture(scope="module")
def tools() -> Tools:
    """The real ukify."""
    try:
        return ukify.ensure()
    except apt.UnavailableError as error:
        pytest.fail(f"ukify is missing: {error}", pytrace=False)


@pytest.mark.parametrize(("version", "algorithm"), WAYS)
def test_cfsctl_agrees_with_a_seal_and_boots_it(
    version: FormatVersion, algorithm: Algorithm, tools: Tools, cfsctl: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """Sealed, pushed, pulled: the digest that the UKI names is that of cfsctl's boot image."""
    root = sealing.make_root(tmp_path / "root", tools)
    choice = (f"--format={version.label}", f"--hash={algorithm.value}")
    answer = sealing.seal(
        tools, root, f"oci:{tmp_path / 'out'}:os", *choice, "--cmdline=rw", "--remove-kernel", "--annotate"
    )
    archive = f"oci-archive:{tmp_path / 'os.tar'}:os"
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{tmp_path / 'out'}:os", archive], check=True)
    (tmp_path / "repositories").mkdir()
    theirs = Theirs(cfsctl, tmp_path / "repositories", algorithm)
    done = theirs.run(version, "oci", "pull", "--bootable", archive, "os")
    assert done.status == 0, done.message
    about = json.loads(theirs.run(version, "oci", "inspect", "os").output)
    digest = answer["boot_digest"].rpartition(":")[2]
    assert about["composefs_boot_erofs"] == digest
    annotations = json.loads(about["manifest"])["annotations"]
    assert set(annotations.values()) == {digest, about["composefs_erofs"]}
    boot = tmp_path / "boot"
    boot.mkdir()
    done = theirs.run(version, "oci", "prepare-boot", f"--bootdir={boot}", "os")
    assert done.status == 0, done.message
    (uki,) = (one for one in boot.rglob("*") if one.is_file())
    assert answer["karg"].encode() in uki.read_bytes()
    ledger.record(
        "sealed images, through skopeo", "cfsctl oci pull --bootable, prepare-boot", 1, "equal digests, accepted"
    )


def test_cfsctl_and_we_refuse_the_seal_of_another_image(
    tools: Tools, cfsctl: Path, tmp_path: Path, ledger: Ledger
) -> None:
    root = sealing.make_root(tmp_path / "root", tools)
    sealing.seal(tools, root, f"oci:{tmp_path / 'out'}:os", "--remove-kernel")
    layout = Layout(tmp_path / "out")
    image = layout.read_image("os")
    changed = tar_layer([directory("usr"), regular("usr/file", b"changed after it was sealed")])
    layout.add_image("changed", [*image.layers, changed])
    where = f"oci:{layout.path}:changed"
    (problem,) = sealing.verify(tools, where)["problems"]
    assert "names another image" in problem
    (tmp_path / "repositories").mkdir()
    theirs = Theirs(cfsctl, tmp_path / "repositories", Algorithm.SHA512)
    assert theirs.run(FormatVersion.V1, "oci", "pull", "--bootable", where, "os").status == 0
    (tmp_path / "boot").mkdir()
    done = theirs.run(FormatVersion.V1, "oci", "prepare-boot", f"--bootdir={tmp_path / 'boot'}", "os")
    assert done.status not in (0, None)
    ledger.record("images that were changed after sealing", "cfsctl oci prepare-boot", 1, "both refuse")
