import pytest

from composefsd.operations.progress import Stage
from composefsd.service.meter import UNKNOWN, JobKind, Meter


@pytest.fixture
def pull() -> Meter:
    return Meter(1, JobKind.PULL, lambda: None)


def test_nothing_is_known_before_work_begins(pull: Meter) -> None:
    assert (pull.fraction, pull.current) == (UNKNOWN, None)


def test_a_pull_goes_from_0_to_1_and_never_back(pull: Meter) -> None:
    seen = []
    pull.stage(Stage.RESOLVE)
    for done in range(0, 1001, 100):
        pull.stage(Stage.FETCH if done % 200 else Stage.UNPACK)
        pull.bytes(reused=0, done=done, total=1000)
        pull.items(done=done // 500, total=2)
        seen.append(pull.fraction)
    for stage in (Stage.GENERATE, Stage.COMMIT):
        pull.stage(stage)
        for done in range(4):
            pull.items(done=done, total=3)
            seen.append(pull.fraction)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_reused_bytes_count_as_done(pull: Meter) -> None:
    pull.stage(Stage.FETCH)
    pull.bytes(reused=600, done=400, total=1000)
    assert pull.fraction == pytest.approx(0.85)


def test_more_than_was_expected_is_no_more_than_all(pull: Meter) -> None:
    pull.stage(Stage.FETCH)
    pull.bytes(reused=0, done=5000, total=1000)
    assert pull.fraction <= 1.0


def test_items_tell_the_fraction_where_no_bytes_are_counted() -> None:
    check = Meter(1, JobKind.CHECK, lambda: None)
    check.stage(Stage.VERIFY)
    assert check.fraction == UNKNOWN
    check.items(done=1, total=4)
    assert check.fraction == pytest.approx(0.25)


def test_every_report_is_told_and_findings_go_to_who_listens(pull: Meter) -> None:
    told: list[str] = []
    meter = Meter(1, JobKind.CHECK, lambda: told.append("changed"))
    meter.finding("error", "code", "subject", "unheard")
    meter.on_finding = lambda *finding: told.append(finding[2])
    meter.finding("error", "code", "subject", "message")
    meter.point_of_no_return()
    assert told == ["subject", "changed"]
    assert meter.is_committed


def test_the_rate_follows_what_comes(pull: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    now = pull._counted_at
    for second in range(1, 100):
        monkeypatch.setattr("time.monotonic", lambda second=second: now + second)
        pull.bytes(reused=0, done=second * 1000, total=0)
    assert pull.rate_bytes == pytest.approx(1000, rel=0.01)


def test_enabling_verity_goes_by_bytes_while_objects_are_read_and_by_objects_afterwards() -> None:
    meter = Meter(1, JobKind.ENABLE_VERITY, lambda: None)
    meter.stage(Stage.VERIFY)
    meter.bytes(reused=0, done=100, total=1000)
    meter.items(done=9, total=10)
    assert meter.fraction == pytest.approx(0.07)
    meter.bytes(reused=0, done=1000, total=1000)
    meter.stage(Stage.ENABLE)
    assert meter.fraction == pytest.approx(0.7)
    meter.items(done=5, total=10)
    assert meter.fraction == pytest.approx(0.845)
