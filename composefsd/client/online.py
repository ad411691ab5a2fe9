"""Running a verb over the bus."""

import asyncio
import logging
from argparse import Namespace

from composefsd.client.bus import Bus, address_of
from composefsd.client.exits import ClientError, Exit
from composefsd.client.interrupts import Interrupts
from composefsd.client.proxy import Proxy
from composefsd.client.session import Session
from composefsd.client.verbs import VERBS


def run(args: Namespace) -> Exit:
    """Connect, and do what the arguments say.  Raises ClientError."""
    logging.getLogger().addHandler(logging.NullHandler())  # dbus-next and asyncio would print tracebacks to stderr
    return asyncio.run(_run(args))


async def _run(args: Namespace) -> Exit:
    task = asyncio.current_task()
    assert task is not None
    interrupts = Interrupts(task.cancel)
    with interrupts.installed():
        try:
            bus = await Bus.connect(address_of(args.bus))
            try:
                return await VERBS[args.verb](Session(Proxy(bus), interrupts, args), args)
            finally:
                bus.close()
        except asyncio.CancelledError as error:
            raise ClientError("interrupted", Exit.CANCELLED) from error
