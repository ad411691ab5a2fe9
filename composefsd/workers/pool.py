"""The daemon's side: starting workers, asking them, killing them.

A worker is a fresh interpreter, started by exec so that nothing of the daemon is in it.  Workers that read hostile
bytes are sandboxed and serve one operation only: what one image may have done to its worker must not reach the next.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from composefsd.errors import ComposefsdError, FormatError, JobInterruptedError, LimitExceededError, from_wire
from composefsd.workers import channel

log = logging.getLogger(__name__)

Event = dict[str, Any]
_HANG_UP_SECONDS = 1.0
_LARGEST = (1 << 53) - 1


class Worker:
    """A running worker process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self.name = name
        self._process = process
        self._sock = sock
        self._task: str | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def spawn(cls, module: str, *, sandboxed: bool, readable: Sequence[int] = ()) -> Self:
        """Start a worker for the tasks of `module`; readable are directories that a sandboxed one may read."""
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        fence = ["--sandbox", *map(str, readable)] if sandboxed else []
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "composefsd.workers", module, str(theirs.fileno()), *fence,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *readable),
                cwd="/",
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        log.debug("worker %s for %s", process.pid, module)
        return cls(module.rpartition(".")[2], process, ours)

    async def call(
        self,
        task: str,
        args: dict[str, Any],
        fds: Sequence[int] = (),
        on_event: Callable[[Event], None] | None = None,
    ) -> dict[str, Any]:
        """Run a task and answer with its result: `start` and `finish` in one."""
        await self.start(task, args, fds)
        return await self.finish(on_event)

    async def start(self, task: str, args: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Give the worker a task and copies of the descriptors; one task at a time.

        Raises JobInterruptedError if the worker died.
        """
        assert self._task is None, "the worker is busy"
        self._task = task
        async with self._talking():
            await self._send({"task": task, "args": args}, fds)

    async def finish(self, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
        """The result of the task that was started.

        Raises the task's own error, JobInterruptedError if the worker died.  When the caller is cancelled the worker
        is killed, since it cannot be told to stop.
        """
        async with self._talking():
            while True:
                message = await self._receive()
                if "event" not in message:
                    self._task = None
                    return _result(message)
                if on_event is not None:
                    on_event(_event(message))
                await asyncio.sleep(0)  # data that is there already is read without a pause for others

    @asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            raise await self._death() from error
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """End the worker at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """End the worker and wait until it is gone."""
        self.kill()
        await self._process.wait()

    async def close(self) -> None:
        """Hang up, and kill the worker if it does not leave within a second."""
        self._sock.close()
        try:
            await asyncio.wait_for(self._process.wait(), _HANG_UP_SECONDS)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    async def _death(self) -> ComposefsdError:
        self.kill()
        status = await self._process.wait()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return JobInterruptedError(f"the worker for {self._task} died ({how})", worker=self.name)

    async def _send(self, message: channel.Message, fds: Sequence[int]) -> None:
        loop, data = asyncio.get_running_loop(), channel.encode(message)
        if len(fds) > channel.DESCRIPTORS:
            raise LimitExceededError(f"{len(fds)} descriptors in one request")
        head = data[: channel.LENGTH.size]  # a fresh request: the socket has room for these four bytes
        sent = socket.send_fds(self._sock, [head], list(fds)) if fds else self._sock.send(head)
        await loop.sock_sendall(self._sock, data[sent:])

    async def _receive(self) -> channel.Message:
        head = await self._exactly(channel.LENGTH.size)
        return channel.decode(await self._exactly(channel.decode_length(head)))

    async def _exactly(self, count: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < count:
            piece = await loop.sock_recv(self._sock, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def number(event: Event, key: str) -> int:
    """A number in an event.  Raises FormatError for what a worker in its right mind would not say."""
    value = event.get(key)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise FormatError(f"a worker told an impossible {key!r}")
    return value


def _event(message: channel.Message) -> Event:
    event = message["event"]
    if not isinstance(event, dict):
        raise FormatError("a worker told an event that is no object")
    return event


def _result(message: channel.Message) -> dict[str, Any]:
    if "error" in message:
        raise from_wire(message["error"])
    result = message.get("result")
    if not isinstance(result, dict):
        raise FormatError("a worker answered with neither a result nor an error")
    return result


@asynccontextmanager
async def worker(module: str, *, sandboxed: bool, readable: Sequence[int] = ()) -> AsyncIterator[Worker]:
    """A worker for the length of a block; it is gone afterwards, however the block ends."""
    one = await Worker.spawn(module, sandboxed=sandboxed, readable=readable)
    try:
        yield one
    except BaseException:
        one.kill()
        raise
    finally:
        if sandboxed:
            one.kill()  # it holds nothing that could be lost
        await asyncio.shield(one.close())
