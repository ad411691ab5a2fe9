"""Reading all of a part, from kernels that give less at a time."""

import errno
import os
from pathlib import Path

import pytest

from composefsd.linux.reading import pread_all


@pytest.fixture
def fd(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that stops before every fourth byte, as it does before a block that it cannot read."""
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        return real(fd, min(count, 4 - offset % 4), offset)

    monkeypatch.setattr(os, "pread", pread)


def test_a_part_is_read_and_no_more_than_there_is(fd: int) -> None:
    assert [pread_all(fd, *where) for where in ((3, 2), (100, 8), (5, 10), (0, 0))] == [b"234", b"89", b"", b""]
    os.close(fd)


def test_what_comes_in_pieces_is_put_together(fd: int, short_reads: None) -> None:
    assert [pread_all(fd, *where) for where in ((10, 0), (6, 3), (100, 1))] == [
        b"0123456789",
        b"345678",
        b"123456789",
    ]
    os.close(fd)


def test_an_error_after_the_first_piece_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(_fd: int, _count: int, offset: int) -> bytes:
        if offset >= 4:
            raise OSError(errno.EIO, "Input/output error")
        return b"0123"

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(OSError, match="Input/output error"):
        pread_all(fd, 10, 0)
    os.close(fd)
