"""`composefsctl seal` and `verify-seal` with the real ukify, and what a daemon makes of a sealed image."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from real import image
from real.oci_layout import Compression, Layer, Layout
from real.sealing import (
    MODULES,
    UKI,
    VERSION,
    make_root,
    run,
    seal,
    snapshot,
    verify,
)
from real.stage import BIN, Stage
from real.ukify import Key, Tools


@pytest.fixture(scope="module")
def sealed(tools: Tools, root: Path) -> tuple[Path, dict[str, Any]]:
    """A layout with the sealed root as `os`, and what sealing it answered.  Not to be changed by tests."""
    path = root.parent / "sealed"
    return path, seal(tools, root, f"oci:{path}:os", "--cmdline=rw quiet")


def compute_id(*arguments: str) -> str:
    command = [str(BIN / "composefsctl"), "compute-id", "--bootable", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def layer(layout: Path, number: int = -1, tag: str = "os") -> tarfile.TarFile:
    """A layer that sealing has packed: the last one, or that of a directory."""
    return tarfile.open(Layout(layout).blob_path(Layout(layout).read_image(tag).layers[number].blob.digest), "r:gz")


def document(layout: Path, which: str, tag: str = "os") -> dict[str, Any]:
    blob = getattr(Layout(layout).read_image(tag), which)
    parsed: dict[str, Any] = json.loads(Layout(layout).blob_path(blob.digest).read_bytes())
    return parsed


# The image


def test_a_sealed_root_has_the_boot_digest_of_the_directory(sealed: tuple[Path, dict[str, Any]], root: Path) -> None:
    path, answer = sealed
    digest = compute_id(str(root))
    assert answer["boot_digest"] == f"sha512:{digest}"
    assert compute_id(f"oci:{path}:os") == digest
    assert answer["karg"] == f"composefs.digest=v1-sha512-12:{digest}"


def test_the_uki_has_what_the_image_has(tools: Tools, sealed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, answer = sealed
    content = layer(path).extractfile(UKI)
    assert content is not None
    (tmp_path / "uki.efi").write_bytes(content.read())
    command = [str(tools.ukify), "--json=short", "inspect", str(tmp_path / "uki.efi")]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told[".cmdline"]["text"] == f"{answer['karg']} rw quiet"
    assert told[".uname"]["text"] == VERSION
    assert told[".osrel"]["text"].startswith("ID=sealed\n")
    assert told[".linux"]["size"] == tools.stub.stat().st_size


def test_the_last_layer_adds_the_uki_alone_and_repeats_its_directories(
    sealed: tuple[Path, dict[str, Any]], root: Path
) -> None:
    members = layer(sealed[0]).getmembers()
    assert [one.name for one in members] == ["boot", "boot/EFI", "boot/EFI/Linux", UKI]
    assert members[0].mode == (root / "boot").stat().st_mode & 0o7777
    assert float(members[0].pax_headers["mtime"]) == pytest.approx((root / "boot").stat().st_mtime, abs=1e-6)


def test_the_first_layer_is_the_directory(sealed: tuple[Path, dict[str, Any]], root: Path) -> None:
    members = {one.name: one for one in layer(sealed[0], 0).getmembers()}
    there = {str(one.relative_to(root)) for one in root.rglob("*")}
    assert members.keys() == there
    assert members["usr/bin/tool"].islnk() != members["usr/bin/same-tool"].islnk()
    assert members["usr/bin/link"].linkname == "tool"
    assert members[f"{MODULES}/vmlinuz"].size == (root / MODULES / "vmlinuz").stat().st_size


def test_verify_seal_tells_what_a_host_would_find(tools: Tools, sealed: tuple[Path, dict[str, Any]]) -> None:
    path, answer = sealed
    report = verify(tools, f"oci:{path}:os")
    (uki,) = report["ukis"]
    assert (report["right"], report["problems"], uki["signatures"]) == (True, [], [])
    assert report["manifest_digest"] == answer["manifest_digest"]
    (line,) = uki["command_lines"]
    (named,) = line["images"]
    assert (named["argument"], named["variant"]) == (answer["karg"], "boot v1")
    text = run(tools, "verify-seal", f"oci:{path}:os").stdout
    assert "not signed" in text
    assert text.endswith("sealed, and right\n")


@pytest.mark.parametrize(("version", "algorithm"), [("v2", "sha512"), ("v1", "sha256")])
def test_format_and_hash_are_those_that_were_asked_for(
    version: str, algorithm: str, tools: Tools, root: Path, tmp_path: Path
) -> None:
    where = f"oci:{tmp_path / 'out'}:os"
    answer = seal(tools, root, where, f"--format={version}", f"--hash={algorithm}")
    digest = compute_id(f"--format={version}", f"--hash={algorithm}", str(root))
    spelt = f"composefs.digest=v1-{algorithm}-12:{digest}" if version == "v1" else f"composefs={digest}"
    assert answer["karg"] == spelt
    (named,) = verify(tools, where)["ukis"][0]["command_lines"][0]["images"]
    assert named["variant"] == f"boot {version}"


def test_options_of_the_image(tools: Tools, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "out"
    answer = seal(
        tools, root, f"oci:{path}:os", "--annotate", "--dumpfile", "--remove-kernel", "--uki-name=mine",
        "--karg-form=legacy",
    )  # fmt: skip
    names = layer(path).getnames()
    files = [f"{MODULES}/.wh.vmlinuz", f"{MODULES}/.wh.initramfs.img", "boot/EFI/Linux/mine.dump"]
    assert [name for name in names if name.endswith((".dump", ".efi", ".img", "vmlinuz"))] == [
        *files,
        "boot/EFI/Linux/mine.efi",
    ]
    digest = answer["boot_digest"].removeprefix("sha512:")
    assert answer["karg"] == f"composefs={digest}"
    annotations = document(path, "manifest")["annotations"]
    assert annotations["composefs.merged.bootable.erofs.v1.fsverity-sha512-12"] == digest
    dump = layer(path).extractfile("boot/EFI/Linux/mine.dump")
    assert dump is not None
    assert f"/{MODULES} ".encode() in (text := dump.read())
    assert b"vmlinuz" not in text
    assert digest != compute_id(str(root))


# From layouts


def test_a_base_stays_byte_for_byte_and_a_seal_is_replaced_not_stacked(
    tools: Tools, sealed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, _ = sealed
    before = snapshot(path)
    again = tmp_path / "again"
    answer = seal(tools, f"oci:{path}:os", f"oci:{again}:os", "--cmdline=ro")
    first, last = Layout(again).read_image("os").layers
    assert first == Layout(path).read_image("os").layers[0]
    assert (
        Layout(again).blob_path(first.blob.digest).read_bytes()
        == Layout(path).blob_path(first.blob.digest).read_bytes()
    )
    assert last != Layout(path).read_image("os").layers[1]
    assert answer["boot_digest"] == sealed[1]["boot_digest"]
    assert len(document(again, "config")["history"]) == 2
    assert snapshot(path) == before


def test_sealing_again_gives_the_same_and_leaves_the_output_as_it_is(
    tools: Tools, sealed: tuple[Path, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    path, answer = sealed
    before = {name: (path / name).stat().st_mtime_ns for name in snapshot(path)}
    for source in (root, f"oci:{path}:os"):
        assert seal(tools, source, f"oci:{path}:os", "--cmdline=rw quiet") == answer | {"unchanged": True}
    assert {name: (path / name).stat().st_mtime_ns for name in snapshot(path)} == before
    other = seal(tools, root, f"oci:{tmp_path / 'other'}", "--cmdline=rw quiet")
    assert other["manifest_digest"] == answer["manifest_digest"]


def test_members_of_the_documents_stay_and_other_tags_too(tools: Tools, tmp_path: Path) -> None:
    make_root(tmp_path / "root", tools, without=("boot", "sysroot"))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tmp_path / "root", "")
    layout = Layout(tmp_path / "layout")
    config = {
        "config": {"Labels": {"a": "b", "containers.composefs.fsverity": "0" * 128}},
        "created": "2025-06-15T00:00:00Z",
    }
    layout.add_image(
        "base", [Layer(tar.getvalue(), Compression.ZSTD)], config=config, manifest={"annotations": {"c": "d"}}
    )
    where = f"oci:{layout.path}:base"
    answer = seal(tools, where, f"oci:{layout.path}:sealed")
    assert document(layout.path, "config", "sealed")["config"] == {"Labels": {"a": "b"}}
    assert document(layout.path, "manifest", "sealed")["annotations"] == {"c": "d"}
    assert {one["created"] for one in document(layout.path, "config", "sealed")["history"][1:]} == {config["created"]}
    assert [one.name for one in layer(layout.path, tag="sealed").getmembers()][-2:] == ["sysroot", UKI]
    assert len(layout.read_image("base").layers) == 1
    assert verify(tools, f"oci:{layout.path}:sealed")["right"]
    assert not verify(tools, where)["right"]
    assert compute_id(f"oci:{layout.path}:sealed") == answer["boot_digest"].removeprefix("sha512:")


def test_an_archive_can_be_sealed(tools: Tools, sealed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "os.tar", "w") as archive:
        archive.add(sealed[0], "")
    answer = seal(tools, f"oci-archive:{tmp_path / 'os.tar'}:os", f"oci:{tmp_path / 'out'}", "--cmdline=rw quiet")
    assert answer["manifest_digest"] == sealed[1]["manifest_digest"]


# The recursion of composefs-rs#21


def test_a_sealed_debian_is_deployed_with_the_digest_that_its_uki_names(
    tools: Tools, demo_image: image.DemoImage, key: Key, scratch: Path
) -> None:
    """The UKI lies in the image, its command line names the image, and the digests agree on a host."""
    folder = scratch / "sealing"
    folder.mkdir()
    signing = (f"--key={key.private}", f"--certificate={key.certificate}")
    answer = seal(
        tools, demo_image.reference(), f"oci:{folder / 'out'}:os", "--uki-name=demo", f"--cmdline={image.CMDLINE}",
        *signing,
    )  # fmt: skip
    archive = folder / "os.tar"
    with tarfile.open(archive, "w") as file:
        file.add(folder / "out", "")
    stage_folder = folder / "stage"
    stage_folder.mkdir()
    with Stage(stage_folder) as stage:
        pulled = stage.ask("pull", f"oci-archive:{archive}:os", "--name=os")
        assert pulled["manifest_digest"] == answer["manifest_digest"]
        boot = stage.digests("os")["boot"]
        assert f"sha512:{boot}" == answer["boot_digest"]
        assert stage.image_path(boot).is_file()
        stage.ask("deploy", "os", "--verity=deferred")
        (uki,) = stage.esp.rglob("EFI/Linux/**/*.efi")
        assert answer["karg"].encode() in uki.read_bytes()
        assert (
            subprocess.run(
                [str(tools.bin / "sbverify"), f"--cert={key.certificate}", str(uki)], capture_output=True, check=False
            ).returncode
            == 0
        )
