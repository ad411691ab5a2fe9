"""Frames between the daemon and a worker: JSON behind a length, over a Unix stream socket.

A frame is a little-endian 32-bit length and that many bytes of JSON.  Descriptors travel with the first byte of a
request and only towards the worker.  A request is `{"task", "args"}`; its answer is any number of `{"event"}`, then
one `{"result"}` or `{"error"}`.  One request is under way at a time.
"""

import json
from struct import Struct
from typing import Any, Final

from composefsd.errors import FormatError, LimitExceededError

FRAME_BYTES: Final = 16 << 20
"""A worker may be compromised: this bounds what it can make the daemon hold."""

DESCRIPTORS: Final = 200
"""Descriptors that one request can carry; the kernel's SCM_MAX_FD is 253."""

LENGTH: Final = Struct("<I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """A frame.  Raises LimitExceededError if the message is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > FRAME_BYTES:
        raise LimitExceededError(f"a message between processes has {len(data)} bytes")
    return LENGTH.pack(len(data)) + data


def decode_length(data: bytes) -> int:
    """The length of the body that follows.  Raises LimitExceededError."""
    (length,) = LENGTH.unpack(data)
    if length > FRAME_BYTES:
        raise LimitExceededError(f"a worker announced a message of {length} bytes")
    return int(length)


def decode(data: bytes) -> Message:
    """The message of a frame's body.  Raises FormatError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a worker answered with something that is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise FormatError("a worker answered with something that is not a JSON object")
    return message
