"""Work that callers wait for and that costs something: one at a time, few waiting, none of it without end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from composefsd.errors import LimitExceededError, TimedOutError
from composefsd.service.clients import Client


class Turns:
    """Hands out turns at one kind of work; `what` names it in errors, `waiting` clients can ask at a time."""

    def __init__(self, what: str, *, waiting: int, seconds: float) -> None:
        self._what = what
        self._waiting = waiting
        self._seconds = seconds
        self._clients: list[Client] = []
        self._turn = asyncio.Lock()

    def pause(self) -> AbstractAsyncContextManager[None]:
        """For a block in which nobody shall have a turn: it begins when those that wait already had theirs."""
        return self._turn

    @asynccontextmanager
    async def take(self, client: Client) -> AsyncIterator[None]:
        """The turn of a client, which ends when the client leaves the bus.

        Raises LimitExceededError if this client, or too many others, have asked already, TimedOutError if waiting and
        working take too long.
        """
        if client in self._clients:
            raise LimitExceededError(f"{self._what}: one at a time for one connection")
        if len(self._clients) >= self._waiting:
            raise LimitExceededError(f"{self._what}: too many ask at the same time; try again later")
        self._clients.append(client)
        try:
            with client.while_present():
                async with asyncio.timeout(self._seconds), self._turn:
                    yield
        except TimeoutError as error:
            raise TimedOutError(f"{self._what}: not done within {self._seconds:g} seconds") from error
        finally:
            self._clients.remove(client)
