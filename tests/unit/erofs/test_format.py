"""Versions, and the head of an image."""

from dataclasses import replace

import pytest

from composefsd.erofs.format import COMPACT, EXTENDED, HEAD_BYTES, FormatVersion, Head, chunk_bits
from composefsd.errors import FormatError

HEAD = Head(
    version=FormatVersion.V1,
    has_acl=True,
    root_nid=36,
    inodes=257,
    build_time=1234567890,
    build_nsec=999,
    blocks=4,
    xattr_block=2,
)


def patched(offset: int, value: int) -> bytes:
    data = bytearray(HEAD.serialize())
    data[offset] = value
    return bytes(data)


@pytest.mark.parametrize("version", FormatVersion)
def test_a_label_leads_back_to_its_version(version: FormatVersion) -> None:
    assert FormatVersion.from_label(version.label) is version


@pytest.mark.parametrize("label", ["", "1", "V1", "v3", "v01"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(FormatError):
        FormatVersion.from_label(label)


@pytest.mark.parametrize("version", FormatVersion)
def test_a_head_comes_back_as_it_was(version: FormatVersion) -> None:
    head = replace(HEAD, version=version, build_time=-5)
    assert Head.parse(head.serialize()) == head


def test_the_head_ends_where_the_first_inode_may_be() -> None:
    assert len(HEAD.serialize()) == HEAD_BYTES
    assert (COMPACT.size, EXTENDED.size) == (32, 64)


def test_a_short_head_is_refused() -> None:
    with pytest.raises(FormatError, match="cut short"):
        Head.parse(HEAD.serialize()[:-1])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "not a composefs image"),
        (4, 2, "not a composefs image"),
        (12, 3, "unknown composefs version"),
        (1024, 0, "not an EROFS image"),
        (1024 + 12, 9, "blocks of"),
        (1024 + 8, 0b1110, "features"),  # compatible
        (1024 + 13, 1, "features"),  # extension slots
        (1024 + 40, 1, "features"),  # where metadata begins
        (1024 + 80, 0b1, "features"),  # incompatible
        (1024 + 84, 1, "features"),  # compression
        (1024 + 86, 1, "features"),  # devices
        (1024 + 91, 1, "features"),  # prefixes
        (1024 + 96, 1, "features"),  # packed inode
    ],
)
def test_what_composefs_does_not_use_is_refused(offset: int, value: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Head.parse(patched(offset, value))


def test_a_checksum_and_declared_chunks_are_accepted() -> None:
    assert Head.parse(patched(1024 + 8, 0b111)) == HEAD
    assert Head.parse(patched(1024 + 80, 0b100)) == HEAD


@pytest.mark.parametrize(
    ("size", "bits"),
    [(0, 12), (1, 12), (4096, 12), (4097, 13), (8192, 13), (1 << 43, 43), ((1 << 43) + 1, 43), (1 << 63, 43)],
)
def test_a_chunk_is_as_large_as_the_file_if_it_can_be(size: int, bits: int) -> None:
    assert chunk_bits(size) == bits
