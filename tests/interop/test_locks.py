"""Who waits for whom: composefsd and cfsctl at work on one repository at the same time."""

import fcntl
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from interop.two_tools import Cfsctl, Daemon, add_images, error_of, finished, reference, serving, stays, wait_until
from real.bus import JOB, Bus
from real.layers import directory, regular, tar_layer
from real.ledger import Ledger, Sweep
from real.oci_layout import Compression, Layer, Layout
from real.stage import children

if TYPE_CHECKING:
    import subprocess

BUSY_SECONDS: Final = 30.0
MOMENT_SECONDS: Final = 1.0
"""How long something has to wait to be called waiting."""

STAGES: Final = ("fetch", "unpack", "generate", "commit")
TRIES: Final = 40
FILES: Final = 4000


@dataclass(frozen=True, slots=True)
class Both:
    """The two tools and what they pull."""

    daemon: Daemon
    cfsctl: Cfsctl
    layout: Layout

    def reference(self, tag: str) -> str:
        return reference(self.layout, tag)

    def assert_sound(self) -> None:
        assert self.cfsctl.damage() == []
        assert self.daemon.damage() == []
        assert self.daemon.tags() == self.cfsctl.tags()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Small images, and a larger one, which is a while in every stage of a pull."""
    made = add_images(tmp_path_factory.mktemp("images") / "oci")
    files = (regular(f"usr/{number}", f"file {number}\n".encode() * 10) for number in range(FILES))
    folders = (directory(name) for name in ("usr", "boot", "sysroot"))
    content = random.Random(1).randbytes(24 << 20)
    large = tar_layer((*folders, *files, regular("usr/large", content)))
    made.add_image("large", [Layer(large, Compression.GZIP)])
    return made


@pytest.fixture
def both(cfsctl: Path, layout: Layout, tmp_path: Path) -> Iterator[Both]:
    """An empty repository."""
    with serving(tmp_path / "both") as daemon:
        yield Both(daemon, Cfsctl(cfsctl, daemon.stage.repository), layout)


def is_locked(repository: Path, operation: int) -> bool:
    """Whether somebody holds the lock so that this one cannot be had."""
    fd = os.open(repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def transaction(cfsctl: Cfsctl) -> Iterator[None]:
    """cfsctl holds the lock shared, as it does for anything that it does but a collection."""
    process = cfsctl.start("transaction")
    try:
        wait_until(lambda: is_locked(cfsctl.repository, fcntl.LOCK_EX), "the transaction begins")
        yield
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that go no further."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def workers(daemon: Daemon) -> list[int]:
    assert daemon.stage.daemon is not None
    return children(daemon.stage.daemon.pid)


def is_running(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is None


def state_and_stage(bus: Bus, path: str) -> tuple[str, str]:
    (values,) = bus.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", JOB)
    return values["State"].value, values["Stage"].value


# Collections wait


@pytest.fixture(scope="module")
def long_transaction(
    cfsctl: Path, layout: Layout, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Both, int, float]]:
    """A collection of ours that a transaction keeps waiting, its job, and when it began; time passes meanwhile."""
    with serving(tmp_path_factory.mktemp("locked") / "both") as daemon:
        both = Both(daemon, Cfsctl(cfsctl, daemon.stage.repository), layout)
        daemon.pull(both.reference("full"), "garbage")
        daemon.untag("garbage")
        with transaction(both.cfsctl):
            yield both, daemon.start_collecting(), time.monotonic()


@pytest.mark.usefixtures("long_transaction")
def test_beside_a_transaction_all_goes_on_but_collections(both: Both, ledger: Ledger) -> None:
    with transaction(both.cfsctl):
        collection = both.cfsctl.start("gc")
        both.daemon.pull(both.reference("full"), "pulled")
        both.daemon.generate("pulled")
        both.daemon.tag("pulled", "tagged")
        both.daemon.untag("pulled")
        assert both.daemon.collect(dry_run=True)["objects-removed"] == 0
        assert both.daemon.damage() == []
        both.cfsctl.say("oci", "pull", both.reference("base"), "base")
        assert is_running(collection)
        job = both.daemon.start_collecting()
        wait_until(lambda: both.daemon.bus.get(job_path(job), JOB, "State") != "queued", "our collection starts")
        assert stays(lambda: both.daemon.bus.get(job_path(job), JOB, "State") == "running", MOMENT_SECONDS)
        assert is_running(collection)
    finished(collection)
    both.daemon.bus.wait(job)
    both.assert_sound()
    assert set(both.cfsctl.tags()) == {"tagged", "base"}
    result = "pulls, names, checks and dry runs of ours go on; both collections wait until it has ended"
    ledger.record("locks: `cfsctl transaction`, and a `cfsctl gc` that waits", "cfsctl", 1, result)


def job_path(job: int) -> str:
    return f"/org/composefs/Composefs1/job/_{job}"


def held_pull(both: Both, wanted: str, name: str) -> tuple[int, list[int]] | None:
    """Start a pull and stop its workers in a stage; None if it had left that before it was noticed."""
    job, path = both.daemon.start_pull(both.reference("large"), name)
    while (now := state_and_stage(both.daemon.bus, path)) != ("running", wanted):
        if now[0] not in ("queued", "running") or (now[1] and STAGES.index(wanted) < order(now[1])):
            both.daemon.bus.wait(job)
            return None
        time.sleep(0.002)  # the daemon answers only so many calls a second
    pids = workers(both.daemon)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    if stays(lambda: state_and_stage(both.daemon.bus, path) == ("running", wanted), 0.2):
        return job, pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    both.daemon.bus.wait(job)
    return None


def order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else -1


@pytest.mark.parametrize("wanted", STAGES)
def test_a_collection_of_cfsctl_waits_for_our_pull_and_takes_nothing_of_it(
    wanted: str, both: Both, ledger: Ledger
) -> None:
    for number in range(TRIES):
        held = held_pull(both, wanted, f"name-{number}")
        if held is not None:
            break
        both.daemon.remove(f"name-{number}")
        both.cfsctl.say("gc")
    else:
        pytest.fail(f"stage {wanted} was over too soon, {TRIES} times")
    job, pids = held
    with stopped(pids):
        collection = both.cfsctl.start("gc")
        assert stays(lambda: is_running(collection), MOMENT_SECONDS)
        would_go = both.cfsctl.say("gc", "--dry-run")
        assert wanted == "fetch" or b" 0 removed" not in would_go, "nothing to be protected"
        assert is_running(collection)
    both.daemon.bus.wait(job)
    assert b"Objects: 0 removed" in finished(collection)
    both.assert_sound()
    assert set(both.cfsctl.tags()) == {f"name-{number}"}
    result = "waits for the end, and finds nothing to remove"
    ledger.record("locks: `cfsctl gc` beside our pull, stopped in each stage", "cfsctl", 1, result)


def held_collection(both: Both) -> tuple[int, list[int]] | None:
    """Start a collection with something to do and stop its worker while it has the repository for itself."""
    both.daemon.pull(both.reference("large"), "garbage")
    both.daemon.untag("garbage")
    job = both.daemon.start_collecting()
    while not is_locked(both.cfsctl.repository, fcntl.LOCK_SH):
        if both.daemon.bus.get(job_path(job), JOB, "State") not in ("queued", "running"):
            return None
    pids = workers(both.daemon)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if stays(lambda: is_locked(both.cfsctl.repository, fcntl.LOCK_SH), 0.1):
        return job, pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    both.daemon.bus.wait(job)
    return None


def test_cfsctl_waits_for_our_collection(both: Both, ledger: Ledger) -> None:
    for _ in range(TRIES):
        held = held_collection(both)
        if held is not None:
            break
    else:
        pytest.fail(f"the collection was over too soon, {TRIES} times")
    job, pids = held
    with stopped(pids):
        waiting = [
            both.cfsctl.start("oci", "pull", both.reference("full"), "theirs"),
            both.cfsctl.start("oci", "images", "--json"),
            both.cfsctl.start("gc"),
        ]
        assert stays(lambda: all(map(is_running, waiting)), MOMENT_SECONDS)
        assert both.daemon.bus.get(job_path(job), JOB, "State") == "running"
    both.daemon.bus.wait(job)
    for process in waiting:
        finished(process)
    both.assert_sound()
    assert set(both.cfsctl.tags()) == {"theirs"}
    ledger.record("locks: cfsctl beside our gc, stopped in the middle", "cfsctl", len(waiting), "waits for its end")


# Both at once


@dataclass(slots=True)
class Worker:
    """Someone who pulls, names, unnames and collects, under names of its own; `names` is what has to be there."""

    number: int
    both: Both
    dice: random.Random
    until: float
    names: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def run(self, actions: dict[str, Callable[["Worker"], None]], weights: list[int]) -> None:
        while time.monotonic() < self.until:
            (what,) = self.dice.choices(list(actions), weights)
            actions[what](self)
            self.done[what] = self.done.get(what, 0) + 1
            time.sleep(self.dice.uniform(0, 0.1))

    def new_name(self) -> str:
        return f"{self.number}/{self.dice.randrange(4)}"

    def any_name(self) -> str | None:
        return self.dice.choice(sorted(self.names)) if self.names else None

    def any_tag(self) -> str:
        return self.dice.choice(BUSY_IMAGES)

    def digest(self, tag: str) -> str:
        return self.both.layout.read_image(tag).manifest.digest


BUSY_IMAGES: Final = ("full", "rich", "os")


def our_actions(daemon: Daemon) -> dict[str, Callable[[Worker], None]]:
    def pull(worker: Worker) -> None:
        tag, name = worker.any_tag(), worker.new_name()
        daemon.pull(worker.both.reference(tag), name)
        worker.names[name] = worker.digest(tag)

    def tag(worker: Worker) -> None:
        if (old := worker.any_name()) is not None:
            new = worker.new_name()
            daemon.tag(worker.names[old], new)
            worker.names[new] = worker.names[old]

    def untag(worker: Worker) -> None:
        if (old := worker.any_name()) is not None:
            daemon.untag(old)
            del worker.names[old]

    def collect(_: Worker) -> None:
        daemon.collect()

    return {"pull": pull, "tag": tag, "untag": untag, "gc": collect}


def their_actions(cfsctl: Cfsctl) -> dict[str, Callable[[Worker], None]]:
    def pull(worker: Worker) -> None:
        tag, name = worker.any_tag(), worker.new_name()
        cfsctl.say("oci", "pull", *worker.dice.choice(([], ["--bootable"])), worker.both.reference(tag), name)
        worker.names[name] = worker.digest(tag)

    def tag(worker: Worker) -> None:
        if (old := worker.any_name()) is not None:
            new = worker.new_name()
            cfsctl.say("oci", "tag", worker.names[old], new)
            worker.names[new] = worker.names[old]

    def untag(worker: Worker) -> None:
        if (old := worker.any_name()) is not None:
            cfsctl.say("oci", "untag", old)
            del worker.names[old]

    def collect(_: Worker) -> None:
        cfsctl.say("gc")

    return {"pull": pull, "tag": tag, "untag": untag, "gc": collect}


def test_nothing_that_has_a_name_is_harmed_when_both_are_busy(both: Both, sweep: Sweep, ledger: Ledger) -> None:
    until = time.monotonic() + BUSY_SECONDS
    workers = [Worker(number, both, sweep.random(f"busy {number}"), until) for number in range(4)]

    def run(worker: Worker) -> None:
        if worker.number < 2:
            with Daemon(both.daemon.stage) as daemon:
                worker.run(our_actions(daemon), [4, 4, 3, 2])
        else:
            worker.run(their_actions(both.cfsctl), [4, 4, 3, 2])

    with ThreadPoolExecutor(len(workers)) as pool:
        for future in [pool.submit(run, worker) for worker in workers]:
            future.result()
    names = {name: digest for worker in workers for name, digest in worker.names.items()}
    assert both.cfsctl.tags() == names
    assert both.cfsctl.damage() == []
    assert both.daemon.damage() == []
    both.daemon.collect()
    both.cfsctl.say("gc")
    both.assert_sound()
    assert both.cfsctl.tags() == names
    for kind in (workers[:2], workers[2:]):  # of each tool: collections did not wait for ever
        assert sum(worker.done.get("gc", 0) for worker in kind)
    count = sum(sum(worker.done.values()) for worker in workers)
    result = "all that has a name is whole, and nobody waits for ever"
    ledger.record(f"locks: both busy at once for {BUSY_SECONDS:g} seconds, two of each", "cfsctl", count, result)


def test_our_collection_gives_up_after_a_minute(long_transaction: tuple[Both, int, float], ledger: Ledger) -> None:
    both, job, began = long_transaction
    assert error_of(lambda: both.daemon.bus.wait(job)) == "Locked"
    assert time.monotonic() - began > 55
    both.daemon.pull(both.reference("base"), "still/works")
    assert b"0 removed" not in both.cfsctl.say("gc", "--dry-run")
    ledger.record(
        "locks: our gc beside a transaction that does not end", "cfsctl", 1, "fails as Locked after a minute"
    )
