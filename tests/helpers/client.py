"""Clients of the daemon on a real bus, in this process or in one of another user.

    async with connect(stage.address) as client:
        await client.call(Call(MANAGER, "ListJobs", "a{sv}", [{}]))
    answer = call_as(5, stage.address, [Call(...)])

Calls are raw messages, so that nothing stands between a test and what goes over the bus.
"""

import asyncio
import os
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from composefsd.service import names

WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """A method call to the daemon, by default to its root object."""

    interface: str
    member: str
    signature: str = ""
    body: Sequence[Any] = ()
    path: str = names.ROOT_PATH
    destination: str = names.BUS_NAME
    flags: MessageFlag = MessageFlag.NONE

    def message(self) -> Message:
        return Message(
            destination=self.destination,
            path=self.path,
            interface=self.interface or None,  # type: ignore[arg-type] # dbus-next's annotation forgets None
            member=self.member,
            signature=self.signature,
            body=list(self.body),
            flags=self.flags,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: `error` is the name of an error, empty for none; `body` has variants opened."""

    error: str
    body: list[Any]


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal of the daemon."""

    path: str
    interface: str
    member: str
    body: list[Any]


def plain(value: Any) -> Any:
    """A value of the bus with its variants opened."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class _Bus(MessageBus):
    """dbus-next's bus, which does not close its socket."""

    def _setup_socket(self) -> None:
        try:
            MessageBus._setup_socket(self)
        except BaseException:
            self._stream.close()
            self._sock.close()
            raise

    def close(self) -> None:
        self._disconnect_future.add_done_callback(lambda end: end.exception())
        MessageBus._finalize(self, None)
        self._stream.close()
        self._sock.close()


@dataclass(slots=True)
class Client:
    """A connection; `signals` are those of the daemon that have arrived, in order."""

    bus: _Bus
    signals: list[Signal] = field(default_factory=list)

    async def call(self, call: Call) -> Answer:
        """Call, and take the answer as it comes."""
        reply = await asyncio.wait_for(self.bus.call(call.message()), WAIT_SECONDS)
        if reply is None:
            return Answer("", [])
        return Answer(reply.error_name or "", [plain(item) for item in reply.body])

    async def descriptor(self, call: Call) -> int:
        """Call a method that answers with a descriptor, which is the caller's."""
        reply = await asyncio.wait_for(self.bus.call(call.message()), WAIT_SECONDS)
        assert reply is not None
        (descriptor,) = reply.unix_fds
        return descriptor

    async def ask(self, call: Call) -> list[Any]:
        """Call; the answer is no error."""
        answer = await self.call(call)
        assert not answer.error, f"{call.member}: {answer.error}: {answer.body}"
        return answer.body

    async def get(self, path: str, interface: str, name: str) -> Any:
        """A property."""
        return (await self.ask(Call(names.PROPERTIES, "Get", "ss", [interface, name], path)))[0]

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """All properties."""
        (found,) = await self.ask(Call(names.PROPERTIES, "GetAll", "s", [interface], path))
        assert isinstance(found, dict)
        return found

    async def start(self, interface: str, member: str, *arguments: str, **options: Variant) -> int:
        """Start a job; its id.  `_` in an option's name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in options.items()}
        signature = "s" * len(arguments) + "a{sv}"
        job, _ = await self.ask(Call(interface, member, signature, [*arguments, named]))
        assert isinstance(job, int)
        return job

    async def wait(self, job: int, timeout_usec: int = 0) -> Answer:
        """What WaitJob answers."""
        return await self.call(Call(names.MANAGER, "WaitJob", "tt", [job, timeout_usec]))

    async def subscribe(self) -> None:
        """Collect all signals of the daemon from now on."""
        rule = f"type='signal',sender='{names.BUS_NAME}',path_namespace='{names.ROOT_PATH}'"
        call = Call(names.FREEDESKTOP, "AddMatch", "s", [rule], names.FREEDESKTOP_PATH, names.FREEDESKTOP)
        await self.ask(call)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for signals that make `condition` true."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)

    def received(self, member: str) -> list[Signal]:
        """Signals of this name that have arrived."""
        return [signal for signal in self.signals if signal.member == member]

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.path.startswith(names.ROOT_PATH):
            body = [plain(item) for item in message.body]
            self.signals.append(Signal(message.path, message.interface, message.member, body))


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """A client for the length of a block."""
    bus = _Bus(bus_address=address, negotiate_unix_fd=True)
    try:
        await asyncio.wait_for(bus.connect(), WAIT_SECONDS)
        client = Client(bus)
        bus.add_message_handler(client._on_message)
        yield client
    finally:
        bus.close()


@contextmanager
def nothing(_pid: int) -> Iterator[None]:
    """A context that does nothing."""
    yield


def call_as(
    uid: int, address: str, calls: Sequence[Call], *, prepare: Callable[[int], AbstractContextManager[None]] = nothing
) -> list[Answer]:
    """Make calls as another user, from a process of that user, in the context that `prepare` gives for its pid."""
    (go_in, go_out), (answer_in, answer_out) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with child_process():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.read(go_in, 1)
            with os.fdopen(answer_out, "wb") as out:
                pickle.dump(asyncio.run(_calls(address, calls)), out)
    os.close(go_in)
    os.close(answer_out)
    with os.fdopen(answer_in, "rb") as source, prepare(pid):
        os.write(go_out, b"!")
        answers = pickle.load(source)
    os.close(go_out)
    os.waitpid(pid, 0)
    assert isinstance(answers, list)
    return answers


@contextmanager
def child_process() -> Iterator[NoReturn]:
    """The life of a forked process: it never returns into the test."""
    try:
        yield  # type: ignore[misc] # the block ends the process
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


async def _calls(address: str, calls: Sequence[Call]) -> list[Answer]:
    async with connect(address) as client:
        return [await client.call(call) for call in calls]
