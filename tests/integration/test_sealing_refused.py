"""What `composefsctl seal` refuses, and what is left then: nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from real.handmade import pe_file
from real.layers import directory, regular, tar_layer
from real.oci_layout import Layout
from real.sealing import MODULES, assert_leaves_nothing, make_root, run, script, seal, snapshot
from real.stage import BIN
from real.ukify import Tools


def refused(tools: Tools, source: str | Path, out: Path, *options: str, status: int = 1, before: str = "") -> str:
    """The one line that a refusal writes; nothing is left of it."""
    arguments = ("seal", source, "-o", f"oci:{out}:os", f"--stub={tools.stub}", *options)
    done = run(tools, *arguments, before=before)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert_leaves_nothing(out)
    return str(line)


def test_a_root_without_a_kernel_is_refused(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools, kernels=())
    assert "has no kernel" in refused(tools, made, tmp_path / "out")


def test_one_of_several_kernels_has_to_be_named(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools, kernels=("6.1.0", "6.2.0"))
    assert "several kernels, 6.1.0, 6.2.0" in refused(tools, made, tmp_path / "out")
    assert "no kernel 6.3.0; it has 6.1.0, 6.2.0" in refused(tools, made, tmp_path / "out", "--kernel=6.3.0")
    assert seal(tools, made, f"oci:{tmp_path / 'out'}:os", "--kernel=6.2.0")["kernel_version"] == "6.2.0"


def test_what_a_uki_needs_has_to_be_there(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools)
    (made / MODULES / "initramfs.img").rename(tmp_path / "initrd")
    assert "has no initramfs.img" in refused(tools, made, tmp_path / "out")
    (tmp_path / "initrd").rename(made / MODULES / "initramfs.img")
    (made / "usr/lib/os-release").unlink()
    assert "os-release" in refused(tools, made, tmp_path / "out")


def test_another_uki_of_the_base_is_not_left_beside_the_sealed_one(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools)
    (made / "boot/EFI/Linux").mkdir(parents=True)
    (made / "boot/EFI/Linux/old.efi").write_bytes(pe_file({".linux": b"x" * 100, ".cmdline": b"quiet"}))
    assert "has the UKI /boot/EFI/Linux/old.efi already" in refused(tools, made, tmp_path / "out")
    seal(tools, made, f"oci:{tmp_path / 'out'}:os", "--uki-name=old")


def test_without_ukify_it_says_so(tools: Tools, root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(BIN)}
    done = run(tools, "seal", root, "-o", f"oci:{tmp_path / 'out'}", environment=environment)
    assert (done.returncode, "systemd-ukify" in done.stderr) == (1, True)
    assert "is no program" in refused(tools, root, tmp_path / "out", f"--ukify={tmp_path / 'nothing'}")
    assert_leaves_nothing(tmp_path / "out")


def test_what_ukify_complains_about_is_shown_to_a_bound(tools: Tools, root: Path, tmp_path: Path) -> None:
    failing = script(tmp_path / "ukify", "yes 'much ado' | head -n 100000 >&2; echo 'about this' >&2; exit 7")
    line = refused(tools, root, tmp_path / "out", f"--ukify={failing}")
    assert "ukify fails with exit status 7" in line
    assert line.endswith("about this")
    assert len(line) < 3000
    broken = tmp_path / "key"
    broken.write_text("no key\n")
    says = refused(tools, root, tmp_path / "out", f"--key={broken}", f"--certificate={broken}")
    assert "ukify fails" in says


def test_a_root_with_what_no_layer_can_hold_is_refused(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools)
    (made / "usr/.wh.tool").touch()
    assert "would delete another one" in refused(tools, made, tmp_path / "out")
    (made / "usr/.wh.tool").unlink()
    os.utime(made / "usr/bin/tool", (0, -5))
    assert "before 1970" in refused(tools, made, tmp_path / "out")


def test_a_hostile_layout_is_refused(tools: Tools, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add_image("up", [tar_layer([directory("usr"), regular("../../escape", b"x" * 100)])])
    assert "escape" in refused(tools, f"oci:{layout.path}:up", tmp_path / "out")
    made = layout.add_image("cut", [tar_layer([directory("usr"), regular("usr/x", b"x" * 5000)])])
    blob = layout.blob_path(made.layers[0].blob.digest)
    blob.write_bytes(blob.read_bytes()[::-1])
    assert "has the digest" in refused(tools, f"oci:{layout.path}:cut", tmp_path / "out")
    folders = [directory(name) for name in ("usr", "usr/lib", "usr/lib/modules", MODULES)]
    names = (f"{MODULES}/vmlinuz", f"{MODULES}/initramfs.img", "usr/lib/os-release", "boot")
    layout.add_image("file", [tar_layer([*folders, *(regular(name, b"x" * 100) for name in names)])])
    assert "/boot of the image is not a directory" in refused(tools, f"oci:{layout.path}:file", tmp_path / "out")
    assert "no image 'none'" in refused(tools, f"oci:{layout.path}:none", tmp_path / "out")


def test_an_output_that_is_something_else_stays(tools: Tools, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    for name in ("file", "folder"):
        done = run(tools, "seal", root, "-o", f"oci:{tmp_path / name}:os", f"--stub={tools.stub}")
        assert done.returncode == 2, done.stderr
    assert snapshot(tmp_path) == {"file": b"mine", "folder/file": b"mine"}


def test_a_full_disk_leaves_the_layout_as_it_was(tools: Tools, root: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add_image("other", [tar_layer([directory("usr")])])
    before = snapshot(layout.path)
    arguments = ("seal", root, "-o", f"oci:{layout.path}:os", f"--stub={tools.stub}")
    done = run(tools, *arguments, before="ulimit -f 64;")
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(layout.path) == before
    assert {one.name for one in layout.path.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_what_a_killed_run_leaves_goes_with_the_next(tools: Tools, root: Path, tmp_path: Path) -> None:
    hanging = script(tmp_path / "ukify", 'kill -9 "$PPID"')
    (tmp_path / "scratch").mkdir()
    environment = {**tools.environment, "TMPDIR": str(tmp_path / "scratch")}
    where = f"oci:{tmp_path / 'out'}:os"
    done = run(tools, "seal", root, "-o", where, f"--ukify={hanging}", environment=environment)
    assert done.returncode == -9
    assert [one for one in tmp_path.iterdir() if one.name.startswith(".composefsctl")]
    seal(tools, root, f"oci:{tmp_path / 'out'}:os")
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".composefsctl")]


@pytest.mark.parametrize(
    "options",
    [
        ["--cmdline=composefs=00"],
        ["--cmdline=a\nb"],
        ['--cmdline=a "b'],
        ["--cmdline=" + "x" * 2048],
        ["--uki-name=../x"],
        ["--uki-name=x.efi"],
        ["--signer="],
        ["--signer='"],
        ["--key=/dev/null"],
        ["--platform=linux"],
        ["--key=a", "--signer=b"],
    ],
)
def test_wrong_usage_is_told_as_such(options: list[str], tools: Tools, root: Path, tmp_path: Path) -> None:
    refused(tools, root, tmp_path / "out", *options, status=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_at_once_and_leaves_nothing(
    number: signal.Signals, tools: Tools, root: Path, tmp_path: Path
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    hanging = script(tmp_path / "ukify", f"touch {tmp_path}/started; exec sleep 100")
    command = [str(BIN / "composefsctl"), "seal", str(root), "-o", f"oci:{out}", f"--ukify={hanging}"]
    environment = {**tools.environment, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(number)
        _, said = running.communicate(timeout=50)
    assert (running.returncode, said) == (3, "composefsctl: interrupted\n")
    assert list(scratch.iterdir()) == []
    assert_leaves_nothing(out)


def test_what_is_written_must_not_be_a_part_of_what_is_read(tools: Tools, tmp_path: Path) -> None:
    made = make_root(tmp_path / "root", tools)
    before = snapshot(made)
    assert "the output" in refused(tools, made, made / "var/out", status=2)
    environment = {**tools.environment, "TMPDIR": str(made / "var")}
    done = run(tools, "seal", made, "-o", f"oci:{tmp_path / 'out'}", environment=environment)
    assert (done.returncode, "$TMPDIR" in done.stderr) == (2, True)
    assert snapshot(made) == before


def test_no_uki_is_made_with_the_stub_of_another_machine(tools: Tools, root: Path, tmp_path: Path) -> None:
    out = f"oci:{tmp_path / 'out'}"
    done = run(tools, "seal", root, "-o", out, "--platform=linux/ppc64le")
    assert (done.returncode, "'ppc64le' is not known: name it with --stub" in done.stderr) == (1, True)
    assert_leaves_nothing(tmp_path / "out")
    seal(tools, root, out, "--platform=linux/ppc64le")
