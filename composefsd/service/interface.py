"""What the XML says, and classes that serve it.

`dbus/org.composefs.Composefs1.xml` is the reference of the API and what introspection answers with; the package has
a link to it.  A class serves one of its interfaces: methods and properties are marked with `dbus_method` and
`dbus_property`, their types are `Annotated` with D-Bus codes, and a class that differs from the XML in a member, a
signature or a type cannot be imported.
"""

import inspect
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeVar, get_type_hints

from dbus_next import Variant

XML_FILE: Final = "org.composefs.Composefs1.xml"

_CHANGES: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"

S = Annotated[str, "s"]
O = Annotated[str, "o"]  # noqa: E741
B = Annotated[bool, "b"]
U = Annotated[int, "u"]
T = Annotated[int, "t"]
D = Annotated[float, "d"]
H = Annotated[int, "h"]
AS = Annotated[Sequence[str], "as"]
AO = Annotated[Sequence[str], "ao"]
ASV = Annotated[dict[str, Variant], "a{sv}"]
TO = Annotated[tuple[int, str], "to"]

F = TypeVar("F", bound=Callable[..., Any])


class Changes(Enum):
    """What a property announces, by the values of the annotation EmitsChangedSignal."""

    SIGNALLED = "true"
    SILENT = "false"
    CONSTANT = "const"


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method of the XML; `answers` counts its out arguments."""

    name: str
    takes: str
    gives: str
    answers: int


@dataclass(frozen=True, slots=True)
class PropertySpec:
    """A property of the XML; all are read-only."""

    name: str
    type: str
    changes: Changes


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """An interface of the XML, and its text for introspection."""

    name: str
    methods: dict[str, MethodSpec]
    properties: dict[str, PropertySpec]
    signals: dict[str, str]
    xml: str


def _codes(arguments: Sequence[ET.Element]) -> str:
    return "".join(argument.get("type", "") for argument in arguments)


def _method(element: ET.Element) -> MethodSpec:
    arguments = element.findall("arg")
    gives = [argument for argument in arguments if argument.get("direction") == "out"]
    takes = [argument for argument in arguments if argument.get("direction") != "out"]
    return MethodSpec(element.get("name", ""), _codes(takes), _codes(gives), len(gives))


def _property(element: ET.Element) -> PropertySpec:
    notes = {note.get("name"): note.get("value") for note in element.findall("annotation")}
    return PropertySpec(element.get("name", ""), element.get("type", ""), Changes(notes.get(_CHANGES, "true")))


def _interface(element: ET.Element) -> InterfaceSpec:
    methods = [_method(child) for child in element.findall("method")]
    properties = [_property(child) for child in element.findall("property")]
    return InterfaceSpec(
        element.get("name", ""),
        {method.name: method for method in methods},
        {prop.name: prop for prop in properties},
        {child.get("name", ""): _codes(child.findall("arg")) for child in element.findall("signal")},
        ET.tostring(element, encoding="unicode"),
    )


def load_specs() -> dict[str, InterfaceSpec]:
    """The interfaces of the package's XML by name."""
    text = resources.files("composefsd.service").joinpath(XML_FILE).read_text(encoding="utf-8")
    return {spec.name: spec for spec in map(_interface, ET.fromstring(text).findall("interface"))}


SPECS: Final = load_specs()


@dataclass(frozen=True, slots=True)
class Method:
    """A served method; `reads` ones change nothing, so a call that wants no answer need not be made."""

    spec: MethodSpec
    function: Callable[..., Any]
    reads: bool
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class Property:
    """A served property; `is_async` ones ask the system for their value and may take a moment."""

    spec: PropertySpec
    function: Callable[[Any], Any]
    is_async: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    name: str
    reads: bool
    reply_bytes: int
    is_property: bool


REPLY_BYTES: Final = 1 << 20
"""What an answer may have: bulk goes through descriptors."""


def dbus_method(name: str, *, reads: bool = False, reply_bytes: int = REPLY_BYTES) -> Callable[[F], F]:
    """Serve a method, or a coroutine, as the method `name` of the class's interface."""
    return _marker(_Mark(name, reads, reply_bytes, is_property=False))


def dbus_property(name: str) -> Callable[[F], F]:
    """Serve what a method, or a coroutine, returns as the property `name` of the class's interface."""
    return _marker(_Mark(name, reads=True, reply_bytes=REPLY_BYTES, is_property=True))


def _marker(mark: _Mark) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        function.__dict__["dbus"] = mark
        return function

    return decorate


class Channel(Protocol):
    """Where a served object announces things; see `tree.ObjectTree`."""

    def emit(self, path: str, interface: str, signal: str, *values: Any) -> None:
        """Broadcast a signal of the XML."""

    def changed(self, path: str, interface: str, *properties: str) -> None:
        """Announce properties with their values of the end of this turn of the loop."""


class Served:
    """An object's side of one interface: `class Manager(Served, interface=names.MANAGER)`."""

    spec: ClassVar[InterfaceSpec]
    methods: ClassVar[dict[str, Method]]
    properties: ClassVar[dict[str, Property]]

    def __init_subclass__(cls, *, interface: str = "") -> None:
        super().__init_subclass__()
        if not interface:  # a base of such classes
            return
        marked = [(member.__dict__["dbus"], member) for member in vars(cls).values() if hasattr(member, "dbus")]
        cls.spec = spec = SPECS[interface]
        cls.methods = {
            mark.name: Method(_check_method(spec, mark.name, function), function, mark.reads, mark.reply_bytes)
            for mark, function in marked
            if not mark.is_property
        }
        cls.properties = {
            mark.name: Property(
                _check_property(spec, mark.name, function), function, inspect.iscoroutinefunction(function)
            )
            for mark, function in marked
            if mark.is_property
        }
        missing = (spec.methods.keys() - cls.methods.keys()) | (spec.properties.keys() - cls.properties.keys())
        if missing:
            raise TypeError(f"{cls.__name__} does not serve {', '.join(sorted(missing))} of {interface}")

    def __init__(self, channel: Channel, path: str) -> None:
        self._channel = channel
        self.path = path

    def emit(self, signal: str, *values: Any) -> None:
        """Broadcast a signal of this interface."""
        self._channel.emit(self.path, self.spec.name, signal, *values)

    def changed(self, *properties: str) -> None:
        """Announce properties of this interface."""
        self._channel.changed(self.path, self.spec.name, *properties)

    def value(self, name: str) -> Any | Awaitable[Any]:
        """The value of a property; of an `is_async` one, what to await for it."""
        return self.properties[name].function(self)


def _annotated(function: Callable[..., Any]) -> tuple[str, str]:
    """The codes of a function's parameters and of what it returns."""
    hints = get_type_hints(function, include_extras=True)
    hints.pop("self", None)
    gives = hints.pop("return")
    return "".join(hint.__metadata__[0] for hint in hints.values()), _code(gives)


def _code(hint: Any) -> str:
    return "" if hint is type(None) else str(hint.__metadata__[0])


def _check_method(spec: InterfaceSpec, name: str, function: Callable[..., Any]) -> MethodSpec:
    method = spec.methods.get(name)
    if method is None or _annotated(function) != (method.takes, method.gives):
        raise TypeError(f"{spec.name}.{name} is not what the XML says: {_annotated(function)}")
    return method


def _check_property(spec: InterfaceSpec, name: str, function: Callable[..., Any]) -> PropertySpec:
    prop = spec.properties.get(name)
    if prop is None or _annotated(function) != ("", prop.type):
        raise TypeError(f"{spec.name}.{name} is not what the XML says: {_annotated(function)}")
    return prop
