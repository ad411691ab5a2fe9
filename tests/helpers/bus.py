"""A real dbus-daemon, with the real polkitd where root may have a mount namespace, and clients on it.

    with PolkitStage(folder, rules) as stage:           # a bus of type system with our bus policy, and polkitd
        answer = call_as(5, stage.address, [Call(...)])  # as an unprivileged user
    async with connect(stage.address) as client:         # in this process
        await client.call(Call(MANAGER, "ListJobs", "a{sv}", [{}]))

Calls are raw messages, so that nothing stands between a test and what goes over the bus.
"""

import asyncio
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, Self

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from composefsd.service import names

REPOSITORY_ROOT: Final = Path(__file__).parents[2]
GAMES: Final = 5
"""An unprivileged user that every Debian has."""

_POLKIT: Final = "org.freedesktop.PolicyKit1"
_POLKIT_PROGRAMS: Final = ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd", "/usr/libexec/polkit-1/polkitd")
_POLKIT_POLICIES: Final = ("/usr/share/dbus-1/system.d", "/etc/dbus-1/system.d")
_WAIT_SECONDS: Final = 30.0

COMPOSEFSD: Final = str(Path(sys.executable).parent / "composefsd")

_OPEN_BUS: Final = """\
<busconfig>
  <type>custom</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
  </policy>
</busconfig>
"""

_SYSTEM_BUS: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <includedir>{policies}</includedir>
</busconfig>
"""
"""What Debian's system.conf allows, in short."""


@contextmanager
def nothing(_pid: int) -> Iterator[None]:
    """A context that does nothing."""
    yield


@dataclass(frozen=True, slots=True)
class Call:
    """A method call to the daemon, by default to its root object."""

    interface: str
    member: str
    signature: str = ""
    body: Sequence[Any] = ()
    path: str = names.ROOT_PATH
    destination: str = names.BUS_NAME
    flags: MessageFlag = MessageFlag.NONE

    def message(self) -> Message:
        return Message(
            destination=self.destination,
            path=self.path,
            interface=self.interface or None,
            member=self.member,
            signature=self.signature,
            body=list(self.body),
            flags=self.flags,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: `error` is the name of an error, empty for none; `body` has variants opened."""

    error: str
    body: list[Any]


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal of the daemon."""

    path: str
    interface: str
    member: str
    body: list[Any]


def plain(value: Any) -> Any:
    """A value of the bus with its variants opened."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class _Bus(MessageBus):
    """dbus-next's bus, which does not close its socket."""

    def _setup_socket(self) -> None:
        try:
            MessageBus._setup_socket(self)
        except BaseException:
            self._stream.close()
            self._sock.close()
            raise

    def close(self) -> None:
        self._disconnect_future.add_done_callback(lambda end: end.exception())
        MessageBus._finalize(self, None)
        self._stream.close()
        self._sock.close()


@dataclass(slots=True)
class Client:
    """A connection; `signals` are those of the daemon that have arrived, in order."""

    bus: _Bus
    signals: list[Signal] = field(default_factory=list)

    async def call(self, call: Call) -> Answer:
        """Call, and take the answer as it comes."""
        reply = await asyncio.wait_for(self.bus.call(call.message()), _WAIT_SECONDS)
        if reply is None:
            return Answer("", [])
        return Answer(reply.error_name or "", [plain(item) for item in reply.body])

    async def ask(self, call: Call) -> list[Any]:
        """Call; the answer is no error."""
        answer = await self.call(call)
        assert not answer.error, f"{call.member}: {answer.error}: {answer.body}"
        return answer.body

    async def get(self, path: str, interface: str, name: str) -> Any:
        """A property."""
        return (await self.ask(Call(names.PROPERTIES, "Get", "ss", [interface, name], path)))[0]

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """All properties."""
        (found,) = await self.ask(Call(names.PROPERTIES, "GetAll", "s", [interface], path))
        assert isinstance(found, dict)
        return found

    async def start(self, interface: str, member: str, *arguments: str, **options: Variant) -> int:
        """Start a job; its id.  `_` in an option's name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in options.items()}
        signature = "s" * len(arguments) + "a{sv}"
        job, _ = await self.ask(Call(interface, member, signature, [*arguments, named]))
        assert isinstance(job, int)
        return job

    async def wait(self, job: int, timeout_usec: int = 0) -> Answer:
        """What WaitJob answers."""
        return await self.call(Call(names.MANAGER, "WaitJob", "tt", [job, timeout_usec]))

    async def subscribe(self) -> None:
        """Collect all signals of the daemon from now on."""
        rule = f"type='signal',sender='{names.BUS_NAME}',path_namespace='{names.ROOT_PATH}'"
        call = Call(names.FREEDESKTOP, "AddMatch", "s", [rule], names.FREEDESKTOP_PATH, names.FREEDESKTOP)
        await self.ask(call)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for signals that make `condition` true."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)

    def received(self, member: str) -> list[Signal]:
        """Signals of this name that have arrived."""
        return [signal for signal in self.signals if signal.member == member]

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.path.startswith(names.ROOT_PATH):
            body = [plain(item) for item in message.body]
            self.signals.append(Signal(message.path, message.interface, message.member, body))


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Client]:
    """A client for the length of a block."""
    bus = _Bus(bus_address=address, negotiate_unix_fd=True)
    try:
        await asyncio.wait_for(bus.connect(), _WAIT_SECONDS)
        client = Client(bus)
        bus.add_message_handler(client._on_message)
        yield client
    finally:
        bus.close()


def call_as(
    uid: int, address: str, calls: Sequence[Call], *, prepare: Callable[[int], AbstractContextManager[None]] = nothing
) -> list[Answer]:
    """Make calls as another user, from a process of that user, in the context that `prepare` gives for its pid."""
    (go_in, go_out), (answer_in, answer_out) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with _child():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.read(go_in, 1)
            with os.fdopen(answer_out, "wb") as out:
                pickle.dump(asyncio.run(_calls(address, calls)), out)
    os.close(go_in)
    os.close(answer_out)
    with os.fdopen(answer_in, "rb") as source, prepare(pid):
        os.write(go_out, b"!")
        answers = pickle.load(source)
    os.close(go_out)
    os.waitpid(pid, 0)
    assert isinstance(answers, list)
    return answers


@contextmanager
def _child() -> Iterator[NoReturn]:
    """The life of a forked process: it never returns into the test."""
    try:
        yield  # type: ignore[misc] # the block ends the process
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


@contextmanager
def agent(address: str, pid: int, *, approves: bool) -> Iterator[None]:
    """An authentication agent for the process `pid`, which says yes to everything, or dismisses it."""
    ready_in, ready_out = os.pipe()
    agent_pid = os.fork()
    if agent_pid == 0:
        with _child():
            asyncio.run(_serve_as_agent(address, pid, ready_out, approves=approves))
    os.close(ready_out)
    with os.fdopen(ready_in, "rb") as ready:
        assert ready.read(1), "the agent could not be registered"
    try:
        yield
    finally:
        os.kill(agent_pid, signal.SIGKILL)
        os.waitpid(agent_pid, 0)


async def _serve_as_agent(address: str, pid: int, ready: int, *, approves: bool) -> None:
    async with connect(address) as client:

        async def answer(message: Message) -> None:
            cookie, identities = message.body[4], message.body[5]
            if not approves:
                client.bus.send(Message.new_error(message, f"{_POLKIT}.Error.Cancelled", "dismissed"))
                return
            await client.ask(_authority("AuthenticationAgentResponse2", "us(sa{sv})", [0, cookie, identities[0]]))
            client.bus.send(Message.new_method_return(message))

        tasks = []

        def handle(message: Message) -> bool:
            if message.member == "BeginAuthentication":
                tasks.append(asyncio.ensure_future(answer(message)))
            return message.message_type is MessageType.METHOD_CALL

        client.bus.add_message_handler(handle)
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        facts = {"pid": Variant("u", pid), "start-time": Variant("t", int(status[19])), "uid": Variant("i", GAMES)}
        register = [["unix-process", facts], "C", "/agent"]
        await client.ask(_authority("RegisterAuthenticationAgent", "(sa{sv})ss", register))
        os.write(ready, b"!")
        await asyncio.sleep(_WAIT_SECONDS)


def _authority(member: str, signature: str, body: Sequence[Any]) -> Call:
    path = "/org/freedesktop/PolicyKit1/Authority"
    return Call(f"{_POLKIT}.Authority", member, signature, body, path, _POLKIT)


async def _calls(address: str, calls: Sequence[Call]) -> list[Answer]:
    async with connect(address) as client:
        return [await client.call(call) for call in calls]


def why_no_polkit() -> str:
    """Why the real polkitd cannot be had here, empty if it can."""
    if os.geteuid() != 0:
        return "needs root: polkitd runs on a bus of type system, in a mount namespace"
    if not any(Path(program).exists() for program in _POLKIT_PROGRAMS):
        return "needs polkitd (apt install polkitd)"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        return "needs unshare --mount, which this container does not allow"
    return ""


class StageError(Exception):
    """The bus or the daemon did not come up; the message has what it said."""


class Stage:
    """A bus of its own, on which everything is allowed, and a daemon on it; all in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sysroot, self.esp, self.state = (folder / name for name in ("sysroot", "esp", "state"))
        for path in (self.sysroot, self.esp):
            path.mkdir()
        self.config = folder / "composefsd.conf"
        self.config.write_text("[Daemon]\nInsecure=yes\n")
        self.log = folder / "composefsd.log"
        self._exit = ExitStack()
        # a socket's path has 107 characters at most, so it does not go into the folder
        self.shared = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="composefs-bus-")))
        self.socket = self.shared / "bus"
        self.address = f"unix:path={self.socket}"
        self._notifications: list[str] = []
        self._notify_path = self.shared / "notify"
        self._notify = self._exit.enter_context(_notify_socket(self._notify_path))
        self.bus: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start_bus()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_bus(self) -> None:
        """Start the bus; it listens when this returns."""
        config = self.shared / "bus.conf"
        config.write_text(_OPEN_BUS.format(socket=self.socket))
        self.run_bus(["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"])

    def run_bus(self, command: Sequence[str]) -> None:
        """Start the command of a bus, and wait until it listens."""
        with (self.folder / "bus.log").open("wb") as log:
            self.bus = _spawn(command, log, DBUS_SYSTEM_BUS_ADDRESS=self.address)
        self.wait_for(lambda: _listens(self.socket), self.bus, self.folder / "bus.log")

    def start(self, *options: str, program: Sequence[str] = (COMPOSEFSD,), **environment: str) -> None:
        """Start the daemon; it is ready when this returns.  Raises StageError."""
        paths = [f"--{name}={self.folder / name}" for name in ("repository", "sysroot", "esp", "state")]
        command = [*program, f"--config={self.config}", f"--bus={self.address}", "--no-idle-exit", *paths, *options]
        with self.log.open("ab") as log:
            self.daemon = _spawn(command, log, **{"NOTIFY_SOCKET": str(self._notify_path), **environment})
        self.wait_for(lambda: "READY=1" in self.notified(), self.daemon, self.log)

    def notified(self) -> list[str]:
        """What the daemon has told its service manager since it was started."""
        with suppress(BlockingIOError):
            while True:
                self._notifications += self._notify.recv(4096).decode().splitlines()
        return self._notifications

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until something holds.  Raises StageError with the log of a process that ends before, or for long."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StageError(log.read_text())
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.daemon is not None
        return self.daemon.pid

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End the daemon; its exit status."""
        daemon, self.daemon = self.daemon, None
        status = 0 if daemon is None else _end(daemon, signal_number)
        self.notified().clear()
        return status

    def close(self) -> None:
        """End everything."""
        self.stop()
        if self.bus is not None:
            _end(self.bus)
        self._exit.close()


class PolkitStage(Stage):
    """A stage whose bus is of type system, with our policy files and the real polkitd.

    polkitd reads fixed directories: it runs in a mount namespace where ours lie over them.  Everything else runs
    outside and meets it on the bus.
    """

    def __init__(self, folder: Path, rules: str) -> None:
        super().__init__(folder)
        self._rules = rules

    def start_bus(self) -> None:
        self._write_files()
        program = next(program for program in _POLKIT_PROGRAMS if Path(program).exists())
        script = Path(__file__).with_name("polkit-bus")
        self.run_bus(["unshare", "--mount", "--propagation=private", str(script), str(self.shared), program])
        assert self.bus is not None
        self.wait_for(lambda: asyncio.run(self._has_polkit()), self.bus, self.folder / "bus.log")

    def _write_files(self) -> None:
        self.shared.chmod(0o755)  # polkitd and callers are other users
        for name in ("policies", "actions", "rules"):
            (self.shared / name).mkdir()
        ours = REPOSITORY_ROOT / "dbus"
        shutil.copy(ours / f"{names.BUS_NAME}.conf", self.shared / "policies")
        polkit = next(path for path in map(Path, _POLKIT_POLICIES) if (path / f"{_POLKIT}.conf").exists())
        shutil.copy(polkit / f"{_POLKIT}.conf", self.shared / "policies")
        shutil.copy(ours / f"{names.BUS_NAME}.policy", self.shared / "actions")
        (self.shared / "rules" / "10-test.rules").write_text(self._rules)
        config = _SYSTEM_BUS.format(socket=self.socket, policies=self.shared / "policies")
        (self.shared / "bus.conf").write_text(config)

    async def _has_polkit(self) -> bool:
        async with connect(self.address) as client:
            ask = Call(names.FREEDESKTOP, "NameHasOwner", "s", [_POLKIT], names.FREEDESKTOP_PATH, names.FREEDESKTOP)
            return bool((await client.ask(ask))[0])


def _spawn(command: Sequence[str], log: BinaryIO, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment},
        start_new_session=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes], signal_number: int = signal.SIGTERM) -> int:
    if process.poll() is None:
        process.send_signal(signal_number)
        try:
            process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    return process.wait()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def _notify_socket(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
        notify.bind(str(path))
        yield notify


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started and that have not ended."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def worker_processes(pid: int) -> list[int]:
    """The daemon's workers; between fork and exec a child is none yet, and the daemon waits for it to become one."""
    return [child for child in children(pid) if b"composefsd.workers" in _command_line(child)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:  # ended meanwhile
        return b""


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
