"""Pulls that are killed or cancelled at random moments of every stage, looked at, and then repeated.

The moments come from a seed that a failure shows; `COMPOSEFSD_TEST_SEED` gives the same ones again, as far as the
machine does.
"""

import hashlib
import logging
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dbus_next import Variant
from real import apt, image, snapshot
from real.bus import JOB, MANAGER, OBJECT, REPOSITORY, Bus, BusError
from real.oci_layout import Layout
from real.stage import Stage, children

from composefsd.digests import Algorithm, ObjectId
from composefsd.splitstream import Splitstream

log = logging.getLogger(__name__)

SEED = int(os.environ.get("COMPOSEFSD_TEST_SEED") or random.SystemRandom().randrange(10**9))
STAGES = ("resolve", "fetch", "unpack", "generate", "commit")
KILLS_PER_STAGE = 4
TRIES = 40
ORPHAN_SECONDS = 20.0

_OBJECT = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{126}")
_LINK = re.compile(
    r"images/[0-9a-f]{128}|streams/oci-(config|layer|manifest)-sha256:[0-9a-f]{64}|streams/refs/oci/os"
)
_NAME = Variant("s", "os")


@dataclass(frozen=True, slots=True)
class Expected:
    """What an undisturbed pull gives, and how long it stays in each stage (seconds)."""

    reference: str
    digests: dict[str, object]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def expected(scratch: Path) -> Expected:
    """An undisturbed pull of a part of the real image."""
    try:
        reference = image.cut_image()
    except apt.UnavailableError as error:
        pytest.skip(f"needs a Debian 13 root file system: {error}")
    folder = scratch / "undisturbed"
    folder.mkdir()
    with Stage(folder) as stage, Bus(stage.address) as bus:
        job, path = bus.start(MANAGER, "Pull", reference, name=_NAME)
        entered = dict(watch(bus, path))
        ends = [*list(entered.values())[1:], time.monotonic()]
        seconds = {name: end - start for (name, start), end in zip(entered.items(), ends, strict=True)}
        return Expected(reference, digests_in(bus.wait(job)), seconds)


def digests_in(result: dict[str, object]) -> dict[str, object]:
    """The composefs images that a pull has made."""
    return {name: result[name] for name in ("manifest-digest", "normative-digest", "boot-digest")}


def state_and_stage(bus: Bus, path: str) -> tuple[str, str]:
    """Where a job is, in one call: the first stage is over soon."""
    (values,) = bus.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", JOB)
    return values["State"].value, values["Stage"].value


def watch(bus: Bus, path: str) -> Iterator[tuple[str, float]]:
    """The stages of a job as it enters them, and when; ends with the job."""
    last = ""
    while (now := state_and_stage(bus, path))[0] in ("queued", "running"):
        if now[1] != last:
            last = now[1]
            yield last, time.monotonic()
        time.sleep(0.01)


def is_in(bus: Bus, path: str, wanted: str) -> bool:
    """Wait until a job enters a stage; False if it ended, or left the stage, before that was noticed."""
    stages = (name for name, _ in watch(bus, path))
    return any(name == wanted for name in stages)


def kill_daemon(stage: Stage, _bus: Bus, _job: int, _dice: random.Random) -> None:
    """Its workers end with it, and the next daemon starts."""
    assert stage.daemon is not None
    workers = children(stage.daemon.pid)
    stage.daemon.kill()
    stage.daemon.wait()
    deadline = time.monotonic() + ORPHAN_SECONDS
    while running := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"workers outlive their daemon: {running}"
        time.sleep(0.05)
    stage.start()


def kill_worker(stage: Stage, bus: Bus, job: int, dice: random.Random) -> None:
    """The job is interrupted, unless that worker had done its part; the daemon goes on."""
    assert stage.daemon is not None
    workers = children(stage.daemon.pid)
    if workers:
        with suppress(ProcessLookupError):
            os.kill(dice.choice(workers), signal.SIGKILL)
    with suppress(BusError):
        bus.wait(job)
    assert bus.get(OBJECT, MANAGER, "Version")


def cancel(_stage: Stage, bus: Bus, job: int, _dice: random.Random) -> None:
    """The job ends, cancelled unless it was too late for that."""
    with suppress(BusError):
        bus.call(OBJECT, MANAGER, "CancelJob", "ta{sv}", job, {})
    with suppress(BusError):
        bus.wait(job)


Strike = Callable[[Stage, Bus, int, random.Random], None]
# a test passes only if its stage was hit: each by four kills, half of them of the daemon, and by a cancellation
STRIKES: list[tuple[str, Strike]] = [
    (name, strike) for name in STAGES for strike in (kill_daemon, kill_worker) * (KILLS_PER_STAGE // 2)
]
STRIKES += [(name, cancel) for name in STAGES]


def strike_once(
    stage: Stage, expected: Expected, wanted: str, strike: Strike, dice: random.Random, *, share: float
) -> str:
    """Start a pull and strike at a random moment of a share of a stage; the stage that it was in then, or nothing."""
    with Bus(stage.address) as bus:
        job, path = bus.start(MANAGER, "Pull", expected.reference, name=_NAME)
        if not is_in(bus, path, wanted):
            return ""
        time.sleep(dice.uniform(0, share * expected.seconds[wanted]))
        state, found = state_and_stage(bus, path)
        strike(stage, bus, job, dice)
        return found if state == "running" else ""


def reassembled(repository: Path, data: bytes) -> bytes:
    """The digest of what a splitstream stands for."""
    stream, digest = Splitstream.parse(data, Algorithm.SHA512), hashlib.sha256()
    for chunk in stream.chunks():
        if isinstance(chunk, int):
            chunk = (repository / "objects" / ObjectId(stream.object_refs[chunk]).path).read_bytes()
        digest.update(chunk)
    return digest.digest()


def assert_that_names_tell_the_truth(repository: Path) -> None:
    """Each stream and image is an object that is what its name says, by tools and hashes that know no repository."""
    named = {name: repository / name for name in snapshot.links(repository)}
    objects = {name: path.resolve(strict=True) for name, path in named.items()}
    if objects:
        command = ["fsverity", "digest", "--hash-alg=sha512", "--compact", *map(str, objects.values())]
        digests = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert digests == [path.parent.name + path.name for path in objects.values()]
    for name, path in objects.items():
        kind, _, digits = name.rpartition(":")
        if kind.startswith("streams/oci-"):
            assert reassembled(repository, path.read_bytes()).hex() == digits, name


def assert_that_no_temporary_name_is_left(repository: Path) -> None:
    assert sorted(path.name for path in repository.iterdir()) == ["images", "meta.json", "objects", "streams"]
    assert [name for name in snapshot.files_below(repository, "objects") if not _OBJECT.fullmatch(name)] == []
    names = (name for kind in ("streams", "images") for name in snapshot.files_below(repository, kind))
    assert [name for name in names if not _LINK.fullmatch(name)] == []


def finished_layer_bytes(expected: Expected, repository: Path) -> int:
    """Size of the blobs of the layers that the repository already holds."""
    _, path, tag = expected.reference.split(":")
    layers = Layout(Path(path)).read_image(tag).layers
    return sum(
        layer.blob.size_bytes for layer in layers if (repository / f"streams/oci-layer-{layer.diff_id}").is_symlink()
    )


def assert_that_a_repetition_succeeds(stage: Stage, expected: Expected) -> None:
    reused = finished_layer_bytes(expected, stage.repository)
    with Bus(stage.address) as bus:
        result = bus.wait(bus.start(MANAGER, "Pull", expected.reference, name=_NAME)[0])
        assert result["bytes-reused"] == reused
        assert digests_in(result) == expected.digests
        assert_that_no_temporary_name_is_left(stage.repository)
        assert bus.wait(bus.start(REPOSITORY, "Check", depth=Variant("s", "full"))[0])["findings-total"] == 0


@pytest.mark.parametrize(
    ("number", "wanted", "strike"),
    [(number, *pair) for number, pair in zip(count(), STRIKES)],
    ids=[f"{number}-{name}-{strike.__name__}" for number, (name, strike) in zip(count(), STRIKES)],
)
def test_a_pull_that_was_stopped_anywhere_leaves_no_lie_and_can_be_repeated(
    number: int, wanted: str, strike: Strike, expected: Expected
) -> None:
    log.warning("COMPOSEFSD_TEST_SEED=%d", SEED)  # shown if the test fails
    dice = random.Random(SEED + number)
    for attempt in range(TRIES):
        share = 0.7 * (1 - attempt / TRIES)  # the look at the stage takes its time, too, and more on a busy machine
        with TemporaryDirectory(prefix="composefs-kill-") as folder, Stage(Path(folder)) as stage:
            found = strike_once(stage, expected, wanted, strike, dice, share=share)
            assert_that_names_tell_the_truth(stage.repository)
            if found != wanted:
                continue
            assert_that_a_repetition_succeeds(stage, expected)
            return
    pytest.fail(f"stage {wanted} was over too soon, {TRIES} times")
