"""Jobs on the bus: followed, cancelled, limited, remembered."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import Stage, children, worker_processes
from helpers.client import Answer, Call, Client, Signal, connect

from composefsd.service import names

NORMATIVE = Variant("as", ["normative"])
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
CANCELLED = f"{names.ERRORS}.Cancelled"


def run(stage: Stage, test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a coroutine function with a client that hears all signals."""

    async def connected() -> None:
        async with connect(stage.address) as client:
            await client.subscribe()
            await test(client)

    asyncio.run(connected())


@pytest.fixture
def small(layout: str) -> str:
    return f"oci:{layout}:small"


@pytest.fixture
def slow(layout: str) -> str:
    return f"oci:{layout}:slow"


async def pull(client: Client, reference: str, **options: Variant) -> int:
    return await client.start(names.MANAGER, "Pull", reference, generate=NORMATIVE, **options)


async def job(client: Client, number: int) -> dict[str, Any]:
    return await client.get_all(names.job_path(number), names.JOB)


async def workers(stage: Stage, count: int = 1) -> list[int]:
    """The daemon's workers, once there are some."""
    async with asyncio.timeout(30):
        while len(found := worker_processes(stage.pid)) < count:
            await asyncio.sleep(0.005)
    return found


@asynccontextmanager
async def held(stage: Stage, count: int = 1) -> AsyncIterator[None]:
    """Stop the workers, so that what they do takes as long as the block; those that are killed stay so."""
    stopped = await workers(stage, count)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def test_a_job_is_followed_from_its_start_to_its_end_in_order(stage: Stage, small: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, small, name=Variant("s", "small"))
        path = names.job_path(number)
        before = [signal.member for signal in client.signals]
        assert before[:2] == ["InterfacesAdded", "JobNew"]
        state, result = (await client.wait(number)).body
        await client.until(lambda: bool(client.received("JobFinished")))
        assert state == "succeeded"
        assert set(result) >= {"manifest-digest", "image", "normative-digest", "bytes-fetched", "objects-added"}
        assert (await job(client, number))["Result"] == result
        of_end = [signal for signal in client.signals if is_end(signal, path)]
        assert [signal.member for signal in of_end] == ["PropertiesChanged", "Finished", "JobFinished"]
        last = of_end[0].body[1]
        assert {"State", "Error", "Result", "FinishedUSec", "Progress"} <= set(last)
        assert (last["State"], last["Progress"], last["Error"]) == ("succeeded", 1.0, ["", ""])
        assert of_end[1].body == ["succeeded", "", "", result]
        assert of_end[2].body == [number, path, "pull", "succeeded", ""]
        added = client.received("ImageAdded")[0].body
        assert added == [result["manifest-digest"], result["image"]]

    run(stage, test)


def is_end(signal: Signal, path: str) -> bool:
    """Whether a signal belongs to the end of the job at `path`."""
    if signal.member == "PropertiesChanged":
        return signal.path == path and signal.body[1].get("State") in ENDED
    return signal.member in ("Finished", "JobFinished")


def test_everything_answers_while_a_pull_runs(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, slow, name=Variant("s", "slow"))
        worst, calls = 0.0, 0
        while (await client.get(names.job_path(number), names.JOB, "State")) not in ENDED:
            for interface in (names.MANAGER, names.REPOSITORY, names.BOOT):
                began = time.monotonic()
                await client.get_all(names.ROOT_PATH, interface)
                worst, calls = max(worst, time.monotonic() - began), calls + 1
            await asyncio.sleep(0.02)
        assert not (await client.wait(number)).error
        assert calls >= 3
        assert worst < 1.0
        progress = [
            signal.body[1]["Progress"]
            for signal in client.received("PropertiesChanged")
            if "Progress" in signal.body[1]
        ]
        assert progress == sorted(progress)

    run(stage, test)


def test_a_pull_is_cancelled_and_leaves_nothing(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, slow, name=Variant("s", "slow"))
        async with held(stage, 3):
            assert (await job(client, number))["Cancellable"]
            began = time.monotonic()
            await client.ask(Call(names.MANAGER, "CancelJob", "ta{sv}", [number, {}]))
            assert (await client.wait(number)).error == CANCELLED
            assert time.monotonic() - began < 5
        assert (await job(client, number))["State"] == "cancelled"
        assert (await client.ask(Call(names.MANAGER, "ListImages", "a{sv}", [{}]))) == [[]]
        late = await client.call(Call(names.JOB, "Cancel", "a{sv}", [{}], names.job_path(number)))
        assert late.error == f"{names.ERRORS}.JobFinished"
        assert not list(children(stage.pid))

    run(stage, test)


def test_a_job_that_waits_for_its_turn_is_cancelled_at_once(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        running = [await pull(client, slow, name=Variant("s", f"slow{n}")) for n in range(2)]
        waiting = await pull(client, slow, name=Variant("s", "waiting"))
        async with held(stage):
            assert (await job(client, waiting))["State"] == "queued"
            assert await client.get(names.ROOT_PATH, names.MANAGER, "JobsQueued") == 1
            await client.ask(Call(names.JOB, "Cancel", "a{sv}", [{}], names.job_path(waiting)))
            assert (await client.wait(waiting)).error == CANCELLED
            for number in running:
                await client.ask(Call(names.MANAGER, "CancelJob", "ta{sv}", [number, {}]))
        assert [(await client.wait(number)).error for number in running] == [CANCELLED] * 2

    run(stage, test)


def test_a_job_ends_when_its_time_is_over(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, slow, timeout_usec=Variant("t", 700_000))
        async with held(stage):
            assert (await client.wait(number)).error == f"{names.ERRORS}.TimedOut"
        assert (await job(client, number))["State"] == "failed"

    run(stage, test)


@pytest.mark.parametrize(("policy", "outcome"), [("cancel", CANCELLED), ("keep", "")])
def test_a_job_outlives_its_client_or_not_as_was_asked(stage: Stage, slow: str, policy: str, outcome: str) -> None:
    async def test(client: Client) -> None:
        async with connect(stage.address) as other:
            number = await pull(other, slow, on_client_gone=Variant("s", policy))
            assert (await job(client, number))["ClientGone"] == policy
            await workers(stage)
        assert (await client.wait(number)).error == outcome

    run(stage, test)


def test_a_wait_ends_at_its_timeout_with_the_present_state(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, slow)
        async with held(stage):
            assert await client.wait(number, 100_000) == Answer("", ["running", {}])
            await client.ask(Call(names.MANAGER, "CancelJob", "ta{sv}", [number, {}]))

    run(stage, test)


def test_the_same_request_is_the_same_job(stage: Stage, small: str) -> None:
    async def test(client: Client) -> None:
        request = Variant("s", "one")
        first = await pull(client, small, request_id=request, name=Variant("s", "a"))
        assert await pull(client, small, request_id=request, name=Variant("s", "a")) == first
        assert not (await client.wait(first)).error
        assert await pull(client, small, request_id=request, name=Variant("s", "a")) == first
        options = {"request-id": request}
        other = await client.call(Call(names.REPOSITORY, "CollectGarbage", "a{sv}", [options]))
        assert other.error == "org.freedesktop.DBus.Error.InvalidArgs"
        assert len(client.received("JobNew")) == 1

    run(stage, test)


def test_only_so_many_jobs_wait(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, slow)
        async with held(stage):
            calls = [Call(names.MANAGER, "Pull", "sa{sv}", [slow, {"generate": NORMATIVE}])] * 60
            answers = [await client.call(call) for call in calls]
            refused = {answer.error for answer in answers if answer.error}
            assert refused == {f"{names.ERRORS}.LimitExceeded"}
            assert sum(not answer.error for answer in answers) == 51  # one more runs beside the first
            for ((number, *_),) in [(row,) for row in (await list_jobs(client))]:
                await client.call(Call(names.MANAGER, "CancelJob", "ta{sv}", [number, {}]))

    run(stage, test)


async def list_jobs(client: Client, **options: Variant) -> list[Any]:
    (rows,) = await client.ask(Call(names.MANAGER, "ListJobs", "a{sv}", [options]))
    assert isinstance(rows, list)
    return rows


def test_collecting_waits_for_pulls_and_new_pulls_for_the_collection(stage: Stage, slow: str, small: str) -> None:
    async def test(client: Client) -> None:
        first = await pull(client, slow, name=Variant("s", "slow"))
        async with held(stage):
            collecting = await client.start(names.REPOSITORY, "CollectGarbage")
            second = await pull(client, small, name=Variant("s", "small"))
            states = [(await job(client, number))["State"] for number in (first, collecting, second)]
            assert states == ["running", "queued", "queued"]
        answers = [await client.wait(number) for number in (first, collecting, second)]
        assert [answer.error for answer in answers] == ["", "", ""]
        began = [(await job(client, number))["StartedUSec"] for number in (first, collecting, second)]
        assert began == sorted(began)
        assert await client.get(names.ROOT_PATH, names.REPOSITORY, "LastGarbageCollection") > began[1]

    run(stage, test)


def test_jobs_are_listed_by_type_and_state(stage: Stage, small: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, small)
        checking = await client.start(names.REPOSITORY, "Check")
        for one in (number, checking):
            assert not (await client.wait(one)).error
        path = names.job_path(number)
        assert await list_jobs(client, type=Variant("s", "pull")) == [[number, "pull", "succeeded", 1.0, path]]
        assert [row[0] for row in await list_jobs(client, state=Variant("s", "succeeded"))] == [number, checking]
        assert await list_jobs(client, state=Variant("s", "failed")) == []

    run(stage, test)


def test_a_failure_has_one_name_everywhere(stage: Stage) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, "oci:/nowhere/at/all")
        name = f"{names.ERRORS}.SourceNotFound"
        answer = await client.wait(number)
        await client.until(lambda: bool(client.received("JobFinished")))
        assert answer.error == name
        assert (await job(client, number))["Error"] == [name, answer.body[0]]
        assert client.received("JobFinished")[0].body[3:] == ["failed", name]
        assert client.received("Finished")[0].body[:3] == ["failed", name, answer.body[0]]
        counters = await client.get(names.ROOT_PATH, names.MANAGER, "Counters")
        assert counters["jobs-failed"] == 1

    run(stage, test)


def test_ended_jobs_are_remembered_over_a_restart_and_ids_go_on(stage: Stage, small: str) -> None:
    remembered: list[Any] = []

    async def before(client: Client) -> None:
        number = await pull(client, small, name=Variant("s", "small"))
        remembered.extend([number, (await client.wait(number)).body])

    async def after(client: Client) -> None:
        number, answer = remembered
        assert (await client.wait(number)).body == answer
        assert (await client.call(Call(names.MANAGER, "GetJob", "t", [number]))).error == f"{names.ERRORS}.NoSuchJob"
        assert await pull(client, small, name=Variant("s", "again")) == number + 1

    run(stage, before)
    assert stage.stop() == 0
    stage.start()
    run(stage, after)


def test_a_job_that_died_with_the_daemon_is_told_as_interrupted(stage: Stage, slow: str, small: str) -> None:
    numbers: list[int] = []
    request = Variant("s", "again")

    async def before(client: Client) -> None:
        numbers.append(await pull(client, slow, request_id=request))
        await workers(stage, 2)

    async def after(client: Client) -> None:
        (number,) = numbers
        name = f"{names.ERRORS}.Interrupted"
        assert (await client.wait(number)).error == name
        assert (await job(client, number))["State"] == "interrupted"
        ((problem, text),) = await client.get(names.ROOT_PATH, names.MANAGER, "Problems")
        assert problem == name
        assert f"job {number}" in text
        assert await pull(client, small, request_id=request) == number + 1

    run(stage, before)
    stage.stop(signal.SIGKILL)
    stage.start()
    run(stage, after)


def test_stopping_interrupts_what_runs_and_answers_who_waits(stage: Stage, slow: str) -> None:
    async def test(client: Client) -> None:
        number = await pull(client, slow)
        async with held(stage, 3):
            waiting = asyncio.ensure_future(client.wait(number))
            await asyncio.sleep(0.2)
            os.kill(stage.pid, signal.SIGTERM)
            assert (await waiting).error == f"{names.ERRORS}.Interrupted"

    run(stage, test)
    assert stage.stop() == 0
