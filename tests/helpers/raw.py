"""A D-Bus client by hand, for what no library sends: floods, descriptors, and messages that are too long."""

import os
import socket
from array import array
from collections.abc import Sequence
from typing import Self

from dbus_next import Message
from dbus_next._private.unmarshaller import Unmarshaller  # private: dbus-next is pinned


class Raw:
    """A connection; `send` does not wait, `replies` reads whatever comes."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rb")
        self._serial = 0
        uid = str(os.geteuid()).encode().hex()
        for line in (f"\0AUTH EXTERNAL {uid}", "NEGOTIATE_UNIX_FD"):
            self._socket.sendall(f"{line}\r\n".encode())
            self._stream.readline()
        self._socket.sendall(b"BEGIN\r\n")
        bus = "org.freedesktop.DBus"
        hello = Message(destination=bus, path="/org/freedesktop/DBus", interface=bus, member="Hello")
        self.reply(self.send(hello))  # the bus reads without descriptors until it has read this

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> int:
        """Send a message with descriptors; its serial."""
        self._serial += 1
        message.serial, message.unix_fds = self._serial, list(descriptors)
        data = bytes(message._marshall(negotiate_unix_fd=True))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        sent = self._socket.sendmsg([data], rights)
        self._socket.sendall(data[sent:])
        return self._serial

    def reply(self, serial: int, *, seconds: float = 20.0) -> Message:
        """The answer to a call; other messages that come are passed over."""
        self._socket.settimeout(seconds)
        while True:
            reader = Unmarshaller(self._stream)
            reader.unmarshall()
            message = reader.message
            assert isinstance(message, Message)
            if message.reply_serial == serial:
                return message
