"""`diff` without a daemon: what it prints, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from composefsd.client.cli import main
from composefsd.client.exits import Exit
from composefsd.client.schema import describe
from composefsd.operations.difference_lines import line, record, rows
from composefsd.tree.difference import Aspect, Change, Changed, Only, Side
from composefsd.tree.table import Kind

ROOT_LINE = b"/ 0 40755 2 0 0 0 0.0 - - -\n"
FILE = b"/f 1 100644 1 0 0 0 0.0 - x -\n"


@pytest.fixture
def dumps(tmp_path: Path) -> tuple[str, str]:
    """Two dumpfiles; the second has a file with a hostile name more."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(ROOT_LINE + FILE)
    b.write_bytes(ROOT_LINE + FILE.replace(b"644", b"600") + b"/\\x1b[31mred 0 100644 1 0 0 0 0.0 - - -\n")
    return str(a), str(b)


# Lines


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Only(b"/a b", Side.A, Kind.INLINE, 1, 0, None), r"only in A: /a\x20b (file, 1 byte)"),
        (Only(b"/a", Side.B, Kind.EXTERNAL, 1234, 0, b"/b"), "only in B: /a (file, 1,234 bytes, hard link to /b)"),
        (Only(b"/d", Side.B, Kind.DIRECTORY, 0, 1000, None), "only in B: /d (directory, with 1,000 names below)"),
        (Only(b"/d", Side.B, Kind.DIRECTORY, 0, 1, None), "only in B: /d (directory, with 1 name below)"),
        (Only(b"/s", Side.A, Kind.SOCKET, 0, 0, None), "only in A: /s (socket)"),
    ],
)
def test_a_name_on_one_side_is_one_line(found: Only, expected: str) -> None:
    assert [line(row) for row in rows(found)] == [expected]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change(Aspect.TYPE, Kind.INLINE, Kind.SYMLINK), "type file -> symlink"),
        (Change(Aspect.MODE, 0o644, 0o4755), "mode 0644 -> 4755"),
        (Change(Aspect.UID, 0, 1000), "uid 0 -> 1000"),
        (Change(Aspect.MTIME, (5, 6), (-1, 500_000_000)), "mtime 5.000000006 -> -0.500000000"),
        (Change(Aspect.DEVICE, 0x801, 0x12300405), "rdev 8:1 -> 4:74501"),
        (Change(Aspect.SIZE, 1, 2), "size 1 -> 2"),
        (Change(Aspect.STORAGE, Kind.SPARSE, Kind.UNVERIFIED), "storage zeros -> object-without-digest"),
        (Change(Aspect.DIGEST, b"\x12" * 32, None), "digest 1212121212121212... -> none"),
        (Change(Aspect.CONTENT, b"", b"a\nb"), r"content empty -> a\nb"),
        (Change(Aspect.TARGET, b"../x", b"y"), "target ../x -> y"),
        (Change(Aspect.XATTR, None, b"\0", b"user.a"), r"xattr user.a none -> \x00"),
        (Change(Aspect.LINK, b"/g", None), "link a hard link to /g -> an inode of its own"),
    ],
)
def test_each_change_is_a_line(change: Change, expected: str) -> None:
    assert [line(row) for row in rows(Changed(b"/f", (change,)))] == [f"/f: {expected}"]


def test_the_directory_that_took_a_files_place_tells_how_much_is_in_it() -> None:
    change = Change(Aspect.TYPE, Kind.INLINE, Kind.DIRECTORY)
    (row,) = rows(Changed(b"/f", (change,), 5))
    assert line(row) == "/f: type file -> directory with 5 names below"


def test_long_values_are_cut_and_tell_their_length() -> None:
    (row,) = rows(Changed(b"/f", (Change(Aspect.XATTR, b"x" * 70_000, b"y" * 64, b"n" * 255),)))
    shown = line(row)
    assert len(shown) < 600
    assert f"{'x' * 64}...(70000 bytes) -> {'y' * 64}" in shown
    recorded = record(row, is_stored=True)
    assert recorded["a"] == "x" * 4096 + "...(70000 bytes)"
    (row,) = rows(Only(b"/" + b"\xff" * 600_000, Side.A, Kind.FIFO, 0, 0, None))
    assert len(line(row)) < 17_000


# The verb


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["diff", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    status, out, err = ask(capsys, *arguments, "--json")
    assert not err
    return status, json.loads(out)


def test_differences_follow_the_digests_and_it_is_status_1(
    dumps: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ask(capsys, *dumps)
    first, second, *rest = out.splitlines()
    assert re.fullmatch(rf"A  sha512:[0-9a-f]{{128}}  v1 dumpfile {dumps[0]}", first)
    assert second.startswith("B  sha512:")
    assert rest == [r"only in B: /\x1b[31mred (file, 0 bytes)", "/f: mode 0644 -> 0600"]
    assert (status, err) == (Exit.DIFFERENT, "")


def test_equal_digests_are_status_0(dumps: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, dumps[0], dumps[0])
    assert (status, out.splitlines()[2:]) == (Exit.DONE, ["the digests are equal"])


def test_trouble_is_status_2_and_one_line(
    dumps: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_bytes(b"what is this")
    for arguments in (
        [dumps[0], "/no/such/file"],
        [dumps[0], str(tmp_path / "bad")],
        ["-", "-"],
        [dumps[0], "oci:"],
        [dumps[0], "oci:/no/such/layout"],
        [dumps[0], "image:os", "--bus=unix:path=/no/such/bus", "--no-propagate-usr-to-root"],
        [dumps[0], str(tmp_path)],  # without /usr
    ):
        status, out, err = ask(capsys, *arguments)
        assert (status, out) == (Exit.TROUBLE, "")
        assert err.startswith("composefsctl: ")
        assert err.count("\n") == 1


def test_an_image_of_a_daemon_that_is_not_there_is_status_5(
    dumps: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = ask(capsys, dumps[0], "image:os", "--bus=unix:path=/no/such/bus")
    assert status == Exit.NO_SERVICE
    assert "cannot connect" in err


def test_json_has_the_keys_that_the_help_tells(dumps: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, found = ask_json(capsys, *dumps)
    assert status == Exit.DIFFERENT
    assert [text.strip() for text in describe("diff").splitlines()[1:]] == list(found)
    assert (found["equal"], found["differences_total"], found["unstored_total"]) == (False, 2, 0)
    assert found["a"]["kind"] == "dumpfile"
    assert found["differences"] == [
        {
            "path": r"/\x1b[31mred", "only_in": "b", "type": "file", "size": 0, "names_below": 0, "link": None,
        },
        {
            "path": "/f", "change": "mode", "xattr": None, "a": "0644", "b": "0600", "names_below": 0,
            "stored": True,
        },
    ]  # fmt: skip


def test_no_more_is_told_than_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(ROOT_LINE)
    lines = (b"/f%03d 0 100644 1 0 0 0 0.0 - - -\n" % number for number in range(150))
    (tmp_path / "b").write_bytes(ROOT_LINE + b"".join(lines))
    sides = [str(tmp_path / "a"), str(tmp_path / "b")]
    for arguments, told, left in (([], 100, 50), (["--limit", "7"], 7, 143), (["--limit=0"], 150, 0)):
        _, out, _ = ask(capsys, *sides, *arguments)
        rest = out.splitlines()[2:]
        assert sum(text.startswith("only in B") for text in rest) == told
        assert rest[told:] == ([f"and {left} more; --limit 0 shows all"] if left else [])
        _, found = ask_json(capsys, *sides, *arguments)
        assert (len(found["differences"]), found["differences_total"]) == (told, 150)


def test_what_a_format_does_not_store_is_told_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(ROOT_LINE)
    (tmp_path / "b").write_bytes(ROOT_LINE.replace(b"0.0", b"0.7"))
    sides = [str(tmp_path / "a"), str(tmp_path / "b"), "--format=v2"]
    status, out, _ = ask(capsys, *sides)
    told = "nanoseconds that differ, and which format v2 does not store: 1 times"
    assert (status, out.splitlines()[2:]) == (Exit.DONE, [told, "the digests are equal"])
    _, out, _ = ask(capsys, *sides, "--verbose")
    assert out.splitlines()[2] == "/: mtime 0.000000000 -> 0.000000007 (not stored)"
    _, found = ask_json(capsys, *sides)
    assert (found["equal"], found["differences"], found["unstored_total"]) == (True, [], 1)
    assert [reason["code"] for reason in found["reasons"]] == ["unstored"]


def test_a_reader_who_leaves_early_is_no_difference(dumps: tuple[str, str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", "import sys; from composefsd.client.cli import main; sys.exit(main())"]
    try:
        done = subprocess.run(
            [*command, "diff", *dumps], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (Exit.TROUBLE, "")
