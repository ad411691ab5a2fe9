"""A connection to the message bus: dbus-next's wire layer with its traps covered.

Calls are raw messages, so there is no introspection round trip.  Of dbus-next 0.2.3 only `Message`, marshalling and
`aio.MessageBus` are used; the comments tell which of its quirks each line is about.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from dbus_next import AuthError, Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from composefsd.client.exits import ClientError
from composefsd.client.failures import NAME_HAS_NO_OWNER, AnswerError, CallError, NoServiceError
from composefsd.client.properties import Value
from composefsd.service import names

CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 30
"""How long a call that only reads may take before the daemon counts as hung."""

ASK_SECONDS: Final = 300
"""The same for a call that may ask the user for a password, which polkit lets wait for two minutes."""

_SYSTEM_ADDRESS: Final = "unix:path=/run/dbus/system_bus_socket"


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that arrived; sender is a unique name, which the bus vouches for."""

    sender: str
    path: str
    interface: str
    member: str
    body: list[Value]


@dataclass(frozen=True, slots=True)
class Call:
    """A method call, and the signature its answer must have."""

    path: str
    interface: str
    member: str
    signature: str = ""
    body: Sequence[object] = ()
    answer: str = ""
    destination: str = names.BUS_NAME


class _Connection(MessageBus):
    """dbus-next's bus, which neither notices that a peer hangs up while it authenticates nor closes its socket."""

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            if not (part := await self._loop.sock_recv(self._sock, 1)):
                raise EOFError("the bus hung up")
            line += part
        return line[:-2].decode("ascii", "replace")

    def _setup_socket(self) -> None:
        try:
            MessageBus._setup_socket(self)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all pending calls, then close the socket."""
        if hasattr(self, "_disconnect_future"):  # set last in the constructor, so not if connecting failed
            self._user_disconnect = True
            MessageBus._finalize(self, None)
        for thing in (getattr(self, "_stream", None), getattr(self, "_sock", None)):
            if thing is not None:
                thing.close()


def address_of(bus: str) -> str:
    """The address of `system`, `session`, or `bus` itself.  Raises NoServiceError if there is no session bus."""
    if bus == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_ADDRESS
    if bus != "session":
        return bus
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return address
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return f"unix:path={runtime}/bus"
    raise NoServiceError("no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")


def plain(value: object) -> Value:
    """A value of dbus-next without its variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int | float):
        return value
    raise AnswerError(f"a value of type {type(value).__name__} came from the bus")


def _check_name(unique_name: str) -> None:
    if not unique_name.startswith(":"):  # dbus-next takes the text of an error reply to Hello for our name
        raise AuthError(f"the bus refused us: {unique_name}")


async def _connect(address: str) -> _Connection:
    # Quirk 23; only sockets of this kind carry descriptors, and the bus refuses to talk of them on others.
    connection = _Connection(bus_address=address, negotiate_unix_fd=address.startswith("unix:"))
    try:
        async with asyncio.timeout(CONNECT_SECONDS):  # quirk 17: connect() waits for ever if Hello is not answered
            await connection.connect()
        _check_name(str(connection.unique_name))
    except BaseException:
        connection.close()
        raise
    return connection


class Bus:
    """A connection on which calls end: with an answer, an error, a timeout or the end of the bus."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._listeners: list[Callable[[Signal], None]] = []
        self.gone: asyncio.Future[None] = asyncio.ensure_future(MessageBus.wait_for_disconnect(connection))
        self.gone.add_done_callback(lambda end: end.cancelled() or end.exception())
        connection.add_message_handler(self._on_message)

    @classmethod
    async def connect(cls, address: str) -> Self:
        """Connect to the first address of the list that answers.  Raises NoServiceError if none does."""
        failures = []
        # One at a time: dbus-next raises the first failure of a list even if a later address answered.
        for part in filter(None, address.split(";")):
            try:
                return cls(await _connect(part))
            except TimeoutError:
                failures.append(f"{part}: no answer within {CONNECT_SECONDS} seconds")
            except (OSError, EOFError, AuthError, ValueError) as error:
                failures.append(f"{part}: {getattr(error, 'strerror', None) or error}")
        raise NoServiceError(f"cannot connect to the bus at {', '.join(failures) or 'an empty address'}")

    def listen(self, listener: Callable[[Signal], None]) -> None:
        """Hand every signal that arrives from now on to `listener`; nothing is subscribed to by this."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Leave the bus."""
        self._connection.close()

    async def call(self, call: Call, *, timeout_seconds: float = READ_SECONDS) -> list[Value]:
        """The body of the answer.

        Raises CallError for an error reply, AnswerError for an answer of another signature, NoServiceError if the bus
        is gone or the answer did not come in time, ClientError for a string that the bus cannot carry.
        """
        return _body(call, await self._reply(call, timeout_seconds))

    async def call_for_descriptor(self, call: Call, *, timeout_seconds: float = READ_SECONDS) -> int:
        """The descriptor that is the answer, which is the caller's to close.  Raises as `call`."""
        reply = await self._reply(call, timeout_seconds)
        descriptors = list(reply.unix_fds)
        try:
            (index,) = _body(call, reply)
            if not isinstance(index, int) or not 0 <= index < len(descriptors):
                raise AnswerError(f"{call.member} answered without the descriptor that it speaks of")
            return descriptors.pop(index)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _reply(self, call: Call, timeout_seconds: float) -> Message:
        if not self._connection.connected:  # quirk 18: a call made now would never end
            raise NoServiceError("the connection to the bus is gone")
        try:
            async with asyncio.timeout(timeout_seconds):  # quirk 22
                reply = await self._connection.call(_message(call))
        except TimeoutError as error:
            raise NoServiceError(f"no answer to {call.member} within {timeout_seconds} seconds") from error
        except UnicodeEncodeError as error:  # an argument of the command line that the bus cannot carry
            raise ClientError(f"not valid UTF-8: {error.object!a}") from error
        except (OSError, EOFError) as error:
            raise NoServiceError("the bus went away before it answered") from error
        if reply is None:  # how dbus-next ends pending calls when it closes without an error
            raise NoServiceError("the connection to the bus was closed")
        return reply

    async def subscribe(self, rule: str) -> None:
        """Ask for the signals of a match rule; they arrive once this has returned."""
        await self.call(_bus_call("AddMatch", "s", [rule]))

    async def owner(self, name: str) -> str | None:
        """The unique name of the connection that owns `name`, or None."""
        try:
            (owner,) = await self.call(_bus_call("GetNameOwner", "s", [name], answer="s"))
        except CallError as error:
            if error.name == NAME_HAS_NO_OWNER:
                return None
            raise
        return str(owner)

    async def activate(self, name: str) -> None:
        """Have the bus start the owner of `name`.  Raises CallError if it does not know how."""
        await self.call(_bus_call("StartServiceByName", "su", [name, 0], answer="u"))

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        body = [plain(item) for item in message.body]
        signal = Signal(message.sender or "", message.path, message.interface, message.member, body)
        for listener in self._listeners:
            listener(signal)


def _bus_call(member: str, signature: str, body: Sequence[object], answer: str = "") -> Call:
    return Call(
        names.FREEDESKTOP_PATH, names.FREEDESKTOP, member, signature, body, answer, destination=names.FREEDESKTOP
    )


def _message(call: Call) -> Message:
    return Message(
        destination=call.destination,
        path=call.path,
        interface=call.interface,
        member=call.member,
        flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
        signature=call.signature,
        body=list(call.body),
    )


def _body(call: Call, reply: Message) -> list[Value]:
    if reply.message_type is MessageType.ERROR:
        text = reply.body[0] if reply.signature.startswith("s") else ""
        raise CallError(str(reply.error_name), str(text))
    if reply.signature != call.answer:
        raise AnswerError(f"{call.member} answered {reply.signature!r} where its API says {call.answer!r}")
    return [plain(item) for item in reply.body]
