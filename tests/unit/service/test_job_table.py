import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dbus_next import Variant

from composefsd.errors import (
    FormatError,
    InvalidArgumentsError,
    JobFinishedError,
    JobInterruptedError,
    LimitExceededError,
    NoSuchDocumentError,
    NotCancellableError,
)
from composefsd.operations.progress import Stage
from composefsd.service import job_table, names
from composefsd.service.history import History
from composefsd.service.job_table import JobTable
from composefsd.service.jobs import Job, JobState, Order, Work
from composefsd.service.meter import JobKind, Meter
from composefsd.service.options import JobKeys, Priority

SOMEBODY = 4_000_000
NO_KEYS = JobKeys()


@dataclass
class Diary:
    """A watcher that writes down what it is told."""

    lines: list[str] = field(default_factory=list)

    def job_added(self, job: Job) -> None:
        self.lines.append(f"added {job.id}")

    def job_changed(self, job: Job) -> None:
        self.lines.append(f"{job.state} {job.id}")

    def job_progressed(self, job: Job) -> None:
        pass

    def job_ended(self, job: Job) -> None:
        self.lines.append(f"ended {job.id} {job.state}")

    def job_removed(self, job: Job) -> None:
        self.lines.append(f"removed {job.id}")


@dataclass
class Bench:
    """A table, what it tells, and work whose end a test decides."""

    table: JobTable
    diary: Diary
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, _meter: Meter) -> Mapping[str, Variant]:
        await self.gate.wait()
        return {"n": Variant("t", 5)}

    async def start(
        self,
        kind: JobKind = JobKind.PULL,
        *,
        uid: int = 0,
        keys: JobKeys = NO_KEYS,
        work: Work | None = None,
        exclusive: bool = False,
    ) -> Job:
        order = Order(kind, f"a {kind}", {}, keys, uid, is_exclusive=exclusive)
        return self.table.get(await self.table.start(order, work or self.work))

    async def finish(self, *started: Job) -> None:
        self.gate.set()
        for job in started:
            await asyncio.wait_for(job.ended.wait(), 10)


def run(folder: Path, test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        history = History(folder, 1, ("org.example.Interrupted", "died"))
        table, diary = JobTable(history), Diary()
        table.watch(diary)
        await test(Bench(table, diary))
        await table.stop(1)
        history.close()

    asyncio.run(main())


def test_a_job_is_told_from_its_start_to_its_end(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        job = await bench.start()
        assert job.is_cancellable
        await bench.finish(job)
        assert bench.diary.lines == ["added 1", "running 1", "ended 1 succeeded"]
        assert (job.result, job.error, job.fraction) == ({"n": Variant("t", 5)}, ("", ""), 1.0)
        assert 0 < job.created_usec <= job.started_usec <= job.finished_usec
        with pytest.raises(JobFinishedError):
            bench.table.cancel(job)

    run(tmp_path, test)


def test_idle_jobs_wait_for_the_others(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        order = [await bench.start(), await bench.start()]
        idle = await bench.start(keys=JobKeys(priority=Priority.IDLE))
        normal = await bench.start()
        await bench.finish(*order, idle, normal)
        started = [line for line in bench.diary.lines if line.startswith("running")]
        assert started == ["running 1", "running 2", "running 4", "running 3"]

    run(tmp_path, test)


def test_exclusive_work_is_alone_and_nothing_long_overtakes_it(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        pulling = await bench.start()
        collecting = await bench.start(JobKind.COLLECT, exclusive=True)
        waiting = await bench.start()
        planning = await bench.start(JobKind.PLAN)
        states = [job.state for job in (pulling, collecting, waiting, planning)]
        assert states == ["running", "queued", "queued", "running"]
        await bench.finish(pulling, planning, collecting, waiting)
        assert collecting.started_usec >= max(pulling.finished_usec, planning.finished_usec)
        assert waiting.started_usec >= collecting.finished_usec

    run(tmp_path, test)


def test_past_the_point_of_no_return_a_job_ends_as_it_will(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def commit(meter: Meter) -> Mapping[str, Variant]:
            meter.stage(Stage.COMMIT)
            meter.point_of_no_return()
            return await bench.work(meter)

        job = await bench.start(work=commit, keys=JobKeys(timeout_usec=1000))
        await asyncio.sleep(0.05)
        assert not job.is_cancellable
        with pytest.raises(NotCancellableError):
            bench.table.cancel(job)
        await bench.finish(job)
        assert job.state is JobState.SUCCEEDED

    run(tmp_path, test)


@pytest.mark.parametrize("raised", [FormatError("broken by the cancellation"), ValueError("a bug"), None])
def test_a_cancelled_job_is_cancelled_however_its_work_ends(tmp_path: Path, raised: Exception | None) -> None:
    async def test(bench: Bench) -> None:
        async def work(_meter: Meter) -> Mapping[str, Variant]:
            try:
                await bench.gate.wait()
            except asyncio.CancelledError:
                if raised is not None:
                    raise raised from None
                raise
            return {}

        job = await bench.start(work=work)
        await asyncio.sleep(0)
        bench.table.cancel(job)
        bench.table.cancel(job)
        await bench.finish(job)
        assert (job.state, job.error[0]) == ("cancelled", f"{names.ERRORS}.Cancelled")

    run(tmp_path, test)


def test_a_job_that_was_past_its_last_step_succeeds_though_it_was_cancelled(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def work(_meter: Meter) -> Mapping[str, Variant]:
            try:
                await bench.gate.wait()
            except asyncio.CancelledError:
                return {"n": Variant("t", 1)}
            return {}

        job = await bench.start(work=work)
        await asyncio.sleep(0)
        bench.table.cancel(job)
        assert job.state is JobState.CANCELLING
        await bench.finish(job)
        assert (job.state, job.error) == ("succeeded", ("", ""))

    run(tmp_path, test)


def test_the_death_of_a_worker_fails_its_job(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def work(_meter: Meter) -> Mapping[str, Variant]:
            raise JobInterruptedError("the worker died")

        job = await bench.start(work=work)
        await bench.finish(job)
        assert (job.state, job.error) == ("failed", (f"{names.ERRORS}.Interrupted", "the worker died"))

    run(tmp_path, test)


def test_a_bug_fails_its_job_without_telling_what_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        async def work(_meter: Meter) -> Mapping[str, Variant]:
            raise ValueError("secret")

        job = await bench.start(work=work)
        await bench.finish(job)
        assert job.error[0] == f"{names.ERRORS}.Internal"
        assert "secret" not in job.error[1]

    run(tmp_path, test)
    assert "secret" in caplog.text


def test_a_user_has_fewer_jobs_than_all_together(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        started = [await bench.start(uid=SOMEBODY) for _ in range(job_table.JOBS_OF_A_USER)]
        with pytest.raises(LimitExceededError, match="has 8 jobs"):
            await bench.start(uid=SOMEBODY)
        started.append(await bench.start(uid=SOMEBODY + 1))
        await bench.finish(*started)
        await bench.start(uid=SOMEBODY)

    run(tmp_path, test)


def test_a_request_id_is_one_job_for_one_user(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        keys = JobKeys(request_id="x")
        first, second = await asyncio.gather(bench.start(keys=keys), bench.start(keys=keys))
        assert first is second
        assert (await bench.start(keys=keys, uid=SOMEBODY)).id == 2
        with pytest.raises(InvalidArgumentsError, match="job 1, a pull"):
            await bench.start(JobKind.CHECK, keys=keys)
        await bench.finish(first)

    run(tmp_path, test)


def test_ended_jobs_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_table, "ENDED_JOBS", 3)

    async def test(bench: Bench) -> None:
        started = [await bench.start() for _ in range(5)]
        await bench.finish(*started)
        assert [job.id for job in bench.table.jobs] == [3, 4, 5]
        record = await bench.table.wait(1, 0)
        assert (record.state, record.result) == ("succeeded", {"n": ("t", 5)})

    run(tmp_path, test)


def test_ended_jobs_go_when_their_results_are_too_large(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async def work(_meter: Meter) -> Mapping[str, Variant]:
            return {"findings": Variant("as", ["x" * 1000] * 400)}

        for _ in range(5):
            await bench.finish(await bench.start(work=work))
        assert len(bench.table.jobs) == 2

    run(tmp_path, test)


def test_a_table_that_stops_interrupts_and_takes_no_more(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        running, waiting = [await bench.start() for _ in range(2)], await bench.start()
        await bench.table.stop(5)
        assert [job.state for job in (*running, waiting)] == ["interrupted"] * 3
        with pytest.raises(JobInterruptedError):
            await bench.start()

    run(tmp_path, test)


def test_documents_are_shown_at_the_end_of_a_job_however_it_ended_and_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listing(meter: Meter) -> Mapping[str, Variant]:
        os.write(meter.documents.begin("list").fd, b"one\n")
        raise FormatError("broken")

    async def test(bench: Bench) -> None:
        job = await bench.start(work=listing)
        await bench.finish(job)
        assert job.state is JobState.FAILED
        assert job.documents.find("list").text() == "one\n"
        monkeypatch.setattr(job_table, "ENDED_JOBS", 1)
        other = await bench.start(work=listing)
        await bench.finish(other)
        assert other.documents.size_bytes == 4
        with pytest.raises(NoSuchDocumentError):
            job.documents.find("list")

    run(tmp_path, test)
