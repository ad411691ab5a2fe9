"""What a source is, what can be done with it, and reading directories and files."""

import io
import os
import sys
from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import write
from composefsd.errors import (
    ComposefsdError,
    FormatError,
    InvalidArgumentsError,
    InvalidReferenceError,
    SourceNotFoundError,
)
from composefsd.operations.sources import Reading, Source, SourceKind, opened, read, starts_image
from composefsd.tree import dumpfile
from composefsd.tree.normative import XattrMode
from composefsd.tree.table import ROOT

SECOND = 1_000_000_000
PLAIN = Reading(Algorithm.SHA256)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A directory with what an image has to have, and a time for each of its directories."""
    root = tmp_path / "rootfs"
    for name in ("usr", "run/lock", "boot/efi", "sysroot"):
        (root / name).mkdir(parents=True)
    (root / "usr" / "file").write_bytes(b"x" * 100)
    for number, name in enumerate(("usr", "run", "boot", "sysroot", ".")):
        os.utime(root / name, ns=(0, (100 + number) * SECOND + number))
    return root


def paths(source: str, reading: Reading) -> list[bytes]:
    return [path for path, _, _ in read(Source.parse(source), reading).walk()]


def test_a_source_is_what_its_text_says_and_nothing_is_guessed(rootfs: Path) -> None:
    (rootfs / "oci-layout").write_text("{}")
    assert Source.parse(str(rootfs)).kind is SourceKind.DIRECTORY
    assert Source.parse(str(rootfs / "oci-layout")).kind is SourceKind.FILE
    assert Source.parse(str(rootfs / "nothing")).kind is SourceKind.FILE
    assert Source.parse("-").kind is SourceKind.FILE
    oci = Source.parse(f"oci:{rootfs}:tag")
    assert (oci.kind, oci.reference and oci.reference.path) == (SourceKind.OCI, rootfs)
    with pytest.raises(InvalidReferenceError):
        Source.parse("oci:")


def test_what_cannot_be_is_said_before_anything_is_read() -> None:
    with pytest.raises(InvalidArgumentsError, match="--bootable needs"):
        read(Source.parse("/no/such/file"), Reading(bootable=True))
    with pytest.raises(InvalidArgumentsError, match="only a directory"):
        read(Source.parse("oci:/no/such/layout"), Reading(as_is=True))


def test_a_directory_becomes_what_an_oci_image_of_it_would_be(rootfs: Path) -> None:
    tree = read(Source.parse(str(rootfs)), PLAIN)
    assert (tree.mtime[ROOT], tree.nsec[ROOT]) == (100, 0)
    assert paths(str(rootfs), PLAIN) == [b"/boot", b"/boot/efi", b"/run", b"/sysroot", b"/usr", b"/usr/file"]


def test_the_boot_image_has_nothing_in_boot(rootfs: Path) -> None:
    found = paths(str(rootfs), Reading(Algorithm.SHA256, bootable=True))
    assert found == [b"/boot", b"/run", b"/sysroot", b"/usr", b"/usr/file"]


def test_a_directory_as_it_is_keeps_everything(rootfs: Path) -> None:
    tree = read(Source.parse(str(rootfs)), Reading(Algorithm.SHA256, as_is=True))
    assert (tree.mtime[ROOT], tree.nsec[ROOT]) == (104, 4)
    assert tree.find(b"/run/lock") is not None


def test_attributes_of_users_are_kept_if_they_are_asked_for(rootfs: Path) -> None:
    try:
        os.setxattr(rootfs / "usr" / "file", "user.mine", b"1")
    except OSError as error:
        pytest.skip(f"this filesystem has no extended attributes: {error.strerror}")
    kept = {}
    for mode in XattrMode:
        tree = read(Source.parse(str(rootfs)), Reading(Algorithm.SHA256, xattrs=mode))
        file = tree.find(b"/usr/file")
        assert file is not None
        kept[mode] = tree.stat(file).xattrs
    assert kept == {XattrMode.ALLOWLIST_ONLY: (), XattrMode.KEEP_USER: ((b"user.mine", b"1"),)}


def test_a_link_to_a_directory_is_followed_if_a_slash_is_behind_it(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(rootfs)
    assert paths(f"{tmp_path}/link/", PLAIN) == paths(str(rootfs), PLAIN)
    with pytest.raises(ComposefsdError, match="Not a directory"):
        paths(f"{tmp_path}/link", PLAIN)


def test_a_dumpfile_is_read_from_a_file_and_from_standard_input(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = b"".join(dumpfile.serialize(read(Source.parse(str(rootfs)), PLAIN)))
    (tmp_path / "dump").write_bytes(dump)
    assert b"".join(dumpfile.serialize(read(Source.parse(str(tmp_path / "dump")), PLAIN))) == dump
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(dump))))
    assert b"".join(dumpfile.serialize(read(Source.parse("-"), PLAIN))) == dump


def test_an_image_is_not_taken_for_a_dumpfile(rootfs: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"".join(write(read(Source.parse(str(rootfs)), PLAIN), FormatVersion.V1)))
    with opened(str(image)) as file:
        assert starts_image(file)
        assert file.tell() == 0
    with pytest.raises(FormatError, match="is an EROFS image"):
        read(Source.parse(str(image)), PLAIN)


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SourceNotFoundError, match=r"/no/such/file cannot be read: No such file"):
        read(Source.parse("/no/such/file"), PLAIN)
