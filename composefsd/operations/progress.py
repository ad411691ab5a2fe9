"""How an operation tells what it is doing, without knowing who listens."""

from enum import StrEnum
from typing import Protocol


class Stage(StrEnum):
    """The words of the job property `Stage`, in the order of a whole pull and deploy."""

    RESOLVE = "resolve"
    FETCH = "fetch"
    UNPACK = "unpack"
    GENERATE = "generate"
    COMMIT = "commit"
    PLAN = "plan"
    WRITE = "write"
    ACTIVATE = "activate"
    MARK = "mark"
    SWEEP = "sweep"
    VERIFY = "verify"
    ENABLE = "enable"


class Progress(Protocol):
    """What an operation reports to; calls are cheap and may come often, the listener limits the rate."""

    def stage(self, stage: Stage) -> None:
        """The operation has entered a stage."""

    def bytes(self, *, reused: int, done: int, total: int) -> None:
        """Bytes of input: found already here, processed so far (without the reused), expected in all (0: unknown)."""

    def items(self, *, done: int, total: int) -> None:
        """Things done of things to do: layers, objects, files."""

    def point_of_no_return(self) -> None:
        """From now on the operation completes, whoever asks it to stop."""

    def finding(self, severity: str, code: str, subject: str, message: str) -> None:
        """A finding of a check, as it is made."""


class Silent:
    """A Progress that nobody listens to."""

    def stage(self, stage: Stage) -> None:
        pass

    def bytes(self, *, reused: int, done: int, total: int) -> None:
        pass

    def items(self, *, done: int, total: int) -> None:
        pass

    def point_of_no_return(self) -> None:
        pass

    def finding(self, severity: str, code: str, subject: str, message: str) -> None:
        pass
