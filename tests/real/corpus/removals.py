"""Whiteouts and opaque directories, which composefs-rs takes in the order of the archive."""

from typing import Final

from real.corpus.case import Case, Verdict, image_case
from real.layers import directory, hard_link, opaque, regular, symlink, whiteout

_BELOW: Final = (
    directory("usr/d", mode=0o700),
    regular("usr/d/a", b"a" * 100),
    directory("usr/d/sub"),
    regular("usr/d/sub/b", b"b"),
    symlink("usr/d/l", "a"),
)

CASES: Final[tuple[Case, ...]] = (
    image_case(
        "an opaque directory, marked first", _BELOW, (directory("usr/d"), opaque("usr/d"), regular("usr/d/n"))
    ),
    image_case("an opaque directory, marked last", _BELOW, (directory("usr/d"), regular("usr/d/n"), opaque("usr/d"))),
    image_case(
        "an opaque directory, marked in between",
        _BELOW,
        (regular("usr/d/before", b"1"), opaque("usr/d"), regular("usr/d/after", b"2")),
    ),
    image_case("an opaque directory without an entry of its own", _BELOW, (opaque("usr/d"),)),
    image_case("a new directory that is opaque", (directory("usr/n"), opaque("usr/n"), regular("usr/n/a", b"1"))),
    image_case(
        "an opaque root",
        (directory("gone"), regular("file", b"1")),
        (
            regular(".wh..wh..opq"),
            directory("usr", mode=0o711, mtime_sec=4),
            directory("boot", mtime_sec=3),
            directory("sysroot", mtime_sec=2),
        ),
    ),
    image_case(
        "an opaque root that leaves nothing", (), (regular(".wh..wh..opq"),), ours=Verdict.REFUSED, says="/usr"
    ),
    image_case("an opaque mark twice", _BELOW, (opaque("usr/d"), regular("usr/d/n"), opaque("usr/d"))),
    image_case("whiteouts in front of entries", _BELOW, (whiteout("usr/d/a"), regular("usr/d/a", b"new"))),
    image_case(
        "whiteouts behind entries", _BELOW, (regular("usr/d/n", b"new"), whiteout("usr/d/n"), whiteout("usr/d/a"))
    ),
    image_case(
        "a whiteout of a directory", _BELOW, (whiteout("usr/d"),), (directory("usr/d"), regular("usr/d/again"))
    ),
    image_case(
        "a whiteout of a directory that the same layer brings anew",
        _BELOW,
        (whiteout("usr/d"), directory("usr/d", mode=0o755), regular("usr/d/n", b"1")),
    ),
    image_case("a whiteout of a missing name", _BELOW, (whiteout("usr/d/none"), whiteout("none"))),
    image_case("a whiteout of no name", _BELOW, (regular("usr/d/.wh."), regular(".wh."))),
    image_case(
        "whiteouts of names that are dots",
        _BELOW,
        (regular("usr/d/.wh.."), regular("usr/d/.wh..."), regular("usr/d/sub/.wh....")),
    ),
    image_case(
        "the reserved names of aufs",
        (*_BELOW, directory("usr/.wh..wh.plnk"), regular("usr/d/.wh..wh.aufs", b"x")),
        (regular("usr/.wh..wh.orph"), directory("usr/d/.wh..wh..opq")),
    ),
    image_case(
        "whiteouts that are links, directories, or have content",
        _BELOW,
        (
            directory("usr/d/.wh.sub"),
            symlink("usr/d/.wh.l", "x"),
            regular("usr/d/.wh.a", b"c" * 600),
            hard_link("usr/.wh.d", "usr/lib/case"),
        ),
    ),
    image_case(
        "a whiteout of one of two names",
        (*_BELOW, hard_link("usr/other", "usr/d/a")),
        (whiteout("usr/d/a"),),
        (whiteout("usr/d"), hard_link("usr/third", "usr/other")),
    ),
    image_case("a whiteout of a whiteout", _BELOW, (regular("usr/d/.wh..wh.a"),), (whiteout("usr/d/a"),)),
    image_case("a whiteout in the layer's own future", (whiteout("usr/d"), *_BELOW)),
    image_case("a whiteout of /boot that is brought anew", (), (whiteout("boot"), directory("boot", mtime_sec=1))),
    image_case(
        "a whiteout in a missing directory", (whiteout("usr/none/a"),), ours=Verdict.REFUSED, says=r"usr/none/\.wh\.a"
    ),
    image_case(
        "an opaque mark in a missing directory",
        (opaque("usr/none"),),
        ours=Verdict.REFUSED,
        says=r"usr/none/\.wh\.\.wh\.\.opq",
    ),
    image_case(
        "an opaque mark below a symbolic link",
        (*_BELOW, symlink("u", "usr")),
        (opaque("u/d"),),
        ours=Verdict.REFUSED,
        says="u/d/",
    ),
    image_case("a whiteout of /usr", (), (whiteout("usr"),), ours=Verdict.REFUSED, says="/usr"),
)
