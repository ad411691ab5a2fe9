"""Telling systemd how the daemon is, by sd_notify(3): ready, what it does, alive, stopping."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

from composefsd.service.job_table import JobTable
from composefsd.service.jobs import ENDED, Job

_USEC: Final = 1_000_000
_START_SECONDS: Final = 180


def _tell(text: str) -> None:
    """Send `text`, or nothing: a manager that is slow, or gone, must not stop the loop (systemd's own call may)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)


def starting() -> None:
    """Starting may take this long: what a crash left is settled first, and another process may hold the lock."""
    _tell(f"EXTEND_TIMEOUT_USEC={_START_SECONDS * _USEC}")


def ready() -> None:
    """The name is owned and calls are answered."""
    _tell("READY=1")


def stopping() -> None:
    """The daemon is on its way out."""
    _tell("STOPPING=1")


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear from us: a third of its limit.  None if it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdecimal() or int(text) == 0 or pid != str(os.getpid()):
        return None
    return int(text) / _USEC / 3


async def keep_alive() -> None:
    """Answer the watchdog from the loop, as long as the loop turns."""
    seconds = watchdog_seconds()
    while seconds is not None:
        _tell("WATCHDOG=1")
        await asyncio.sleep(seconds)


class StatusLine:
    """Keeps the status that `systemctl status` shows."""

    def __init__(self, jobs: JobTable) -> None:
        self._jobs = jobs
        self._shown = ""
        self._update()

    def job_added(self, _job: Job) -> None:
        self._update()

    def job_changed(self, _job: Job) -> None:
        self._update()

    def job_progressed(self, _job: Job) -> None:
        self._update()

    def job_ended(self, _job: Job) -> None:
        self._update()

    def job_removed(self, _job: Job) -> None:
        self._update()

    def _update(self) -> None:
        running = [job for job in self._jobs.jobs if job.is_active and job.state not in ENDED]
        waiting = f", {self._jobs.queued} queued" if self._jobs.queued else ""
        shown = ", ".join(_describe(job) for job in running) + waiting or "idle"
        if shown != self._shown:
            self._shown = shown
            _tell(f"STATUS={shown}")


def _describe(job: Job) -> str:
    percent = f" {job.fraction:.0%}" if job.fraction >= 0 else ""
    return f"{job.kind} {job.id}{percent}"
