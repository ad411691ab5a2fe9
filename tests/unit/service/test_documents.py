"""Documents of jobs: sealed, shared, bounded; and turns at what costs something."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from composefsd.errors import FormatError, LimitExceededError, NoSuchDocumentError, TimedOutError
from composefsd.service import documents
from composefsd.service.clients import Client
from composefsd.service.documents import Documents, make_room
from composefsd.service.turns import Turns


def left_by_a_job(size: int) -> Documents:
    left = Documents()
    os.write(left.begin("list").fd, b"x" * size)
    left.seal()
    return left


def test_a_document_is_not_there_before_it_is_sealed() -> None:
    left = Documents()
    os.write(left.begin("list").fd, b"one\n")
    with pytest.raises(NoSuchDocumentError, match="none"):
        left.find("list")
    left.seal()
    assert left.find("list").text() == "one\n"
    with pytest.raises(NoSuchDocumentError, match="there are: list"):
        left.find("other")
    left.close()


def test_readers_begin_at_the_start_and_none_can_write() -> None:
    left = left_by_a_job(5)
    found = left.find("list")
    first, second = found.open(), found.open()
    assert (os.read(first, 3), os.read(second, 9), os.read(first, 9)) == (b"xxx", b"xxxxx", b"xx")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(first, b"y")
    with pytest.raises(PermissionError):
        os.write(os.dup(found.fd), b"y")
    with pytest.raises(PermissionError):
        os.ftruncate(found.fd, 1)
    left.close()
    assert os.pread(second, 9, 0) == b"xxxxx"  # as long as somebody reads it
    for fd in (first, second):
        os.close(fd)


def test_a_long_document_or_one_that_is_no_text_is_read_by_its_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Documents()
    os.write(left.begin("list").fd, b"\xff")
    left.seal()
    with pytest.raises(FormatError, match="OpenDocument"):
        left.find("list").text()
    monkeypatch.setattr(documents, "TEXT_BYTES", 4)
    long = left_by_a_job(5)
    with pytest.raises(LimitExceededError, match="OpenDocument"):
        long.find("list").text()
    for one in (left, long):
        one.close()


def test_who_has_the_most_makes_room_with_the_oldest() -> None:
    mine = [left_by_a_job(10), left_by_a_job(20), left_by_a_job(30)]
    yours = [Documents(), left_by_a_job(25)]
    make_room({1: mine, 2: yours}, limit_bytes=85)
    assert [one.size_bytes for one in (*mine, *yours)] == [10, 20, 30, 0, 25]
    make_room({1: mine, 2: yours}, limit_bytes=60)
    assert [one.size_bytes for one in (*mine, *yours)] == [0, 0, 30, 0, 25]
    with pytest.raises(NoSuchDocumentError):
        mine[0].find("list")
    make_room({1: mine, 2: yours}, limit_bytes=0)
    assert [one.size_bytes for one in (*mine, *yours)] == [0] * 5
    make_room({}, limit_bytes=0)


# Turns


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_call(test), 30))


async def _call(test: Callable[[], Awaitable[None]]) -> None:
    await test()


def test_turns_are_taken_one_after_another_and_once_by_each_client() -> None:
    async def test() -> None:
        turns, log = Turns("testing", waiting=2, seconds=20), list[str]()
        one, two, three = (Client(f":1.{number}") for number in range(3))
        gate = asyncio.Event()

        async def work(client: Client) -> None:
            async with turns.take(client):
                log.append(f"begin {client.sender}")
                await gate.wait()
                log.append(f"end {client.sender}")

        tasks = [asyncio.create_task(work(one)), asyncio.create_task(work(two))]
        await asyncio.sleep(0)
        with pytest.raises(LimitExceededError, match="one at a time for one connection"):
            await work(one)
        with pytest.raises(LimitExceededError, match="too many"):
            await work(three)
        gate.set()
        await asyncio.gather(*tasks)
        assert log == ["begin :1.0", "end :1.0", "begin :1.1", "end :1.1"]
        await work(three)

    run(test)


def test_a_turn_ends_in_time_or_when_its_client_leaves() -> None:
    async def test() -> None:
        client = Client(":1.1")
        with pytest.raises(TimedOutError, match="testing: not done within"):
            async with Turns("testing", waiting=2, seconds=0.05).take(client):
                await asyncio.sleep(20)
        turns = Turns("testing", waiting=2, seconds=20)

        async def work() -> None:
            async with turns.take(client):
                await asyncio.sleep(20)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        for leave in tuple(client.on_leave):
            leave()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with turns.take(Client(":1.2")):
            pass

    run(test)


def test_a_pause_comes_after_the_turn_under_way_and_before_new_ones() -> None:
    async def test() -> None:
        turns, log = Turns("testing", waiting=9, seconds=20), list[str]()

        async def work(number: int) -> None:
            async with turns.take(Client(f":1.{number}")):
                log.append(f"turn {number}")
                await asyncio.sleep(0.01)

        async def pause() -> None:
            async with turns.pause():
                log.append("pause")
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(one) for one in (work(1), pause(), work(2))]
        await asyncio.gather(*tasks)
        assert log == ["turn 1", "pause", "turn 2"]

    run(test)
