import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.errors import FormatError, ReadOnlyError
from composefsd.service import history
from composefsd.service.history import History, Record

ERROR = ("org.example.Interrupted", "died")
SOMEBODY = 4_000_000
ACCEPTED = Record(1, "pull", "Pull x", 0, "", "queued", 100)
ENDED = replace(ACCEPTED, state="succeeded", started_usec=101, finished_usec=102, result={"n": ("t", 5)})


def open_history(folder: Path) -> History:
    return History(folder, 999, ERROR)


def append(folder: Path, *records: Record) -> None:
    opened = open_history(folder)

    async def write() -> None:
        for record in records:
            await opened.append(record)

    asyncio.run(write())
    opened.close()


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (ACCEPTED, ENDED, replace(ENDED, description='"\n\0ü', result={"a": ("(ss)", ["x", "y"])})):
        assert Record.parse(record.serialize()) == record


@given(st.binary(max_size=60) | st.from_regex(rb'\{"id":.{0,40}\}'))
def test_hostile_lines_raise_nothing_but_format_error(line: bytes) -> None:
    with pytest.raises(FormatError):
        Record.parse(line)


def test_numbers_have_to_be_numbers() -> None:
    line = ACCEPTED.serialize()
    for other in (b'"id":-1', b'"id":"1"', b'"id":true', b'"id":99999999999999999999'):
        with pytest.raises(FormatError):
            Record.parse(line.replace(b'"id":1', other))


def test_bulk_is_left_out_of_a_line() -> None:
    record = replace(ENDED, result={"n": ("t", 5), "findings": ("as", ["x" * 100] * 1000)})
    assert Record.parse(record.serialize()).result == {"n": ("t", 5)}


def test_what_ended_is_remembered_and_ids_go_on(tmp_path: Path) -> None:
    append(tmp_path, ACCEPTED, ENDED, replace(ENDED, id=2))
    opened = open_history(tmp_path)
    assert (opened.find(1), opened.find(3), opened.next_id, opened.interrupted) == (ENDED, None, 3, ())
    opened.close()


def test_what_did_not_end_was_interrupted_once(tmp_path: Path) -> None:
    append(tmp_path, ACCEPTED)
    opened = open_history(tmp_path)
    (record,) = opened.interrupted
    assert (record.state, record.error, record.message, record.finished_usec) == ("interrupted", *ERROR, 999)
    opened.close()
    again = open_history(tmp_path)
    assert (again.find(1), again.interrupted) == (record, ())
    again.close()


@pytest.mark.parametrize("cut", range(1, len(ENDED.serialize()), 17))
def test_a_line_that_a_crash_cut_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_bytes(ENDED.serialize() + replace(ENDED, id=2).serialize()[:-cut])
    opened = open_history(tmp_path)
    assert opened.find(1) == ENDED
    assert (opened.find(2) is None) == ("not a record" in caplog.text)
    opened.close()
    assert all(line.endswith(b"\n") for line in file.read_bytes().splitlines(keepends=True))


def test_old_jobs_are_forgotten_and_no_user_pushes_out_roots(tmp_path: Path) -> None:
    lines = [replace(ENDED, id=number, uid=0 if number <= 50 else SOMEBODY) for number in range(1, 5000)]
    (tmp_path / "jobs.jsonl").write_bytes(b"".join(record.serialize() for record in lines))
    opened = open_history(tmp_path)
    of_user = [number for number in range(51, 5000) if opened.find(number)]
    assert of_user == list(range(5000 - history.KEPT_JOBS_OF_A_USER, 5000))
    assert all(opened.find(number) for number in range(1, 51))
    assert opened.next_id == 5000
    opened.close()


def test_the_file_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_REWRITE_BYTES", 2000)
    monkeypatch.setattr(history, "KEPT_JOBS", 5)
    append(tmp_path, *(replace(ENDED, id=number) for number in range(1, 60)))
    assert (tmp_path / "jobs.jsonl").stat().st_size < 5000


def test_the_latest_job_that_matches_is_found(tmp_path: Path) -> None:
    append(tmp_path, ENDED, replace(ENDED, id=2, request_id="x"), replace(ENDED, id=3, request_id="x"))
    opened = open_history(tmp_path)
    found = opened.find_request(lambda record: record.request_id == "x")
    assert found is not None
    assert found.id == 3
    opened.close()


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadOnlyError, match="state directory"):
        open_history(tmp_path / "missing")
