"""Who calls: the connections on the bus, what each may ask of us, and when it leaves.

The bus gives every connection a unique name that it never gives again, and tells when one leaves.  So a client's
record lives as long as its connection; a flood from one is refused cheaply and does not reach the others.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from composefsd.errors import LimitExceededError
from composefsd.service import names
from composefsd.service.connection import Connection, is_signal
from composefsd.service.wire import BODY_BYTES, Incoming

CALLS_A_SECOND: Final = 200.0
CALLS_AT_ONCE: Final = 400.0
PENDING_CALLS: Final = 64
PENDING_WAITS: Final = 20

_READ_BYTES: Final = 1024  # a body of that size costs as much as one more call,
_DROPPED_BYTES: Final = 256 << 10  # and what is dropped unread that much
_BYTES_OF_AN_ANSWER: Final = 16 << 10

_LEAVING: Final = (
    f"type='signal',sender='{names.FREEDESKTOP}',path='{names.FREEDESKTOP_PATH}',"
    f"interface='{names.FREEDESKTOP}',member='NameOwnerChanged',arg2=''"
)


@dataclass(slots=True)
class Client:
    """A connection that called us.  `uid` is the bus's word, once it was asked; None before."""

    sender: str
    tokens: float = CALLS_AT_ONCE
    counted_at: float = field(default_factory=time.monotonic)
    pending: int = 0
    waiting: int = 0
    uid: int | None = None
    has_left: bool = False
    on_leave: set[Callable[[], object]] = field(default_factory=set)

    def spend(self, cost: float) -> bool:
        """Take `cost` calls from what the client may make; false if it made too many."""
        now = time.monotonic()
        self.tokens = min(CALLS_AT_ONCE, self.tokens + (now - self.counted_at) * CALLS_A_SECOND)
        self.counted_at = now
        if self.tokens < 1:
            return False
        self.tokens -= cost
        return True

    def charge_answer(self, size_bytes: int) -> None:
        """Count the work of a long answer as calls."""
        self.tokens -= size_bytes / _BYTES_OF_AN_ANSWER

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Count a call that may stay open for hours.  Raises LimitExceededError if the client has too many."""
        if self.waiting >= PENDING_WAITS:
            raise LimitExceededError(f"one connection can wait for {PENDING_WAITS} jobs at a time")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @contextmanager
    def while_present(self) -> Iterator[None]:
        """Cancel the running task if the client leaves the bus during the block."""
        task = asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            task.cancel()

        self.watch(cancel)
        try:
            yield
        finally:
            self.on_leave.discard(cancel)

    def watch(self, on_leave: Callable[[], object]) -> None:
        """Call `on_leave` once the client leaves the bus; soon, if it has left."""
        if self.has_left:
            asyncio.get_running_loop().call_soon(on_leave)
        else:
            self.on_leave.add(on_leave)


def _cost(message: Incoming) -> float:
    return 1 + min(message.body_bytes, BODY_BYTES) / _READ_BYTES + message.body_bytes / _DROPPED_BYTES


class Clients:
    """The connections that called us and have not left."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clients: dict[str, Client] = {}
        self.called_at = time.monotonic()

    async def watch_bus(self) -> None:
        """Be told by the bus when a connection leaves."""
        self._connection.on_signal = self._on_signal
        await self._connection.call_bus("AddMatch", "s", [_LEAVING])

    def admit(self, message: Incoming) -> Client | None:
        """The client of a call, or None if it asks for more than it may."""
        self.called_at = time.monotonic()
        sender = message.header.sender
        client = self._clients.get(sender)
        if client is None:
            client = self._clients[sender] = Client(sender)
        if client.pending >= PENDING_CALLS or not client.spend(_cost(message)):
            return None
        return client

    async def uid_of(self, client: Client) -> int:
        """The uid of a client.  Raises DBusError if it has left."""
        if client.uid is None:
            (client.uid,) = await self._connection.call_bus("GetConnectionUnixUser", "s", [client.sender])
        return client.uid

    @property
    def pending_calls(self) -> int:
        """Calls of all clients that have no answer yet."""
        return sum(client.pending for client in self._clients.values())

    def _on_signal(self, message: Incoming) -> None:
        if not is_signal(message.header, names.FREEDESKTOP, "NameOwnerChanged"):
            return
        name, _, owner = message.body()
        client = None if owner else self._clients.pop(name, None)
        if client is not None:
            client.has_left = True
            for on_leave in tuple(client.on_leave):
                on_leave()
            client.on_leave.clear()
