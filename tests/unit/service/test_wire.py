import os
import socket
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from dbus_next import Message, Variant
from dbus_next.constants import MessageFlag
from dbus_next.signature import SignatureTree
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.errors import FormatError
from composefsd.service import wire
from composefsd.service.wire import Incoming, MessageReader, parse_body, prepare_body, safe_text, variant


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with ours, theirs:
        yield ours, theirs


def message(signature: str = "", body: Sequence[Any] = (), flags: MessageFlag = MessageFlag.NONE) -> bytes:
    made = Message(
        destination="org.example.X",
        path="/a",
        interface="a.b",
        member="C",
        signature=signature,
        body=list(body),
        flags=flags,
        serial=9,
    )
    return bytes(made._marshall(negotiate_unix_fd=True))


def with_sender(data: bytes) -> bytes:
    """dbus-next does not write the sender's field, which the bus adds: it is appended to the header."""
    length = int.from_bytes(data[12:16], "little")
    fields, body = data[16 : 16 + length], data[16 + -(-length // 8) * 8 :]
    padded = fields + bytes(-len(fields) % 8) + b"\x07\x01s\0\x04\0\0\0:1.7\0"
    header = data[:12] + len(padded).to_bytes(4, "little") + padded
    return header + bytes(-len(header) % 8) + body


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", []),
        ("sa{sv}", ["text", {"key": Variant("as", ["a", "b"])}]),
        ("tt", [1, 1 << 63]),
        ("(sa(ub))", [["x", [[1, True]]]]),
    ],
)
def test_a_message_is_read_as_it_was_written(
    sockets: tuple[socket.socket, socket.socket], signature: str, body: list[Any]
) -> None:
    ours, theirs = sockets
    theirs.sendall(with_sender(message(signature, body, flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)))
    read = MessageReader(ours).next()
    assert read is not None
    header = read.header
    assert (header.path, header.interface, header.member, header.sender) == ("/a", "a.b", "C", ":1.7")
    assert (header.serial, header.signature, header.is_call, header.is_interactive) == (9, signature, True, True)
    assert header.wants_reply
    assert read.body() == body


def test_messages_that_come_byte_by_byte_are_read(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    reader, data = MessageReader(ours), message("s", ["x"]) * 2
    found = []
    for byte in data:
        theirs.send(bytes([byte]))
        if (read := reader.next()) is not None:
            found.append(read.body())
    assert found == [["x"], ["x"]]


def test_a_body_that_is_too_long_is_dropped_and_the_next_message_read(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = sockets
    reader = MessageReader(ours)
    data = message("s", ["x" * (wire.BODY_BYTES + 1)]) + message("s", ["y"])
    theirs.settimeout(0)
    found: list[Incoming] = []
    while data or len(found) < 2:
        with suppress(BlockingIOError):
            data = data[theirs.send(data) :]
        if (read := reader.next()) is not None:
            found.append(read)
    assert found[0].data is None
    assert found[0].body_bytes > wire.BODY_BYTES
    assert found[1].body() == ["y"]


def test_descriptors_that_come_are_closed(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    reader_end, writer_end = os.pipe()
    theirs.sendmsg([message()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [writer_end] * 3))])
    os.close(writer_end)
    assert MessageReader(ours).next() is not None
    assert os.read(reader_end, 1) == b"", "nobody holds the writing end any more"
    os.close(reader_end)


def test_the_end_of_the_bus_is_told(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    theirs.sendall(message()[:20])
    theirs.close()
    reader = MessageReader(ours)
    with pytest.raises(EOFError):
        reader.next()


@settings(max_examples=200)
@given(st.binary(max_size=80), st.sampled_from([b"l\1\0\1", b"B\4\0\1", b""]))
def test_hostile_bytes_raise_nothing_but_format_error(data: bytes, start: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with ours, theirs:
        theirs.sendall(start + data)
        reader = MessageReader(ours)
        with suppress(FormatError):
            while (read := reader.next()) is not None:
                read.body()


@settings(max_examples=200)
@given(st.binary(max_size=60), st.sampled_from(["s", "a{sv}", "v", "tt", "sa{sv}", "as"]))
def test_a_hostile_body_raises_nothing_but_format_error(data: bytes, signature: str) -> None:
    with suppress(FormatError):
        parse_body(signature, data)


def test_signatures_that_clients_make_up_are_forgotten() -> None:
    for number in range(3000):
        signature = "".join("ub"[(number >> bit) & 1] for bit in range(12))
        struct = f"({signature})".encode()
        parse_body("v", bytes([len(struct)]) + struct + b"\0" + bytes(100))
    assert len(SignatureTree._cache) < 2000


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain ü 漢 😀", "plain ü 漢 😀"),
        ("a\0b", "a\\x00b"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800", "\\xed\\xa0\\x80"),
        ("\ufdd0\uffff\U0010ffff", "\\xef\\xb7\\x90\\xef\\xbf\\xbf\\xf4\\x8f\\xbf\\xbf"),
    ],
)
def test_text_that_the_bus_cannot_carry_is_escaped(text: str, safe: str) -> None:
    assert safe_text(text) == safe


@given(st.text())
def test_safe_text_can_be_sent(text: str) -> None:
    assert b"\0" not in safe_text(text).encode()


def test_values_are_brought_into_the_form_of_the_wire() -> None:
    body = prepare_body("(sas)a(st)a{sv}", [("a\0", ("b",)), [("c", 1)], {"d": variant("(ss)", ("e", "\0"))}])
    assert body == [["a\\x00", ["b"]], [["c", 1]], {"d": Variant("(ss)", ["e", "\\x00"])}]


def test_descriptors_go_by_their_index() -> None:
    descriptors: list[int] = []
    assert prepare_body("sh", ["x", 77], descriptors) == ["x", 0]
    assert descriptors == [77]
