"""JSON documents from outside: bounded, and read through getters that check what they give.

The daemon parses such documents in its own process, so nothing here is recursive or larger than its bound.
"""

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final, Self, TypeVar

from composefsd.digests import OciDigest
from composefsd.errors import FormatError, LimitExceededError

DOCUMENT_BYTES: Final = 4 << 20
"""The bound of manifests, indexes and configs; registries promise to take no less."""

LARGEST: Final = (1 << 63) - 1
ANY_TEXT: Final = re.compile(r".*", re.DOTALL)

_ITEMS: Final = 1000

E = TypeVar("E", bound=StrEnum)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: two readers of one document must not see different things."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


def _no_number(text: str) -> object:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{text} is no number")


class Document:
    """One object of a JSON document, with its place in it for error messages."""

    def __init__(self, members: dict[str, Any], place: str) -> None:
        self._members = members
        self._place = place

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Raises FormatError, or LimitExceededError for a document over 4 MiB; `name` says what it is."""
        if len(data) > DOCUMENT_BYTES:
            raise LimitExceededError(f"{name} is larger than {DOCUMENT_BYTES} bytes", subject=name)
        try:
            text = data.decode()  # of bytes, json would take UTF-16 and UTF-32, too
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{name} is not valid JSON: {error}", subject=name) from error
        return cls.of(value, name)

    @classmethod
    def of(cls, value: object, name: str) -> Self:
        """A value that was parsed elsewhere.  Raises FormatError if it is no object."""
        if not isinstance(value, dict):
            raise FormatError(f"{name} is not an object", subject=name)
        return cls(value, name)

    def _bad(self, key: str, wanted: str) -> FormatError:
        return FormatError(f"{self._place}: {key!r} is not {wanted}", subject=f"{self._place}.{key}")

    def __contains__(self, key: str) -> bool:
        return self._members.get(key) is not None

    def require(self, *keys: str) -> None:
        """Raises FormatError unless all of these are there, empty or not."""
        for key in keys:
            if key not in self:
                raise self._bad(key, "there")

    def refuse_null(self, *keys: str) -> None:
        """Raises FormatError if one of these is there and null, which the getters take for missing."""
        for key in keys:
            if key in self._members and self._members[key] is None:
                raise self._bad(key, "anything")

    def text(self, key: str, default: str | None = None, *, form: re.Pattern[str] = ANY_TEXT) -> str:
        """A string, the whole of which is of a form; without `default` it has to be there."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not form.fullmatch(value):
            raise self._bad(key, "a string" if form is ANY_TEXT else "text of the form that it should have")
        return value

    def integer(self, key: str, default: int | None = None, *, limit: int = LARGEST) -> int:
        """A number from 0 to `limit`."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise self._bad(key, f"a number from 0 to {limit}")
        return value

    def choice(self, key: str, choices: type[E]) -> E:
        """A member of an enumeration, by its value."""
        value = self.text(key)
        if value not in {choice.value for choice in choices}:
            raise self._bad(key, f"one of {', '.join(choices)}")
        return choices(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._members.get(key)
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def value(self, key: str) -> object:
        """Whatever is there, None if nothing is."""
        return self._members.get(key)

    def digest(self, key: str) -> OciDigest:
        """An OCI digest."""
        return OciDigest.parse(self.text(key))

    def child(self, key: str) -> "Document":
        """An object; one that is missing is empty."""
        value = self._members.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._bad(key, "an object")
        return Document(value, f"{self._place}.{key}")

    def children(self, key: str) -> Iterator["Document"]:
        """The objects of an array of at most 1000."""
        for index, value in enumerate(self._array(key)):
            if not isinstance(value, dict):
                raise self._bad(f"{key}[{index}]", "an object")
            yield Document(value, f"{self._place}.{key}[{index}]")

    def texts(self, key: str, *, form: re.Pattern[str] = ANY_TEXT) -> tuple[str, ...]:
        """The strings of an array of at most 1000, each of a form."""
        values = self._array(key)
        if not all(isinstance(value, str) and form.fullmatch(value) for value in values):
            raise self._bad(key, "an array of strings of the form that they should have")
        return tuple(values)

    def integers(self, key: str) -> tuple[int, ...]:
        """The numbers of an array of at most 1000, none below 0."""
        values = self._array(key)
        if not all(type(value) is int and value >= 0 for value in values):  # True is an int, too
            raise self._bad(key, "an array of numbers")
        return tuple(values)

    def mapping(self, key: str) -> dict[str, str]:
        """An object of strings, such as annotations or labels; one that is missing is empty."""
        members = self.child(key)._members
        if not all(isinstance(value, str) for value in members.values()):
            raise self._bad(key, "an object of strings")
        return members

    def _array(self, key: str) -> list[Any]:
        value = self._members.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._bad(key, "an array")
        if len(value) > _ITEMS:
            raise LimitExceededError(f"{self._place}: {key!r} has more than {_ITEMS} items")
        return value
