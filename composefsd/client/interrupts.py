"""Ctrl-C and a polite kill, handed to whoever can do something about them."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Action = Callable[[], object]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """What SIGINT and SIGTERM do: the softer action that is in force the first time, `leave` every other time."""

    def __init__(self, leave: Action) -> None:
        self._leave = leave
        self._softer: Action | None = None

    def __call__(self) -> None:
        """What happens at a signal."""
        action, self._softer = self._softer or self._leave, None
        action()

    @contextmanager
    def softened(self, action: Action) -> Iterator[None]:
        """Let the first signal within this context do `action` instead."""
        self._softer = action
        try:
            yield
        finally:
            self._softer = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over from Python for a while, in the running loop."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
