"""From a call to its reply.

A call is refused or understood before its body is read; methods run as they are, coroutines as tasks, and every one
of them is answered.  What a method raises goes to its caller by name, a bug only to the journal.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from dbus_next import DBusError, Message, MessageType, Variant

from composefsd.errors import InvalidArgumentsError, LimitExceededError
from composefsd.service import names
from composefsd.service.caller import Call, set_call
from composefsd.service.clients import Client, Clients
from composefsd.service.connection import Connection
from composefsd.service.errors import replies
from composefsd.service.export import Interfaces, ObjectTree, all_property_values, property_value, property_values
from composefsd.service.interface import REPLY_BYTES, MethodSpec, Property, Served
from composefsd.service.wire import Header, Incoming, close_all, prepare_body, variant

log = logging.getLogger(__name__)

_OBJECTS_BYTES: Final = 16 << 20
"""GetManagedObjects cannot be cut: its answer grows with the images of the repository."""

_MACHINE_ID: Final = Path("/etc/machine-id")
_STANDARD_INTERFACES: Final = (names.PEER, names.INTROSPECTABLE, names.PROPERTIES, names.OBJECT_MANAGER)


@dataclass(frozen=True, slots=True)
class _Target:
    """What answers a call."""

    spec: MethodSpec
    function: Callable[..., Any]
    reads: bool = True
    reply_bytes: int = REPLY_BYTES


def _refuse(name: str, text: str) -> DBusError:
    return DBusError(f"{names.FREEDESKTOP_ERRORS}.{name}", text)


class Dispatcher:
    """Answers the calls of a connection from an object tree."""

    def __init__(self, connection: Connection, clients: Clients, tree: ObjectTree) -> None:
        self._connection = connection
        self._clients = clients
        self._tree = tree
        self._tasks: set[asyncio.Task[None]] = set()
        self._standard: dict[tuple[str, str], tuple[MethodSpec, Callable[..., Any]]] = {
            (interface, spec.name): (spec, function)
            for interface, spec, function in (
                (names.PEER, MethodSpec("Ping", "", "", 0), _ping),
                (names.PEER, MethodSpec("GetMachineId", "", "s", 1), _machine_id),
                (names.INTROSPECTABLE, MethodSpec("Introspect", "", "s", 1), self._introspect),
                (names.PROPERTIES, MethodSpec("Get", "ss", "v", 1), self._get),
                (names.PROPERTIES, MethodSpec("GetAll", "s", "a{sv}", 1), self._get_all),
                (names.PROPERTIES, MethodSpec("Set", "ssv", "", 0), self._set),
                (names.OBJECT_MANAGER, MethodSpec("GetManagedObjects", "", "a{oa{sa{sv}}}", 1), self._managed),
            )
        }

    def start(self) -> None:
        """Take calls from now on."""
        self._connection.on_call = self._on_call

    async def stop(self) -> None:
        """Cancel the calls under way, and answer them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_call(self, message: Incoming) -> None:
        header = message.header
        client = self._clients.admit(message)
        if client is None:
            self._refuse_flood(header)
            return
        try:
            with replies():
                target = self._find(header)
                if target.reads and not header.wants_reply:
                    return
                arguments = _arguments(message, target.spec)
                copy_context().run(self._run, message.header, client, target, arguments)
        except DBusError as error:
            self._answer_error(header, error)

    def _run(self, header: Header, client: Client, target: _Target, arguments: Sequence[Any]) -> None:
        set_call(Call(client, header.is_interactive))
        result = target.function(*arguments)
        if not inspect.iscoroutine(result):
            self._answer(header, client, target, result)
            return
        client.pending += 1
        task = asyncio.create_task(self._finish(header, client, target, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(
        self, header: Header, client: Client, target: _Target, result: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            with replies():
                self._answer(header, client, target, await result)
        except DBusError as error:
            self._answer_error(header, error)
        finally:
            client.pending -= 1

    # Replies

    def _answer(self, header: Header, client: Client, target: _Target, result: Any) -> None:
        descriptors: list[int] = []
        try:
            data = self._pack(header, target, result, descriptors)
        except BaseException:
            close_all(descriptors)
            raise
        client.charge_answer(len(data))
        if header.wants_reply:
            self._connection.send(data, descriptors)
        else:
            close_all(descriptors)

    def _pack(self, header: Header, target: _Target, result: Any, descriptors: list[int]) -> bytes:
        """The bytes of a reply; its descriptors are put into the list."""
        spec = target.spec
        values = (result,) if spec.answers == 1 else result or ()
        reply = Message(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=header.serial,
            destination=header.sender,
            signature=spec.gives,
            body=prepare_body(spec.gives, values, descriptors),
        )
        data = self._connection.pack(reply, descriptors)
        if len(data) > target.reply_bytes:
            raise LimitExceededError(f"the answer would have {len(data)} bytes, more than {target.reply_bytes}")
        return data

    def _answer_error(self, header: Header, error: DBusError) -> None:
        if header.wants_reply:
            reply = Message(
                message_type=MessageType.ERROR, reply_serial=header.serial, destination=header.sender,
                error_name=error.type, signature="s", body=[error.text],
            )  # fmt: skip
            self._connection.send(self._connection.pack(reply))

    def _refuse_flood(self, header: Header) -> None:
        text = "too many calls from this connection; wait a second"
        self._answer_error(header, DBusError(f"{names.ERRORS}.LimitExceeded", text))

    # Finding what is called

    def _find(self, header: Header) -> _Target:
        if header.interface:
            return self._find_standard(header) or self._find_served(header)
        # Without an interface the member alone decides, as the specification has it.
        for interface, member in self._standard:
            if member == header.member:
                return self._standard_target(header.path, interface, member)
        for served in self._tree.find(header.path).values():
            if header.member in served.methods:
                return _served_target(served, header.member)
        raise _refuse("UnknownMethod", f"no interface of {header.path} has a method {header.member}")

    def _find_standard(self, header: Header) -> _Target | None:
        if (header.interface, header.member) in self._standard:
            return self._standard_target(header.path, header.interface, header.member)
        if header.interface in _STANDARD_INTERFACES:
            raise _refuse("UnknownMethod", f"{header.interface} has no method {header.member}")
        return None

    def _standard_target(self, path: str, interface: str, member: str) -> _Target:
        spec, function = self._standard[interface, member]
        if interface != names.OBJECT_MANAGER:
            return _Target(spec, partial(function, path), reads=member != "Set")
        if path != names.ROOT_PATH:
            raise _refuse("UnknownInterface", f"the ObjectManager is at {names.ROOT_PATH}")
        return _Target(spec, partial(function, path), reply_bytes=_OBJECTS_BYTES)

    def _find_served(self, header: Header) -> _Target:
        served = _interface(self._tree.find(header.path), header.interface)
        if header.member not in served.methods:
            raise _refuse("UnknownMethod", f"{header.interface} has no method {header.member}")
        return _served_target(served, header.member)

    # The standard interfaces

    def _introspect(self, path: str) -> str:
        return self._tree.introspect(path)

    def _managed(self, _path: str) -> dict[str, dict[str, dict[str, Variant]]]:
        return self._tree.managed()

    def _get(self, path: str, interface: str, name: str) -> Variant | Coroutine[Any, Any, Variant]:
        served, prop = self._property(path, interface, name)
        return _value_of(served, prop) if prop.is_async else property_value(served, name)

    def _get_all(self, path: str, interface: str) -> dict[str, Variant] | Coroutine[Any, Any, dict[str, Variant]]:
        found = self._tree.find(path)
        chosen = [_interface(found, interface)] if interface else list(found.values())
        if any(prop.is_async for served in chosen for prop in served.properties.values()):
            return _merged(chosen)
        return {name: value for served in chosen for name, value in property_values(served).items()}

    def _set(self, path: str, interface: str, name: str, _value: Variant) -> None:
        self._property(path, interface, name)
        raise _refuse("PropertyReadOnly", f"{name} cannot be set")

    def _property(self, path: str, interface: str, name: str) -> tuple[Served, Property]:
        found = self._tree.find(path)
        for served in [_interface(found, interface)] if interface else found.values():
            if name in served.properties:
                return served, served.properties[name]
        raise _refuse("UnknownProperty", f"there is no property {name}")


async def _value_of(served: Served, prop: Property) -> Variant:
    return variant(prop.spec.type, await served.value(prop.spec.name))


async def _merged(chosen: Sequence[Served]) -> dict[str, Variant]:
    found = [await all_property_values(served) for served in chosen]
    return {name: value for values in found for name, value in values.items()}


def _interface(found: Interfaces, name: str) -> Served:
    if name not in found:
        raise _refuse("UnknownInterface", f"there is no interface {name} here")
    return found[name]


def _served_target(served: Served, member: str) -> _Target:
    method = served.methods[member]
    return _Target(method.spec, partial(method.function, served), method.reads, method.reply_bytes)


def _arguments(message: Incoming, spec: MethodSpec) -> list[Any]:
    if message.data is None:
        raise LimitExceededError(f"the arguments have {message.body_bytes} bytes, which is too many")
    if message.header.signature != spec.takes:
        raise InvalidArgumentsError(
            f"{spec.name} takes arguments of the signature {spec.takes!r}, not {message.header.signature!r}"
        )
    return message.body()


def _ping(_path: str) -> None:
    """Answer that we are here."""


def _machine_id(_path: str) -> str:
    try:
        return _MACHINE_ID.read_text(encoding="ascii").strip()
    except OSError as error:
        raise _refuse("FileNotFound", f"no machine id: {error.strerror}") from error
