"""Jobs: long work that was accepted, waits for its turn, runs, and has ended.

    queued -> running -> succeeded | failed | cancelled | interrupted
       |         '-> cancelling -> cancelled | succeeded (it was past the last step) | failed
       '-> cancelled | failed (its time was over)

Nothing here knows the bus: a `Watcher` is told what happens, in the order in which clients may rely on it.  The
transitions are in `job_table`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from dbus_next import Variant

from composefsd.service import names
from composefsd.service.clients import Client
from composefsd.service.documents import Documents
from composefsd.service.history import Record
from composefsd.service.meter import JobKind, Meter
from composefsd.service.options import JobKeys


class JobState(StrEnum):
    """The words of the job property `State`."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED})

Result = Mapping[str, Variant]
Work = Callable[[Meter], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for, by whom.  `is_exclusive` work needs the repository for itself."""

    kind: JobKind
    description: str
    arguments: Mapping[str, Variant]
    keys: JobKeys
    uid: int
    unit: str = ""
    client: Client | None = None
    is_exclusive: bool = False


class Job:
    """A job; read by everybody, changed by its JobTable only.  Times in microseconds since the epoch."""

    def __init__(self, job_id: int, order: Order, created_usec: int, on_progress: Callable[["Job"], None]) -> None:
        self.id = job_id
        self.order = order
        self.created_usec = created_usec
        self.started_usec = self.finished_usec = 0
        self.state = JobState.QUEUED
        self.error = ("", "")
        self.result: Result = {}
        self.documents = Documents()
        self.meter = Meter(job_id, order.kind, lambda: on_progress(self), self.documents)
        self.ended = asyncio.Event()
        self.ending: Exception | None = None  # why it was asked to stop
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.on_leave: Callable[[], object] | None = None

    @property
    def kind(self) -> JobKind:
        return self.order.kind

    @property
    def path(self) -> str:
        return names.job_path(self.id)

    @property
    def is_cancellable(self) -> bool:
        return self.state in (JobState.QUEUED, JobState.RUNNING) and not self.meter.is_committed

    @property
    def fraction(self) -> float:
        """From 0 to 1, or below 0 if that is not known."""
        return 1.0 if self.state is JobState.SUCCEEDED else self.meter.fraction

    @property
    def is_active(self) -> bool:
        """Whether work is going on for it."""
        return self.task is not None and not self.ended.is_set()

    def record(self) -> Record:
        """The job for the history."""
        return Record(
            self.id, self.kind, self.order.description, self.order.uid, self.order.keys.request_id, self.state,
            self.created_usec, self.started_usec, self.finished_usec, *self.error,
            {key: (value.signature, value.value) for key, value in self.result.items()},
        )  # fmt: skip


class Watcher(Protocol):
    """Who is told about jobs."""

    def job_added(self, job: Job) -> None:
        """A job was accepted."""

    def job_changed(self, job: Job) -> None:
        """A job has another state, or its cancellability changed."""

    def job_progressed(self, job: Job) -> None:
        """A job has come further; called often."""

    def job_ended(self, job: Job) -> None:
        """A job has ended, with everything about it set."""

    def job_removed(self, job: Job) -> None:
        """An ended job is forgotten, but by the history."""


def now_usec() -> int:
    """Now, in microseconds since the epoch."""
    return time.time_ns() // 1000
