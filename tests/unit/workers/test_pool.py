"""Workers: they answer, they fail by name, they die alone, and sandboxed ones can do little."""

import asyncio
import errno
import os
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real.layers import regular, tar_layer

from composefsd.errors import (
    DigestMismatchError,
    FormatError,
    InternalError,
    JobInterruptedError,
    LimitExceededError,
    NoSpaceError,
    from_wire,
)
from composefsd.oci import unpack
from composefsd.workers import channel, sandbox, serve
from composefsd.workers.pool import Worker, number, worker

KEEPER = "composefsd.operations.keeper"
UNPACKER = "composefsd.oci.unpack"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_a_sandboxed_worker_reads_what_it_was_given(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(1024))

    async def work() -> dict[str, Any]:
        fd = os.open(archive, os.O_RDONLY)
        try:
            async with worker(UNPACKER, sandboxed=True) as one:
                return await one.call("list_archive", {}, (fd,))
        finally:
            os.close(fd)

    assert run(work()) == {"members": {}}


def test_an_error_of_a_task_arrives_as_itself(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(b"\x1f\x8b" + bytes(100))

    async def work() -> None:
        fd = os.open(packed, os.O_RDONLY)
        try:
            async with worker(UNPACKER, sandboxed=True) as one:
                await one.call("list_archive", {}, (fd,))
        finally:
            os.close(fd)

    with pytest.raises(unpack.UnsupportedError, match="compressed"):
        run(work())


def test_a_bug_in_a_task_is_told_without_its_details(capfd: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        async with worker(KEEPER, sandboxed=False) as one:
            await one.call("collect", {"unexpected": 1})

    with pytest.raises(InternalError) as caught:
        run(work())
    assert "unexpected" not in caught.value.message
    assert "KeyError" in capfd.readouterr().err


def test_a_worker_that_is_killed_fails_its_task_by_name() -> None:
    async def work() -> None:
        async with worker(UNPACKER, sandboxed=True) as one:
            read, write = os.pipe()
            await one.start("list_archive", {}, (read,))
            os.kill(one.pid, signal.SIGKILL)
            os.close(read)
            os.close(write)
            await one.finish()

    with pytest.raises(JobInterruptedError, match="list_archive died"):
        run(work())


def test_cancelling_kills_the_worker() -> None:
    async def work() -> int:
        one = await Worker.spawn(KEEPER, sandboxed=False)
        task = asyncio.create_task(one.finish())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await one.close()
        return one.pid

    with pytest.raises(ProcessLookupError):
        os.kill(run(work()), 0)


def test_a_worker_leaves_no_descriptors_behind() -> None:
    async def work() -> None:
        async with worker(UNPACKER, sandboxed=True):
            pass

    run(work())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the descriptors of this process, no tree
    for _ in range(3):
        run(work())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


PROBE = textwrap.dedent(
    """
    import os, socket, sys
    from composefsd.workers import sandbox
    inside = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
    fences = sandbox.enter([inside])
    def attempt(name, action):
        try:
            action()
        except OSError:
            return
        except (MemoryError, ValueError):
            return
        print("allowed", name)
    print("fences", *fences)
    def open_by_handle():
        if sandbox._libc.syscall({"x86_64": 304, "aarch64": 265}[os.uname().machine], -1, None, 0) == -1:
            number = sandbox.ctypes.get_errno()
            if number == 1:  # EPERM: the filter's answer comes before the kernel looks at the arguments
                raise PermissionError(number, "denied")
    attempt("handles", open_by_handle)
    attempt("passwd", lambda: open("/etc/passwd"))
    attempt("shadow", lambda: open("/etc/shadow"))
    attempt("write", lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
    attempt("socket", lambda: socket.socket())
    attempt("unix socket", lambda: socket.socket(socket.AF_UNIX))
    attempt("exec", lambda: os.execv("/bin/true", ["true"]))
    attempt("fork", lambda: os.fork() or os._exit(0))
    attempt("signal", lambda: os.kill(os.getppid(), 0))
    attempt("pidfd", lambda: os.pidfd_open(os.getppid()))
    attempt("limits", lambda: sandbox.resource.setrlimit(sandbox.resource.RLIMIT_CPU, (10, 10)))
    attempt("memory", lambda: bytearray(8 << 30))
    print(os.read(os.open("file", os.O_RDONLY, dir_fd=inside), 5).decode(), os.getuid() == 0)
    """
)


def test_a_fenced_process_can_read_its_directory_and_nothing_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("hello")
    (tmp_path / "file").chmod(0o600)  # as another tool under a strict umask leaves an object

    async def work() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROBE, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode()

    fences, *rest = run(work()).splitlines()
    assert {"no-new-privileges", "files", "system-calls"} <= set(fences.split())
    assert rest == ["hello False"]


@pytest.mark.parametrize("data", [b"", b"[1]", b"nonsense", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(channel.FormatError):
        channel.decode(data)


def test_a_frame_over_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(LimitExceededError):
        channel.decode_length(channel.LENGTH.pack(channel.FRAME_BYTES + 1))


def test_errors_keep_their_facts_on_the_wire() -> None:
    def fail(_: serve.Call) -> dict[str, Any]:
        raise DigestMismatchError("no", expected="a", actual="b")

    error = from_wire(answered(fail)["error"])
    assert isinstance(error, DigestMismatchError)
    assert (error.message, error.facts) == ("no", {"expected": "a", "actual": "b"})


def answered(task: serve.Task) -> dict[str, Any]:
    frame = serve._answer(task, serve.Call({}, (), print))
    return channel.decode(frame[channel.LENGTH.size :])


def test_a_full_disk_under_a_worker_is_no_bug() -> None:
    def fail(_: serve.Call) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "full")

    assert isinstance(from_wire(answered(fail)["error"]), NoSpaceError)


def test_an_answer_that_is_too_long_is_told_as_that() -> None:
    error = from_wire(answered(lambda _: {"text": "x" * (channel.FRAME_BYTES + 1)})["error"])
    assert isinstance(error, LimitExceededError)


@pytest.mark.parametrize(
    "wire",
    [None, 7, [], {}, {"name": 1}, {"name": "FormatError", "message": "m", "facts": {"message": "again", "x": []}}],
)
def test_an_error_that_cannot_be_read_is_an_error_all_the_same(wire: object) -> None:
    assert from_wire(wire).message


@pytest.mark.parametrize("value", [None, -1, 1 << 60, True, 1.5, "1"])
def test_impossible_numbers_of_a_worker_are_refused(value: object) -> None:
    with pytest.raises(FormatError):
        number({"n": value}, "n")


def test_a_talkative_worker_does_not_stop_the_loop() -> None:
    async def work() -> int:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        frames = channel.encode({"event": {}}) * 20_000 + channel.encode({"result": {}})
        thread = threading.Thread(target=theirs.sendall, args=(frames,))
        thread.start()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        process = await asyncio.create_subprocess_exec("sleep", "60")
        one = Worker("test", process, ours)
        await one.finish()
        ticking.cancel()
        thread.join()
        theirs.close()
        await one.end()
        await one.close()
        return ticks

    assert run(work()) > 10_000


def hostile_archive(tmp_path: Path, content: bytes) -> None:
    """Soon refused, or listed up to where Python's version gives up, with nothing that lies outside."""
    path = tmp_path / "archive.tar"
    path.write_bytes(content)

    async def work() -> dict[str, Any]:
        fd = os.open(path, os.O_RDONLY)
        try:
            async with worker(UNPACKER, sandboxed=True) as one:
                return await asyncio.wait_for(one.call("list_archive", {}, (fd,)), 30)
        finally:
            os.close(fd)

    with suppress(FormatError, LimitExceededError):
        for offset, size in run(work())["members"].values():
            assert 0 <= offset <= offset + size <= len(content)


def test_an_archive_whose_sizes_lead_back_ends(tmp_path: Path) -> None:
    back = replace(regular("b", b"x"), records={"size": b"-1536"})
    hostile_archive(tmp_path, tar_layer([regular("a", b"y" * 600), back]) + tar_layer([regular("c", b"z")]))


def test_an_archive_of_nothing_but_headers_ends(tmp_path: Path) -> None:
    pax = tar_layer([replace(regular("a"), records={"comment": b"x"})])[:1024]
    hostile_archive(tmp_path, pax * 3000)


def test_the_machines_with_a_filter_deny_sockets_and_programs() -> None:
    for machine in sandbox._MACHINES.values():
        assert len(set(machine.denied)) == len(machine.denied)
        assert len(sandbox._filter(machine)) == 8 * (len(machine.denied) + 7)
