"""How far a job has come: what its operation reports, as the numbers that the bus shows."""

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from composefsd.operations.progress import Stage
from composefsd.service.documents import Documents

UNKNOWN: Final = -1.0

_SMOOTHING_SECONDS: Final = 5.0


class JobKind(StrEnum):
    """The words of the job property `Type`."""

    PULL = "pull"
    GENERATE = "generate"
    COMPUTE = "compute"
    COLLECT = "collect"
    CHECK = "check"
    ENABLE_VERITY = "enable-verity"
    PLAN = "plan"
    DEPLOY = "deploy"
    REMOVE = "remove"


_Span = tuple[float, float]

# Which part of the whole a stage is, by what its work usually takes; a kind that has none is one stage.
_SPANS: Final[Mapping[JobKind, Mapping[Stage, _Span]]] = {
    JobKind.PULL: {
        Stage.RESOLVE: (0.0, 0.0),
        Stage.FETCH: (0.0, 0.85),
        Stage.UNPACK: (0.0, 0.85),
        Stage.GENERATE: (0.85, 0.98),
        Stage.COMMIT: (0.98, 1.0),
    },
    JobKind.GENERATE: {Stage.GENERATE: (0.0, 0.9), Stage.COMMIT: (0.9, 1.0)},
    JobKind.COLLECT: {Stage.MARK: (0.0, 0.5), Stage.SWEEP: (0.5, 1.0)},
    JobKind.ENABLE_VERITY: {Stage.VERIFY: (0.0, 0.7), Stage.ENABLE: (0.7, 0.99), Stage.COMMIT: (0.99, 1.0)},
    JobKind.DEPLOY: {Stage.PLAN: (0.0, 0.1), Stage.WRITE: (0.1, 0.95), Stage.ACTIVATE: (0.95, 1.0)},
}

FindingListener = Callable[[str, str, str, str], None]


class Meter:
    """The Progress of one job.  `on_change` is told of every report, `on_finding` of every finding of a check.

    documents is where the job's work puts what it brings in bulk.
    """

    def __init__(
        self, job_id: int, kind: JobKind, on_change: Callable[[], None], documents: Documents | None = None
    ) -> None:
        self.job_id = job_id
        self.documents = documents or Documents()
        self._spans = _SPANS.get(kind, {})
        self._on_change = on_change
        self.on_finding: FindingListener | None = None
        self.current: Stage | None = None
        self.reused_bytes = self.done_bytes = self.total_bytes = 0
        self.done_items = self.total_items = 0
        self.fraction = UNKNOWN
        self.rate_bytes = 0
        self.is_committed = False
        self._counted_at = time.monotonic()

    def stage(self, stage: Stage) -> None:
        """A stage begins; its items are counted anew."""
        if stage is not self.current and not {stage, self.current} <= {Stage.FETCH, Stage.UNPACK}:
            self.done_items = self.total_items = 0
        self.current = stage
        self._update(0.0)

    def bytes(self, *, reused: int, done: int, total: int) -> None:
        """Bytes of input have been processed."""
        self._measure(max(0, done - self.done_bytes))
        self.reused_bytes, self.done_bytes, self.total_bytes = reused, done, total
        if total:
            self._update(min(1.0, (reused + done) / total))

    def items(self, *, done: int, total: int) -> None:
        """Items have been dealt with; they tell the fraction only where no bytes are counted."""
        self.done_items, self.total_items = done, total
        is_by_bytes = self.total_bytes and self.current in (None, Stage.FETCH, Stage.UNPACK, Stage.VERIFY)
        self._update(min(1.0, done / total) if total and not is_by_bytes else None)

    def point_of_no_return(self) -> None:
        """From now on the job completes."""
        self.is_committed = True
        self._on_change()

    def finding(self, severity: str, code: str, subject: str, message: str) -> None:
        """A check has found something."""
        if self.on_finding is not None:
            self.on_finding(severity, code, subject, message)

    def _update(self, part: float | None) -> None:
        """The stage is at `part` of its own; the whole never goes back."""
        if part is not None and (part > 0 or self.current in self._spans):
            start, end = self._spans.get(self.current, (0.0, 1.0)) if self.current else (0.0, 1.0)
            self.fraction = max(self.fraction, start + part * (end - start))
        self._on_change()

    def _measure(self, added_bytes: int) -> None:
        """Fold what came since the last report into the rate: an average that forgets within seconds."""
        now = time.monotonic()
        elapsed = now - self._counted_at
        if elapsed > 0:
            weight = min(1.0, elapsed / _SMOOTHING_SECONDS)
            self.rate_bytes = round(self.rate_bytes * (1 - weight) + added_bytes / elapsed * weight)
            self._counted_at = now
