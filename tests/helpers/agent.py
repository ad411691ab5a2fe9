"""An authentication agent: who types the password, or does not, when polkit asks."""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dbus_next import Message, MessageType, Variant
from helpers.bus import GAMES
from helpers.client import WAIT_SECONDS, Call, child_process, connect

_POLKIT: Final = "org.freedesktop.PolicyKit1"


@contextmanager
def agent(address: str, pid: int, *, approves: bool) -> Iterator[None]:
    """An authentication agent for the process `pid`, which says yes to everything, or dismisses it."""
    ready_in, ready_out = os.pipe()
    agent_pid = os.fork()
    if agent_pid == 0:
        with child_process():
            asyncio.run(_serve_as_agent(address, pid, ready_out, approves=approves))
    os.close(ready_out)
    with os.fdopen(ready_in, "rb") as ready:
        assert ready.read(1), "the agent could not be registered"
    try:
        yield
    finally:
        os.kill(agent_pid, signal.SIGKILL)
        os.waitpid(agent_pid, 0)


async def _serve_as_agent(address: str, pid: int, ready: int, *, approves: bool) -> None:
    async with connect(address) as client:

        async def answer(message: Message) -> None:
            cookie, identities = message.body[4], message.body[5]
            if not approves:
                client.bus.send(Message.new_error(message, f"{_POLKIT}.Error.Cancelled", "dismissed"))
                return
            await client.ask(_authority("AuthenticationAgentResponse2", "us(sa{sv})", [0, cookie, identities[0]]))
            client.bus.send(Message.new_method_return(message))

        tasks = []

        def handle(message: Message) -> bool:
            if message.member == "BeginAuthentication":
                tasks.append(asyncio.ensure_future(answer(message)))
            return message.message_type is MessageType.METHOD_CALL

        client.bus.add_message_handler(handle)
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        facts = {"pid": Variant("u", pid), "start-time": Variant("t", int(status[19])), "uid": Variant("i", GAMES)}
        register = [["unix-process", facts], "C", "/agent"]
        await client.ask(_authority("RegisterAuthenticationAgent", "(sa{sv})ss", register))
        os.write(ready, b"!")
        await asyncio.sleep(WAIT_SECONDS)


def _authority(member: str, signature: str, body: Sequence[Any]) -> Call:
    path = "/org/freedesktop/PolicyKit1/Authority"
    return Call(f"{_POLKIT}.Authority", member, signature, body, path, _POLKIT)
