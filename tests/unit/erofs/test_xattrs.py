"""Names, filters and entries of extended attributes."""

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs import xattrs
from composefsd.errors import FormatError


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0x02CC5D05),
        (b"a", 0, 0x550D7456),
        (b"abc", 0, 0x32D153FF),
        (b"Nobody inspects the spammish repetition", 0, 0xE2293B2F),
        (b"", 0x9E3779B1, 0x36B78AE7),
    ],
)
def test_xxh32_is_what_others_compute(data: bytes, seed: int, expected: int) -> None:
    assert xattrs.xxh32(data, seed) == expected


@pytest.mark.parametrize(
    ("name", "index", "rest"),
    [
        (b"user.a", 1, b"a"),
        (b"user.", 1, b""),
        (b"system.posix_acl_access", 2, b""),
        (b"system.posix_acl_default", 3, b""),
        (b"system.posix_acl_accessfoo", 2, b"foo"),
        (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
        (b"security.selinux", 6, b"selinux"),
        (b"system.other", 0, b"system.other"),
        (b"useran", 0, b"useran"),
    ],
)
@pytest.mark.parametrize("lustre", [False, True])
def test_a_name_is_cut_behind_the_prefix_it_has(name: bytes, index: int, rest: bytes, *, lustre: bool) -> None:
    assert xattrs.split_name(name, lustre=lustre) == (index, rest)


def test_only_old_composefs_rs_knows_the_prefix_of_lustre() -> None:
    assert xattrs.split_name(b"lustre.lov", lustre=True) == (5, b"lov")
    assert xattrs.split_name(b"lustre.lov", lustre=False) == (0, b"lustre.lov")


def test_names_of_overlayfs_are_escaped_once_for_each_image() -> None:
    assert xattrs.escape(b"trusted.overlay.opaque") == b"trusted.overlay.overlay.opaque"
    assert xattrs.escape(b"trusted.overlay.overlay.opaque") == b"trusted.overlay.overlay.overlay.opaque"
    assert xattrs.escape(b"trusted.overlays") == b"trusted.overlays"


def test_an_entry_is_padded_to_four_bytes() -> None:
    assert xattrs.serialize_entry(6, b"selinux", b"x") == b"\x07\x06\x01\x00selinuxx"
    assert xattrs.serialize_entry(1, b"a", b"") == b"\x01\x01\x00\x00a\0\0\0"
    assert xattrs.entry_bytes(b"a", b"") == 8


@pytest.mark.parametrize(("rest", "value"), [(bytes(256), b""), (b"", bytes(65536))])
def test_an_entry_that_its_header_cannot_describe_is_refused(rest: bytes, value: bytes) -> None:
    with pytest.raises(FormatError, match="too long"):
        xattrs.entry_bytes(rest, value)


def test_a_filter_has_one_bit_for_a_name() -> None:
    bits = {xattrs.filter_bit(6, b"selinux"), xattrs.filter_bit(4, b"overlay.metacopy")}
    assert all(bit.bit_count() == 1 and bit < 1 << 32 for bit in bits)


def test_metacopy_and_redirect_name_the_object() -> None:
    digest = bytes(range(32))
    assert xattrs.metacopy_head(Algorithm.SHA256) == b"\0\x24\0\1"
    assert xattrs.metacopy_head(Algorithm.SHA512) == b"\0\x44\0\2"
    assert xattrs.redirect_path(digest) == b"/00/" + digest.hex()[2:].encode()
