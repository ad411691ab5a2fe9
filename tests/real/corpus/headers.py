"""How tars say things in the fields of a header, and how they end."""

from typing import Final

from real.corpus.case import BASE, Case, Verdict, blocks, image_case, layout_case, tar
from real.layers import directory, regular, symlink
from real.oci_layout import Layout
from real.rawtar import (
    END,
    GNU,
    V7,
    Header,
    base256,
    member,
    spaced,
)

_PARENT: Final = blocks([directory("usr/" + "p" * 120)])


def file(name: bytes, content: bytes = b"c", **fields: object) -> bytes:
    """A regular file; the fields are those of `Header`."""
    return member(Header(name, size=len(content), **fields), content)  # type: ignore[arg-type]  # fields of a Header


def refused(name: str, *pieces: bytes, says: str) -> Case:
    """A tar that neither side takes."""
    return image_case(name, pieces, ours=Verdict.REFUSED, says=says)


def stricter(name: str, *pieces: bytes, says: str, why: str) -> Case:
    """A tar that composefs-rs takes and we do not."""
    return image_case(name, pieces, ours=Verdict.REFUSED, theirs=Verdict.IMAGES, says=says, why=why)


_FIELDS: Final = (
    image_case(
        "numbers between spaces, without zeros, and in base 256",
        (
            member(
                Header(
                    b"usr/spaces",
                    mode=spaced(0o755, 8),
                    uid=spaced(5, 8),
                    gid=spaced(6, 8),
                    size=spaced(3, 12),
                    mtime=spaced(99, 12),
                ),
                b"abc",
            ),
            member(Header(b"usr/short", mode=b"644", uid=b"7\0\0junk", gid=b"", size=b"2", mtime=b" 12 "), b"ab"),
            member(Header(b"usr/full", mode=b"00000644", size=b"000000000001", mtime=b"77777777777 "), b"a"),
            member(
                Header(
                    b"usr/binary",
                    uid=base256(3_000_000_000, 8),
                    gid=base256(70_000, 8),
                    size=base256(600, 12),
                    mtime=base256(2**35, 12),
                ),
                b"z" * 600,
            ),
        ),
    ),
    image_case(
        "more than 32 bits of mode and owner",
        (member(Header(b"usr/a", mode=base256(1 << 32 | 0o600, 8), uid=base256(1 << 40 | 9, 8))),),
    ),
    image_case(
        "headers of the seventh edition",
        (
            member(Header(b"usr/v7", size=3, magic=V7), b"abc"),
            member(Header(b"usr/v7dir", b"5", magic=V7)),
            member(Header(b"usr/v7link", b"1", link=b"usr/v7", magic=V7)),
            member(Header(b"usr/nul", b"\0", size=1, magic=V7), b"n"),
        ),
    ),
    image_case(
        "headers of GNU",
        (
            member(Header(b"usr/gnu", size=3, magic=GNU, prefix=b"not a prefix"), b"abc"),
            member(Header(b"usr/dev", b"3", magic=GNU, major=1, minor=3)),
            member(Header(b"usr/contiguous", b"7", size=100, magic=GNU), b"c" * 100),
        ),
    ),
    image_case(
        "a prefix",
        (
            _PARENT,
            member(Header(b"name", size=1, prefix=b"usr/" + b"p" * 120), b"1"),
            member(Header(b"other", size=1, prefix=b"usr"), b"2"),
            member(Header(b"n" * 100, size=1, prefix=b"usr"), b"3"),
            member(Header(b"slash", size=1, prefix=b"/usr/"), b"4"),
        ),
    ),
    image_case(
        "a name that fills its field",
        (member(Header(b"usr/" + b"n" * 96)), member(Header(b"usr/l", b"2", link=b"t" * 100))),
    ),
    image_case(
        "content of entries that have none",
        (
            member(Header(b"usr/d", b"5", size=600), b"d" * 600),
            member(Header(b"usr/s", b"2", size=3, link=b"x"), b"sss"),
            member(Header(b"usr/h", b"1", size=5, link=b"usr/lib/case"), b"hhhhh"),
            member(Header(b"usr/p", b"6", size=1), b"p"),
            member(Header(b"usr/c", b"3", size=1, major=1, minor=3), b"c"),
            file(b"usr/after"),
        ),
    ),
    image_case(
        "a file whose name ends in a slash", (file(b"usr/slash/"), member(Header(b"usr/old/", b"\0", magic=V7)))
    ),
    image_case(
        "a signed checksum",
        (member(Header(b"usr/\xff\xfe", size=1, signed_sum=True), b"s"),),
        ours=Verdict.IMAGES,
        theirs=Verdict.REFUSED,
        why="POSIX has readers accept the sums of old tars, which added bytes up as signed.",
    ),
    refused(
        "a wrong checksum", member(Header(b"usr/a", sum_error=1)), says="tar entry at byte .*checksum is wrong by"
    ),
    refused(
        "a checksum that is off by the modulus of Adler-32",
        member(Header(b"usr/a", sum_error=65521)),
        says="checksum",
    ),
    refused("a number that is not octal", member(Header(b"usr/a", uid=b"00009\0")), says="octal"),
    refused("an entry without a name", member(Header(b"")), says="without a path"),
    refused("an unknown type", member(Header(b"usr/a", b"D", magic=GNU)), says="type b'D'"),
    refused("a device in a header of the seventh edition", member(Header(b"usr/a", b"3", magic=V7)), says="device"),
    refused("a size beyond the archive", member(Header(b"usr/a", size=1 << 30)), says="ends|cut short"),
    refused("a size of 63 bits", member(Header(b"usr/a", size=base256((1 << 63) - 1, 12))), says="63 bits|more than"),
    stricter(
        "a negative time",
        member(Header(b"usr/a", mtime=base256(-1, 12))),
        says="negative",
        why="A dumpfile has no time before 1970.",
    ),
    stricter(
        "a negative owner",
        member(Header(b"usr/a", uid=base256(-2, 8))),
        says="negative",
        why="composefs-rs takes the low bits of the number.",
    ),
    stricter(
        "a time of more than 64 bits",
        member(Header(b"usr/a", mtime=base256(1 << 70, 12))),
        says="64 bits",
        why="composefs-rs takes the low bits of the number.",
    ),
    stricter(
        "a time of 64 bits",
        member(Header(b"usr/a", mtime=base256(1 << 63, 12))),
        says="63 bits",
        why="composefs-rs makes a negative time of it, which a dumpfile does not have.",
    ),
)

_ENDS: Final = (
    layout_case(
        "no blocks of zeros behind content", lambda layout: _with_end(layout, member(Header(b"usr/z", size=1), b"z"))
    ),
    layout_case(
        "no blocks of zeros behind an entry without content",
        lambda layout: _with_end(layout, b""),
        theirs=Verdict.REFUSED,
        why="composefs-rs takes such a layer in, but wants content behind the last header when it makes an image.",
    ),
    layout_case("bytes behind the end", lambda layout: _with_end(layout, END + b"behind" + bytes(10_000))),
    layout_case(
        "a second archive behind the end", lambda layout: _with_end(layout, END + tar([regular("usr/second")]))
    ),
    layout_case("a record of ten KiB", lambda layout: _with_end(layout, bytes(10240))),
    layout_case("a part of a block behind the end", lambda layout: _with_end(layout, END + bytes(100))),
)


def _with_end(layout: Layout, end: bytes) -> None:
    name = f"usr/lib/{len(end)}"
    layout.add_image("image", [blocks([*BASE, regular(name, b"x" * 100), symlink("usr/s", "t")]) + end])


CASES: Final[tuple[Case, ...]] = (*_FIELDS, *_ENDS)
