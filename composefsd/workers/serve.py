"""The worker's side: a loop that takes requests and runs tasks, one after another, until the daemon hangs up.

A task is a function in the room it belongs to, listed in that module's `TASKS`.  It gets a `Call`, does its work
synchronously and answers with plain values, or raises.  Cancelling is killing: a task leaves nothing behind that has
a name before it is whole.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from composefsd.errors import ComposefsdError, InternalError, NoSpaceError, to_wire
from composefsd.linux.oserrors import translate
from composefsd.workers import channel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: plain values, descriptors that are closed when the task returns, and a way to tell of progress."""

    args: dict[str, Any]
    fds: tuple[int, ...]
    report: Callable[[dict[str, Any]], None]


Task = Callable[[Call], dict[str, Any]]


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, frame: bytes) -> None:
        self._sock.sendall(frame)

    def report(self, event: dict[str, Any]) -> None:
        self.send(channel.encode({"event": event}))

    def receive(self) -> tuple[channel.Message, tuple[int, ...]] | None:
        """The next request with its descriptors; None when the daemon has hung up."""
        try:
            head, fds, _, _ = socket.recv_fds(self._sock, channel.LENGTH.size, channel.DESCRIPTORS)
        except ConnectionResetError:  # it hung up without having read our last answer
            return None
        if not head:
            return None
        head += self._exactly(channel.LENGTH.size - len(head))
        return channel.decode(self._exactly(channel.decode_length(head))), tuple(fds)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise EOFError("the daemon hung up in the middle of a request")
            data += piece
        return bytes(data)


def _answer(task: Task, call: Call) -> bytes:
    """The frame that a task ends with."""
    try:
        return channel.encode({"result": task(call)})
    except ComposefsdError as error:
        return _failure(error)
    except OSError as error:
        return _failure(translate(error, "a worker was stopped"))
    except MemoryError:
        return _failure(NoSpaceError("the input needs more memory than a worker may use"))
    except Exception:
        log.exception("bug in a worker")
        return _failure(InternalError("internal error in a worker, see the journal"))


def _failure(error: ComposefsdError) -> bytes:
    return channel.encode({"error": to_wire(error)})


def serve(sock: socket.socket, tasks: Mapping[str, Task]) -> None:
    """Serve requests on `sock` until the other side hangs up."""
    connection = _Connection(sock)
    while (request := connection.receive()) is not None:
        message, fds = request
        try:
            call = Call(message["args"], fds, connection.report)
            answer = _answer(tasks[message["task"]], call)
        finally:
            for fd in fds:
                os.close(fd)
        connection.send(answer)
