"""The daemon: everything put together, started in the right order, and stopped in the right order.

Start: the bus, the host, what a crash left, objects, and the bus name last, so that calls wait until they can be
answered.  Stop: no new jobs, the running ones interrupted (what is past its point of no return ends), the calls under
way answered, the connection closed.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from composefsd.errors import ComposefsdError, JobInterruptedError, ReadOnlyError
from composefsd.operations.host import Host, Settings
from composefsd.service import names, notify
from composefsd.service.boot import Boot
from composefsd.service.caller import Callers
from composefsd.service.catalog import Catalog, Makers
from composefsd.service.clients import Clients
from composefsd.service.condition import Condition
from composefsd.service.connection import Connection
from composefsd.service.deployment import DeploymentObject
from composefsd.service.dispatch import Dispatcher
from composefsd.service.dumps import Dumps
from composefsd.service.errors import describe
from composefsd.service.export import ObjectTree
from composefsd.service.history import History
from composefsd.service.image import LENT_BYTES, ImageObject
from composefsd.service.job import JobDesk, JobExporter
from composefsd.service.job_table import JobTable
from composefsd.service.jobs import Job, now_usec
from composefsd.service.loans import Loans
from composefsd.service.manager import Manager
from composefsd.service.polkit import Polkit
from composefsd.service.repository import RepositoryInterface
from composefsd.service.services import Services, Tally

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 120.0
JOBS_SECONDS: Final = 20.0
"""How long a stop waits for jobs that cannot be interrupted: one step of writing to the boot partition."""

_IDLE_CHECK_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Counting:
    """Counts how jobs end."""

    tally: Tally

    def job_added(self, job: Job) -> None:
        pass

    def job_changed(self, job: Job) -> None:
        pass

    def job_progressed(self, job: Job) -> None:
        pass

    def job_ended(self, job: Job) -> None:
        self.tally.add(f"jobs-{job.state}", 1)

    def job_removed(self, job: Job) -> None:
        pass


class Daemon:
    """A daemon on a bus."""

    def __init__(self, connection: Connection, services: Services, clients: Clients, history: History) -> None:
        self._connection = connection
        self._services = services
        self._clients = clients
        self._history = history
        self._jobs = services.desk.jobs
        self._dispatcher = Dispatcher(connection, clients, services.tree)
        self._manager: Manager | None = None

    @classmethod
    async def start(cls, address: str, settings: Settings) -> "Daemon":
        """Raises BusError if the bus or the name cannot be had, ReadOnlyError for a bad state directory."""
        connection = await Connection.connect(address)
        try:
            daemon = cls._assemble(connection, settings)
            await daemon._prepare()
            await connection.own_name(names.BUS_NAME)
        except BaseException:
            connection.close()
            raise
        return daemon

    @classmethod
    def _assemble(cls, connection: Connection, settings: Settings) -> "Daemon":
        _make_state_directory(settings.state)
        history = History(settings.state, now_usec(), describe(JobInterruptedError("the daemon died under the job")))
        host = Host.open(settings)
        tree, clients = ObjectTree(connection), Clients(connection)
        callers, polkit = Callers(connection, clients), Polkit(connection)
        desk = JobDesk(JobTable(history), callers, polkit)
        services = Services(host, tree, callers, polkit, desk, Catalog(host, tree), Tally())
        return cls(connection, services, clients, history)

    async def _prepare(self) -> None:
        """Export everything, before anybody can see it."""
        notify.starting()
        services, host = self._services, self._services.host
        await self._clients.watch_bus()
        condition = Condition(host, self._history.interrupted)
        await condition.examine()
        for name, text in condition.problems:
            log.warning("%s: %s", name, text)
        self._manager = Manager(services, condition)
        dumps = Dumps(services)
        services.tree.export(self._manager, RepositoryInterface(services, condition, dumps), Boot(services))
        image = partial(ImageObject, services.tree, host, dumps, Loans("documents", LENT_BYTES))
        services.catalog.show_with(Makers(image, partial(DeploymentObject, services)))
        for watcher in (
            JobExporter(services.tree, services.desk),
            _Counting(services.tally),
            notify.StatusLine(self._jobs),
        ):
            self._jobs.watch(watcher)
        for record in self._history.interrupted:
            self._jobs.restore(record)
        if host.metadata is not None:
            await services.catalog.refresh()
        self._dispatcher.start()

    async def run(self, stop: asyncio.Event, *, exits_when_idle: bool) -> None:
        """Answer calls until `stop` is set, the bus goes, or there is nothing to do.  Raises BusError if it went."""
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self._wait_for_bus_to_go())]
        waits += [asyncio.create_task(self._wait_until_idle())] if exits_when_idle else []
        alive = asyncio.create_task(notify.keep_alive())
        notify.ready()
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*waits, alive):
                task.cancel()
            await asyncio.gather(*waits, alive, return_exceptions=True)
        if self._connection.lost.done() and (error := self._connection.lost.result()) is not None:
            raise error

    async def stop(self) -> None:
        """Leave in order; done within JOBS_SECONDS and a little."""
        notify.stopping()
        if self._manager is not None:
            self._manager.stopping()
        if not self._connection.lost.done():
            with suppress(ComposefsdError):
                await self._connection.release_name(names.BUS_NAME)
        await self._jobs.stop(JOBS_SECONDS)
        await self._services.catalog.stop()
        await self._dispatcher.stop()
        await self._connection.drain(_DRAIN_SECONDS)
        self._connection.close()
        self._history.close()

    async def _wait_for_bus_to_go(self) -> None:
        await asyncio.wait({self._connection.lost})

    async def _wait_until_idle(self) -> None:
        """Wait for an idle time, and give the name up: whoever calls then has the daemon started anew."""
        idle_since = time.monotonic()
        while True:
            await asyncio.sleep(_IDLE_CHECK_SECONDS)
            if self._jobs.jobs or self._clients.pending_calls:
                idle_since = time.monotonic()
            called_at = self._clients.called_at
            if time.monotonic() - max(idle_since, called_at) < IDLE_SECONDS:
                continue
            await self._connection.release_name(names.BUS_NAME)
            if self._clients.called_at == called_at:
                log.info("nothing to do for %d seconds", IDLE_SECONDS)
                return
            await self._connection.own_name(names.BUS_NAME)  # a call came in between


def _make_state_directory(path: Path) -> None:
    """Make the state directory for us alone; its parents, if they are missing, for all.  Raises ReadOnlyError."""
    missing = [folder for folder in reversed((path, *path.parents)) if not folder.exists()]
    try:
        for folder in missing:
            folder.mkdir()
            folder.chmod(0o700 if folder == path else 0o755)  # whatever the umask is
    except OSError as error:
        raise ReadOnlyError(f"the state directory {path} cannot be made: {error.strerror}", path=str(path)) from error
