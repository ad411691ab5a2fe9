"""A connection to the message bus that a busy bus, a flood or a hostile client does not end.

Everything that D-Bus clients did to dbus-next's own connection is covered here or in `wire`: a full socket only
pauses the writer; a turn of the loop reads a bounded number of messages; while the bus does not take what we send,
we take nothing from it; calls end with an answer, an error, a timeout or the end of the bus; descriptors are closed
whatever happens.
"""

import asyncio
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from dbus_next import DBusError, Message, MessageType
from dbus_next._private.address import parse_address  # private: dbus-next is pinned, 0.2.3 is its last release
from dbus_next.constants import MessageFlag, NameFlag, RequestNameReply
from dbus_next.errors import InvalidAddressError

from composefsd.errors import ComposefsdError, FormatError
from composefsd.service import names
from composefsd.service.wire import Header, Incoming, MessageReader, close_all, prepare_body

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10.0
CALL_SECONDS: Final = 25.0

_MESSAGES_A_TURN: Final = 32
_QUEUE_HIGH_BYTES: Final = 8 << 20
_QUEUE_LOW_BYTES: Final = 4 << 20
_LINE_BYTES: Final = 512
_SYSTEM_ADDRESS: Final = "unix:path=/run/dbus/system_bus_socket"


class BusError(ComposefsdError):
    """The bus cannot be reached, refuses us, or went away."""


def address_of(bus: str) -> str:
    """The address of `system`, `session`, or `bus` itself.  Raises BusError if there is no session bus."""
    if bus == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _SYSTEM_ADDRESS
    if bus != "session":
        return bus
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return address
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return f"unix:path={runtime}/bus"
    raise BusError("no session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")


@dataclass(slots=True)
class _Chunk:
    """A message on its way out; the descriptors are ours to close once its first byte is sent."""

    data: memoryview
    descriptors: list[int]


class Connection:
    """A connection to a bus; `lost` ends with the error that ended it, or with None after `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._reader = MessageReader(sock)
        self._queue: deque[_Chunk] = deque()
        self._queued_bytes = 0
        self._writing = self._reading = False
        self._serial = 0
        self._replies: dict[int, asyncio.Future[Incoming]] = {}
        self.unique_name = ""
        self.lost: asyncio.Future[BusError | None] = self._loop.create_future()
        self.on_call: Callable[[Incoming], None] = lambda message: None
        self.on_signal: Callable[[Incoming], None] = lambda message: None

    @classmethod
    async def connect(cls, address: str) -> Self:
        """Connect to the first part of the address that answers.  Raises BusError."""
        failures = []
        try:
            parts = parse_address(address)
        except InvalidAddressError as error:
            raise BusError(f"not the address of a bus: {address!r}: {error}") from error
        for transport, options in parts:
            path = options.get("path") or ("\0" + options["abstract"] if "abstract" in options else "")
            if transport != "unix" or not path:
                failures.append(f"{transport}: only unix sockets are supported")
                continue
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await cls._connect(path)
            except TimeoutError:
                failures.append(f"{path}: no answer within {CONNECT_SECONDS:.0f} seconds")
            except (OSError, EOFError, BusError, FormatError) as error:
                failures.append(f"{path}: {getattr(error, 'strerror', None) or error}")
        raise BusError(f"cannot connect to the bus at {address}: {'; '.join(failures)}")

    @classmethod
    async def _connect(cls, path: str) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, path)
            await _authenticate(sock)
        except BaseException:
            sock.close()
            raise
        connection = cls(sock)
        try:
            connection._watch_reads(wanted=True)
            (connection.unique_name,) = await connection.call_bus("Hello")
        except BaseException as error:
            connection.close()
            if isinstance(error, DBusError):
                raise BusError(f"the bus refused us: {error.text}") from error
            raise
        return connection

    # Sending

    @property
    def is_congested(self) -> bool:
        """Whether the bus is slow to take what we send; whoever can send less should."""
        return self._queued_bytes > _QUEUE_LOW_BYTES

    def pack(self, message: Message, descriptors: Sequence[int] = ()) -> bytes:
        """The bytes of a message that will carry `descriptors`.

        Raises what dbus-next does for a body that does not follow its signature; such a message is a bug.
        """
        message.unix_fds = list(descriptors)
        message.serial = message.serial or self._next_serial()
        return bytes(message._marshall(negotiate_unix_fd=True))

    def send(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Queue the bytes of a message, and hand over its descriptors: they get closed."""
        descriptors = descriptors or []
        if self.lost.done():
            close_all(descriptors)
            return
        self._queue.append(_Chunk(memoryview(data), descriptors))
        self._queued_bytes += len(data)
        if not self._writing:
            self._write()
        if self._queued_bytes > _QUEUE_HIGH_BYTES:
            self._watch_reads(wanted=False)

    def signal(self, path: str, interface: str, member: str, signature: str, values: Sequence[Any]) -> None:
        """Broadcast a signal."""
        body = prepare_body(signature, values)
        self.send(self.pack(Message.new_signal(path, interface, member, signature, body)))

    # Calling

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        seconds: float = CALL_SECONDS,
        activate: bool = True,
    ) -> list[Any]:
        """Call a method and answer with the body of its reply.

        Raises DBusError for an error reply or one that is too long, TimeoutError after `seconds`, BusError if the
        bus is gone.
        """
        if self.lost.done():
            raise BusError("the bus went away")
        message = Message(
            destination=destination, path=path, interface=interface, member=member, signature=signature,
            body=list(body), serial=self._next_serial(),
            flags=MessageFlag.NONE if activate else MessageFlag.NO_AUTOSTART,
        )  # fmt: skip
        reply: asyncio.Future[Incoming] = self._loop.create_future()
        self._replies[message.serial] = reply
        try:
            self.send(self.pack(message))
            async with asyncio.timeout(seconds):
                return _body_of(await reply)
        finally:
            del self._replies[message.serial]

    async def call_bus(self, member: str, signature: str = "", body: Sequence[Any] = ()) -> list[Any]:
        """Call a method of the bus itself; raises as `call`."""
        return await self.call(names.FREEDESKTOP, names.FREEDESKTOP_PATH, names.FREEDESKTOP, member, signature, body)

    async def own_name(self, name: str) -> None:
        """Become the owner of `name`.  Raises BusError if it has one already, or the bus does not allow it."""
        try:
            (answer,) = await self.call_bus("RequestName", "su", [name, NameFlag.DO_NOT_QUEUE.value])
        except DBusError as error:
            raise BusError(f"the bus does not let us own {name}: {error.text}") from error
        if answer != RequestNameReply.PRIMARY_OWNER.value:
            raise BusError(f"{name} is owned by another process")

    async def release_name(self, name: str) -> None:
        """Give a name up: calls that are made from now on go to its next owner.  Raises BusError."""
        try:
            await self.call_bus("ReleaseName", "s", [name])
        except (DBusError, TimeoutError) as error:
            raise BusError(f"the bus does not let {name} go: {error}") from error

    # Leaving

    async def drain(self, seconds: float) -> None:
        """Wait until everything is sent, for at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._queue and not self.lost.done():
                    await asyncio.sleep(0.01)

    def close(self) -> None:
        """Leave the bus; calls under way end with BusError."""
        self._end(None)

    def _end(self, error: BusError | None) -> None:
        if self.lost.done():
            return
        self.lost.set_result(error)
        self._watch_reads(wanted=False)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for chunk in self._queue:
            close_all(chunk.descriptors)
        self._queue.clear()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error or BusError("the connection to the bus was closed"))

    # The socket

    def _next_serial(self) -> int:
        self._serial = self._serial % 0xFFFF_FFFF + 1
        return self._serial

    def _watch_reads(self, *, wanted: bool) -> None:
        if wanted and not self._reading:
            self._loop.add_reader(self._socket, self._read)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket)
        self._reading = wanted

    def _read(self) -> None:
        """Take a turn's messages; what is left waits in the kernel, and the loop serves others meanwhile."""
        try:
            for _ in range(_MESSAGES_A_TURN):
                if not self._reading or (message := self._reader.next()) is None:
                    return
                self._deliver(message)
        except (OSError, EOFError, FormatError) as error:
            self._end(BusError(f"the bus went away: {error}"))

    def _deliver(self, message: Incoming) -> None:
        header = message.header
        try:
            if header.is_call:
                self.on_call(message)
            elif header.type == MessageType.SIGNAL.value:
                self.on_signal(message)
            elif (reply := self._replies.get(header.reply_serial)) is not None and not reply.done():
                reply.set_result(message)
        except Exception:
            log.exception("bug while handling a message of the bus")

    def _write(self) -> None:
        try:
            while self._queue:
                if not self._write_some(self._queue[0]):
                    break
        except OSError as error:
            self._end(BusError(f"the bus went away: {error.strerror}"))
            return
        if bool(self._queue) != self._writing:
            self._writing = bool(self._queue)
            if self._writing:
                self._loop.add_writer(self._socket, self._write)
            else:
                self._loop.remove_writer(self._socket)
        if self._queued_bytes < _QUEUE_LOW_BYTES and not self._reading:
            self._watch_reads(wanted=True)

    def _write_some(self, chunk: _Chunk) -> bool:
        """Send what the socket takes of the first message; false if it takes no more for now."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", chunk.descriptors))]
        try:
            sent = self._socket.sendmsg([chunk.data], rights if chunk.descriptors else [])
        except (BlockingIOError, InterruptedError):
            return False
        close_all(chunk.descriptors)
        chunk.descriptors = []
        self._queued_bytes -= sent
        chunk.data = chunk.data[sent:]
        if chunk.data:
            return False
        self._queue.popleft()
        return True


def _body_of(reply: Incoming) -> list[Any]:
    if reply.data is None:
        raise DBusError(f"{names.FREEDESKTOP_ERRORS}.LimitsExceeded", f"an answer of {reply.body_bytes} bytes")
    body = reply.body()
    if reply.header.type == MessageType.ERROR.value:
        text = str(body[0]) if reply.header.signature.startswith("s") else ""
        raise DBusError(reply.header.error_name, text)
    return body


async def _authenticate(sock: socket.socket) -> None:
    """The SASL exchange of the D-Bus specification, "Authentication Protocol", as our own uid.  Raises BusError."""
    loop, uid = asyncio.get_running_loop(), str(os.geteuid()).encode().hex()
    for line, answer in (
        (f"\0AUTH EXTERNAL {uid}\r\n", "OK"),
        ("NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD"),
        ("BEGIN\r\n", ""),
    ):
        await loop.sock_sendall(sock, line.encode())
        if answer and not (said := await _read_line(sock)).startswith(answer):
            raise BusError(f"the bus does not accept us: {said}")


async def _read_line(sock: socket.socket) -> str:
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\r\n") and len(line) < _LINE_BYTES:
        if not (byte := await loop.sock_recv(sock, 1)):  # not more: what follows may be the first message
            raise EOFError("the bus hung up")
        line += byte
    return line.decode("ascii", "replace").strip()


def is_signal(header: Header, interface: str, member: str) -> bool:
    """Whether a message is this signal of the bus itself; the sender's name cannot be forged."""
    return (header.sender, header.interface, header.member) == (names.FREEDESKTOP, interface, member)
