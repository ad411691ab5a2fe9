"""The shared ring: what goes in comes out, however it is cut, and a lying writer is refused."""

import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.errors import FormatError, JobInterruptedError
from composefsd.workers.ring import SLOT_BYTES, RingReader, RingWriter, create_ring, deliver

HEADER = Struct("<II")


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.tar = bytearray()
        self.inlined = bytearray()
        self.files: list[bytes] = []
        self._size = 0

    def slot(self, data: memoryview) -> None:
        self.tar += data

    def inline(self, data: memoryview) -> None:
        self.inlined += data

    def file(self, data: memoryview) -> None:
        self.files.append(bytes(data))

    def begin(self, size_bytes: int) -> None:
        self._size = size_bytes
        self.files.append(b"")

    def piece(self, data: memoryview) -> None:
        self.files[-1] += bytes(data)

    def end(self) -> None:
        assert len(self.files[-1]) == self._size


@contextmanager
def ring() -> Iterator[tuple[int, int, int, int, int]]:
    memory = create_ring()
    (free_read, free_write), (cuts_read, cuts_write) = os.pipe(), os.pipe()
    fds = [memory, free_read, free_write, cuts_read, cuts_write]
    try:
        yield memory, free_read, free_write, cuts_read, cuts_write
    finally:
        for fd in fds:
            os.close(fd)


def send(parts: list[tuple[bool, bytes]]) -> Recorder:
    """Send inline (False) and file (True) parts through a ring."""
    recorder = Recorder()
    with ring() as (memory, free_read, free_write, cuts_read, cuts_write):

        def write() -> None:
            writer = RingWriter(memory, free_read, cuts_write)
            for is_file, data in parts:
                if is_file:
                    writer.begin_file(len(data))
                    writer.content(data)
                else:
                    writer.inline(data)
            writer.close()

        thread = threading.Thread(target=write)
        thread.start()
        deliver(RingReader(memory, free_write, cuts_read), recorder)
        thread.join()
    return recorder


def check(parts: list[tuple[bool, bytes]]) -> None:
    recorder = send(parts)
    assert bytes(recorder.tar) == b"".join(data for _, data in parts)
    assert bytes(recorder.inlined) == b"".join(data for is_file, data in parts if not is_file)
    assert recorder.files == [data for is_file, data in parts if is_file]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=60))
def test_every_sequence_of_parts_arrives_as_it_was_sent(parts: list[tuple[bool, int]]) -> None:
    check([(is_file, bytes([number % 251]) * size) for number, (is_file, size) in enumerate(parts)])


@pytest.mark.parametrize("size", [SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 5 * SLOT_BYTES, 9 * SLOT_BYTES + 7])
def test_files_around_the_size_of_a_slot_arrive_whole(size: int) -> None:
    check([(False, b"head"), (True, os.urandom(size)), (False, b"tail"), (True, os.urandom(size)), (True, b"x" * 65)])


def test_inline_bytes_may_fill_many_slots() -> None:
    check([(False, os.urandom(6 * SLOT_BYTES + 3))])


def test_more_files_than_a_message_holds_arrive() -> None:
    check([(True, b"%d" % number) for number in range(20_000)])


def lie(used: int, cuts: list[int], *more: tuple[int, list[int]]) -> None:
    with ring() as (memory, _, free_write, cuts_read, cuts_write):
        for size, numbers in ((used, cuts), *more):
            os.write(cuts_write, HEADER.pack(size, len(numbers)) + array("q", numbers).tobytes())
        deliver(RingReader(memory, free_write, cuts_read), Recorder())


@pytest.mark.parametrize(
    ("used", "cuts"),
    [
        (SLOT_BYTES + 1, [-1]),
        (0, [-1]),
        (10, [-11]),
        (10, [-5]),
        (10, [0, -10]),
        (10, []),
        (10, [20, -1]),
        (10, [-(1 << 63)]),
    ],
)
def test_a_writer_that_lies_about_a_slot_is_refused(used: int, cuts: list[int]) -> None:
    with pytest.raises(FormatError):
        lie(used, cuts)


def test_a_file_that_does_not_end_is_refused() -> None:
    with pytest.raises(FormatError):
        lie(10, [20], (0, []))


def test_a_writer_that_changes_its_mind_changes_nothing() -> None:
    """What was hashed has to be what is stored, though the writer still has the slot."""
    with ring() as (memory, _, free_write, cuts_read, cuts_write):

        class Late(Recorder):
            def slot(self, data: memoryview) -> None:
                super().slot(data)
                os.pwrite(memory, b"evil", 0)

        os.pwrite(memory, b"good", 0)
        for used, cuts in ((4, [-4]), (0, [])):
            os.write(cuts_write, HEADER.pack(used, len(cuts)) + array("q", cuts).tobytes())
        recorder = Late()
        deliver(RingReader(memory, free_write, cuts_read), recorder)
    assert recorder.tar == recorder.inlined == b"good"


def test_a_writer_that_dies_is_noticed() -> None:
    memory = create_ring()
    (free_read, free_write), (cuts_read, cuts_write) = os.pipe(), os.pipe()
    os.close(cuts_write)
    with pytest.raises(JobInterruptedError):
        deliver(RingReader(memory, free_write, cuts_read), Recorder())
    for fd in (memory, free_read, free_write, cuts_read):
        os.close(fd)


def test_a_reader_that_dies_is_noticed() -> None:
    memory = create_ring()
    (free_read, free_write), (cuts_read, cuts_write) = os.pipe(), os.pipe()
    writer = RingWriter(memory, free_read, cuts_write)
    os.close(free_write)
    os.close(cuts_read)
    with pytest.raises(JobInterruptedError):
        writer.inline(b"x")
    for fd in (memory, free_read, cuts_write):
        os.close(fd)


def test_the_size_of_a_ring_is_sealed() -> None:
    memory = create_ring()
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    os.close(memory)
