"""Members of a tar: as our own parser and Python's tarfile read them back."""

import io
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.errors import FormatError
from composefsd.tree.pack import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    END,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Member,
    header,
    padding,
)
from composefsd.tree.table import Stat

PLAIN = Stat(0o644, 0, 0, 0, 0)


def read(*members: tuple[Member, bytes]) -> list[tarfile.TarInfo]:
    tar = b"".join(header(member) + content + padding(len(content)) for member, content in members) + END
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        return archive.getmembers()


def test_a_plain_member_is_one_header_of_ustar() -> None:
    found = header(Member(b"usr/bin/tool", FILE, Stat(0o104755, 1, 2, 3, 0), 4))
    assert len(found) == 512
    assert found[257:265] == b"ustar\x0000"
    (member,) = read((Member(b"usr/bin/tool", FILE, Stat(0o104755, 1, 2, 3, 0), 4), b"1234"))
    assert (member.name, member.mode, member.uid, member.gid, member.mtime, member.size) == (
        "usr/bin/tool", 0o4755, 1, 2, 3, 4,
    )  # fmt: skip
    assert (member.pax_headers, member.uname, member.gname) == ({}, "", "")


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (DIRECTORY, tarfile.TarInfo.isdir), (SYMLINK, tarfile.TarInfo.issym), (LINK, tarfile.TarInfo.islnk),
        (CHAR, tarfile.TarInfo.ischr), (BLOCK_DEVICE, tarfile.TarInfo.isblk), (FIFO, tarfile.TarInfo.isfifo),
    ],
)  # fmt: skip
def test_every_kind_is_told(kind: bytes, check: object) -> None:
    link = b"target" if kind in (SYMLINK, LINK) else b""
    (member,) = read((Member(b"name", kind, PLAIN, link=link, rdev=os.makedev(8, 3)), b""))
    assert callable(check)
    assert check(member)
    assert (member.linkname, member.devmajor, member.devminor) == (link.decode(), 8, 3)


def test_what_a_header_has_no_room_for_is_in_records() -> None:
    stat = Stat(0o644, 0o10000000, 2**31, 2**34, 5, ((b"security.capability", b"\0\xff\n="), (b"user.x", b"")))
    long, target = b"d/" * 60 + b"file", b"t" * 150
    (member,) = read((Member(long, SYMLINK, stat, link=target), b""))
    assert (member.name, member.linkname) == (long.decode(), target.decode())
    assert (member.uid, member.gid) == (0o10000000, 2**31)
    assert member.pax_headers["mtime"] == f"{2**34}.000000005"
    assert os.fsencode(member.pax_headers["SCHILY.xattr.security.capability"]) == b"\0\xff\n="
    assert member.pax_headers["SCHILY.xattr.user.x"] == ""
    huge = header(Member(b"file", FILE, PLAIN, 8**11))
    assert b"size=8589934592\n" in huge


@given(st.binary(min_size=1, max_size=300).filter(lambda path: b"\0" not in path and not path.startswith(b"/")))
def test_records_count_their_own_length(value: bytes) -> None:
    stat = Stat(0o644, 0, 0, 0, 0, ((b"user.x", value),))
    (member,) = read((Member(b"file", FILE, stat), b""))
    assert os.fsencode(member.pax_headers["SCHILY.xattr.user.x"]) == value


def test_the_same_member_gives_the_same_bytes_whatever_the_order_of_its_attributes() -> None:
    pairs = ((b"user.a", b"1"), (b"user.b", b"2"))
    one, other = (header(Member(b"x", FILE, Stat(0, 0, 0, 0, 0, order))) for order in (pairs, pairs[::-1]))
    assert one == other


def test_a_time_before_1970_is_refused() -> None:
    with pytest.raises(FormatError, match="before 1970"):
        header(Member(b"x", FILE, Stat(0, 0, 0, -1, 0)))


def test_an_attribute_that_a_record_cannot_name_is_refused() -> None:
    with pytest.raises(FormatError, match=r"user\.a=b"):
        header(Member(b"x", FILE, Stat(0, 0, 0, 0, 0, ((b"user.a=b", b"c"),))))
