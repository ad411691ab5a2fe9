"""Reading options, the `a{sv}` at the end of every verb: nothing unknown, nothing of another type.

A client that asks for `require-digest` must not be half heard, so a key that a verb does not know is an error that
names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from dbus_next import Variant

from composefsd.errors import ComposefsdError, InvalidArgumentsError
from composefsd.service.wire import variant

V = TypeVar("V")
D = TypeVar("D")
E = TypeVar("E", bound=StrEnum)

_TEXT_CHARACTERS: Final = 4096
_ITEMS: Final = 256


@dataclass(frozen=True, slots=True)
class Option(Generic[V]):
    """A key that a verb knows: its D-Bus type, and how its value is understood."""

    key: str
    type: str
    parse: Callable[[Any], V]


def text(key: str) -> Option[str]:
    """A string."""
    return Option(key, "s", _short)


def flag(key: str) -> Option[bool]:
    """A boolean."""
    return Option(key, "b", bool)


def number(key: str, type_code: str = "u") -> Option[int]:
    """An unsigned integer."""
    return Option(key, type_code, int)


def texts(key: str) -> Option[tuple[str, ...]]:
    """Strings."""
    return Option(key, "as", lambda values: tuple(map(_short, _few(values))))


def word(key: str, words: type[E]) -> Option[E]:
    """One word of an enum."""
    return Option(key, "s", lambda value: parse_word(value, words))


def words(key: str, known: type[E]) -> Option[frozenset[E]]:
    """A set of words of an enum."""
    return Option(key, "as", lambda values: frozenset(parse_word(value, known) for value in _few(values)))


def choice(key: str, known: Sequence[str]) -> Option[str]:
    """One of some words that have no enum."""
    return Option(key, "s", lambda value: _one_of(value, known))


def parsed(key: str, parse: Callable[[str], V]) -> Option[V]:
    """A string with a form of its own."""
    return Option(key, "s", lambda value: parse(_short(value)))


def parse_word(value: str, words_of: type[E]) -> E:
    """A word of an enum.  Raises InvalidArgumentsError, which tells them all."""
    return words_of(_one_of(value, [word.value for word in words_of]))


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise InvalidArgumentsError(f"{value[:80]!r} is none of {', '.join(known)}")
    return value


def _short(value: str) -> str:
    if len(value) > _TEXT_CHARACTERS:
        raise InvalidArgumentsError(f"a text of {len(value)} characters is too long")
    return value


def _few(values: list[str]) -> list[str]:
    if len(values) > _ITEMS:
        raise InvalidArgumentsError(f"{len(values)} items are too many")
    return values


class Options:
    """The options of one call, read by the verb's own keys."""

    def __init__(self, given: Mapping[str, Variant], *known: Option[Any]) -> None:
        """Raises InvalidArgumentsError for a key that is not known, or a value of another type."""
        types = {option.key: option.type for option in known}
        for key, value in given.items():
            if key not in types:
                raise InvalidArgumentsError(f"unknown option {key[:80]!r}")
            if value.signature != types[key]:
                wanted = types[key]
                raise InvalidArgumentsError(f"option {key!r} is of type {wanted!r}, not {value.signature[:20]!r}")
        self._given = given

    def get(self, option: Option[V], default: D) -> V | D:
        """The value of an option, `default` if it was not given.  Raises InvalidArgumentsError naming the key.

        What the option's own parser raises keeps its class, with the key put before the message.
        """
        if option.key not in self._given:
            return default
        try:
            return option.parse(self._given[option.key].value)
        except ComposefsdError as error:
            raise type(error)(f"option {option.key!r}: {error.message}", **error.facts) from error


class ClientGone(StrEnum):
    """What becomes of a job when the client that started it leaves the bus."""

    KEEP = "keep"
    CANCEL = "cancel"


class Priority(StrEnum):
    """Idle jobs start when no other waits."""

    NORMAL = "normal"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The options that every verb takes which starts a job; a timeout of 0 is none."""

    request_id: str = ""
    client_gone: ClientGone = ClientGone.KEEP
    priority: Priority = Priority.NORMAL
    timeout_usec: int = 0


_REQUEST_ID_CHARACTERS: Final = 128
_REQUEST_ID: Final = text("request-id")
_CLIENT_GONE: Final = word("on-client-gone", ClientGone)
_PRIORITY: Final = word("priority", Priority)
_TIMEOUT: Final = number("timeout-usec", "t")

JOB_OPTIONS: Final[tuple[Option[Any], ...]] = (_REQUEST_ID, _CLIENT_GONE, _PRIORITY, _TIMEOUT)


def job_keys(options: Options) -> JobKeys:
    """The job keys among a verb's options.  Raises InvalidArgumentsError."""
    request_id = options.get(_REQUEST_ID, "")
    if len(request_id) > _REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise InvalidArgumentsError(f"option 'request-id' is not up to {_REQUEST_ID_CHARACTERS} printable characters")
    return JobKeys(
        request_id=request_id,
        client_gone=options.get(_CLIENT_GONE, ClientGone.KEEP),
        priority=options.get(_PRIORITY, Priority.NORMAL),
        timeout_usec=options.get(_TIMEOUT, 0),
    )


def arguments_of(given: Mapping[str, Variant], **named: str) -> dict[str, Variant]:
    """The property `Arguments` of a job: what was given, without the job keys, which have their own properties.

    Values are made anew: text that some clients cannot read must not come back in a reply to everybody.
    """
    hidden = {option.key for option in JOB_OPTIONS}
    shown = {key: variant(value.signature, value.value) for key, value in given.items() if key not in hidden}
    return {name: variant("s", value) for name, value in named.items()} | shown
