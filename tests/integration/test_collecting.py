"""Garbage collection on a real daemon: beside pulls and names that come and go, and killed in the middle.

What happens when comes from a seed that a failure shows; `COMPOSEFSD_TEST_SEED` gives the same one again, as far as
the machine does.
"""

import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from real import handmade, snapshot
from real.bus import JOB, MANAGER, OBJECT, REPOSITORY, Bus, BusError
from real.layers import directory, regular, tar_layer
from real.oci_layout import Layout
from real.stage import Stage, children

from composefsd.errors import LockedError
from composefsd.repository import Repository
from composefsd.repository.gc import collect

log = logging.getLogger(__name__)

SEED = int(os.environ.get("COMPOSEFSD_TEST_SEED") or random.SystemRandom().randrange(10**9))
SECONDS = 15.0
IMAGES = 4
GARBAGE = 8_000
KILLS = 2
TRIES = 20

_ERRORS = "org.composefs.Composefs1.Error"
_UNTRUE_BY_NOW = {f"{_ERRORS}.{name}" for name in ("NoSuchImage", "NoSuchObject")}
"""What a call may say when somebody else was quicker."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Images that have all but one layer in common."""
    made = Layout(tmp_path / "oci")
    base = made.add_image("base", list(handmade.layers()))
    for number in range(IMAGES):
        own = tar_layer([directory("opt"), *(regular(f"opt/{n}", b"%d %d" % (number, n) * 99) for n in range(60))])
        made.add_image(f"image{number}", [*base.layers, own])
    return made.path


def flag(*, value: bool) -> Variant:
    return Variant("b", value)


def pull(bus: Bus, layout: Path, image: str, name: str) -> dict[str, Any]:
    options = {"name": Variant("s", name), "replace": flag(value=True)}
    return bus.wait(bus.start(MANAGER, "Pull", f"oci:{layout}:{image}", **options)[0])


def errors(bus: Bus, depth: str) -> list[list[str]]:
    """What a check finds, without warnings."""
    result = bus.wait(bus.start(REPOSITORY, "Check", depth=Variant("s", depth))[0])
    return [row for row in result["findings"] if row[0] == "error"]


def garbage_of(bus: Bus) -> dict[str, Any]:
    return bus.wait(bus.start(REPOSITORY, "CollectGarbage", dry_run=flag(value=True))[0])


# Beside others

Work = Callable[[Bus, random.Random], None]


def repeat(stage: Stage, dice: random.Random, work: Work, until: float) -> int:
    """Do the same kind of work again and again; how often."""
    count = 0
    with Bus(stage.address) as bus:
        while time.monotonic() < until:
            try:
                work(bus, dice)
            except BusError as error:
                if error.name not in _UNTRUE_BY_NOW:
                    raise
            count += 1
            time.sleep(dice.uniform(0, 0.05))
    return count


def collect_as_another_tool(stage: Stage, dice: random.Random, until: float) -> int:
    """What `cfsctl gc` does beside the daemon: it waits for the lock, and collects."""
    count = 0
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.1, 0.5))
        with Repository.open(stage.repository) as repository, suppress(LockedError), repository.exclusive_lock(0.5):
            collect(repository, dry_run=False)
            count += 1
    return count


def test_a_collection_takes_nothing_that_is_named_while_everything_else_goes_on(stage: Stage, layout: Path) -> None:
    log.warning("COMPOSEFSD_TEST_SEED=%d", SEED)  # shown if the test fails
    dice = random.Random(SEED)
    images = [f"image{number}" for number in range(IMAGES)]
    with Bus(stage.address) as bus:
        wanted = {image: pull(bus, layout, image, f"kept-{image}") for image in images}

    def pulls(bus: Bus, dice: random.Random) -> None:
        image = dice.choice(images)
        found = pull(bus, layout, image, f"pulled-{dice.randrange(3)}")
        assert found["boot-digest"] == wanted[image]["boot-digest"]

    def names(bus: Bus, dice: random.Random) -> None:
        name = f"name-{dice.randrange(4)}"
        if dice.random() < 0.5:
            bus.call(OBJECT, MANAGER, "Untag", "sa{sv}", name, {})
        else:
            image = wanted[dice.choice(images)]["manifest-digest"]
            bus.call(OBJECT, MANAGER, "Tag", "ssa{sv}", image, name, {"replace": flag(value=True)})

    def pulled_names(bus: Bus, dice: random.Random) -> None:
        bus.call(OBJECT, MANAGER, "Untag", "sa{sv}", f"pulled-{dice.randrange(3)}", {})
        kept = f"kept-{dice.choice(images)}"
        bus.call(OBJECT, MANAGER, "Untag", "sa{sv}", kept, {})
        pull(bus, layout, kept.removeprefix("kept-"), kept)

    def collections(bus: Bus, dice: random.Random) -> None:
        bus.wait(bus.start(REPOSITORY, "CollectGarbage", dry_run=flag(value=dice.random() < 0.3))[0])
        bus.call(OBJECT, REPOSITORY, "Explain", "s", wanted[images[0]]["boot-digest"])

    until = time.monotonic() + SECONDS
    kinds: list[Work] = [pulls, names, pulled_names, collections]
    with ThreadPoolExecutor(len(kinds) + 1) as pool:
        tasks = [pool.submit(repeat, stage, random.Random(dice.random()), work, until) for work in kinds]
        tasks.append(pool.submit(collect_as_another_tool, stage, random.Random(dice.random()), until))
        counts = [task.result() for task in tasks]
    assert min(counts) >= 1, counts
    with Bus(stage.address) as bus:
        assert errors(bus, "full") == []
        tags = {name for _, names, _, _ in list_images(bus) for name in names}
        assert tags >= {f"kept-{image}" for image in images}
        for image in images:
            assert pull(bus, layout, image, "again")["bytes-fetched"] == 0
        bus.wait(bus.start(REPOSITORY, "CollectGarbage")[0])
        assert errors(bus, "full") == []
        assert garbage_of(bus)["objects-removed"] == 0


def list_images(bus: Bus) -> list[Any]:
    (found,) = bus.call(OBJECT, MANAGER, "ListImages", "a{sv}", {})
    assert isinstance(found, list)
    return found


# Killed


def litter(repository: Path, dice: random.Random) -> None:
    """Objects that nothing names, and whose content nobody reads."""
    for _ in range(GARBAGE):
        digest = dice.randbytes(64).hex()
        path = repository / "objects" / digest[:2] / digest[2:]
        path.parent.mkdir(exist_ok=True)
        path.touch()


def kill_in_the_sweep(stage: Stage, bus: Bus, dice: random.Random) -> int | None:
    """Start a collection and kill its worker while it removes; the job, or None if it was quicker."""
    assert stage.daemon is not None
    job, path = bus.start(REPOSITORY, "CollectGarbage")
    while bus.get(path, JOB, "Stage") != "sweep":
        if bus.get(path, JOB, "State") not in ("queued", "running"):
            return None
        time.sleep(0.01)  # whoever asks without a pause is told to wait
    time.sleep(dice.uniform(0, 0.1))
    for pid in children(stage.daemon.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(BusError):
        bus.wait(job)
    state, (error, _) = bus.get(path, JOB, "State"), bus.get(path, JOB, "Error")
    assert (state, error) in (("succeeded", ""), ("failed", f"{_ERRORS}.Interrupted"))
    return job if error else None


def objects(stage: Stage) -> set[str]:
    return set(snapshot.files_below(stage.repository, "objects"))


def told(bus: Bus, job: int) -> set[str]:
    """The objects that a collection says it has removed, by their places."""
    (text,) = bus.call(f"{OBJECT}/job/_{job}", JOB, "ReadDocument", "sa{sv}", "garbage", {})
    digests = [
        line["digest"].removeprefix("sha512:") for line in map(json.loads, text.splitlines()) if "digest" in line
    ]
    return {f"objects/{digest[:2]}/{digest[2:]}" for digest in digests}


def test_a_collection_that_is_killed_leaves_a_sound_repository_and_the_next_one_finishes(
    stage: Stage, layout: Path
) -> None:
    log.warning("COMPOSEFSD_TEST_SEED=%d", SEED)  # shown if the test fails
    dice = random.Random(SEED)
    partly = 0
    with Bus(stage.address) as bus:
        kept = pull(bus, layout, "image0", "kept")
        bus.wait(bus.start(REPOSITORY, "CollectGarbage")[0])
        sound = objects(stage)
        for _ in range(TRIES):
            pull(bus, layout, "image1", "gone")
            bus.call(OBJECT, MANAGER, "Untag", "sa{sv}", "gone", {})
            litter(stage.repository, dice)
            before = objects(stage)
            job = kill_in_the_sweep(stage, bus, dice)
            after = objects(stage)
            assert sound <= after
            assert errors(bus, "quick") == []
            if job is not None:
                assert told(bus, job) <= before - after
                partly += len(sound) < len(after) < len(before)
            bus.wait(bus.start(REPOSITORY, "CollectGarbage")[0])
            assert objects(stage) == sound
            assert errors(bus, "full") == []
            assert pull(bus, layout, "image0", "kept")["boot-digest"] == kept["boot-digest"]
            bus.wait(bus.start(REPOSITORY, "CollectGarbage")[0])
            sound = objects(stage)
            if partly == KILLS:
                return
    pytest.fail(f"the sweep was hit {partly} times only")
