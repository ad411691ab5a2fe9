"""JSON documents from outside: bounded, and read through getters that check what they give.

The daemon parses such documents in its own process, so nothing here is recursive or larger than its bound.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, Self

from composefsd.digests import OciDigest
from composefsd.errors import FormatError, LimitExceededError

DOCUMENT_BYTES: Final = 4 << 20
"""The bound of manifests, indexes and configs; registries promise to take no less."""

_ITEMS: Final = 1000


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: two readers of one document must not see different things."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


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
            value = json.loads(data, object_pairs_hook=_unique)
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

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without `default` it has to be there."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._bad(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A number from 0 to 2^63 - 1."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._bad(key, "a number from 0 to 2^63-1")
        return value

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

    def texts(self, key: str) -> tuple[str, ...]:
        """The strings of an array of at most 1000."""
        values = self._array(key)
        if not all(isinstance(value, str) for value in values):
            raise self._bad(key, "an array of strings")
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
