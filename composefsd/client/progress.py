"""Showing how a job gets on: a bar on a terminal, lines elsewhere.

Both take a `Job` record whenever the daemon tells of a change and decide themselves what is worth showing.
"""

import time
from collections.abc import Callable
from typing import Final, Protocol

from composefsd.client.records import Job
from composefsd.client.render import Screen
from composefsd.client.text import cut, duration, escape, size, width_of

Clock = Callable[[], float]

REDRAW_SECONDS: Final = 0.1
LINE_SECONDS: Final = 5.0

_WITHOUT_BYTES: Final = frozenset({"resolve", "generate", "commit", "plan", "activate", "mark", "sweep", "enable"})
"""Stages that process no input: what the daemon tells then is the count of an earlier stage."""

_BAR_MIN: Final = 10
_BAR_MAX: Final = 30
_CLEAR: Final = "\r\x1b[K"


class View(Protocol):
    """What the follower of a job reports to."""

    def update(self, job: Job) -> None:
        """The job has changed."""

    def note(self, text: str) -> None:
        """Something worth a line happened, such as the daemon's restart."""

    def close(self) -> None:
        """The job is over, or is left: other text follows."""


class Quiet:
    """A View that shows nothing."""

    def update(self, job: Job) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def fraction_of(job: Job) -> float | None:
    """How much of the whole job is done, from 0 to 1: as the daemon says, else by bytes, else by items."""
    if job.progress is not None:
        return job.progress
    for done, total in ((job.bytes_reused + job.bytes_done, job.bytes_total), (job.items_done, job.items_total)):
        if total:
            return min(done / total, 1.0)
    return None


def label_of(job: Job) -> str:
    """One word for what the job is doing; empty before its first stage."""
    return job.state if job.state in ("queued", "cancelling") else job.stage


def facts_of(job: Job) -> list[str]:
    """Percentage, bytes, items, rate and remaining time, as far as they are known, the most important first."""
    fraction = fraction_of(job)
    facts = [] if fraction is None else [f"{int(fraction * 100):3d}%"]
    counted = [] if job.stage in _WITHOUT_BYTES else _byte_facts(job)
    items = [f"{job.items_done}/{job.items_total}"] if job.items_total else []
    return facts + counted[:1] + items + counted[1:]


def _byte_facts(job: Job) -> list[str]:
    done = job.bytes_reused + job.bytes_done
    if not job.bytes_total:
        return [size(done)] if done else []
    facts = [f"{size(min(done, job.bytes_total)):>7} of {size(job.bytes_total)}"]
    if job.rate and job.state == "running":
        facts.append(f"{size(job.rate)}/s")
        if job.bytes_total > done:
            facts.append(duration((job.bytes_total - done) / job.rate))
    return facts


class Bar:
    """One line at the bottom of a terminal that is drawn over and over."""

    def __init__(self, screen: Screen, clock: Clock = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._drawn_at = -REDRAW_SECONDS
        self._label = ""

    def update(self, job: Job) -> None:
        """Draw again, but not more often than an eye can follow; a new stage always shows."""
        label, now = label_of(job), self._clock()
        if not label or (label == self._label and now - self._drawn_at < REDRAW_SECONDS):
            return
        self._label, self._drawn_at = label, now
        self._put(_CLEAR + bar_line(job, self._screen.current_width(), fancy=self._screen.unicode))

    def note(self, text: str) -> None:
        """Put a line above the bar."""
        self._put(f"{_CLEAR}{cut(escape(text), self._screen.current_width())}\n")

    def close(self) -> None:
        """Take the bar away."""
        self._put(_CLEAR)

    def _put(self, text: str) -> None:
        self._screen.write(text)
        self._screen.flush()


def bar_line(job: Job, width: int, *, fancy: bool) -> str:
    """Stage, bar and facts in less than `width` columns; facts that do not fit are left out from the end."""
    label = f"{escape(label_of(job)):<10} "
    fraction, facts = fraction_of(job), facts_of(job)
    room = max(width - 1, 1)  # a full last column would wrap on some terminals
    while facts and width_of(label) + width_of("  ".join(facts)) + _BAR_MIN + 2 > room:
        facts.pop()
    text = "  ".join(facts)
    bar = (
        ""
        if fraction is None
        else _bar(fraction, min(_BAR_MAX, room - width_of(label) - width_of(text) - 2), fancy=fancy)
    )
    return cut(f"{label}{bar}{'  ' if bar else ''}{text}".rstrip(), room)


def _bar(fraction: float, width: int, *, fancy: bool) -> str:
    if width < _BAR_MIN:
        return ""
    full = int(fraction * width)
    return ("█" if fancy else "#") * full + ("░" if fancy else ".") * (width - full)


class Lines:
    """A line for each stage, and one every few seconds while a stage lasts: for logs and pipes."""

    def __init__(self, screen: Screen, clock: Clock = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._printed_at = 0.0
        self._label = ""

    def update(self, job: Job) -> None:
        """Print a line if the stage is new or has lasted long."""
        label, now = label_of(job), self._clock()
        if not label or (label == self._label and now - self._printed_at < LINE_SECONDS):
            return
        facts = facts_of(job) if label == self._label else []
        self._label, self._printed_at = label, now
        self.note(f"{label}: {', '.join(fact.strip() for fact in facts)}" if facts else label)

    def note(self, text: str) -> None:
        """Print a line."""
        self._screen.line(text)
        self._screen.flush()

    def close(self) -> None:
        """Nothing is left standing."""
