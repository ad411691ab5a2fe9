"""Links, and entries that meet others of the same name."""

from typing import Final

from real.corpus.case import Case, Verdict, image_case
from real.layers import (
    char_device,
    directory,
    fifo,
    hard_link,
    regular,
    symlink,
    whiteout,
)

_BIG: Final = b"x" * 100
_FILE: Final = regular("usr/file", _BIG, mtime_sec=9, xattrs={"user.of": b"file"})

_LINKS: Final = (
    image_case(
        "hard links in a layer",
        (
            _FILE,
            regular("usr/small", b"s"),
            symlink("usr/symlink", "file"),
            char_device("usr/null", 1, 3),
            fifo("usr/fifo"),
            *(hard_link(f"etc/{name}", f"usr/{name}") for name in ("file", "small", "symlink", "null", "fifo")),
        ),
    ),
    image_case("hard links across layers", (_FILE,), (hard_link("etc/a", "usr/file"),), (hard_link("z", "etc/a"),)),
    image_case(
        "a chain of hard links", (_FILE, *(hard_link(f"usr/{n}", f"usr/{n - 1 or 'file'}") for n in range(1, 9)))
    ),
    image_case(
        "a hard link to a file that is replaced later",
        (_FILE, hard_link("etc/old", "usr/file")),
        (regular("usr/file", b"new"), hard_link("etc/new", "usr/file")),
    ),
    image_case(
        "a hard link that outlives the name it was made from",
        (_FILE, hard_link("etc/other", "usr/file")),
        (whiteout("usr/file"), hard_link("etc/third", "etc/other")),
    ),
    image_case(
        "a hard link in place of its own target, a directory and a link",
        (_FILE, directory("usr/d"), regular("usr/d/e", b"1"), symlink("usr/s", "d")),
        (hard_link("usr/file", "usr/file"), hard_link("usr/d", "usr/file"), hard_link("usr/s", "usr/file")),
    ),
    image_case(
        "spellings of a hard link's target",
        (
            _FILE,
            *(
                hard_link(f"etc/{number}", target)
                for number, target in enumerate(("/usr/file", "./usr/file", "usr//file", "usr/./file/", "//usr/file"))
            ),
        ),
    ),
    image_case(
        "metadata in the header of a hard link",
        (_FILE, hard_link("etc/a", "usr/file"), regular("etc/b", b"b", uid=5, xattrs={"user.b": b"b"})),
    ),
    image_case(
        "a hard link to a missing file", (hard_link("usr/a", "usr/none"),), ours=Verdict.REFUSED, says="usr/none"
    ),
    image_case(
        "a hard link to a deleted file",
        (_FILE,),
        (whiteout("usr/file"), hard_link("usr/a", "usr/file")),
        ours=Verdict.REFUSED,
        says="usr/file",
    ),
    image_case("a hard link to a directory", (hard_link("a", "usr/lib"),), ours=Verdict.REFUSED, says="usr/lib"),
    image_case("a hard link to the root", (hard_link("a", "/"),), ours=Verdict.REFUSED, says="no file: a to /"),
    image_case(
        "a hard link's target through `..`",
        (_FILE, hard_link("etc/a", "usr/../usr/file")),
        ours=Verdict.REFUSED,
        says="etc/a",
    ),
    image_case(
        "a hard link's target through a symbolic link",
        (_FILE, symlink("u", "usr"), hard_link("etc/a", "u/file")),
        ours=Verdict.REFUSED,
        says="etc/a",
    ),
    image_case(
        "a hard link to a device 0:0, which overlayfs takes for a whiteout",
        (char_device("usr/none", 0, 0), hard_link("usr/also", "usr/none")),
        ours=Verdict.REFUSED,
        says="a whiteout has more than one name",
    ),
    image_case(
        "a hard link to a device 0:0 that keeps one name",
        (char_device("usr/none", 0, 0), hard_link("usr/also", "usr/none")),
        (whiteout("usr/none"),),
    ),
    image_case(
        "symbolic links",
        (
            symlink("usr/empty", ""),
            symlink("usr/dash", "-"),
            symlink("usr/loop", "loop"),
            symlink("usr/up", "../../../../etc"),
            symlink("usr/bytes", b"\xff\n\t =\\"),
            symlink("usr/long", "t" * 1023, mode=0o640, uid=7),
        ),
    ),
)

_MEETINGS: Final = (
    image_case(
        "the same names again in a layer",
        (
            regular("usr/a", _BIG, uid=1),
            regular("usr/a", b"second", uid=2),
            directory("usr/d", mode=0o700, xattrs={"user.d": b"1"}),
            regular("usr/d/kept", b"k"),
            directory("usr/d", mode=0o711, mtime_sec=77),
            symlink("usr/s", "a"),
            symlink("usr/s", "b"),
        ),
    ),
    image_case(
        "the same names again in later layers",
        (regular("usr/a", _BIG), directory("usr/d"), regular("usr/d/kept", b"k")),
        (regular("usr/a", b"new"), directory("usr/d", mode=0o500, uid=9)),
        (directory("usr/d", mode=0o501, xattrs={"user.later": b"x"}), regular("usr/d/more", b"m")),
    ),
    image_case(
        "files, directories and symbolic links in place of each other",
        (
            *(regular(f"usr/file-{kind}", _BIG) for kind in "dls"),
            *(directory(f"usr/dir-{kind}") for kind in "fls"),
            *(regular(f"usr/dir-{kind}/inside", b"i") for kind in "fls"),
            *(symlink(f"usr/link-{kind}", "lib") for kind in "fds"),
        ),
        (
            directory("usr/file-d"),
            regular("usr/file-d/inside", b"j"),
            symlink("usr/file-l", "lib"),
            fifo("usr/file-s"),
            regular("usr/dir-f", b"now a file"),
            symlink("usr/dir-l", "lib"),
            char_device("usr/dir-s", 5, 1),
            regular("usr/link-f", b"now a file"),
            directory("usr/link-d"),
            regular("usr/link-d/inside", b"own"),
            fifo("usr/link-s"),
        ),
        (directory("usr/dir-l"), regular("usr/dir-l/again", b"a"), directory("usr/dir-f", mode=0o777)),
    ),
    image_case(
        "a directory that goes away and comes back in one layer",
        (
            directory("usr/d"),
            regular("usr/d/a", b"1"),
            regular("usr/d", b"f"),
            directory("usr/d"),
            regular("usr/d/b"),
        ),
    ),
    image_case(
        "entries for the root",
        (
            directory(".", mode=0o111, uid=3),
            directory("/", mode=0o222),
            directory("./", mode=0o333, mtime_sec=4),
            directory("usr/lib/..", mode=0o444),
            directory("..", mode=0o555, xattrs={"security.capability": b"root"}),
        ),
    ),
    image_case(
        "spellings of a path",
        (
            directory("./usr/one"),
            directory("/usr/two//"),
            directory("usr//one/./in"),
            regular("/./usr/one/in/f", b"1"),
            regular("//usr/two/./g", b"2"),
            symlink("usr/three/", "x"),
            regular("usr/four/.", b"4"),
        ),
    ),
    image_case("an entry without a parent", (regular("usr/none/a"),), ours=Verdict.REFUSED, says="usr/none/a"),
    image_case("an entry below a file", (_FILE, regular("usr/file/a")), ours=Verdict.REFUSED, says="usr/file/a"),
    image_case(
        "an entry below a symbolic link",
        (symlink("bin", "usr"), regular("bin/a")),
        ours=Verdict.REFUSED,
        says="bin/a",
    ),
    image_case(
        "an entry below a deleted directory",
        (directory("usr/d"),),
        (whiteout("usr/d"), regular("usr/d/a")),
        ours=Verdict.REFUSED,
        says="usr/d/a",
    ),
    image_case("a path through `..`", (regular("usr/../etc/a"),), ours=Verdict.REFUSED, says=r"usr/\.\./etc/a"),
    image_case("a path out of the image", (regular("../../etc/a"),), ours=Verdict.REFUSED, says=r"\.\./\.\./etc/a"),
    image_case("a file in place of the root", (regular("./", b"x"),), ours=Verdict.REFUSED, says="root"),
    image_case("a symbolic link in place of the root", (symlink("/", "usr"),), ours=Verdict.REFUSED, says="root"),
)

CASES: Final[tuple[Case, ...]] = (*_LINKS, *_MEETINGS)
