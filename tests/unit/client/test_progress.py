"""Bars and lines."""

import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from composefsd.client.progress import Bar, Lines, bar_line, facts_of, fraction_of, label_of
from composefsd.client.properties import Properties
from composefsd.client.records import Job
from composefsd.client.render import Screen
from composefsd.client.text import width_of

JOB = Job.parse("/job", Properties({"State": "running", "Stage": "fetch", "Progress": 0.25}))
FETCH = replace(
    JOB, progress=None, bytes_reused=100_000_000, bytes_done=50_000_000, bytes_total=300_000_000,
    items_done=1, items_total=4, rate=10_000_000,
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_reused_bytes_count_as_done() -> None:
    assert fraction_of(FETCH) == 0.5


def test_the_daemon_knows_best_then_bytes_tell_and_then_items() -> None:
    assert fraction_of(replace(FETCH, progress=0.1)) == 0.1
    assert fraction_of(replace(FETCH, bytes_total=0)) == 0.25
    assert fraction_of(replace(JOB, progress=None)) is None


def test_bytes_of_an_earlier_stage_are_not_shown_as_those_of_this_one() -> None:
    assert facts_of(replace(FETCH, stage="commit")) == [" 50%", "1/4"]


def test_a_job_that_waits_or_stops_is_called_so() -> None:
    assert [label_of(replace(JOB, state=state)) for state in ("queued", "running", "cancelling")] == [
        "queued", "fetch", "cancelling",
    ]  # fmt: skip


def test_facts_tell_bytes_items_rate_and_what_remains() -> None:
    assert facts_of(FETCH) == [" 50%", " 150 MB of 300 MB", "1/4", "10 MB/s", "0:15"]


def test_more_bytes_than_were_promised_are_not_more_than_all() -> None:
    assert facts_of(replace(FETCH, bytes_done=900_000_000))[:2] == ["100%", " 300 MB of 300 MB"]


def test_a_bar_fills_and_facts_that_do_not_fit_are_left_out() -> None:
    assert bar_line(FETCH, 100, fancy=True) == (
        f"fetch      {'█' * 15}{'░' * 15}   50%   150 MB of 300 MB  1/4  10 MB/s  0:15"
    )
    assert "MB/s" not in bar_line(FETCH, 50, fancy=False)


@given(st.integers(0, 2**64), st.integers(0, 2**64), st.integers(0, 2**64), st.integers(0, 200), st.text(max_size=30))
def test_a_bar_never_wraps(done: int, total: int, rate: int, width: int, stage: str) -> None:
    job = replace(FETCH, bytes_done=done, bytes_total=total, rate=rate, stage=stage)
    line = bar_line(job, width, fancy=True)
    assert width_of(line) <= max(width - 1, 1)
    assert line.isprintable()


def test_a_bar_is_drawn_over_but_not_too_often() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = Bar(Screen(stream, 80, live=True), clock)
    bar.update(FETCH)
    bar.update(replace(FETCH, items_done=2))
    assert stream.getvalue().count("\r") == 1
    clock.now += 1
    bar.update(replace(FETCH, items_done=3))
    assert "3/4" in stream.getvalue()
    bar.update(replace(FETCH, stage="generate"))
    assert "generate" in stream.getvalue()
    assert "\n" not in stream.getvalue()


def test_a_note_stands_above_the_bar_and_the_bar_goes_at_the_end() -> None:
    stream = io.StringIO()
    bar = Bar(Screen(stream, 80, live=True), Clock())
    bar.update(FETCH)
    bar.note("the daemon\x07 restarted")
    assert stream.getvalue().endswith("\r\x1b[Kthe daemon\\x07 restarted\n")
    bar.close()
    assert stream.getvalue().endswith("\n\r\x1b[K")


def test_lines_tell_stages_and_every_few_seconds_how_far_one_is() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(Screen(stream), clock)
    for step in (JOB, FETCH, replace(FETCH, stage="generate")):
        lines.update(step)
        clock.now += 1
    clock.now += 10
    lines.update(replace(FETCH, stage="generate"))
    assert stream.getvalue().splitlines() == [
        "fetch",
        "generate",
        "generate: 50%, 1/4",
    ]
