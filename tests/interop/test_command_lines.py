"""Kernel command lines beside `cfsctl oci prepare-boot`: how it names an image, and which UKIs it takes for one."""

from pathlib import Path
from typing import Final

import pytest
from interop.two_tools import Cfsctl
from real import handmade
from real.layers import directory, regular, tar_layer
from real.ledger import Ledger
from real.oci_layout import Layout

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument, Spelling
from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import FormatError
from composefsd.operations.compute_id import Question, compute

_UKI: Final = "boot/EFI/Linux/os.efi"
_WIDTHS: Final = {Algorithm.SHA256: 64, Algorithm.SHA512: 128}

_LINES: Final = (
    "quiet",
    "composefs={own}",
    "composefs=?{own}",
    "composefs={other}",
    "composefs={other} composefs={own}",
    "composefs={own} composefs={other}",
    "composefs={own} composefs=rubbish",
    "composefs={other} composefs.digest=v1-{hash}-12:{own}",
    "composefs={own} composefs.digest=v1-{hash}-12:{other}",
    "composefs.digest=v1-{hash}-12:{own}",
    "composefs.digest=?v2-{hash}-12:{own} rw",
    "composefs.digest=v1?-{hash}-12:{own}",
    "composefs.digest=v3-{hash}-12:{own}",
    "composefs.digest=v1-{hash}-16:{own}",
    "composefs.digest=v1-{hash}-12:{own} composefs.digest=v1-{hash}-12:{other}",
    "composefs.digest=v1-{hash}-12:{other} composefs.digest=v1-{hash}-12:{own}",
    "composefs.digest=v1-{foreign_hash}-12:{foreign} composefs.digest=v1-{hash}-12:{own}",
    "composefs.digest=v1-{foreign_hash}-12:rubbish composefs={own}",
    "composefs.digest=v9-{foreign_hash}-12:{foreign} composefs={own}",
    "composefs={foreign} composefs={own}",
    'x="a composefs={other}" composefs={own}',
    'x="a composefs={own}',
    'composefs="{own}"',
    "a\tcomposefs={own}\nb",
    "a\vcomposefs={own}",
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """The hand-made image as `base`, which has a kernel and an initrd."""
    made = Layout(tmp_path / "oci")
    made.add_image("base", list(handmade.layers()))
    return made


def _prepare(tool: Cfsctl, layout: Layout, tag: str, bootdir: Path) -> bool:
    """Have the image put on a boot partition; whether that was done."""
    tool.say("oci", "pull", f"oci:{layout.path}:{tag}", tag)
    bootdir.mkdir()
    return tool.run("oci", "prepare-boot", "--bootdir", str(bootdir), tag).returncode == 0


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("version", [1, 2])
def test_an_entry_names_the_image_as_ours_would(
    cfsctl: Path, tmp_path: Path, layout: Layout, ledger: Ledger, algorithm: Algorithm, version: int
) -> None:
    tool = Cfsctl(cfsctl, tmp_path / "repository")
    tool.init(algorithm=algorithm.value, version=version)
    assert _prepare(tool, layout, "base", tmp_path / "boot")
    (entry,) = (tmp_path / "boot/loader/entries").iterdir()
    options = next(line for line in entry.read_text().splitlines() if line.startswith("options"))
    (argument,) = cmdline.find_all(options)
    assert argument == ComposefsArgument.of(argument.digest, version, Spelling.AUTO, insecure=True)
    assert str(argument) in cmdline.split(options)
    (tool.repository / "images" / argument.digest.hex).stat()
    ledger.record("arguments that name an image", "cfsctl prepare-boot", 1, "the same text")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_uki_is_taken_for_the_image_by_the_argument_that_ours_finds(
    cfsctl: Path, tmp_path: Path, layout: Layout, ledger: Ledger, algorithm: Algorithm
) -> None:
    (foreign,) = set(Algorithm) - {algorithm}
    own = compute(Question(f"oci:{layout.path}:base", bootable=True, algorithm=algorithm))
    words = {
        "own": own.hex,
        "other": "0" * _WIDTHS[algorithm],
        "foreign": "0" * _WIDTHS[foreign],
        "hash": algorithm.value,
        "foreign_hash": foreign.value,
    }
    tool = Cfsctl(cfsctl, tmp_path / "repository")
    tool.init(algorithm=algorithm.value, version=1)
    theirs, ours = {}, {}
    for number, line in enumerate(line.format_map(words) for line in _LINES):
        folders = (directory("boot/EFI"), directory("boot/EFI/Linux"))
        layout.add_image(
            f"uki{number}", [*handmade.layers(), tar_layer((*folders, regular(_UKI, handmade.uki(line))))]
        )
        theirs[line] = _prepare(tool, layout, f"uki{number}", tmp_path / f"boot{number}")
        ours[line] = _names(line, own)
    assert ours == theirs
    assert set(theirs.values()) == {True, False}
    ledger.record("command lines of UKIs", "cfsctl prepare-boot", len(_LINES), "the same ones boot the image")


def _names(line: str, image: ObjectId) -> bool:
    try:
        found = cmdline.find(line, image.algorithm)
    except FormatError:
        return False
    return found is not None and found.digest == image
