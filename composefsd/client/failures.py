"""Why a call fails, and what exit status the errors of the bus stand for."""

from typing import Final

from composefsd.client.exits import ClientError, Exit
from composefsd.service import names

_STANDARD: Final = names.FREEDESKTOP_ERRORS

NO_REPLY: Final = f"{_STANDARD}.NoReply"
NAME_HAS_NO_OWNER: Final = f"{_STANDARD}.NameHasNoOwner"
UNKNOWN_METHOD: Final = f"{_STANDARD}.UnknownMethod"
UNKNOWN_INTERFACE: Final = f"{_STANDARD}.UnknownInterface"
UNKNOWN_OBJECT: Final = f"{_STANDARD}.UnknownObject"
NO_SUCH_JOB: Final = f"{names.ERRORS}.NoSuchJob"
NO_SUCH_DOCUMENT: Final = f"{names.ERRORS}.NoSuchDocument"

_EXITS: Final = {
    f"{names.ERRORS}.Cancelled": Exit.CANCELLED,
    f"{names.ERRORS}.Interrupted": Exit.CANCELLED,
    f"{_STANDARD}.AccessDenied": Exit.NOT_AUTHORIZED,
    f"{_STANDARD}.InteractiveAuthorizationRequired": Exit.NOT_AUTHORIZED,
    NO_REPLY: Exit.NO_SERVICE,
    NAME_HAS_NO_OWNER: Exit.NO_SERVICE,
    f"{_STANDARD}.ServiceUnknown": Exit.NO_SERVICE,
    f"{_STANDARD}.Disconnected": Exit.NO_SERVICE,
    f"{_STANDARD}.TimedOut": Exit.NO_SERVICE,
    f"{_STANDARD}.Timeout": Exit.NO_SERVICE,
}

_ACTIVATION: Final = (f"{_STANDARD}.Spawn.", "org.freedesktop.systemd1.")
"""Prefixes of the errors by which the bus tells that it could not start the daemon."""


class NoServiceError(ClientError):
    """There is no bus, or the daemon is not on it, or it left."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.NO_SERVICE)


class AnswerError(ClientError):
    """The daemon answered in a form that its API does not have: the two are of different versions."""


class CallError(ClientError):
    """A call was answered with an error; `name` is its name on the bus."""

    def __init__(self, name: str, message: str) -> None:
        text, status = message or name.rpartition(".")[2], exit_of(name)
        super().__init__(f"no daemon on this bus: {text}" if status is Exit.NO_SERVICE else text, status)
        self.name = name


def exit_of(name: str) -> Exit:
    """The exit status that stands for an error name of the bus."""
    if name.startswith(_ACTIVATION):
        return Exit.NO_SERVICE
    return _EXITS.get(name, Exit.FAILED)


def is_absence(name: str) -> bool:
    """Whether the error tells that nobody answers to the daemon's name, not what the daemon thinks of the call."""
    return exit_of(name) is Exit.NO_SERVICE
