"""Files in memory for clients."""

import os

import pytest

from composefsd.service.memfd import memory_file, seal, sealed


def test_a_sealed_file_is_at_its_start_and_cannot_be_changed() -> None:
    descriptor = sealed("name", b"content")
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        assert file.read() == b"content"
        for change in (lambda: file.truncate(3), lambda: file.truncate(30), lambda: file.write(b"more")):
            with pytest.raises(PermissionError):
                change()


def test_what_another_process_wrote_is_read_from_the_start() -> None:
    with memory_file("name") as descriptor:
        copy = os.dup(descriptor)
        os.write(copy, b"written")
        os.close(copy)
        seal(descriptor)
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"written"


def test_a_file_that_could_not_be_filled_is_closed() -> None:
    with pytest.raises(KeyError), memory_file("name") as descriptor:
        raise KeyError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
