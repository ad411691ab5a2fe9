"""fs-verity through the kernel.

What a kernel with fs-verity answers can only be tried on one; where there is none, the tests here cover that case for
real, and the answers of the other are played to the code.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.errors import (
    ComposefsdError,
    CorruptError,
    DeviceError,
    LockedError,
    NoSpaceError,
    ReadOnlyError,
    UnsupportedError,
    VerityRequiredError,
)
from composefsd.linux import fsverity

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def answer(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> list[int]:
    """Let the ioctls fail with these errors, 0 for success, one after the other; the requests end up in the list."""
    requests, answers = [], list(numbers)

    def ioctl(_fd: int, request: int, _argument: object) -> int:
        requests.append(request)
        number = answers.pop(0)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return requests


def test_the_enable_argument_is_laid_out_as_linux_has_it() -> None:
    argument = fsverity.enable_argument(SHA512)
    assert len(argument) == 128
    assert struct.unpack_from("<4I", argument) == (1, 2, 4096, 0)
    assert argument[16:] == bytes(112)


@pytest.mark.parametrize(
    ("machine", "enable", "measure"),
    [("x86_64", 0x40806685, 0xC0046686), ("aarch64", 0x40806685, 0xC0046686), ("ppc64le", 0x80806685, 0xC0046686)],
)
def test_request_numbers_follow_the_architecture(
    monkeypatch: pytest.MonkeyPatch, machine: str, enable: int, measure: int
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.1", "1", machine)))
    assert fsverity._request(read=False, size_bytes=128, number=133) == enable
    assert fsverity._request(read=True, size_bytes=4, number=134) == measure


def test_probe_tells_what_enable_will_do_on_this_filesystem(file: int, directory: int) -> None:
    if fsverity.probe(directory, SHA256):
        fsverity.enable(file, SHA256)
        fsverity.enable(file, SHA256)
        assert fsverity.measure(file, SHA256) == verity.compute(b"content", SHA256)
        with pytest.raises(CorruptError):
            fsverity.measure(file, SHA512)
    else:
        with pytest.raises(VerityRequiredError):
            fsverity.enable(file, SHA256)
        assert fsverity.measure(file, SHA256) is None
    assert os.listdir(directory) == ["file"]


def test_a_file_outside_of_any_filesystem_with_fs_verity_has_no_digest(directory: int) -> None:
    assert fsverity.measure(directory, SHA256) is None
    with Path("/proc/self/status").open("rb") as status:
        assert fsverity.measure(status.fileno(), SHA256) is None
        with pytest.raises(VerityRequiredError):
            fsverity.enable(status.fileno(), SHA256)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOTTY, VerityRequiredError),
        (errno.EOPNOTSUPP, VerityRequiredError),
        (errno.ENOPKG, UnsupportedError),
        (errno.ENOSPC, NoSpaceError),
        (errno.EROFS, ReadOnlyError),
        (errno.EIO, DeviceError),
        (errno.EINVAL, ComposefsdError),
    ],
)
def test_errors_of_enabling_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[ComposefsdError]
) -> None:
    answer(monkeypatch, number)
    with pytest.raises(error) as caught:
        fsverity.enable(0, SHA256)
    assert type(caught.value) is error


def test_a_file_that_has_fs_verity_already_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, errno.EEXIST)
    fsverity.enable(0, SHA256)


def test_a_file_open_for_writing_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = answer(monkeypatch, errno.ETXTBSY, errno.ETXTBSY, 0)
    fsverity.enable(0, SHA256)
    assert requests == [fsverity.ENABLE_VERITY] * 3
    answer(monkeypatch, *[errno.ETXTBSY] * 3)
    with pytest.raises(LockedError):
        fsverity.enable(0, SHA256)


@pytest.mark.parametrize("number", [errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP])
def test_measuring_a_file_without_fs_verity_gives_none(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    answer(monkeypatch, number)
    assert fsverity.measure(0, SHA256) is None


@pytest.mark.parametrize(("number", "error"), [(errno.EOVERFLOW, CorruptError), (errno.EIO, DeviceError)])
def test_errors_of_measuring_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[ComposefsdError]
) -> None:
    answer(monkeypatch, number)
    with pytest.raises(error):
        fsverity.measure(0, SHA256)


def test_a_measured_digest_must_be_of_the_hash_asked_for() -> None:
    digest = bytes(range(64))
    assert fsverity.parse_digest(struct.pack("=HH", 2, 64) + digest, SHA512).digest == digest
    for number, size in ((1, 32), (2, 32), (1, 64), (3, 64)):
        with pytest.raises(CorruptError):
            fsverity.parse_digest(struct.pack("=HH", number, size) + digest, SHA512)


def test_reopening_leaves_no_descriptor_for_writing(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"content")
    fd = fsverity.reopen_for_reading(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert os.read(fd, 10) == b"content"
    os.close(fd)
    assert set(Path("/proc/self/fd").iterdir()) == before
