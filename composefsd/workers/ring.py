"""The shared ring that carries a layer's tar from the unpacker to the storer.

The ring is a memfd of SLOTS slots of SLOT_BYTES.  The raw tar lies in the slots, front to back; a message on the
*cuts* pipe tells for each full slot how its bytes divide, as signed 64-bit numbers: -n for the next n bytes that
stand inline, n for the beginning of a file of n bytes that is stored apart.  Such a file lies in one slot if it fits
into one, else its bytes go on through the following slots.  A byte on the *free* pipe gives a slot back: that is all
the backpressure there is.

A message is the number of bytes used in the slot and the number of cuts, both 32 bits, then the cuts.  A message of
no bytes and no cuts ends the stream.  The reading side trusts nothing but what it has copied from the slots.
"""

import fcntl
import mmap
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct
from typing import Final, Protocol

from composefsd.errors import FormatError, JobInterruptedError
from composefsd.verity import Buffer

SLOT_BYTES: Final = 1 << 20
SLOTS: Final = 4
RING_BYTES: Final = SLOT_BYTES * SLOTS

_HEADER: Final = Struct("<II")
_CUTS: Final = 8192
"""Cuts in one message at the most, which keeps it far below the reader's bound."""


def create_ring() -> int:
    """A memfd of the right size; the size is sealed, so that neither side can make the other fault."""
    fd = os.memfd_create("composefsd-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, RING_BYTES)
    seal_size(fd)
    return fd


def seal_size(fd: int) -> None:
    """Forbid a memfd to grow or shrink."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)


class RingWriter:
    """The unpacker's side."""

    def __init__(self, ring_fd: int, free_fd: int, cuts_fd: int) -> None:
        self._map = memoryview(mmap.mmap(ring_fd, RING_BYTES))
        self._free, self._out = free_fd, cuts_fd
        self._slot, self._used = 0, 0
        self._cuts = array("q")

    def inline(self, data: Buffer) -> None:
        """The next bytes of the tar, which stand inline."""
        view = memoryview(data)
        while view:
            room = self._room()
            piece = view[:room]
            if self._cuts and self._cuts[-1] < 0:
                self._cuts[-1] -= len(piece)
            else:
                self._cuts.append(-len(piece))
            self._copy(piece)
            view = view[room:]

    def begin_file(self, size_bytes: int) -> None:
        """A file of `size_bytes` begins; `content` gives its bytes."""
        if SLOT_BYTES - self._used < size_bytes <= SLOT_BYTES:
            self._flush()
        self._room()
        self._cuts.append(size_bytes)

    def content(self, data: Buffer) -> None:
        """The next bytes of the file that began last."""
        view = memoryview(data)
        while view:
            if self._used == SLOT_BYTES:
                self._flush()
            room = SLOT_BYTES - self._used
            self._copy(view[:room])
            view = view[room:]

    def close(self) -> None:
        """Hand over what is left, and the end."""
        if self._used:
            self._flush()
        self._send(_HEADER.pack(0, 0))

    def _room(self) -> int:
        if self._used == SLOT_BYTES or len(self._cuts) == _CUTS:
            self._flush()
        return SLOT_BYTES - self._used

    def _copy(self, data: memoryview) -> None:
        if self._used == 0 and not os.read(self._free, 1):
            raise JobInterruptedError("the storing process went away")
        start = self._slot * SLOT_BYTES + self._used
        self._map[start : start + len(data)] = data
        self._used += len(data)

    def _flush(self) -> None:
        self._send(_HEADER.pack(self._used, len(self._cuts)) + self._cuts.tobytes())
        self._slot, self._used = (self._slot + 1) % SLOTS, 0
        del self._cuts[:]

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except BrokenPipeError as error:
                raise JobInterruptedError("the storing process went away") from error


class RingReader:
    """The storer's side."""

    def __init__(self, ring_fd: int, free_fd: int, cuts_fd: int) -> None:
        self._map = memoryview(mmap.mmap(ring_fd, RING_BYTES, prot=mmap.PROT_READ))
        self._free, self._in = free_fd, cuts_fd
        with suppress(BrokenPipeError):  # the cuts will tell that the writer is gone
            os.write(free_fd, bytes(SLOTS))

    def batches(self) -> Iterator[tuple[memoryview, "array[int]"]]:
        """A copy of the used part of each slot in turn, with its cuts.

        A copy, since the writer can still change the slot: what is hashed has to be what is stored.  Raises
        FormatError for a message that cannot be, JobInterruptedError if the writer went away.
        """
        slot = 0
        while True:
            used, count = _HEADER.unpack(self._receive(_HEADER.size))
            if used == count == 0:
                return
            if not 0 < used <= SLOT_BYTES or count > _CUTS + 1:
                raise FormatError("the unpacker sent an impossible slot")
            cuts = array("q", self._receive(8 * count))
            start = slot * SLOT_BYTES
            yield memoryview(bytes(self._map[start : start + used])), cuts
            slot = (slot + 1) % SLOTS
            with suppress(BrokenPipeError):  # a writer that has finished does not wait for its last slots
                os.write(self._free, b"\0")

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = os.read(self._in, count - len(data))
            if not piece:
                raise JobInterruptedError("the unpacking process went away")
            data += piece
        return data


class Sink(Protocol):
    """What the stream of a ring is handed to."""

    def slot(self, data: memoryview) -> None:
        """A slot's bytes, whole and before anything in it is handed on: the place to hash the tar."""

    def inline(self, data: memoryview) -> None:
        """The next bytes, which stand inline."""

    def file(self, data: memoryview) -> None:
        """The content of a file that lies in one slot."""

    def begin(self, size_bytes: int) -> None:
        """A larger file begins."""

    def piece(self, data: memoryview) -> None:
        """The next bytes of the larger file."""

    def end(self) -> None:
        """The larger file is complete."""


def deliver(reader: RingReader, sink: Sink) -> None:
    """Hand a whole stream on.  Raises FormatError if the cuts do not add up, and what `RingReader.batches` raises."""
    missing = 0
    for slot, cuts in reader.batches():
        sink.slot(slot)
        at = min(missing, len(slot))
        if missing:
            missing = _continue(sink, slot[:at], missing)
        for cut in cuts:
            end = at + abs(cut)
            if missing or cut == 0 or (cut < 0 and end > len(slot)):
                raise FormatError("the unpacker sent cuts that do not fit their slot")
            if cut < 0:
                sink.inline(slot[at:end])
            elif end <= len(slot):
                sink.file(slot[at:end])
            else:
                sink.begin(cut)
                missing = _continue(sink, slot[at:], cut)
                end = len(slot)
            at = end
        if at != len(slot):
            raise FormatError("the unpacker sent a slot with bytes that no cut covers")
    if missing:
        raise FormatError(f"the unpacker ended {missing} bytes before the end of a file")


def _continue(sink: Sink, data: memoryview, missing: int) -> int:
    sink.piece(data)
    if missing == len(data):
        sink.end()
    return missing - len(data)
