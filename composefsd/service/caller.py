"""The call that is being answered: who made it, and whether its user may be asked for a password.

Methods are not handed their caller; they run in a context, and tasks that they start inherit it.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from dbus_next import DBusError

from composefsd.service import names
from composefsd.service.clients import Client, Clients
from composefsd.service.connection import BusError, Connection

_SYSTEMD: Final = "org.freedesktop.systemd1"
_SYSTEMD_PATH: Final = "/org/freedesktop/systemd1"
_UNIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way."""

    client: Client
    is_interactive: bool


_CALL: Final[ContextVar[Call]] = ContextVar("call")


def set_call(call: Call) -> None:
    """Make `call` the current one of this context."""
    _CALL.set(call)


def current_call() -> Call:
    """The call that the running method answers."""
    return _CALL.get()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call, by the bus's word."""

    client: Client
    uid: int
    is_interactive: bool


class Callers:
    """Asks the bus who a caller is."""

    def __init__(self, connection: Connection, clients: Clients) -> None:
        self._connection = connection
        self._clients = clients

    async def identify(self) -> Caller:
        """The caller of the running method.  Raises DBusError if it has left."""
        call = current_call()
        return Caller(call.client, await self._clients.uid_of(call.client), call.is_interactive)

    async def unit_of(self, caller: Caller) -> str:
        """The systemd unit of a caller, empty where systemd does not tell."""
        try:
            (pid,) = await self._connection.call_bus("GetConnectionUnixProcessID", "s", [caller.client.sender])
            (path,) = await self._connection.call(
                _SYSTEMD, _SYSTEMD_PATH, f"{_SYSTEMD}.Manager", "GetUnitByPID", "u", [pid],
                seconds=_UNIT_SECONDS, activate=False,
            )  # fmt: skip
        except (DBusError, TimeoutError, BusError):
            return ""
        return names.unescape(str(path).rpartition("/")[2])
