"""`composefsctl compute-id` gives the digests of `cfsctl`: of directories, layouts and dumpfiles."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

import pytest
from interop.oci_seen import Wanted
from interop.oci_theirs import Theirs
from real import handmade
from real.directories import make_directory
from real.ledger import Ledger, Sweep
from real.oci_layout import Layer, Layout
from real.stage import BIN

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError
from composefsd.oci.storage import ImageKind
from composefsd.operations.compute_id import Question, compute, karg, write_dumpfile
from composefsd.tree.normative import XattrMode

V1 = FormatVersion.V1
CHOICES = tuple(
    Question("", bootable, version, algorithm, xattrs, as_is)
    for bootable, version, algorithm, xattrs, as_is in product(
        (False, True), FormatVersion, Algorithm, XattrMode, (False, True)
    )
)
"""Every way to ask about a directory."""

DIRECTORIES, ASKED = 16, 8


def asked(directory: Path, chance: Random) -> list[Question]:
    """Some of the ways to ask about a directory; all of them are asked for in a run, of one or another."""
    return [
        Question(str(directory), one.bootable, one.version, one.algorithm, one.xattrs, one.as_is)
        for one in chance.sample(CHOICES, ASKED)
    ]


def ours(question: Question) -> str:
    return compute(question).hex


def options(question: Question) -> list[str]:
    flags = {"--bootable": question.bootable, "--no-propagate-usr-to-root": question.as_is}
    return [*(flag for flag, is_set in flags.items() if is_set), f"--xattrs={question.xattrs}"]


def command(cfsctl: Path, question: Question, verb: str, *arguments: str) -> list[str]:
    common = ["--no-repo", f"--hash={question.algorithm.value}", f"--erofs-version={int(question.version)}"]
    return [str(cfsctl), *common, verb, *arguments, question.source]


def run(argv: Sequence[str], data: bytes | None = None) -> bytes:
    return subprocess.run(argv, input=data, check=True, stdout=subprocess.PIPE, timeout=120).stdout


@pytest.mark.parametrize("batch", range(4))
def test_directories_have_the_digests_of_cfsctl(
    cfsctl: Path, tmp_path: Path, sweep: Sweep, ledger: Ledger, batch: int
) -> None:
    cases, chance = 0, sweep.random(f"directories {batch}")
    for number in range(sweep.cases(DIRECTORIES)):
        directory = tmp_path / f"{number}"
        make_directory(directory, chance)
        for question in asked(directory, chance):
            theirs = run(command(cfsctl, question, "compute-id", *options(question)))
            assert ours(question) == theirs.decode().strip(), question
            cases += 1
        shutil.rmtree(directory)
    ledger.record("compute-id of directories", "cfsctl", cases, "equal digests")


def test_directories_have_the_dumpfiles_of_cfsctl(cfsctl: Path, tmp_path: Path, sweep: Sweep, ledger: Ledger) -> None:
    cases, chance = 0, sweep.random("dumpfiles")
    for number in range(sweep.cases(6)):
        directory = tmp_path / f"{number}"
        make_directory(directory, chance)
        for question in asked(directory, chance)[:4]:
            out = io.BytesIO()
            write_dumpfile(question, out)
            assert out.getvalue() == run(command(cfsctl, question, "create-dumpfile", *options(question))), question
            cases += 1
        shutil.rmtree(directory)
    ledger.record("dumpfiles of directories", "cfsctl", cases, "equal bytes")


@pytest.mark.parametrize("version", FormatVersion)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_kernel_argument_is_that_of_cfsctl(
    cfsctl: Path, tmp_path: Path, sweep: Sweep, ledger: Ledger, version: FormatVersion, algorithm: Algorithm
) -> None:
    directory = tmp_path / "root"
    make_directory(directory, sweep.random("karg"))
    question = Question(str(directory), bootable=True, version=version, algorithm=algorithm)
    expected = run(command(cfsctl, question, "compute-karg")).decode().strip()
    assert karg(compute(question), version) == expected
    ledger.record("compute-id --karg", "cfsctl", 1, "equal text")


@pytest.mark.parametrize("damage", ["no-usr", "no-boot", "usr-is-a-file", "loop", "policy"])
def test_what_cfsctl_refuses_of_a_directory_is_refused(
    cfsctl: Path, tmp_path: Path, sweep: Sweep, ledger: Ledger, damage: str
) -> None:
    directory = tmp_path / "root"
    make_directory(directory, sweep.random("refused"))
    source = str(directory)
    if damage == "policy":
        (directory / "etc" / "selinux").mkdir(exist_ok=True)
        (directory / "etc" / "selinux" / "config").write_bytes(b"SELINUXTYPE=missing\n")
    elif damage == "loop":
        (tmp_path / "link").symlink_to(directory)
        source = str(tmp_path / "link")
    else:
        name = damage.split("-")[0 if damage == "usr-is-a-file" else 1]
        shutil.rmtree(directory / name)
        if damage == "usr-is-a-file":
            (directory / "usr").touch()
    question = Question(source, bootable=True)
    theirs = subprocess.run(
        command(cfsctl, question, "compute-id", *options(question)), capture_output=True, timeout=120, check=False
    )
    with pytest.raises(ComposefsdError):
        compute(question)
    assert theirs.returncode != 0
    ledger.record("directories that cannot be images", "cfsctl", 1, "refused by both")


@pytest.mark.parametrize("version", [FormatVersion.V0, V1])
def test_a_dumpfile_on_standard_input_has_the_digest_of_mkcomposefs(
    cfsctl: Path, tmp_path: Path, sweep: Sweep, ledger: Ledger, version: FormatVersion
) -> None:
    cases, chance = 0, sweep.random(f"stdin {version}")
    for number in range(sweep.cases(6)):
        directory, out = tmp_path / f"{number}", io.BytesIO()
        make_directory(directory, chance, before_1970=False)
        write_dumpfile(Question(str(directory), algorithm=Algorithm.SHA256, as_is=True), out)
        tool = [
            str(cfsctl),
            "mkcomposefs",
            "--from-file",
            f"--min-version={int(version)}",
            "--print-digest-only",
            "-",
        ]
        expected = run(tool, out.getvalue())
        mine = [str(BIN / "composefsctl"), "compute-id", "--hash=sha256", f"--format={version.label}", "-"]
        assert run(mine, out.getvalue()) == expected
        cases += 1
        shutil.rmtree(directory)
    ledger.record("compute-id of dumpfiles", "mkcomposefs of composefs-rs", cases, "equal digests")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_layout_has_the_digests_of_cfsctl(
    cfsctl: Path, tmp_path: Path, ledger: Ledger, algorithm: Algorithm
) -> None:
    layout = Layout(tmp_path / "oci")
    layout.add_image("os", [Layer(tar) for tar in handmade.layers()])
    theirs = Theirs(cfsctl, tmp_path, algorithm)
    theirs.pull(f"oci:{layout.path}:os", "os")
    cases = 0
    for kind, mode, version in product(ImageKind, XattrMode, (V1, FormatVersion.V2)):
        flags = ["--bootable"] if kind is ImageKind.BOOT else []
        mine = [
            str(BIN / "composefsctl"), "compute-id", f"oci:{layout.path}:os", *flags, f"--xattrs={mode}",
            f"--hash={algorithm.value}", f"--format={version.label}",
        ]  # fmt: skip
        assert run(mine).decode().strip() == theirs.compute_id("os", Wanted(kind, mode, version))
        cases += 1
    ledger.record("compute-id of layouts", "cfsctl oci compute-id", cases, "equal digests")
