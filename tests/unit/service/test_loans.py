"""Memory that clients hold is counted until they let go of it."""

import asyncio
import fcntl
import mmap
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from composefsd.errors import LimitExceededError
from composefsd.service import loans
from composefsd.service.loans import Loans
from composefsd.service.memfd import sealed

SIZE = 100_000


def run(test: Callable[[Loans], Awaitable[None]]) -> None:
    """With room for two files."""

    async def with_loans() -> None:
        lent = Loans("documents", 2 * SIZE)
        try:
            await test(lent)
        finally:
            lent.close()

    asyncio.run(with_loans())


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def lend(lent: Loans, size: int = SIZE) -> int:
    lent.require(size)
    return lent.lend(sealed("name", b"x" * size))


def test_what_is_lent_is_read_from_the_start_and_cannot_be_changed() -> None:
    async def test(lent: Loans) -> None:
        descriptor = lend(lent)
        with os.fdopen(descriptor, "rb") as file:
            assert file.read() == b"x" * SIZE
            assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(descriptor, b"more")

    run(test)


def test_no_more_is_lent_than_the_limit_until_a_reader_lets_go() -> None:
    async def test(lent: Loans) -> None:
        first, second = lend(lent), lend(lent)
        with pytest.raises(LimitExceededError, match="documents"):
            lent.require(1)
        os.close(first)
        third = lend(lent)
        with pytest.raises(LimitExceededError):
            lent.require(1)
        for descriptor in (second, third):
            os.close(descriptor)
        lent.require(2 * SIZE)

    run(test)


def test_a_copy_and_a_mapping_are_held_as_well() -> None:
    async def test(lent: Loans) -> None:
        descriptor = lend(lent, 2 * SIZE)
        copy, mapped = os.dup(descriptor), mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ)
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        for let_go in (
            lambda: os.close(descriptor),
            lambda: os.close(copy),
            lambda: os.close(again),
            mapped.close,
        ):
            with pytest.raises(LimitExceededError):
                lent.require(1)
            let_go()
        lent.require(1)

    run(test)


def test_small_files_count_as_more_than_they_have() -> None:
    async def test(lent: Loans) -> None:
        descriptors = [lend(lent, 1) for _ in range(2 * SIZE // (64 << 10))]
        with pytest.raises(LimitExceededError):
            lent.require(1)
        for descriptor in descriptors:
            os.close(descriptor)

    run(test)


def test_memory_does_not_outlive_its_reader_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans, "_LOOK_SECONDS", 0.01)

    async def test(lent: Loans) -> None:
        before = descriptors()
        descriptor = lend(lent)
        await asyncio.sleep(0.05)
        assert descriptors() > before  # it is looked at again and again
        os.close(descriptor)
        async with asyncio.timeout(10):
            while descriptors() != before:
                await asyncio.sleep(0.01)

    run(test)


def test_a_file_that_cannot_be_lent_is_closed() -> None:
    async def test(lent: Loans) -> None:
        before = descriptors()
        with pytest.raises(OSError, match="No such device"):
            lent.lend(socket.socket().detach())  # which cannot be opened a second time
        assert descriptors() == before

    run(test)
