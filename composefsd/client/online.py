"""Running a verb over the bus."""

import asyncio
import logging
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TypeVar

from composefsd.client.bus import Bus, address_of
from composefsd.client.exits import ClientError, Exit
from composefsd.client.interrupts import Interrupts
from composefsd.client.proxy import Proxy
from composefsd.client.session import Session
from composefsd.client.verbs import VERBS

T = TypeVar("T")


def run(args: Namespace) -> Exit:
    """Connect, and do what the arguments say.  Raises ClientError."""
    return in_session(args, lambda session: VERBS[args.verb](session, args))


def in_session(args: Namespace, work: Callable[[Session], Awaitable[T]]) -> T:
    """Connect, and do some work with the daemon.  Raises ClientError."""
    logging.getLogger().addHandler(logging.NullHandler())  # dbus-next and asyncio would print tracebacks to stderr
    return asyncio.run(_work(args, work))


async def _work(args: Namespace, work: Callable[[Session], Awaitable[T]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    interrupts = Interrupts(task.cancel)
    with interrupts.installed():
        try:
            bus = await Bus.connect(address_of(args.bus))
            try:
                return await work(Session(Proxy(bus), interrupts, args))
            finally:
                bus.close()
        except asyncio.CancelledError as error:
            raise ClientError("interrupted", Exit.CANCELLED) from error
