"""Job objects, and how the jobs of the table come to the bus."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Final

from dbus_next import DBusError, Variant

from composefsd.service import names
from composefsd.service.caller import Callers, current_call
from composefsd.service.documents import TEXT_BYTES, Document
from composefsd.service.export import ObjectTree
from composefsd.service.history import Record
from composefsd.service.interface import ASV, B, D, H, S, Served, T, U, dbus_method, dbus_property
from composefsd.service.job_table import JobTable
from composefsd.service.jobs import ENDED, Job
from composefsd.service.loans import Loans
from composefsd.service.options import Options
from composefsd.service.polkit import Action, Polkit
from composefsd.service.wire import variant

_DOCUMENT_BYTES: Final = TEXT_BYTES + 4096
_LENT_BYTES: Final = 128 << 20
"""Of all documents of jobs that callers have open: four of the largest."""

_PROGRESS_SECONDS: Final = 0.2
_PROGRESS: Final = ("Stage", "Progress", "Bytes", "Items", "Rate")

Waited = Annotated[tuple[str, Mapping[str, Variant]], "sa{sv}"]
ByteCounts = Annotated[tuple[int, int, int], "(ttt)"]
ItemCounts = Annotated[tuple[int, int], "(tt)"]
NamedError = Annotated[tuple[str, str], "(ss)"]


class JobDesk:
    """What can be done to jobs from the bus, by whom."""

    def __init__(self, jobs: JobTable, callers: Callers, polkit: Polkit) -> None:
        self.jobs = jobs
        self._callers = callers
        self._polkit = polkit
        self.loans = Loans("documents of jobs", _LENT_BYTES)

    async def cancel(self, job: Job) -> None:
        """Cancel for the caller: one's own jobs need no right."""
        caller = await self._callers.identify()
        if caller.uid != job.order.uid:
            details = {"job": str(job.id), "type": job.kind.value, "uid": str(job.order.uid)}
            await self._polkit.require(Action.CANCEL, caller, details)
        self.jobs.cancel(job)

    async def wait(self, job_id: int, timeout_usec: int) -> tuple[str, Mapping[str, Variant]]:
        """State and result of a job that has ended, or that is in that state at the timeout.

        Raises DBusError with the error of a job that did not succeed.
        """
        client = current_call().client
        with client.waits(), client.while_present():
            record = await self.jobs.wait(job_id, timeout_usec)
        return _answer(record)


def _answer(record: Record) -> tuple[str, Mapping[str, Variant]]:
    if record.error:
        raise DBusError(record.error, record.message)
    return record.state, {key: variant(kind, value) for key, (kind, value) in record.result.items()}


class JobObject(Served, interface=names.JOB):
    """A job on the bus; its progress is announced at most five times a second."""

    def __init__(self, tree: ObjectTree, job: Job, desk: JobDesk) -> None:
        super().__init__(tree, job.path)
        self._tree = tree
        self._job = job
        self._desk = desk
        self._timer: asyncio.TimerHandle | None = None

    @dbus_method("Cancel")
    async def cancel(self, options: ASV) -> None:
        """Ask the job to stop."""
        Options(options)
        await self._desk.cancel(self._job)

    @dbus_method("Wait", reads=True)
    async def wait(self, timeout_usec: T) -> Waited:
        """Answer once the job has ended."""
        return await self._desk.wait(self._job.id, timeout_usec)

    @dbus_method("OpenDocument", reads=True)
    async def open_document(self, which: S, options: ASV) -> H:
        """A document that the job has left, in a sealed memfd, which the caller gets."""
        document = self._document(which, options)
        self._desk.loans.require(document.size_bytes)
        return self._desk.loans.lend(document.open())

    @dbus_method("ReadDocument", reads=True, reply_bytes=_DOCUMENT_BYTES)
    async def read_document(self, which: S, options: ASV) -> S:
        """The same as text."""
        return self._document(which, options).text()

    def _document(self, which: str, options: ASV) -> Document:
        Options(options)
        return self._job.documents.find(which)

    def progressed(self) -> None:
        """Announce the progress, soon: what comes until then goes along."""
        if self._timer is None and self._job.state not in ENDED:
            self._timer = asyncio.get_running_loop().call_later(_PROGRESS_SECONDS, self._announce_progress)

    def _announce_progress(self) -> None:
        self._timer = None
        if self._tree.is_congested:
            self.progressed()
        else:
            self.changed(*_PROGRESS, "Cancellable")

    def state_changed(self) -> None:
        """Announce another state."""
        self.changed("State", "StartedUSec", "Cancellable")

    def ended(self) -> None:
        """Announce the end: everything about it at once, then the job's last signal."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.changed("State", "FinishedUSec", "Error", "Result", "Cancellable", *_PROGRESS)
        self._tree.announce(self.path, names.JOB)
        self.emit("Finished", self._job.state, *self._job.error, self._job.result)

    @dbus_property("Id")
    def job_id(self) -> T:
        return self._job.id

    @dbus_property("Type")
    def kind(self) -> S:
        return self._job.kind

    @dbus_property("Description")
    def description(self) -> S:
        return self._job.order.description

    @dbus_property("Arguments")
    def arguments(self) -> ASV:
        return dict(self._job.order.arguments)

    @dbus_property("CallerUid")
    def caller_uid(self) -> U:
        return self._job.order.uid

    @dbus_property("CallerUnit")
    def caller_unit(self) -> S:
        return self._job.order.unit

    @dbus_property("RequestId")
    def request_id(self) -> S:
        return self._job.order.keys.request_id

    @dbus_property("ClientGone")
    def client_gone(self) -> S:
        return self._job.order.keys.client_gone

    @dbus_property("CreatedUSec")
    def created_usec(self) -> T:
        return self._job.created_usec

    @dbus_property("StartedUSec")
    def started_usec(self) -> T:
        return self._job.started_usec

    @dbus_property("FinishedUSec")
    def finished_usec(self) -> T:
        return self._job.finished_usec

    @dbus_property("State")
    def state(self) -> S:
        return self._job.state

    @dbus_property("Stage")
    def stage(self) -> S:
        return self._job.meter.current or ""

    @dbus_property("Progress")
    def progress(self) -> D:
        return self._job.fraction

    @dbus_property("Bytes")
    def bytes(self) -> ByteCounts:
        meter = self._job.meter
        return meter.reused_bytes, meter.done_bytes, meter.total_bytes

    @dbus_property("Items")
    def items(self) -> ItemCounts:
        return self._job.meter.done_items, self._job.meter.total_items

    @dbus_property("Rate")
    def rate(self) -> T:
        return self._job.meter.rate_bytes if self._job.state not in ENDED else 0

    @dbus_property("Cancellable")
    def cancellable(self) -> B:
        return self._job.is_cancellable

    @dbus_property("Error")
    def error(self) -> NamedError:
        return self._job.error

    @dbus_property("Result")
    def result(self) -> ASV:
        return dict(self._job.result)


class JobExporter:
    """Shows the jobs of the table on the bus, in the order that clients rely on.

    An object and `JobNew` come before the reply that names a job; at the end, the object's properties, its
    `Finished`, then the manager's `JobFinished`.
    """

    def __init__(self, tree: ObjectTree, desk: JobDesk) -> None:
        self._tree = tree
        self._desk = desk
        self._objects: dict[int, JobObject] = {}

    def job_added(self, job: Job) -> None:
        self._objects[job.id] = JobObject(self._tree, job, self._desk)
        self._tree.export(self._objects[job.id])
        self._emit("JobNew", job.id, job.path, job.kind)
        self._counts_changed()

    def job_changed(self, job: Job) -> None:
        self._objects[job.id].state_changed()
        self._counts_changed()

    def job_progressed(self, job: Job) -> None:
        if job.id in self._objects:
            self._objects[job.id].progressed()

    def job_ended(self, job: Job) -> None:
        self._objects[job.id].ended()
        self._emit("JobFinished", job.id, job.path, job.kind, job.state, job.error[0])
        self._counts_changed()

    def job_removed(self, job: Job) -> None:
        del self._objects[job.id]
        self._tree.remove(job.path)
        self._emit("JobRemoved", job.id, job.path)

    def _emit(self, signal: str, *values: object) -> None:
        self._tree.emit(names.ROOT_PATH, names.MANAGER, signal, *values)

    def _counts_changed(self) -> None:
        self._tree.changed(names.ROOT_PATH, names.MANAGER, "State", "JobsRunning", "JobsQueued")
