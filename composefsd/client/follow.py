"""Starting a job and following it to its end without a race.

The subscriptions stand before the job is asked for, so an end that comes before the answer is kept, not lost.  If the
daemon leaves the bus, its successor is asked what became of the job; a job that nobody knows is asked for again under
the same request id, which the daemon takes for one request.  Signals count only from the connection that owns the
daemon's name: on a system bus everybody may send anybody a signal.
"""

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from composefsd.client.bus import Signal
from composefsd.client.exits import ClientError, Exit
from composefsd.client.failures import NO_REPLY, NO_SUCH_JOB, UNKNOWN_OBJECT, CallError, NoServiceError, is_absence
from composefsd.client.interrupts import Interrupts
from composefsd.client.progress import View
from composefsd.client.properties import Properties, Value
from composefsd.client.proxy import JobHandle, JobRequest, Proxy
from composefsd.client.records import ENDED, Job
from composefsd.service import names

RETURN_SECONDS: Final = 30
"""How long a daemon that left the bus may take to come back."""

_PEEK_USEC: Final = 1  # WaitJob with this timeout answers with the present state; 0 would wait for the end
_ATTEMPTS: Final = 3
_UNTOLD: Final = {"cancelled": Exit.CANCELLED, "interrupted": Exit.CANCELLED}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job that succeeded, and what it brought: the `Result` of the job, by the names of the bus."""

    job: JobHandle
    result: dict[str, Value]


def identified(request: JobRequest) -> JobRequest:
    """The request with an id, made up if it has none: repeating it after a lost answer then does nothing twice."""
    if request.options.get("request-id"):
        return request
    return request.asking({"request-id": os.urandom(16).hex()})


def _rule(sender: str, **keys: str) -> str:
    """A match rule for signals; the bus takes the owner of a name for the name."""
    return ",".join(["type='signal'", f"sender='{sender}'", *(f"{key}='{value}'" for key, value in keys.items())])


class Follower:
    """Follows one job."""

    def __init__(
        self, proxy: Proxy, view: View, interrupts: Interrupts, return_seconds: float = RETURN_SECONDS
    ) -> None:
        self._proxy = proxy
        self._return_seconds = return_seconds
        self._bus = proxy.bus
        self._view = view
        self._interrupts = interrupts
        self._changed = asyncio.Event()
        self._owner: str | None = None
        self._owner_left = False
        self._ended: set[int] = set()
        self._values: dict[str, Value] = {}
        self._job = JobHandle(0, "")
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self, request: JobRequest) -> Outcome:
        """Start the job and stay until it ends.

        The first interrupt cancels the job, which then ends as the daemon says; the next one leaves.  Raises
        CallError with the error of a job that failed or was cancelled, NoServiceError if bus or daemon went away.
        """
        # A job that somebody waits for ends with the one who waits, also if that one is killed or cut off.
        request = identified(request).asking({"on-client-gone": "cancel"})
        await self._subscribe()
        try:
            await self._start(request)
            with self._interrupts.softened(self._cancel):
                await self._attach()
                return await self._follow(request)
        finally:
            self._view.close()

    async def _follow(self, request: JobRequest) -> Outcome:
        while True:
            if self._owner_left:
                await self._recover(request)
            elif self._job.id not in self._ended:
                await self._change()
            elif outcome := await self._outcome():
                return outcome

    async def _subscribe(self) -> None:
        self._bus.listen(self._on_signal)
        self._bus.gone.add_done_callback(lambda _: self._changed.set())
        await self._bus.subscribe(_rule(names.FREEDESKTOP, member="NameOwnerChanged", arg0=names.BUS_NAME))
        await self._bus.subscribe(_rule(names.BUS_NAME, path=names.ROOT_PATH, member="JobFinished"))
        self._owner = await self._bus.owner(names.BUS_NAME)

    async def _start(self, request: JobRequest) -> None:
        """Start the job; again if the daemon died before it answered."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._job = await self._proxy.start(request)
                break
            except CallError as error:
                if error.name != NO_REPLY or attempt == _ATTEMPTS:
                    raise
            await self._owner_returns()

    async def _attach(self) -> None:
        """Subscribe to the job, then read its state: it may have ended long ago if the request was a repetition."""
        job, self._values = self._job, {}
        await self._bus.subscribe(_rule(names.BUS_NAME, path=job.path, member="PropertiesChanged", arg0=names.JOB))
        try:
            values = await self._proxy.job_values(job.path)
        except CallError as error:
            if error.name == UNKNOWN_OBJECT:  # it went a while after the job had ended
                self._ended.add(job.id)
            return
        if values.get("State") in ENDED:
            self._ended.add(job.id)
        self._values = values | self._values  # a later signal may have been handled before this line
        self._changed.set()

    async def _change(self) -> None:
        """Wait until a signal arrives, and show what it says."""
        await self._changed.wait()
        self._changed.clear()
        if self._bus.gone.done():
            raise NoServiceError(f"the bus went away while job {self._job.id} ran")
        if self._values:
            self._view.update(Job.parse(self._job.path, Properties(self._values)))

    async def _outcome(self) -> Outcome | None:
        """How the job ended, or None if the daemon left before it could tell."""
        try:
            state, result = await self._proxy.wait_job(self._job.id, 0)
        except CallError as error:
            if not is_absence(error.name):
                raise
            self._owner_left = True
            return None
        if state != "succeeded":  # daemons answer with the job's error, which tells more
            raise ClientError(f"job {self._job.id} ended as {state}", _UNTOLD.get(state, Exit.FAILED))
        return Outcome(self._job, result)

    async def _recover(self, request: JobRequest) -> None:
        """Ask the daemon that took over what became of the job; start it again if it is unknown."""
        self._owner_left = False
        self._view.note(f"the daemon left the bus; waiting for it to go on with job {self._job.id}")
        await self._owner_returns()
        try:
            await self._proxy.wait_job(self._job.id, _PEEK_USEC)
        except CallError as error:
            if error.name == NO_SUCH_JOB and self._cancelling:
                raise ClientError(f"job {self._job.id} is gone", Exit.CANCELLED) from error
            if error.name == NO_SUCH_JOB:
                await self._start(request)
            elif is_absence(error.name):
                self._owner_left = True
                return
        await self._attach()

    async def _owner_returns(self) -> None:
        """Have the bus start the daemon if it can, else wait for somebody else to."""
        with suppress(CallError):
            await self._bus.activate(names.BUS_NAME)
        try:
            async with asyncio.timeout(self._return_seconds):
                while self._owner is None and not self._bus.gone.done():
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError as error:
            raise NoServiceError("the daemon left the bus and did not return") from error

    def _cancel(self) -> None:
        self._view.note(f"cancelling job {self._job.id}; once more to leave without waiting for it")
        self._cancelling = asyncio.create_task(self._send_cancel())

    async def _send_cancel(self) -> None:
        try:
            await self._proxy.cancel_job(self._job.id)
        except ClientError as error:  # it is too late, or the daemon is away: the end of the job tells
            self._view.note(f"not cancelled: {error.message}")

    def _on_signal(self, signal: Signal) -> None:
        match signal:
            case Signal(sender=names.FREEDESKTOP, member="NameOwnerChanged", body=[names.BUS_NAME, _, str(owner)]):
                self._owner_left |= self._owner is not None
                self._owner = owner or None
            case Signal(member="JobFinished", body=[int(job), *_]) if signal.sender == self._owner:
                self._ended.add(job)
            case Signal(member="PropertiesChanged", body=[names.JOB, dict(changed), *_]) if (
                signal.sender == self._owner and signal.path == self._job.path
            ):
                self._values.update(changed)
            case _:
                return
        self._changed.set()
