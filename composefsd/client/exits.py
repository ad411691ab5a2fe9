"""How a run of composefsctl ends.

The exit status is API for units and scripts: it tells what a caller may do next, the text on stderr tells why.
"""

from enum import IntEnum


class Exit(IntEnum):
    """The exit status of composefsctl."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    NOT_AUTHORIZED = 4
    NO_SERVICE = 5


class ClientError(Exception):
    """What ends a verb: one message for a person and the exit status for a program."""

    def __init__(self, message: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
