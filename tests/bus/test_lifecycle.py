"""How the daemon starts, what it tells its service manager, and how it ends."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from dbus_next import Variant
from helpers.bus import COMPOSEFSD, Stage, StageError, children, open_descriptors
from helpers.client import Call, Client, connect

from composefsd.service import names

IMPATIENT = """
import sys
from composefsd.service import daemon
from composefsd.service.main import main
daemon.IDLE_SECONDS, daemon._IDLE_CHECK_SECONDS = 1.0, 0.1
sys.argv.remove("--no-idle-exit")
sys.exit(main())
"""


def run(stage: Stage, test: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with connect(stage.address) as client:
            await test(client)

    asyncio.run(connected())


@pytest.fixture
def empty_stage(tmp_path: Path) -> Stage:
    """A stage where nothing runs."""
    return Stage(tmp_path)


def test_sigterm_ends_it_cleanly(stage: Stage, layout: str) -> None:
    async def work(client: Client) -> None:
        job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", generate=Variant("as", ["normative"]))
        assert not (await client.wait(job)).error

    run(stage, work)
    log_before, pid = stage.log.read_text(), stage.pid
    began = time.monotonic()
    assert stage.stop() == 0
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid}").exists()
    said = stage.log.read_text().removeprefix(log_before)
    assert said == "", "a clean stop says nothing: no task is destroyed, no exception is unseen"


def test_sigterm_while_it_works_leaves_no_process(stage: Stage, layout: str) -> None:
    workers: list[int] = []

    async def work(client: Client) -> None:
        await client.start(names.MANAGER, "Pull", f"oci:{layout}:slow", generate=Variant("as", ["normative"]))
        async with asyncio.timeout(30):
            while not workers:
                workers.extend(children(stage.pid))
                await asyncio.sleep(0.005)

    run(stage, work)
    workers.extend(children(stage.pid))
    assert stage.stop() == 0
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert "Traceback" not in stage.log.read_text()


def test_work_leaves_no_descriptor_and_no_child(stage: Stage, layout: str) -> None:
    async def pull(client: Client, name: str) -> None:
        options = {"name": Variant("s", name), "generate": Variant("as", ["normative"])}
        job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", **options)
        assert not (await client.wait(job)).error

    async def work(client: Client) -> None:
        await pull(client, "first")
        before = open_descriptors(stage.pid)
        for number in range(3):
            await pull(client, f"next{number}")
            checking = await client.start(names.REPOSITORY, "Check")
            assert not (await client.wait(checking)).error
        assert open_descriptors(stage.pid) <= before
        assert list(children(stage.pid)) == []

    run(stage, work)


def test_it_exits_with_1_when_the_bus_goes(stage: Stage) -> None:
    assert stage.bus is not None
    assert stage.daemon is not None
    stage.bus.terminate()
    stage.bus.wait()
    assert stage.daemon.wait(20) == 1
    assert "the bus went away" in stage.log.read_text()


def test_a_second_daemon_does_not_start(stage: Stage) -> None:
    command = [
        COMPOSEFSD,
        f"--bus={stage.address}",
        f"--sysroot={stage.sysroot}",
        f"--state={stage.folder / 'other'}",
    ]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].endswith(f"{names.BUS_NAME} is owned by another process")


def test_without_a_bus_it_says_so_in_one_line(tmp_path: Path) -> None:
    command = [COMPOSEFSD, f"--bus=unix:path={tmp_path}/none", f"--sysroot={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot connect to the bus" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Daemon]\nInsecure=perhaps\n", "composefsd.conf:2: Insecure=perhaps: not a boolean"),
        ("[Daemon]\nRepository=relative\n", "composefsd.conf:2: Repository=relative: not an absolute path"),
        ("[Daemon]\nAlgorithm=md5\n", "composefsd.conf:2: Algorithm=md5: none of sha256, sha512"),
        ("[Daemon]\nnonsense\n", "composefsd.conf:2: 'nonsense' is neither a section nor Key=value"),
    ],
)
def test_a_bad_configuration_keeps_it_from_starting(empty_stage: Stage, text: str, said: str) -> None:
    empty_stage.config.write_text(text)
    command = [COMPOSEFSD, f"--config={empty_stage.config}", f"--bus={empty_stage.address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    empty_stage.close()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(said)


def test_what_it_does_not_know_in_the_configuration_is_warned_about(empty_stage: Stage) -> None:
    empty_stage.config.write_text("[Daemon]\nInsecure=yes\nColour=blue\n[Other]\nInsecure=no\n")
    drop_ins = empty_stage.config.with_name("composefsd.conf.d")
    drop_ins.mkdir()
    (drop_ins / "10-hash.conf").write_text("[Daemon]\nAlgorithm=sha256\n")

    async def algorithm(client: Client) -> None:
        assert await client.get(names.ROOT_PATH, names.REPOSITORY, "Algorithm") == "fsverity-sha256-12"

    with empty_stage:
        run(empty_stage, algorithm)
        said = empty_stage.log.read_text()
    assert "composefsd.conf:3: unknown key Colour in section [Daemon]" in said
    assert "composefsd.conf:5: unknown key Insecure in section [Other]" in said


def test_an_insecure_repository_is_a_problem_and_pulls_are_refused(empty_stage: Stage, layout: str) -> None:
    empty_stage.config.write_text("")

    async def test(client: Client) -> None:
        problems = await client.get(names.ROOT_PATH, names.MANAGER, "Problems")
        verity = await client.get(names.ROOT_PATH, names.REPOSITORY, "Verity")
        options = {"generate": Variant("as", ["normative"])}
        job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", **options)
        answer = await client.wait(job)
        if verity:  # the scratch folder's file system has fs-verity
            assert (problems, answer.error) == ([], "")
        else:
            assert [name for name, _ in problems] == [f"{names.ERRORS}.Unsupported"]
            assert answer.error == f"{names.ERRORS}.Unsupported"

    with empty_stage:
        run(empty_stage, test)


def test_a_state_directory_that_cannot_be_used_keeps_it_from_starting(empty_stage: Stage) -> None:
    empty_stage.state.write_text("not a directory")
    empty_stage.start_bus()
    with pytest.raises(StageError, match="state directory"):
        empty_stage.start()
    empty_stage.close()


def test_what_it_remembers_is_for_itself_alone(stage: Stage) -> None:
    assert stat.S_IMODE(stage.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((stage.state / "jobs.jsonl").stat().st_mode) == 0o600


def test_the_service_manager_hears_how_it_is(empty_stage: Stage, layout: str) -> None:
    async def work(client: Client) -> None:
        job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", generate=Variant("as", ["normative"]))
        while (await client.wait(job, 1000)).body[0] != "succeeded":
            empty_stage.notified()  # the socket holds only a few, and the daemon does not wait for a slow manager

    empty_stage.start_bus()
    empty_stage.start(WATCHDOG_USEC="300000")
    run(empty_stage, work)
    time.sleep(0.5)
    empty_stage.notified()
    os.kill(empty_stage.pid, signal.SIGTERM)
    assert empty_stage.daemon is not None
    empty_stage.daemon.wait(20)
    told = list(empty_stage.notified())
    empty_stage.close()
    assert told.count("READY=1") == 1
    assert told.count("WATCHDOG=1") >= 3
    assert any(line.startswith("STATUS=pull 1") for line in told)
    assert "STATUS=idle" in told[told.index("READY=1") :]
    assert told[-1] == "STOPPING=1"


def test_it_leaves_when_there_is_nothing_to_do(empty_stage: Stage) -> None:
    empty_stage.start_bus()
    empty_stage.start(program=(sys.executable, "-c", IMPATIENT))

    async def keep_busy(client: Client) -> None:
        for _ in range(10):
            await asyncio.sleep(0.2)
            await client.ask(Call(names.PEER, "Ping"))

    run(empty_stage, keep_busy)
    assert empty_stage.daemon is not None
    assert empty_stage.daemon.poll() is None
    assert empty_stage.daemon.wait(10) == 0
    empty_stage.close()
