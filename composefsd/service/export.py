"""The tree of objects: what is there, what it says of itself, and how it announces changes.

An ObjectManager stands on the root object only and speaks for everything below.  Changes are announced with their
values, once a turn of the loop for an interface however many there were.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

from dbus_next import DBusError, Variant

from composefsd.service import names
from composefsd.service.connection import Connection
from composefsd.service.interface import Channel, Served
from composefsd.service.wire import variant

_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

_STANDARD: Final = f"""\
<interface name="{names.PEER}">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
</interface>
<interface name="{names.INTROSPECTABLE}">
  <method name="Introspect"><arg name="data" type="s" direction="out"/></method>
</interface>
"""

_PROPERTIES: Final = f"""\
<interface name="{names.PROPERTIES}">
  <method name="Get">
    <arg name="interface" type="s" direction="in"/>
    <arg name="name" type="s" direction="in"/>
    <arg name="value" type="v" direction="out"/>
  </method>
  <method name="GetAll">
    <arg name="interface" type="s" direction="in"/>
    <arg name="properties" type="a{{sv}}" direction="out"/>
  </method>
  <method name="Set">
    <arg name="interface" type="s" direction="in"/>
    <arg name="name" type="s" direction="in"/>
    <arg name="value" type="v" direction="in"/>
  </method>
  <signal name="PropertiesChanged">
    <arg name="interface" type="s"/>
    <arg name="changed_properties" type="a{{sv}}"/>
    <arg name="invalidated_properties" type="as"/>
  </signal>
</interface>
"""

_OBJECT_MANAGER: Final = f"""\
<interface name="{names.OBJECT_MANAGER}">
  <method name="GetManagedObjects">
    <arg name="objects" type="a{{oa{{sa{{sv}}}}}}" direction="out"/>
  </method>
  <signal name="InterfacesAdded">
    <arg name="object" type="o"/>
    <arg name="interfaces" type="a{{sa{{sv}}}}"/>
  </signal>
  <signal name="InterfacesRemoved">
    <arg name="object" type="o"/>
    <arg name="interfaces" type="as"/>
  </signal>
</interface>
"""

Interfaces = Mapping[str, Served]
F = TypeVar("F")


def property_value(served: Served, name: str) -> Variant:
    """A property that is not `is_async` as a variant."""
    return variant(served.properties[name].spec.type, served.value(name))


def property_values(served: Served) -> dict[str, Variant]:
    """All properties that are not `is_async`."""
    return {name: property_value(served, name) for name, prop in served.properties.items() if not prop.is_async}


async def all_property_values(served: Served) -> dict[str, Variant]:
    """All properties; those that ask the system do it at the same time."""
    asked = [name for name, prop in served.properties.items() if prop.is_async]
    found = await asyncio.gather(*(served.value(name) for name in asked))
    values = {
        name: variant(served.properties[name].spec.type, value) for name, value in zip(asked, found, strict=True)
    }
    return property_values(served) | values


class View(Served, Generic[F]):
    """An object that shows facts which are read anew from time to time."""

    def __init__(self, channel: Channel, path: str, facts: F) -> None:
        super().__init__(channel, path)
        self.facts = facts

    def update(self, facts: F) -> None:
        """Show what is known now, and announce what is new of it."""
        if facts != self.facts:
            before = property_values(self)
            self.facts = facts
            self.changed(*(name for name, value in property_values(self).items() if value != before[name]))


class ObjectTree:
    """The objects by path; the `Channel` of what is in it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._objects: dict[str, dict[str, Served]] = {}
        self._changes: dict[tuple[str, str], dict[str, None]] = {}

    def export(self, *served: Served) -> None:
        """Add an object with these interfaces, all made for its path."""
        path = served[0].path
        self._objects[path] = {one.spec.name: one for one in served}
        if path != names.ROOT_PATH:
            content = {one.spec.name: property_values(one) for one in served}
            self._announce_object("InterfacesAdded", "oa{sa{sv}}", path, content)

    def remove(self, path: str) -> None:
        """Take an object away."""
        interfaces = list(self._objects.pop(path))
        for interface in interfaces:
            self._changes.pop((path, interface), None)
        self._announce_object("InterfacesRemoved", "oas", path, interfaces)

    def emit(self, path: str, interface: str, signal: str, *values: Any) -> None:
        """Broadcast a signal of an object of the tree."""
        signature = self._objects[path][interface].spec.signals[signal]
        self._connection.signal(path, interface, signal, signature, values)

    def changed(self, path: str, interface: str, *properties: str) -> None:
        """Announce properties with the values that they have at the end of this turn of the loop."""
        if path not in self._objects or not properties:
            return
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._announce_all)
        self._changes.setdefault((path, interface), {}).update(dict.fromkeys(properties))

    def announce(self, path: str, interface: str) -> None:
        """Announce now what has changed of an interface, so that a signal can follow it."""
        if changes := self._changes.pop((path, interface), None):
            served = self._objects[path][interface]
            values = {name: property_value(served, name) for name in changes}
            self._connection.signal(path, names.PROPERTIES, "PropertiesChanged", "sa{sv}as", [interface, values, ()])

    @property
    def is_congested(self) -> bool:
        """Whether the bus is slow, so that changes which will be superseded should not be announced."""
        return self._connection.is_congested

    def find(self, path: str) -> Interfaces:
        """The interfaces of an object.  Raises DBusError (UnknownObject)."""
        if path not in self._objects:
            raise DBusError(f"{names.FREEDESKTOP_ERRORS}.UnknownObject", f"there is no object {path}")
        return self._objects[path]

    def managed(self) -> dict[str, dict[str, dict[str, Variant]]]:
        """What ObjectManager tells: all objects but the root, with their properties."""
        return {
            path: {name: property_values(served) for name, served in interfaces.items()}
            for path, interfaces in self._objects.items()
            if path != names.ROOT_PATH
        }

    def introspect(self, path: str) -> str:
        """The XML of an object or of a path that leads to objects.  Raises DBusError (UnknownObject)."""
        prefix = path.rstrip("/") + "/"
        children = sorted({other[len(prefix) :].split("/")[0] for other in self._objects if other.startswith(prefix)})
        parts = [_STANDARD]
        if not children or path in self._objects:
            parts += [_PROPERTIES, *(served.spec.xml for served in self.find(path).values())]
        if path == names.ROOT_PATH:
            parts.append(_OBJECT_MANAGER)
        parts += [f'<node name="{child}"/>\n' for child in children]
        return f"{_DOCTYPE}<node>\n{''.join(parts)}</node>\n"

    def _announce_all(self) -> None:
        for path, interface in tuple(self._changes):
            self.announce(path, interface)

    def _announce_object(self, signal: str, signature: str, path: str, content: object) -> None:
        self._connection.signal(names.ROOT_PATH, names.OBJECT_MANAGER, signal, signature, [path, content])
