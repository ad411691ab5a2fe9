"""Calls to the daemon as raw D-Bus messages: answers as they came, errors with their names."""

import asyncio
from typing import Any, Final, Self

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

SERVICE: Final = "org.composefs.Composefs1"
OBJECT: Final = "/org/composefs/Composefs1"
MANAGER: Final = f"{SERVICE}.Manager"
REPOSITORY: Final = f"{SERVICE}.Repository"
BOOT: Final = f"{SERVICE}.Boot"
JOB: Final = f"{SERVICE}.Job"
_ANSWER_SECONDS: Final = 120.0


class BusError(Exception):
    """An error as it came over the bus: `name` is that of D-Bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Bus:
    """A connection for as long as a test takes; to be used from one thread, call by call."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        try:
            self._bus = self._runner.run(self._connect(address))
        except BaseException:
            self._runner.close()
            raise

    @staticmethod
    async def _connect(address: str) -> MessageBus:
        return await MessageBus(bus_address=address).connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.disconnect()
        self._runner.run(self._bus.wait_for_disconnect())
        self._runner.close()
        self._bus._stream.close()  # dbus-next leaves its socket open
        self._bus._sock.close()

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: object) -> list[Any]:
        """The answer's values.  Raises BusError if the answer is an error, TimeoutError if there is none."""
        message = Message(
            destination=SERVICE, path=path, interface=interface, member=member, signature=signature, body=list(body)
        )
        answer = self._runner.run(asyncio.wait_for(self._bus.call(message), _ANSWER_SECONDS))
        assert answer is not None, "a method call always has an answer"
        if answer.message_type is MessageType.ERROR:
            raise BusError(answer.error_name, answer.body[0] if answer.body else "")
        return list(answer.body)

    def get(self, path: str, interface: str, name: str) -> Any:
        """The value of a property.  Raises BusError."""
        (value,) = self.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", interface, name)
        return value.value

    def start(self, interface: str, member: str, *arguments: str, **options: Variant) -> tuple[int, str]:
        """Start a job: its id and its path.  `_` in an option's name stands for `-`.  Raises BusError."""
        named = {name.replace("_", "-"): value for name, value in options.items()}
        signature = "s" * len(arguments) + "a{sv}"
        job, path = self.call(OBJECT, interface, member, signature, *arguments, named)
        return job, path

    def wait(self, job: int) -> dict[str, Any]:
        """The result of a job, once it has ended.  Raises BusError if it did not succeed."""
        _, result = self.call(OBJECT, MANAGER, "WaitJob", "tt", job, 0)
        return {name: value.value for name, value in result.items()}
