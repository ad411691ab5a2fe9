"""A daemon of its own on a bus of its own, with repository, sysroot and "ESP" in a scratch folder.

Nothing of it reaches the machine's bus, boot partition or /sysroot.  The repository is one without fs-verity, as the
file system of a scratch folder seldom has it.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from real.bus import MANAGER, OBJECT, Bus, BusError

BIN: Final = Path(sys.executable).parent
"""The commands of this environment."""

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0

_BUS: Final = """\
<busconfig>
  <type>custom</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
  </policy>
</busconfig>
"""

_SETTINGS: Final = """\
[Daemon]
Algorithm={algorithm}
Insecure=yes
"""


class StageError(Exception):
    """The bus or the daemon did not come up, or did not go away; the message has the end of its log."""


def end(process: subprocess.Popen[bytes]) -> int:
    """Ask a process to stop, insist if it does not, and give its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _spawn(command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a process that a Ctrl-C on the terminal does not reach: who started it ends it, in the right order."""
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )


def listens(path: Path) -> bool:
    """Whether a connection to the socket of that name would be taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


class Stage:
    """The folder and what runs in it."""

    def __init__(self, folder: Path, *, algorithm: str = "sha512") -> None:
        self.folder = folder
        self.repository, self.sysroot, self.esp = folder / "repository", folder / "sysroot", folder / "esp"
        for path in (self.sysroot, self.esp):
            path.mkdir()
        (folder / "composefsd.conf").write_text(_SETTINGS.format(algorithm=algorithm))
        self.daemon: subprocess.Popen[bytes] | None = None
        self._bus: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()
        # a socket's path has 107 characters at most, so it does not go into the folder
        self._socket = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="composefs-bus-"))) / "bus"

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

    @property
    def address(self) -> str:
        """The address of the bus, for `--bus` and for `busctl --address=`."""
        return f"unix:path={self._socket}"

    @property
    def log(self) -> Path:
        """What the daemon has written to its standard error."""
        return self.folder / "composefsd.log"

    def start_bus(self) -> None:
        """Start the private bus; it listens when this returns."""
        config = self.folder / "bus.conf"
        config.write_text(_BUS.format(socket=self._socket))
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"]
        with (self.folder / "bus.log").open("wb") as log:
            self._bus = _spawn(command, log)
        deadline = time.monotonic() + _START_SECONDS
        while not listens(self._socket):  # the name of a socket is there a moment before somebody listens
            if self._bus.poll() is not None or time.monotonic() > deadline:
                raise StageError(f"dbus-daemon does not start:\n{(self.folder / 'bus.log').read_text()}")
            time.sleep(0.01)

    def start(self, wrapper: Sequence[str] = ()) -> None:
        """Start the daemon, by the command `wrapper` if there is one; it answers when this returns.

        Raises StageError.
        """
        paths = [f"--{name}={self.folder / name}" for name in ("repository", "sysroot", "esp", "state")]
        where = (f"--config={self.folder / 'composefsd.conf'}", f"--bus={self.address}", "--no-idle-exit")
        with self.log.open("ab") as log:
            self.daemon = _spawn([*wrapper, str(BIN / "composefsd"), *where, *paths], log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise StageError(f"composefsd does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with Bus(self.address) as bus, suppress(BusError):
            return bool(bus.get(OBJECT, MANAGER, "Version"))
        return False

    def stop(self) -> int:
        """Stop the daemon; its exit status."""
        daemon, self.daemon = self.daemon, None
        return end(daemon) if daemon is not None else 0

    def close(self) -> None:
        """Stop everything; the folder stays."""
        self.stop()
        if self._bus is not None:
            end(self._bus)
        self._cleanup.close()

    def command(self, *arguments: str) -> list[str]:
        """The command line of `composefsctl` on this bus."""
        return [str(BIN / "composefsctl"), f"--bus={self.address}", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run composefsctl, and keep what it says."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)

    def ask(self, *arguments: str) -> Any:  # JSON
        """What composefsctl answers with `--json`.  Raises StageError with what it said if it fails."""
        done = self.run("--json", *arguments)
        if done.returncode != 0:
            raise StageError(f"composefsctl {' '.join(arguments)} ends with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def digests(self, image: str) -> dict[str, str]:
        """The composefs images of an OCI image by kind, in bare hexadecimal."""
        return {entry["kind"]: entry["digest"].rpartition(":")[2] for entry in self.ask("inspect", image)["digests"]}

    def image_path(self, digest: str) -> Path:
        """The file of a composefs image."""
        return self.repository / "images" / digest


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found: Sequence[str] = ()
    try:
        found = [
            text for task in Path(f"/proc/{pid}/task").iterdir() for text in (task / "children").read_text().split()
        ]
    except FileNotFoundError:  # ended meanwhile
        return []
    return [int(text) for text in found]
