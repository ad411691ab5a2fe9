"""How a run of composefsctl ends.

The exit status is API for units and scripts: it tells what a caller may do next, the text on stderr tells why.
"""

import os
import sys
from enum import IntEnum


class Exit(IntEnum):
    """The exit status of composefsctl; of `diff` the first three mean what they do for diff(1)."""

    DONE = 0
    FAILED = 1
    DIFFERENT = 1
    USAGE = 2
    TROUBLE = 2
    CANCELLED = 3
    NOT_AUTHORIZED = 4
    NO_SERVICE = 5


class ClientError(Exception):
    """What ends a verb: one message for a person and the exit status for a program."""

    def __init__(self, message: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def discard_output() -> None:
    """Let the flush at the interpreter's end go nowhere: there is nobody to complain to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
