"""Writing all of something to kernels that take less at a time."""

import os
from pathlib import Path

import pytest

from composefsd.linux.writing import write_all


@pytest.mark.parametrize("data", [b"", b"0123456789", bytearray(b"01234"), memoryview(b"0123456")])
def test_everything_is_written_by_a_kernel_that_takes_little(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real(fd, view[:3]))
    path = tmp_path / "file"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    write_all(fd, data)
    os.close(fd)
    assert path.read_bytes() == data
