"""Headers that say more about the entry behind them: GNU's long names, and pax."""

from typing import Final

from real.corpus.case import Case, Verdict, blocks, image_case
from real.corpus.headers import file, refused, stricter
from real.layers import directory
from real.rawtar import GNU, Header, Records, long_name, member, padded, pax, raw_pax, record

_SPARSE: Final = (
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.name", b"usr/s"),
    (b"GNU.sparse.realsize", b"9"),
)
_LONG: Final = b"usr/" + b"l" * 150
_PARENT: Final = blocks([directory("usr/" + "p" * 120)])
_DEEP: Final = b"usr/" + b"p" * 120 + b"/name"


def _with(records: Records, name: bytes = b"usr/a", content: bytes = b"c") -> bytes:
    return pax(records) + file(name, content)


CASES: Final[tuple[Case, ...]] = (
    image_case(
        "long names of GNU",
        (
            _PARENT,
            long_name(_DEEP) + file(_DEEP[:100], magic=GNU),
            long_name(_LONG, terminated=False) + file(b"ignored"),
            long_name(b"t" * 300, kind=b"K") + member(Header(b"usr/link", b"2", link=b"t" * 100, magic=GNU)),
            long_name(b"u" * 300, kind=b"K")
            + long_name(b"usr/" + b"m" * 160)
            + member(Header(b"x", b"2", magic=GNU)),
            long_name(b"usr/" + b"n" * 160)
            + long_name(b"v" * 300, kind=b"K")
            + member(Header(b"x", b"2", magic=GNU)),
            long_name(b"usr/short") + file(b"y"),
        ),
    ),
    image_case(
        "long names of pax",
        (
            _PARENT,
            _with([(b"path", _DEEP)], b"ignored"),
            pax([(b"linkpath", b"t" * 300)]) + member(Header(b"usr/link", b"2", link=b"ignored")),
            pax([(b"path", _LONG), (b"linkpath", b"usr/lib/case")]) + member(Header(b"x", b"1")),
            pax([(b"path", b"usr/dir/")]) + member(Header(b"x", b"5")),
        ),
    ),
    image_case(
        "long names of GNU and pax for one entry",
        (
            long_name(b"usr/gnu") + _with([(b"path", b"usr/pax")], b"usr/header"),
            pax([(b"path", b"usr/pax-first")]) + long_name(b"usr/gnu-last") + file(b"usr/header"),
        ),
    ),
    image_case(
        "times of pax in every form",
        tuple(
            _with([(b"mtime", value)], b"usr/%d" % number)
            for number, value in enumerate(
                (
                    b"5",
                    b"5.",
                    b"5.0",
                    b"5.5",
                    b"5.123456789",
                    b"5.1234567891",
                    b"5.000000001",
                    b"5.0000000001",
                    b"05.05",
                    b"+5.5",
                    b"5.+5",
                    b"5.x",
                    b"5.5x",
                    b"5. 5",
                    b"5.-5",
                    b"5.1.2",
                    b"5.999999999",
                    b"0.0",
                    b"9223372036854775807.999999999",
                )
            )
        ),
    ),
    image_case(
        "several times of pax for one entry",
        (_with([(b"mtime", b"5.25"), (b"mtime", b"6.75")]), _with([(b"mtime", b"7"), (b"mtime", b"8.5")], b"usr/b")),
    ),
    image_case(
        "owners and sizes of pax",
        (
            _with([(b"uid", b"70000"), (b"gid", b"4294967295")], b"usr/a"),
            _with([(b"uid", b"+9"), (b"gid", b"007")], b"usr/b"),
            _with([(b"uid", b"4294967297")], b"usr/wraps"),
            _with([(b"size", b"1")], b"usr/same"),
            pax([(b"size", b"700")]) + member(Header(b"usr/larger", size=0), b"s" * 700),
            pax([(b"size", b"3")]) + member(Header(b"usr/smaller", size=700), b"abc"),
            file(b"usr/after"),
        ),
    ),
    image_case(
        "records that mean nothing here",
        (
            _with(
                [
                    (b"atime", b"x"),
                    (b"ctime", b"-1"),
                    (b"uname", b"\xff"),
                    (b"gname", b""),
                    (b"comment", b"a\nb=c\n"),
                    (b"LIBARCHIVE.xattr.user.x", b"eA=="),
                    ("ü".encode(), b"1"),
                    (b"hdrcharset", b"BINARY"),
                ]
            ),
            _with([], b"usr/none"),
        ),
    ),
    image_case(
        "attributes of pax in every form",
        (
            _with(
                [
                    (b"SCHILY.xattr.user.nl", b"a\nb\n12 x=y\n"),
                    (b"SCHILY.xattr.user.e=q", b"v=w"),
                    (b"SCHILY.xattr.user.z", b""),
                    (b"SCHILY.xattr.", b"no name"),
                ]
            ),
            _with([(b"SCHILY.xattr.user.twice", b"1"), (b"SCHILY.xattr.user.twice", b"2")], b"usr/twice"),
        ),
    ),
    refused("a name of an attribute that is not UTF-8", _with([(b"SCHILY.xattr.user.\xff", b"1")]), says="UTF-8"),
    image_case(
        "global headers",
        (
            pax([(b"comment", b"of git archive")], kind=b"g") + file(b"usr/a"),
            pax([(b"path", b"usr/ignored"), (b"mtime", b"77"), (b"uid", b"5")], kind=b"g") + file(b"usr/b"),
            pax([(b"path", b"usr/lost")]) + pax([(b"comment", b"x")], kind=b"g") + file(b"usr/c"),
        ),
    ),
    image_case("an empty path in a record", (_with([(b"path", b"usr/kept"), (b"linkpath", b"")]),)),
    refused("a sparse file of old GNU", member(Header(b"usr/a", b"S", magic=GNU)), says="sparse"),
    refused("a sparse file of pax", _with(_SPARSE, b"usr/s", padded(b"1\n0\n9\n") + b"123456789"), says="sparse"),
    image_case(
        "a sparse file of pax without a map",
        (_with(_SPARSE),),
        ours=Verdict.REFUSED,
        theirs=Verdict.HANGS,
        says="sparse",
        why="composefs-rs looks for the map for ever.",
    ),
    refused(
        "two extension headers of a type",
        pax([(b"uid", b"1")]) + _with([(b"gid", b"1")]),
        says="two extension headers",
    ),
    refused("an extension header without an entry", pax([(b"uid", b"1")]), says="without an entry"),
    refused("a time of pax that is no number", _with([(b"mtime", b"x")]), says="number"),
    refused("a negative time of pax", _with([(b"mtime", b"-1.5")]), says="number"),
    refused("an owner of pax that is no number", _with([(b"uid", b"12x")]), says="number"),
    refused("a size of pax that is no number", _with([(b"size", b"")]), says="number"),
    stricter("a NUL in a path of pax", _with([(b"path", b"usr/a\0b")]), says="NUL", why="No name has a NUL."),
    stricter(
        "a time of pax of 64 bits",
        _with([(b"mtime", b"9223372036854775808")]),
        says="63 bits",
        why="composefs-rs makes a negative time of it, which a dumpfile does not have.",
    ),
    refused(
        "extension headers of more than a MiB",
        _with([(b"comment", b"c" * (1 << 20))]),
        says="extension headers have more",
    ),
    refused("a record cut short", raw_pax(record(b"uid", b"1")[:-1]) + file(b"usr/a"), says="PAX record"),
    refused("a record without a value", raw_pax(b"8 uid12\n") + file(b"usr/a"), says="no value"),
    stricter(
        "a record without a length",
        raw_pax(b"uid=1\n") + file(b"usr/a"),
        says="no length",
        why="composefs-rs passes over malformed records, so that another tar reader may see another tree.",
    ),
    refused("a record of a wrong length", raw_pax(b"12 uid=1\n") + file(b"usr/a"), says="length"),
)
