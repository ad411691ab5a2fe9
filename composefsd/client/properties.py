"""Reading dictionaries and structs of the bus with their types checked, and naming them for JSON."""

import re
from collections.abc import Mapping
from typing import Final, TypeAlias, TypeVar

from composefsd.client.failures import AnswerError

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value]"
"""A value from the bus: variants opened, structs as lists."""

T = TypeVar("T", bound=Value)

_WORD_BREAK: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def key_of(name: str) -> str:
    """The JSON key of a name of the bus: `ManifestDigest` and `manifest-digest` both give `manifest_digest`."""
    return _WORD_BREAK.sub("_", name).replace("-", "_").lower()


def keyed(value: Value) -> Value:
    """A value with the keys of all dictionaries in it as JSON has them."""
    if isinstance(value, dict):
        return {key_of(name): keyed(item) for name, item in value.items()}
    return [keyed(item) for item in value] if isinstance(value, list) else value


def _expect(name: str, value: Value, wanted: type[T]) -> T:
    if type(value) is wanted:  # not isinstance: a bool is no number here
        return value
    raise AnswerError(f"the daemon's {name} is of type {type(value).__name__}, not {wanted.__name__}")


class Properties:
    """The values of a D-Bus dictionary, or of a struct whose members were named.

    Each reader raises AnswerError if the value is there with another type.  What is absent reads as the empty string
    or array, or as None where zero or false would be a claim: daemons serve a property once it tells the truth.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """A string or an object path."""
        return _expect(name, self._values.get(name, ""), str)

    def number(self, name: str) -> int | None:
        """An integer."""
        return _expect(name, self._values[name], int) if name in self._values else None

    def fraction(self, name: str) -> float | None:
        """A number up to 1; None also for a negative one, by which the bus tells that it is unknown."""
        value = _expect(name, self._values.get(name, -1.0), float)
        return min(value, 1.0) if value >= 0 else None

    def flag(self, name: str) -> bool | None:
        """A boolean."""
        return _expect(name, self._values[name], bool) if name in self._values else None

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings or object paths."""
        return tuple(_expect(name, item, str) for item in _expect(name, self._values.get(name, []), list))

    def details(self, name: str) -> dict[str, Value]:
        """A dictionary, with the keys of JSON."""
        found = _expect(name, self._values.get(name, {}), dict)
        return {key_of(key): keyed(value) for key, value in found.items()}

    def dictionary(self, name: str) -> "Properties":
        """A dictionary whose keys the API knows."""
        return Properties(_expect(name, self._values.get(name, {}), dict))

    def dictionaries(self, name: str) -> "list[Properties]":
        """An array of such dictionaries."""
        return [properties(item) for item in _expect(name, self._values.get(name, []), list)]

    def struct(self, name: str, *members: str) -> "Properties | None":
        """A struct whose members are called `members`."""
        return _named(name, self._values[name], members) if name in self._values else None

    def structs(self, name: str, *members: str) -> "list[Properties]":
        """An array of such structs."""
        return [_named(name, item, members) for item in _expect(name, self._values.get(name, []), list)]

    def without(self, *names: str) -> dict[str, Value]:
        """All values but those of `names`, with the keys of JSON."""
        return {key_of(name): keyed(value) for name, value in self._values.items() if name not in names}


NOTHING: Final = Properties({})


def _named(name: str, value: Value, members: tuple[str, ...]) -> Properties:
    items = _expect(name, value, list)
    if len(items) != len(members):
        raise AnswerError(f"the daemon's {name} has {len(items)} members, not {len(members)}")
    return Properties(dict(zip(members, items, strict=True)))


def properties(value: Value) -> Properties:
    """The dictionary that a call answered with.  Raises AnswerError if it is none."""
    return Properties(_expect("answer", value, dict))


def rows(value: Value, *members: str) -> list[Properties]:
    """The array of structs that a call answered with.  Raises AnswerError if it is none."""
    return Properties({"answer": value}).structs("answer", *members)
