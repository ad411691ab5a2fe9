"""Lookups and reading."""

from collections.abc import Callable
from typing import Any

import pytest

from composefsd.boot import files
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.tree.table import ROOT, Kind

MakeImage = Callable[..., Any]

CONTENTS = {
    "/dir/inline": b"small",
    "/dir/external": b"x" * 100,
    "/dir/sparse": 1000,
    "/dir/sub/file": b"",
    "/dir/link": "inline",
    "/dir/fifo": Kind.FIFO,
}


@pytest.mark.parametrize(
    "path", [b"/dir/inline", b"dir/inline", b"//dir/./inline", b"/./dir//inline/", b"/dir/inline/."]
)
def test_paths_are_cut_as_in_rust(image: MakeImage, path: bytes) -> None:
    made = image(CONTENTS)
    assert files.read_file(made.tree, files.get_file(made.tree, path), made.read, 10) == b"small"


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (b"", "names no file"),
        (b"/", "names no file"),
        (b".", "names no file"),
        (b"/dir/..", "names no file"),
        (b"./dir/inline", "names no file"),
        (b"/dir/../dir/inline", "names no file"),
        (b"/dir/none", "has no file"),
        (b"/none/inline", "has no directory"),
        (b"/dir/inline/x", "not a directory"),
        (b"/dir/link/x", "not a directory"),
        (b"/dir/link", "not a regular file"),
        (b"/dir/fifo", "not a regular file"),
        (b"/dir/sub", "not a regular file"),
        (b"/dir/\xff", r"\\xff"),
    ],
)
def test_what_is_no_file_is_told_so(image: MakeImage, path: bytes, match: str) -> None:
    with pytest.raises(NotBootableError, match=match):
        files.get_file(image(CONTENTS).tree, path)


def test_a_missing_directory_is_none_and_another_thing_in_its_place_an_error(image: MakeImage) -> None:
    tree = image(CONTENTS).tree
    assert files.find_directory(tree, b"/none/below") is None
    assert files.find_directory(tree, b"") == ROOT
    assert files.find_directory(tree, b"sub", files.get_directory(tree, b"/dir")) is not None
    with pytest.raises(NotBootableError, match="component"):
        files.find_directory(tree, b"/dir/../dir")
    with pytest.raises(NotBootableError, match="link is not a directory"):
        files.find_directory(tree, b"/dir/link/below")


def test_every_kind_of_file_is_read(image: MakeImage) -> None:
    made = image(CONTENTS)
    for name, content in ((b"inline", b"small"), (b"external", b"x" * 100), (b"sparse", bytes(1000))):
        inode = files.get_file(made.tree, b"/dir/" + name)
        assert files.read_file(made.tree, inode, made.read, 1000) == content
        for offset, count in ((0, 3), (2, 2000), (2000, 5), (4, 0)):
            part = files.read_range(made.tree, inode, made.ranges, offset, count)
            assert part == content[offset : offset + count]
        with pytest.raises(LimitExceededError):
            files.read_file(made.tree, inode, made.read, 2)


def test_an_object_of_another_size_is_refused(image: MakeImage) -> None:
    made = image(CONTENTS)
    inode = files.get_file(made.tree, b"/dir/external")
    made.objects[made.tree.digest(inode)] = b"short"
    with pytest.raises(FormatError, match="ends after 5 bytes"):
        files.read_file(made.tree, inode, made.read, 1000)
    with pytest.raises(FormatError, match="ends after 5 bytes"):
        files.read_range(made.tree, inode, made.ranges, 2, 50)
