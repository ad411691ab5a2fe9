"""What hypothesis puts into trees for comparisons: names, metadata, content; values next to boundaries are likely.

What a dump of composefs-rs cannot say is left out: names of more than 255 bytes, inline content of more than 512 and
targets of more than 1024, times before 1970, device numbers of more than 32 bits.
"""

from collections.abc import Iterable
from typing import Final

from hypothesis import strategies as st

from composefsd.tree.dumpfile import MAX_CONTENT_BYTES, MAX_TARGET_BYTES
from composefsd.tree.table import Stat, XattrSet


def around(*numbers: int) -> list[int]:
    """Numbers and those next to them."""
    return [number + step for number in numbers for step in (-1, 0, 1)]


def numbers(boundaries: Iterable[int], largest: int) -> st.SearchStrategy[int]:
    """Mostly boundaries; else anything from 0 on."""
    near = st.sampled_from(sorted({number for number in boundaries if 0 <= number <= largest}))
    return near | near | st.integers(0, largest)


def repeated(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """One byte, as often as this: what long content is does not matter."""
    return st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(1, 255))


# Metadata and content

_POWERS: Final = (31, 32, 42, 43, 44, 53, 62, 63)
FILE_SIZES: Final = numbers(
    [
        *around(0, 64, 512, 2048, 4096, 8192, *(1 << bits for bits in _POWERS)),
        *(chunks * (1 << 43) + step for chunks in (2, 3, 1016, 1017, 1020, 1023, 1024, 1025) for step in (0, 1)),
    ],
    (1 << 63) + 1,
)
"""Of external and sparse files; 2^43 is the largest chunk, the addresses of 1024 chunks fill a block."""

DEVICES: Final = numbers(
    [1, 0x103, *around(0xFF, 0xFFFF, 0xFFFFF), 0xFFFF_FFFE, 0xFFFF_FFFF], 0xFFFF_FFFF
).map(lambda number: number or 1)  # fmt: skip

CONTENTS: Final = st.binary(max_size=20) | repeated(
    numbers([0, *around(64), MAX_CONTENT_BYTES - 1, MAX_CONTENT_BYTES], MAX_CONTENT_BYTES)
)
TARGETS: Final = (
    st.binary(max_size=20).map(lambda target: target.replace(b"\0", b"/"))
    | repeated(numbers([1, *around(60, 512), MAX_TARGET_BYTES - 1, MAX_TARGET_BYTES], MAX_TARGET_BYTES))
).map(lambda target: target or b".")

_IDS: Final = numbers([0, 1, 1000, *around(0xFFFF), 0xFFFF_FFFF], 0xFFFF_FFFF)
_MODES: Final = st.sampled_from([0, 0o444, 0o644, 0o755, 0o1777, 0o4755, 0o2755, 0o7777]) | st.integers(0, 0o7777)
_TIMES: Final = numbers([0, 1, 1_700_000_000, 1_700_000_001, *around(1 << 31, 1 << 32, 1 << 34)], (1 << 63) - 1)
_NANOSECONDS: Final = numbers([0, 1, 999_999_999], 999_999_999) | st.just(0)

# Extended attributes

_ATTRIBUTES: Final = (
    b"security.selinux", b"security.capability", b"security.ima", b"security.", b"user.a", b"user.b", b"user.",
    b"user.\xff\xfe=x\n", b"user.overlay.x", b"user.overlay.whiteout", b"user.overlay.whiteouts",
    b"user.overlay.opaque", b"trusted.", b"trusted.x", b"trusted.overlay", b"trusted.overlay.", b"trusted.overlay.x",
    b"trusted.overlay.metacopy", b"trusted.overlay.redirect", b"trusted.overlay.opaque", b"trusted.overlay.whiteout",
    b"trusted.overlay.whiteouts", b"trusted.overlay.overlay.opaque", b"trusted.overlay.overlay.whiteout",
    b"lustre.", b"lustre.lov", b"lustr", b"system.posix_acl_access", b"system.posix_acl_default",
    b"system.posix_acl_accessory", b"system.posix_acl_default.x", b"system.posix_acl", b"system.x", b"odd", b"zz.zz",
)  # fmt: skip
"""Of every prefix that images know and of none, and those that mean something to overlayfs or to an image."""

_PREFIXES: Final = st.sampled_from(
    [b"user.", b"security.", b"trusted.", b"trusted.overlay.", b"lustre.", b"system.", b""]
)
_LONG_ATTRIBUTES: Final = st.builds(
    lambda prefix, size, byte: (prefix + bytes([byte]) * size)[:size],
    _PREFIXES,
    numbers([1, *around(16, 32), 254, 255], 255),
    st.sampled_from(b"az=\xff"),
)
_VALUES: Final = (
    st.sampled_from([b"", b"x", b"y", b"xx", b"-", b"=", b"\0", b"label_t:s0\0", b"\xee\xff"])
    | st.binary(max_size=12)
    | repeated(numbers(around(32, 64, 255), 300))
    | repeated(numbers(around(2900, 3000, 3100, 4000, 4096), 4200) | st.sampled_from([8192, 30000, 65534, 65535]))
)
_MAX_SET_BYTES: Final = 200_000
"""An inode has room for 262,140 bytes of attributes; composefs-rs does not notice when they are more."""


def _pairs(found: dict[bytes, bytes]) -> XattrSet:
    total, kept = 0, []
    for name, value in sorted(found.items()):
        total += len(name) + len(value) + 16
        if total <= _MAX_SET_BYTES:
            kept.append((name, value))
    return tuple(kept)


def _many(count: int, values: int, prefix: bytes) -> XattrSet:
    return tuple(sorted((b"%sn%d" % (prefix, number), b"%d" % (number % values)) for number in range(count)))


_SETS: Final = st.dictionaries(st.sampled_from(_ATTRIBUTES) | _LONG_ATTRIBUTES, _VALUES, max_size=4).map(_pairs)
_USUAL_SETS: Final = st.dictionaries(
    st.sampled_from(_ATTRIBUTES[:8]), st.sampled_from([b"a", b"b\0"]), max_size=2
).map(_pairs)  # fmt: skip
XATTRS: Final = st.just(()) | _USUAL_SETS | _SETS
MANY_XATTRS: Final = st.builds(
    _many, numbers([*around(127, 128), 200, 252, 253], 253), st.sampled_from([1, 2, 300]), _PREFIXES
)
"""As many as an inode can refer to, less the two that name its object."""

STATS: Final = st.builds(Stat, _MODES, _IDS, _IDS, _TIMES, _NANOSECONDS, XATTRS)

# Names

_ODD_NAMES: Final = (
    b"!", b"-", b"+", b"#a", b",", b"...", b"..a", b".x", b"0", b"~", b"0g", b"FF", b"aA", b"000", b"a b", b"x\\y",
    b"\\x41", b"new\nline", b"\t", b"\r", b"=", b"a=b", b"\x7f", b"\xff\xfe", b"\xc3\xa4", b"\xe2\x80\xa8",
)  # fmt: skip
_ALLOWED: Final = bytes([0x5F, *range(1, 0x2F), 0x5F, *range(0x30, 256)])
"""Translates the two bytes that no name has."""

TWO_DIGITS: Final = st.integers(0, 255).map(lambda number: b"%02x" % number)
NAMES: Final = (
    st.sampled_from(_ODD_NAMES)
    | TWO_DIGITS
    | st.binary(min_size=1, max_size=5).map(lambda name: name.translate(_ALLOWED))
    | repeated(numbers([1, 2, 100, 254, 255], 255)).map(lambda name: name.translate(_ALLOWED) or b"_")
).filter(lambda name: name not in (b".", b".."))
"""Every byte that a name can have, lengths up to 255, names that sort before `.`, and names of stubs."""
