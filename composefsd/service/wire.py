"""Messages as bytes: framing and headers are read here, bodies by dbus-next's marshaller.

The D-Bus specification, "Message Protocol": 16 fixed bytes (byte order, type, flags, version, length of the body,
serial, length of the header fields), an array of header fields padded to 8, the body.  The byte order is the
sender's.  The header is read by hand because it is all that is needed to refuse a flood, and dbus-next takes ten
times as long for it; a body is only read once its signature is the one that its method takes.
"""

import io
import os
import re
import socket
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from dbus_next import Variant
from dbus_next._private.unmarshaller import Unmarshaller  # private: dbus-next is pinned, 0.2.3 is its last release
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.signature import SignatureTree, SignatureType

from composefsd.errors import FormatError

FIELDS_BYTES: Final = 32 << 10
"""Header fields longer than this, which the longest names and paths in use do not come near, are not looked at."""

BODY_BYTES: Final = 64 << 10
"""A body longer than this is dropped unread: no call and no answer that we take needs it."""

DESCRIPTORS: Final = 16
"""Descriptors in one message; dbus-daemon's limit for a system bus, too."""

_PREAMBLE_BYTES: Final = 16
_SKIP_BYTES: Final = 64 << 10
_SIGNATURES: Final = 1000
_CALL: Final = MessageType.METHOD_CALL.value

# Of the codes of header fields, those that are strings, object paths or signatures, in the order of `Header`.
_TEXT_FIELDS: Final = {1: "path", 2: "interface", 3: "member", 4: "error_name", 7: "sender", 8: "signature"}
_REPLY_SERIAL: Final = 5


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself; absent fields are empty.  `type` and `flags` are the numbers on the wire."""

    type: int
    flags: int
    serial: int
    reply_serial: int
    path: str
    interface: str
    member: str
    error_name: str
    sender: str
    signature: str

    @property
    def is_call(self) -> bool:
        return self.type == _CALL

    @property
    def wants_reply(self) -> bool:
        return not self.flags & MessageFlag.NO_REPLY_EXPECTED.value

    @property
    def is_interactive(self) -> bool:
        return bool(self.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION.value)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message from the bus.  `data` is the body, None if it was longer than BODY_BYTES and was dropped."""

    header: Header
    order: str
    body_bytes: int
    data: bytes | None

    def body(self) -> list[Any]:
        """The values of the body: variants as `Variant`, structs as lists.  Raises FormatError."""
        return parse_body(self.header.signature, self.data or b"", self.order)


@dataclass(frozen=True, slots=True)
class _Preamble:
    order: str  # as `struct` spells it
    type: int
    flags: int
    body_bytes: int
    serial: int
    fields_bytes: int

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Self:
        order = {ord("l"): "<", ord("B"): ">"}.get(data[0])
        if order is None or data[3] != 1:
            raise FormatError("the bus sent something that is no message of D-Bus version 1")
        body_bytes, serial, fields_bytes = struct.unpack_from(f"{order}III", data, 4)
        return cls(order, data[1], data[2], body_bytes, serial, fields_bytes)

    @property
    def padded_fields_bytes(self) -> int:
        return -(-self.fields_bytes // 8) * 8


def _parse_header(preamble: _Preamble, fields: bytes) -> Header:
    """Raises FormatError for what no bus lets through."""
    texts, reply_serial, offset = dict.fromkeys(_TEXT_FIELDS.values(), ""), 0, 0
    word = struct.Struct(f"{preamble.order}I").unpack_from
    try:
        while offset < preamble.fields_bytes:
            code, kind, start = fields[offset], fields[offset + 2], offset + 4  # code, signature `\1k\0`
            if kind == ord("u"):
                (number,), end = word(fields, start), start + 4
                reply_serial = number if code == _REPLY_SERIAL else reply_serial
            else:
                is_short = kind == ord("g")  # a signature's length has one byte, a string's four
                first = start + (1 if is_short else 4)
                end = first + (fields[start] if is_short else word(fields, start)[0]) + 1
                if code in _TEXT_FIELDS:
                    texts[_TEXT_FIELDS[code]] = fields[first : end - 1].decode()
            offset = -(-end // 8) * 8
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise FormatError(f"the bus sent a message with a broken header: {error}") from error
    return Header(preamble.type, preamble.flags, preamble.serial, reply_serial, **texts)


class MessageReader:
    """Reads messages from a non-blocking socket, never beyond the end of one: descriptors stay with their message.

    Descriptors that arrive are closed at once, since no method of ours takes one; left open, any client could fill
    our table of descriptors.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._data = bytearray()
        self._wanted = _PREAMBLE_BYTES
        self._unwanted = 0
        self._preamble: _Preamble | None = None

    def next(self) -> Incoming | None:
        """The next message, or None if the socket has no whole one now.

        Raises EOFError at the end, OSError as the socket does, FormatError when the stream makes no sense any more.
        """
        while True:
            while len(self._data) < self._wanted:
                if not (piece := self._receive(self._wanted - len(self._data))):
                    return None
                self._data += piece
            if self._preamble is None:
                self._begin()
                continue
            while self._unwanted:
                if not (piece := self._receive(min(self._unwanted, _SKIP_BYTES))):
                    return None
                self._unwanted -= len(piece)
            if (message := self._finish()) is not None:
                return message

    def _begin(self) -> None:
        self._preamble = preamble = _Preamble.parse(self._data)
        fields, body = preamble.padded_fields_bytes, preamble.body_bytes
        if fields > FIELDS_BYTES:
            self._unwanted = fields + body
        elif body > BODY_BYTES:
            self._wanted, self._unwanted = _PREAMBLE_BYTES + fields, body
        else:
            self._wanted = _PREAMBLE_BYTES + fields + body

    def _finish(self) -> Incoming | None:
        preamble, data = self._preamble, bytes(self._data)
        assert preamble is not None
        self._preamble, self._wanted = None, _PREAMBLE_BYTES
        self._data.clear()
        if preamble.padded_fields_bytes > FIELDS_BYTES:
            return None
        body = _PREAMBLE_BYTES + preamble.padded_fields_bytes
        header = _parse_header(preamble, data[_PREAMBLE_BYTES:body])
        kept = data[body:] if preamble.body_bytes <= BODY_BYTES else None
        return Incoming(header, preamble.order, preamble.body_bytes, kept)

    def _receive(self, count: int) -> bytes:
        """Up to `count` bytes, none if there are none now."""
        room = socket.CMSG_SPACE(DESCRIPTORS * array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(count, room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return b""
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                close_all(array("i", content[: len(content) // 4 * 4]))
        if not data:
            raise EOFError("the bus hung up")
        return data


def close_all(descriptors: Sequence[int]) -> None:
    """Close every one of `descriptors`."""
    for descriptor in descriptors:
        os.close(descriptor)


def parse_body(signature: str, data: bytes, order: str = "<") -> list[Any]:
    """The values of a body.  Raises FormatError for what does not follow its signature."""
    reader = Unmarshaller(io.BytesIO())
    reader.buf = bytearray(data)
    reader.endian = ord("l") if order == "<" else ord("B")
    if len(SignatureTree._cache) > _SIGNATURES:  # it keeps every signature of every variant that anybody ever sent
        SignatureTree._cache.clear()
    try:
        return [reader.read_argument(kind) for kind in SignatureTree._get(signature).types]
    except Exception as error:  # dbus-next has no common root for its errors, and raises built-in ones as well
        raise FormatError(f"a message's body does not follow its signature {signature!r}") from error


# Strings that a bus cannot carry, or that sd-bus refuses together with the whole message: NUL, lone surrogates,
# and the non-characters of Unicode.
_UNSAFE: Final = re.compile(
    "[\0\ud800-\udfff\ufdd0-\ufdef" + "".join(chr(p << 16 | 0xFFFE) + chr(p << 16 | 0xFFFF) for p in range(17)) + "]"
)


def _escape(match: re.Match[str]) -> str:
    try:
        data = match[0].encode(errors="surrogateescape")
    except UnicodeEncodeError:
        data = match[0].encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def safe_text(text: str) -> str:
    """`text` with every byte that must not go over the bus written as `\\xNN`, as dumpfiles do."""
    return _UNSAFE.sub(_escape, text)


def prepare(kind: SignatureType, value: Any, descriptors: list[int] | None = None) -> Any:
    """`value` as dbus-next wants it: structs as lists, strings safe, descriptors by their index in `descriptors`.

    Variants are taken as they are: `variant` has prepared them.
    """
    token = kind.token
    if token == "s":
        return safe_text(value)
    if token == "h" and descriptors is not None:
        descriptors.append(value)
        return len(descriptors) - 1
    if token == "(":
        return [prepare(child, item, descriptors) for child, item in zip(kind.children, value, strict=True)]
    if token == "a" and kind.children[0].token == "{":
        key, item = kind.children[0].children
        return {prepare(key, name): prepare(item, content) for name, content in value.items()}
    if token == "a" and kind.children[0].token != "y":
        return [prepare(kind.children[0], item, descriptors) for item in value]
    return value


def prepare_body(signature: str, values: Sequence[Any], descriptors: list[int] | None = None) -> list[Any]:
    """The values of a body as dbus-next wants them."""
    kinds = SignatureTree._get(signature).types
    return [prepare(kind, value, descriptors) for kind, value in zip(kinds, values, strict=True)]


def variant(signature: str, value: Any) -> Variant:
    """A variant for a message: `value` may have tuples as structs and unsafe strings."""
    return Variant(signature, prepare(SignatureTree._get(signature).types[0], value))
