"""What entries can be: sizes, names, modes, times, owners, attributes, devices."""

from typing import Final

from real.corpus.case import Case, Verdict, image_case
from real.layers import block_device, char_device, directory, fifo, hard_link, regular, symlink

_SIZES: Final = (
    0,
    1,
    63,
    64,
    65,
    511,
    512,
    513,
    1023,
    1024,
    1025,
    4095,
    4096,
    4097,
    8191,
    8192,
    8193,
    65535,
    65536,
    65537,
)
_CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")


def _content(size: int) -> bytes:
    return bytes((7 * at + size) % 251 for at in range(size))


_XATTRS: Final = {
    "user.empty": b"",
    "user.binary": bytes(range(256)),
    "user.text": b"a = b\n\tc -",
    "user.key=with,signs": b"1",
    "security.capability": _CAPABILITY,
    "security.selinux": b"system_u:object_r:stale_t:s0\0",
    "security.ima": b"\3\2",
    "trusted.overlay.opaque": b"y",
    "trusted.overlay.redirect": b"/x",
    "user.overlay.whiteout": b"",
    "system.posix_acl_access": bytes.fromhex("02000000010006000000000004000400"),
    "unknown.name": b"u",
    "nodot": b"n",
    "user.": b"only a prefix",
}

CASES: Final[tuple[Case, ...]] = (
    image_case("sizes around all boundaries", tuple(regular(f"usr/{size}", _content(size)) for size in _SIZES)),
    image_case("a large file", (regular("usr/large", _content(251) * 40_000),)),
    image_case(
        "the same content in many files",
        tuple(regular(f"usr/{number}", _content(5000), uid=number % 3) for number in range(20)),
    ),
    image_case(
        "names that are no text",
        (
            regular(b"usr/\xff\xfe", b"1"),
            directory(b"usr/\x80dir"),
            regular(b"usr/\x80dir/\xc3\x28", b"2"),
            regular("usr/é日本", b"3"),
            regular(b"usr/\x01\x1f\x7f", b"4"),
            regular(b"usr/new\nline\ttab\rreturn", b"5"),
            regular("usr/ sp ace ", b"6"),
            regular("usr/back\\slash", b"7"),
            regular("usr/e=q", b"8"),
            regular("usr/-", b"-"),
            regular("-", b"-"),
            symlink("usr/@link", "@"),
        ),
    ),
    image_case(
        "names of 255 bytes",
        (
            directory("usr/" + "d" * 255),
            regular("usr/" + "d" * 255 + "/" + "f" * 255, b"1"),
            regular("usr/" + "é" * 127),
        ),
    ),
    image_case(
        "a name of 256 bytes",
        (regular("usr/" + "n" * 256),),
        ours=Verdict.REFUSED,
        theirs=Verdict.IMAGES,
        says="256 bytes: usr/nnn",
        why="No kernel could look up such a name in the image.",
    ),
    image_case(
        "a path of more than 4096 bytes",
        (*(directory("usr" + "/d" * depth) for depth in range(1, 2060)),),
        ours=Verdict.REFUSED,
        theirs=Verdict.IMAGES,
        says="4096 are allowed",
        why="It is longer than Linux's PATH_MAX.",
    ),
    image_case("a deep tree", tuple(directory("usr" + "/deep" * depth) for depth in range(1, 200))),
    image_case("a wide directory", tuple(regular(f"usr/lib/{number}", b"%d" % number) for number in range(700))),
    image_case(
        "an order of names that is not that of paths",
        tuple(map(directory, ("usr/a", "usr/a/b", "usr/a-b", "usr/a.b"))),
    ),
    image_case(
        "all permissions",
        (
            *(regular(f"usr/f{mode:o}", b"m", mode=mode) for mode in (0, 0o4755, 0o2755, 0o6711, 0o7777, 0o1644)),
            *(directory(f"usr/d{mode:o}", mode=mode) for mode in (0, 0o1777, 0o2755, 0o4000)),
            regular("usr/with-type", b"t", mode=0o100644),
            directory("usr/dir-with-type", mode=0o40755),
        ),
    ),
    image_case(
        "a mode with the type of something else",
        (regular("usr/a", b"1", mode=0o40755), symlink("usr/s", "a", mode=0o100777)),
    ),
    image_case(
        "owners of up to 32 bits",
        tuple(
            regular(f"usr/{uid}-{gid}", b"o", uid=uid, gid=gid)
            for uid in (0, 65535, 65536, 2097151, 2097152, 4294967295)
            for gid in (0, 65536, 4294967294)
        ),
    ),
    image_case(
        "times from 1970 to far away",
        tuple(
            regular(f"usr/{number}", b"t", mtime_sec=seconds, mtime_nsec=nanoseconds)
            for number, (seconds, nanoseconds) in enumerate(
                (
                    (0, 0),
                    (0, 1),
                    (1, 999_999_999),
                    (2**31 - 1, 0),
                    (2**31, 5),
                    (2**32, 0),
                    (2**34, 1),
                    (8**11 - 1, 0),
                    (8**11, 7),
                )
            )
        ),
    ),
    image_case(
        "extended attributes of all kinds",
        (
            regular("usr/file", b"x" * 100, xattrs=_XATTRS),
            regular("usr/empty", xattrs=_XATTRS),
            directory("usr/dir", xattrs=_XATTRS),
            symlink("usr/link", "file", xattrs=_XATTRS),
            char_device("usr/null", 1, 3, xattrs=_XATTRS),
            directory("usr", mode=0o755, xattrs={"user.root": b"from usr", "security.capability": b"u"}),
            directory("boot", xattrs={"user.boot": b"b", "security.capability": b"b"}),
            directory("run", xattrs={"user.run": b"r"}),
        ),
    ),
    image_case(
        "shared and long extended attributes",
        (
            *(
                regular(f"usr/{number}", b"x", xattrs={"user.shared": b"s" * 300, f"user.{number % 5}": b"1"})
                for number in range(30)
            ),
            regular("usr/long", b"x", xattrs={"user.long": b"l" * 65000}),
            regular("usr/name", b"x", xattrs={"user." + "n" * 250: b"n"}),
        ),
    ),
    image_case(
        "devices",
        (
            char_device("usr/zero", 0, 0),
            block_device("usr/block-zero", 0, 0),
            char_device("usr/tty", 5, 1, mode=0o620, gid=5),
            block_device("usr/sda", 8, 255),
            block_device("usr/large", 259, 256),
            char_device("usr/larger", 4095, 1048575),
        ),
    ),
    image_case(
        "a device number of more than 32 bits",
        (char_device("usr/largest", 4096, 2097151),),
        ours=Verdict.REFUSED,
        says="device number",
    ),
    image_case("pipes", (fifo("usr/a"), fifo("etc/b", mode=0o600, uid=3, xattrs={"user.p": b"p"}))),
    image_case(
        "contents of /run, /boot and /sysroot",
        (
            regular("run/a", b"1"),
            directory("run/d"),
            regular("run/d/b", b"x" * 100),
            fifo("run/fifo"),
            regular("boot/vmlinuz", b"k" * 500),
            directory("boot/grub2"),
            symlink("boot/grub2/l", "x"),
            regular("sysroot/a", b"1"),
            directory("sysroot/ostree"),
            regular("sysroot/ostree/x", b"y" * 70),
        ),
    ),
    image_case(
        "a file of /run that has another name elsewhere",
        (regular("run/a", b"x" * 100), regular("boot/b", b"y" * 100)),
        (hard_link("etc/a", "run/a"), hard_link("etc/b", "boot/b")),
    ),
)
