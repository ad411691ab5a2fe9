"""Following jobs on a real dbus-daemon, against a service that behaves badly on purpose.

The service is a stand-in, and has to be: the real daemon can be made neither to lose a race nor to forget a job.  It
runs in the test's own loop, over the wire layer, and does exactly what each test says.
"""

import asyncio
import gc
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from composefsd.client.bus import Bus
from composefsd.client.exits import ClientError, Exit
from composefsd.client.failures import CallError, NoServiceError
from composefsd.client.follow import Follower, Outcome
from composefsd.client.interrupts import Interrupts
from composefsd.client.proxy import PULL, JobRequest, Proxy
from composefsd.client.records import Job
from composefsd.service import names

CONFIG = """<busconfig><type>session</type><listen>unix:path={path}</listen><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""

RUNNING, ENDED = "running", "succeeded"


@pytest.fixture
def dbus_daemon(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A private bus at `tmp_path/bus` with a policy that allows everything."""
    program = shutil.which("dbus-daemon")
    assert program, "dbus-daemon is missing: apt install dbus"
    config = tmp_path / "bus.conf"
    config.write_text(CONFIG.format(path=tmp_path / "bus"))
    with subprocess.Popen(
        [program, f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.terminate()


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails for a task or an exception that nobody looked at; asyncio logs them when they are collected."""
    yield
    gc.collect()
    assert not caplog.records


@pytest.fixture
def address(dbus_daemon: subprocess.Popen[bytes], tmp_path: Path) -> str:
    return f"unix:path={tmp_path / 'bus'}"


class Connection(MessageBus):
    def close(self) -> None:
        """As a process that dies: no goodbye, no answers."""
        self._disconnect_future.add_done_callback(lambda end: end.exception())
        MessageBus._finalize(self, None)
        self._stream.close()
        self._sock.close()


class Service:
    """A daemon whose one job is what the test makes of it; `on` overrides what a method does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.calls: list[tuple[str, list[object]]] = []
        self.state = RUNNING
        self.error: tuple[str, str] | None = None
        self.on: dict[str, Callable[[Message], None]] = {}
        self.changes: dict[str, Variant] = {}
        connection.add_message_handler(self._handle)

    @classmethod
    async def start(cls, address: str) -> "Service":
        connection = Connection(bus_address=address)
        await connection.connect()
        service = cls(connection)
        await connection.request_name(names.BUS_NAME)
        return service

    def options(self, call: int = 0) -> dict[str, object]:
        """The options of a Pull that arrived."""
        pulls = [body for member, body in self.calls if member == "Pull"]
        options = pulls[call][1]
        assert isinstance(options, dict)
        return {key: value.value for key, value in options.items()}

    def count(self, member: str) -> int:
        return sum(called == member for called, _ in self.calls)

    def reply(self, message: Message, signature: str, *body: object) -> None:
        self.connection.send(Message.new_method_return(message, signature, list(body)))

    def fail(self, message: Message, name: str, text: str) -> None:
        self.connection.send(Message.new_error(message, name, text))

    def accept(self, message: Message) -> None:
        self.reply(message, "to", 1, names.job_path(1))

    def end(self, state: str = ENDED, error: tuple[str, str] | None = None) -> None:
        """End the job as the daemon does: the state first, the signal after it."""
        self.state, self.error = state, error
        self.finished()

    def finished(self, destination: str | None = None) -> None:
        name = self.error[0] if self.error else ""
        body = [1, names.job_path(1), "pull", self.state, name]
        message = Message.new_signal(names.ROOT_PATH, names.MANAGER, "JobFinished", "tosss", body)
        message.destination = destination  # type: ignore[assignment] # None is what it is by default
        self.connection.send(message)

    def progress(self, **values: Variant) -> None:
        self.connection.send(
            Message.new_signal(
                names.job_path(1), names.PROPERTIES, "PropertiesChanged", "sa{sv}as", [names.JOB, values, []]
            )
        )

    def _handle(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        self.calls.append((message.member, message.body))
        self.on.get(message.member, getattr(self, f"_{message.member}"))(message)
        return True

    def _Pull(self, message: Message) -> None:  # noqa: N802
        self.accept(message)

    def _CancelJob(self, message: Message) -> None:  # noqa: N802
        self.reply(message, "")
        self.end("cancelled", (f"{names.ERRORS}.Cancelled", "asked to stop"))

    def _WaitJob(self, message: Message) -> None:  # noqa: N802
        if self.error:
            self.fail(message, *self.error)
        else:
            self.reply(message, "sa{sv}", self.state, {"bytes-fetched": Variant("t", 7)})

    def _GetAll(self, message: Message) -> None:  # noqa: N802
        self.reply(message, "a{sv}", {"Id": Variant("t", 1), "State": Variant("s", self.state)})


class Recorder:
    """A View that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def update(self, job: Job) -> None:
        self.stages.append(job.stage)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.notes.append("closed")


class Client:
    """A follower in a task of its own."""

    def __init__(self, bus: Bus, return_seconds: float) -> None:
        self.bus = bus
        self.view = Recorder()
        self.interrupts = Interrupts(lambda: self.task.cancel())
        follower = Follower(Proxy(bus), self.view, self.interrupts, return_seconds)
        self.task: asyncio.Task[Outcome] = asyncio.create_task(follower.run(JobRequest(PULL, ["oci:/os"])))

    async def outcome(self) -> Outcome:
        return await asyncio.wait_for(self.task, 20)


@asynccontextmanager
async def client(address: str, return_seconds: float = 20) -> AsyncIterator[Client]:
    bus = await Bus.connect(address)
    followed = Client(bus, return_seconds)
    try:
        yield followed
    finally:
        followed.task.cancel()
        bus.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_an_end_that_overtakes_the_answer_is_not_lost(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)

        def pull(message: Message) -> None:
            service.end()
            service.accept(message)

        service.on["Pull"] = pull
        async with client(address) as followed:
            assert (await followed.outcome()).result == {"bytes-fetched": 7}
        service.connection.close()

    run(story)


def test_of_many_jobs_that_end_at_once_none_is_lost(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)

        def pull(message: Message) -> None:
            service.accept(message)
            service.end()

        service.on["Pull"] = pull
        for _ in range(100):
            service.state = RUNNING
            async with client(address) as followed:
                await followed.outcome()
        service.connection.close()

    run(story)


def test_a_repeated_request_that_gives_an_ended_job_is_not_waited_for(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        service.state = ENDED
        async with client(address) as followed:
            assert (await followed.outcome()).job.id == 1
        service.connection.close()

    run(story)


def test_a_job_whose_object_is_gone_is_asked_about(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        service.state = ENDED
        service.on["GetAll"] = lambda message: service.fail(
            message, f"{names.FREEDESKTOP_ERRORS}.UnknownObject", "no such object"
        )
        async with client(address) as followed:
            await followed.outcome()
        service.connection.close()

    run(story)


def test_a_job_that_is_waited_for_ends_with_its_client_and_has_a_request_id(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            service.end()
            await followed.outcome()
        options = service.options()
        assert options["on-client-gone"] == "cancel"
        assert len(str(options["request-id"])) == 32
        service.connection.close()

    run(story)


def test_progress_is_shown_as_it_comes(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            for stage in ("fetch", "generate"):
                service.progress(Stage=Variant("s", stage))
                await until(partial(followed.view.stages.count, stage))
            service.end()
            await followed.outcome()
            assert followed.view.notes == ["closed"]
        service.connection.close()

    run(story)


def test_the_error_of_a_job_comes_with_its_text_and_exit_status(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            service.end("failed", (f"{names.ERRORS}.NoSpace", "the ESP is full"))
            with pytest.raises(CallError, match="the ESP is full") as caught:
                await followed.outcome()
        assert caught.value.status is Exit.FAILED
        service.connection.close()

    run(story)


def test_signals_of_others_are_not_believed(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        forger = Service(Connection(bus_address=address))
        await forger.connection.connect()
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            forger.state = ENDED
            forger.finished(str(followed.bus._connection.unique_name))
            await forger.connection.call(_get_id())  # so the bus has passed the signal on
            await asyncio.sleep(0.1)
            assert not service.count("WaitJob")
            service.end()
            await followed.outcome()
        forger.connection.close()
        service.connection.close()

    run(story)


def _get_id() -> Message:
    return Message(names.FREEDESKTOP, names.FREEDESKTOP_PATH, names.FREEDESKTOP, "GetId")


def test_a_job_that_goes_on_after_a_restart_is_followed_further(address: str) -> None:
    async def story() -> None:
        first = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: first.count("GetAll"))
            first.connection.close()
            second = await Service.start(address)
            await until(lambda: second.count("GetAll"))
            second.progress(Stage=Variant("s", "commit"))
            await until(lambda: "commit" in followed.view.stages)
            second.end()
            await followed.outcome()
            assert not second.count("Pull")
        second.connection.close()

    run(story)


def test_a_job_that_ended_while_nobody_told_is_asked_about(address: str) -> None:
    async def story() -> None:
        first = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: first.count("GetAll"))
            first.connection.close()
            second = await Service.start(address)
            second.state = ENDED
            assert (await followed.outcome()).result == {"bytes-fetched": 7}
        second.connection.close()

    run(story)


def test_a_job_that_the_next_daemon_does_not_know_is_asked_for_again_under_its_request_id(address: str) -> None:
    async def story() -> None:
        first = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: first.count("GetAll"))
            first.connection.close()
            second = await Service.start(address)
            second.on["WaitJob"] = lambda message: second.fail(message, f"{names.ERRORS}.NoSuchJob", "no job 1")
            await until(lambda: second.count("Pull"))
            second.on.clear()
            await until(lambda: second.count("GetAll"))
            second.end()
            await followed.outcome()
            assert first.options()["request-id"] == second.options()["request-id"]
        second.connection.close()

    run(story)


def test_a_request_whose_answer_was_lost_is_repeated_under_its_request_id(address: str) -> None:
    async def story() -> None:
        first = await Service.start(address)
        first.on["Pull"] = lambda message: None
        async with client(address) as followed:
            await until(lambda: first.count("Pull"))
            first.connection.close()
            second = await Service.start(address)
            await until(lambda: second.count("GetAll"))
            second.end()
            await followed.outcome()
            assert first.options()["request-id"] == second.options()["request-id"]
        second.connection.close()

    run(story)


def test_a_daemon_that_stays_away_is_given_up(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address, return_seconds=0.2) as followed:
            await until(lambda: service.count("GetAll"))
            service.connection.close()
            with pytest.raises(NoServiceError, match="did not return"):
                await followed.outcome()

    run(story)


def test_a_bus_that_dies_ends_the_wait(address: str, dbus_daemon: subprocess.Popen[bytes]) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            dbus_daemon.kill()
            with pytest.raises(NoServiceError, match="went away"):
                await followed.outcome()
            with pytest.raises(NoServiceError):  # not a call that never ends
                await followed.bus.owner(names.BUS_NAME)
        service.connection.close()

    run(story)


def test_an_interrupt_cancels_the_job(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        async with client(address) as followed:
            with followed.interrupts.installed():
                await until(lambda: service.count("GetAll"))
                os.kill(os.getpid(), signal.SIGINT)
                with pytest.raises(ClientError, match="asked to stop") as caught:
                    await followed.outcome()
        assert caught.value.status is Exit.CANCELLED
        service.connection.close()

    run(story)


def test_a_second_interrupt_leaves_a_job_that_does_not_stop(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        service.on["CancelJob"] = lambda message: service.reply(message, "")
        async with client(address) as followed:
            with followed.interrupts.installed():
                await until(lambda: service.count("GetAll"))
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda: service.count("CancelJob"))
                os.kill(os.getpid(), signal.SIGINT)
                with pytest.raises(asyncio.CancelledError):
                    await followed.outcome()
        service.connection.close()

    run(story)


def test_a_job_that_cannot_be_cancelled_any_more_is_waited_for(address: str) -> None:
    async def story() -> None:
        service = await Service.start(address)
        service.on["CancelJob"] = lambda message: service.fail(
            message, f"{names.ERRORS}.NotCancellable", "it is being committed"
        )
        async with client(address) as followed:
            await until(lambda: service.count("GetAll"))
            followed.interrupts()
            await until(lambda: any("being committed" in note for note in followed.view.notes))
            service.end()
            assert (await followed.outcome()).job.id == 1
        service.connection.close()

    run(story)
