"""The jobs of the daemon: accepted, started when it is their turn, ended, remembered for a while.

A job is durable in the history before anybody hears of it, and its end before it is announced.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from composefsd.errors import (
    ComposefsdError,
    InvalidArgumentsError,
    JobCancelledError,
    JobFinishedError,
    JobInterruptedError,
    LimitExceededError,
    NoSuchJobError,
    NotCancellableError,
    TimedOutError,
)
from composefsd.service.documents import Documents, make_room
from composefsd.service.errors import describe
from composefsd.service.history import History, Record
from composefsd.service.jobs import ENDED, Job, JobState, Order, Result, Watcher, Work, now_usec
from composefsd.service.meter import JobKind
from composefsd.service.options import ClientGone, JobKeys, Priority
from composefsd.service.owner import is_owner

log = logging.getLogger(__name__)

QUEUED_JOBS: Final = 50
JOBS_OF_A_USER: Final = 8
ENDED_JOBS: Final = 256
ENDED_SECONDS: Final = 300.0
REQUEST_USEC: Final = 24 * 3600 * 1_000_000

_TIMER_SECONDS: Final = 1e8
_KILL_SECONDS: Final = 2.0

_ENDED_RESULT_CHARACTERS: Final = 1 << 20
"""All results of ended jobs together, so that listing all objects stays a small answer."""

_STARTED_ID: Final = "f63385d70eee41ed9ab562862bef70bb"
_ENDED_ID: Final = "74b0fe401aba4b678c1824f5384a2876"
"""MESSAGE_IDs of a job's start and end in the journal of systemd."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """How many jobs of some kinds run at a time, and whether these may take minutes."""

    slots: int
    is_long: bool


_PULLS, _BUILDS = _Lane(2, is_long=True), _Lane(2, is_long=True)
_CHECKS, _COLLECTS = _Lane(1, is_long=True), _Lane(1, is_long=True)
_PLANS, _BOOT = _Lane(2, is_long=False), _Lane(1, is_long=False)

_LANES: Final = {
    JobKind.PULL: _PULLS,
    JobKind.GENERATE: _BUILDS,
    JobKind.COMPUTE: _BUILDS,
    JobKind.COLLECT: _COLLECTS,
    JobKind.CHECK: _CHECKS,
    JobKind.ENABLE_VERITY: _COLLECTS,
    JobKind.PLAN: _PLANS,
    JobKind.DEPLOY: _BOOT,
    JobKind.REMOVE: _BOOT,
}


class JobTable:
    """The jobs of the daemon."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._watchers: list[Watcher] = []
        self._jobs: dict[int, Job] = {}
        self._queue: list[tuple[Job, Work]] = []
        self._next_id = history.next_id
        self._accepting = asyncio.Lock()
        self._is_stopping = False

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` about jobs from now on."""
        self._watchers.append(watcher)

    @property
    def jobs(self) -> Sequence[Job]:
        """All jobs that have not been removed, by id."""
        return tuple(self._jobs.values())

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that run."""
        return sum(job.is_active for job in self._jobs.values())

    def get(self, job_id: int) -> Job:
        """Raises NoSuchJobError."""
        if job_id not in self._jobs:
            raise NoSuchJobError(f"there is no job {job_id}", job=job_id)
        return self._jobs[job_id]

    # Accepting

    async def start(self, order: Order, work: Work) -> int:
        """Accept a job and answer with its id: that of an earlier one if it was the same request.

        Raises LimitExceededError if there are too many jobs, JobInterruptedError if the daemon is stopping,
        InvalidArgumentsError if the request id was used for work of another kind.
        """
        async with self._accepting:  # a job's record is being written: a second call must not be accepted beside it
            if (known := self._find_request(order)) is not None:
                return known
            self._check_limits(order)
            job = Job(self._next_id, order, now_usec(), self._progressed)
            self._next_id += 1
            await self._history.append(job.record())
            self._check_stopping()  # the record says then that it was interrupted
            self._add(job)
            self._limit(job)
            self._queue.append((job, work))
            self._pump()
        return job.id

    def restore(self, record: Record) -> None:
        """Show an interrupted job of the history as if it had just ended."""
        if record.type in [kind.value for kind in JobKind]:
            keys = JobKeys(request_id=record.request_id)
            order = Order(JobKind(record.type), record.description, {}, keys, record.uid)
            job = Job(record.id, order, record.created_usec, self._progressed)
            job.state, job.error = JobState(record.state), (record.error, record.message)
            job.started_usec, job.finished_usec = record.started_usec, record.finished_usec
            job.ended.set()
            self._add(job)
            self._keep_for_a_while(job)

    def _add(self, job: Job) -> None:
        self._jobs[job.id] = job
        for watcher in self._watchers:
            watcher.job_added(job)

    def _limit(self, job: Job) -> None:
        """Have the job end by itself when its client leaves or its time is over, if that was asked for."""
        keys, client = job.order.keys, job.order.client
        if client is not None and keys.client_gone is ClientGone.CANCEL:
            leave = JobCancelledError("the client left the bus")
            job.on_leave = partial(self._abort, job, leave)
            client.watch(job.on_leave)
        if keys.timeout_usec:
            seconds = min(keys.timeout_usec / 1_000_000, _TIMER_SECONDS)
            late = TimedOutError(f"not done within {seconds:g} seconds")
            job.timer = asyncio.get_running_loop().call_later(seconds, self._abort, job, late)

    def _unlimit(self, job: Job) -> None:
        if job.order.client is not None and job.on_leave is not None:
            job.order.client.on_leave.discard(job.on_leave)
        if job.timer is not None:
            job.timer.cancel()

    def _find_request(self, order: Order) -> int | None:
        wanted = (order.uid, order.keys.request_id)
        oldest = now_usec() - REQUEST_USEC

        def matches(record: Record) -> bool:
            is_same = (record.uid, record.request_id) == wanted and record.created_usec > oldest
            return is_same and record.state != JobState.INTERRUPTED  # asking again is what that error asks for

        found = self._history.find_request(matches) if order.keys.request_id else None
        if found is None:
            return None
        if found.type != order.kind:
            raise InvalidArgumentsError(f"request-id was used for job {found.id}, a {found.type}")
        return found.id

    def _check_limits(self, order: Order) -> None:
        self._check_stopping()
        if len(self._queue) >= QUEUED_JOBS:
            raise LimitExceededError(f"{QUEUED_JOBS} jobs are waiting already")
        own = sum(job.order.uid == order.uid and job.state not in ENDED for job in self._jobs.values())
        if not is_owner(order.uid) and own >= JOBS_OF_A_USER:
            raise LimitExceededError(f"uid {order.uid} has {JOBS_OF_A_USER} jobs already")

    def _check_stopping(self) -> None:
        if self._is_stopping:
            raise JobInterruptedError("the daemon is stopping; ask again")

    # Running

    def _pump(self) -> None:
        """Start what may run.  Idle jobs come after the others; nothing long overtakes exclusive work."""
        is_barred = False
        for job, work in sorted(self._queue, key=lambda entry: entry[0].order.keys.priority is Priority.IDLE):
            active = [other for other in self._jobs.values() if other.is_active]
            lane = _LANES[job.kind]
            is_free = sum(_LANES[other.kind] is lane for other in active) < lane.slots
            is_alone = not active if job.order.is_exclusive else not any(other.order.is_exclusive for other in active)
            if is_free and is_alone and not (is_barred and lane.is_long):
                self._queue.remove((job, work))
                self._run(job, work)
            is_barred = is_barred or job.order.is_exclusive

    def _run(self, job: Job, work: Work) -> None:
        job.state, job.started_usec = JobState.RUNNING, now_usec()
        log.info("job %d started: %s", job.id, job.order.description, extra=_fields(job, _STARTED_ID))
        job.task = asyncio.create_task(self._work(job, work), name=f"job {job.id}")
        self._changed(job)

    async def _work(self, job: Job, work: Work) -> None:
        try:
            result = await work(job.meter)
        except (asyncio.CancelledError, Exception) as error:
            cause = job.ending or error  # a worker that was killed for it may fail in ways of its own
            await self._end(job, _state_after(cause, was_asked=cause is job.ending), describe(cause), {})
        else:
            await self._end(job, JobState.SUCCEEDED, ("", ""), result)

    async def _end(self, job: Job, state: JobState, error: tuple[str, str], result: Result) -> None:
        self._unlimit(job)
        job.state, job.error, job.result, job.finished_usec = state, error, result, now_usec()
        job.documents.seal()
        await self._history.append(job.record())
        name, message = error
        log.info(
            "job %d %s: %s%s", job.id, state, job.order.description, f": {message}" if message else "",
            extra=_fields(job, _ENDED_ID) | ({"COMPOSEFSD_ERROR": name} if name else {}),
        )  # fmt: skip
        for watcher in self._watchers:
            watcher.job_ended(job)
        job.ended.set()
        self._keep_for_a_while(job)
        self._pump()

    def _keep_for_a_while(self, job: Job) -> None:
        asyncio.get_running_loop().call_later(ENDED_SECONDS, self._remove, job)
        ended = [other for other in self._jobs.values() if other.ended.is_set()]
        sizes = [len(repr(other.result)) for other in ended]
        while len(ended) > ENDED_JOBS or (sum(sizes) > _ENDED_RESULT_CHARACTERS and len(ended) > 1):
            self._remove(ended.pop(0))
            sizes.pop(0)
        documents: dict[int, list[Documents]] = {}
        for other in ended:
            documents.setdefault(other.order.uid, []).append(other.documents)
        make_room(documents)

    def _remove(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            job.documents.close()
            for watcher in self._watchers:
                watcher.job_removed(job)

    def _progressed(self, job: Job) -> None:
        for watcher in self._watchers:
            watcher.job_progressed(job)

    def _changed(self, job: Job) -> None:
        for watcher in self._watchers:
            watcher.job_changed(job)

    # Ending

    def cancel(self, job: Job) -> None:
        """Ask a job to stop.  Raises JobFinishedError or NotCancellableError when it is too late."""
        if job.state in ENDED:
            raise JobFinishedError(f"job {job.id} has {job.state}", job=job.id)
        if job.state is not JobState.CANCELLING and not self._abort(job, JobCancelledError("cancelled")):
            raise NotCancellableError(f"job {job.id} is past its point of no return", job=job.id)

    def _abort(self, job: Job, reason: ComposefsdError) -> bool:
        """End a job if that is possible still."""
        if not job.is_cancellable:
            return False
        job.ending = reason
        job.state = JobState.CANCELLING
        if job.task is not None:
            job.task.cancel()
            self._changed(job)
        else:
            self._queue = [entry for entry in self._queue if entry[0] is not job]
            end = self._end(job, _state_after(reason, was_asked=True), describe(reason), {})
            job.task = asyncio.create_task(end)
        return True

    async def wait(self, job_id: int, timeout_usec: int) -> Record:
        """What is known of a job when it has ended, or after the timeout (0: none).  Raises NoSuchJobError."""
        job = self._jobs.get(job_id)
        if job is None:
            if (record := self._history.find(job_id)) is None:
                raise NoSuchJobError(f"there is no job {job_id}", job=job_id)
            return record
        seconds = timeout_usec / 1_000_000 if 0 < timeout_usec < 1 << 50 else None
        with suppress(TimeoutError):
            await asyncio.wait_for(job.ended.wait(), seconds)
        return job.record()

    async def stop(self, seconds: float) -> None:
        """Accept nothing more, interrupt what can be, and wait for the rest, for at most `seconds`."""
        self._is_stopping = True
        for job in self.jobs:
            self._abort(job, JobInterruptedError("the daemon was stopped"))
        tasks = [job.task for job in self.jobs if job.task is not None and not job.task.done()]
        for patience in (seconds, _KILL_SECONDS):
            if tasks:
                await asyncio.wait(tasks, timeout=patience)
            for task in tasks:
                task.cancel()


def _state_after(cause: BaseException, *, was_asked: bool) -> JobState:
    if isinstance(cause, JobCancelledError | asyncio.CancelledError):
        return JobState.CANCELLED
    # A worker's death is told by the same error, but then the job has failed and the daemon lives on.
    return JobState.INTERRUPTED if was_asked and isinstance(cause, JobInterruptedError) else JobState.FAILED


def _fields(job: Job, message_id: str) -> dict[str, Any]:
    """Structured fields for the journal."""
    order = job.order
    fields = {
        "MESSAGE_ID": message_id,
        "COMPOSEFSD_JOB": job.id,
        "COMPOSEFSD_TYPE": order.kind.value,
        "COMPOSEFSD_UID": order.uid,
    }
    return fields | ({"COMPOSEFSD_REQUEST_ID": order.keys.request_id} if order.keys.request_id else {})
