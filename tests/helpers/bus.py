"""A daemon of its own on a bus of its own, in a scratch folder, and a look at its process.

The bus is one on which everything is allowed, or one of type system with our policy files and the real polkitd.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

from helpers.client import Call, connect
from real.stage import listens

from composefsd.service import names

REPOSITORY_ROOT: Final = Path(__file__).parents[2]
COMPOSEFSD: Final = str(Path(sys.executable).parent / "composefsd")

_WAIT_SECONDS: Final = 30.0

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


GAMES: Final = 5
"""An unprivileged user that every Debian has."""

_POLKIT: Final = "org.freedesktop.PolicyKit1"
_POLKIT_PROGRAMS: Final = ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd", "/usr/libexec/polkit-1/polkitd")
_POLKIT_POLICIES: Final = ("/usr/share/dbus-1/system.d", "/etc/dbus-1/system.d")

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
        self.wait_for(lambda: listens(self.socket), self.bus, self.folder / "bus.log")

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


def why_no_polkit() -> str:
    """Why the real polkitd cannot be had here, empty if it can."""
    if os.geteuid() != 0:
        return "needs root: polkitd runs on a bus of type system, in a mount namespace"
    if not any(Path(program).exists() for program in _POLKIT_PROGRAMS):
        return "needs polkitd (apt install polkitd)"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        return "needs unshare --mount, which this container does not allow"
    return ""


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
