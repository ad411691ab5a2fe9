import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.deploy import state
from composefsd.deploy.names import uki_path
from composefsd.deploy.state import (
    Deployment,
    DeploymentState,
    DeploymentType,
    File,
    Journal,
    Phase,
    VerityPolicy,
    parse,
    serialize,
)
from composefsd.deploy.volume import Volume
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import FormatError, LimitExceededError, LockedError

B = "ab" * 64
RECORD = Deployment(
    id=B,
    seq=7,
    phase=Phase.ENTRY,
    state=DeploymentState.ARMED,
    type=DeploymentType.UKI,
    verity=VerityPolicy.DEFERRED,
    boot_digest=ObjectId.parse(B),
    aliases=(ObjectId.parse("cd" * 64),),
    manifest_digest=OciDigest.parse("sha256:" + "12" * 32),
    reference="oci:/srv/layout:latest",
    tag="deployment/7",
    title="Debian GNU/Linux 13 (trixie) (deployment 7)",
    os_version="13",
    entry="composefsd-debian-000007-abababababab.conf",
    entry_text="title      Debian\n",
    kernel_arguments=("quiet", 'dyndbg="file x"'),
    files=(File(uki_path(B), 4096, "34" * 32),),
    created_usec=1_700_000_000_000_000,
    pinned=True,
    state_existed=True,
    remove_state=False,
)


@pytest.fixture
def sysroot(tmp_path: Path) -> Iterator[Volume]:
    with Volume.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def journal(sysroot: Volume) -> Journal:
    sysroot.ensure_directory(state.JOURNAL)
    return Journal(sysroot)


def test_a_record_is_read_back() -> None:
    assert parse(serialize(RECORD)) == RECORD


def test_findings_of_a_scan_are_not_recorded() -> None:
    seen = replace(RECORD, booted=True, default=True, tries_left=3, tries_done=0, problems=("x",))
    assert serialize(seen) == serialize(RECORD)


def test_a_record_without_its_image_is_read_back() -> None:
    adopted = replace(RECORD, manifest_digest=None, files=(), aliases=())
    assert parse(serialize(adopted)) == adopted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("seq", -1),
        ("seq", True),
        ("seq", "7"),
        ("phase", "armed"),
        ("boot_digest", "../" + B),
        ("boot_digest", B.upper()),
        ("aliases", ["x"]),
        ("aliases", "x"),
        ("manifest_digest", "sha256:12"),
        ("title", "a\nb"),
        ("files", [{"path": "../../etc/passwd", "size": 1, "sha256": ""}]),
        ("files", [{"path": "EFI/BOOT/BOOTX64.EFI", "size": 1, "sha256": ""}]),
        ("files", [None]),
        ("pinned", 1),
        ("kernel_arguments", ["x"] * 2001),
        ("entry_text", "x" * (65 << 10)),
    ],
)
def test_broken_fields_are_refused(key: str, value: object) -> None:
    record = json.loads(serialize(RECORD)) | {key: value}
    with pytest.raises((FormatError, LimitExceededError)):
        parse(json.dumps(record).encode())


@pytest.mark.parametrize("key", list(json.loads(serialize(RECORD))))
def test_missing_fields_are_refused(key: str) -> None:
    record = json.loads(serialize(RECORD))
    del record[key]
    with pytest.raises(FormatError):
        parse(json.dumps(record).encode())


def test_keys_of_later_releases_are_passed_over() -> None:
    record = json.loads(serialize(RECORD)) | {"health": []}
    assert parse(json.dumps(record).encode()) == RECORD


@given(st.binary(max_size=40), st.integers(0, len(serialize(RECORD))))
def test_hostile_bytes_raise_nothing_but_format_error(tail: bytes, cut: int) -> None:
    for data in (tail, serialize(RECORD)[:cut] + tail, b"[" * 100_000):
        with suppress(FormatError):
            parse(data)


def test_the_journal_gives_records_in_order_of_their_number(journal: Journal) -> None:
    other = replace(RECORD, id="11" * 32, boot_digest=ObjectId.parse("11" * 32), seq=3)
    for record in (RECORD, other):
        journal.save(record)
    assert journal.load().deployments == (other, RECORD)
    assert journal.last_seq() == 7


def test_a_broken_record_is_reported_and_left_alone(journal: Journal, tmp_path: Path) -> None:
    journal.save(RECORD)
    broken = tmp_path / state.JOURNAL / f"{'22' * 32}.json"
    broken.write_bytes(b"{")
    misnamed = tmp_path / state.JOURNAL / f"{'33' * 32}.json"
    misnamed.write_bytes(serialize(RECORD))
    (tmp_path / state.JOURNAL / "notes.txt").touch()
    loaded = journal.load()
    assert loaded.deployments == (RECORD,)
    assert [problem.partition(".json")[0][-4:] for problem in loaded.problems] == ["2222", "3333"]
    assert broken.exists()


def test_a_phase_is_recorded_and_a_record_forgotten(journal: Journal) -> None:
    assert journal.advance(RECORD, Phase.RETIRING).phase is Phase.RETIRING
    assert journal.load().deployments[0].phase is Phase.RETIRING
    journal.forget(B)
    journal.forget(B)
    assert journal.load().deployments == ()


def test_numbers_are_remembered_after_their_record_is_gone(journal: Journal, tmp_path: Path) -> None:
    assert journal.last_seq() == 0
    journal.reserve(41)
    assert journal.last_seq() == 41
    (tmp_path / state.JOURNAL / "system.json").write_bytes(b"\0")
    assert journal.last_seq() == 0


def test_unfinished_files_are_swept(journal: Journal, sysroot: Volume, tmp_path: Path) -> None:
    sysroot.stage(f"{state.JOURNAL}/{B}.json", [b"{"])
    journal.sweep()
    assert list((tmp_path / state.JOURNAL).iterdir()) == []


def test_the_journal_is_locked_against_others(
    sysroot: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_LOCK_SECONDS", 0.0)
    with (
        Volume.open(tmp_path) as again,
        Journal(sysroot).locked(),
        pytest.raises(LockedError),
        Journal(again).locked(),
    ):
        pytest.fail("two processes hold the lock")
    with Journal(sysroot).locked():
        pass


def test_a_deployment_is_known_by_all_digests_of_its_boot_image() -> None:
    assert RECORD.known_as(B)
    assert RECORD.known_as("cd" * 64)
    assert not RECORD.known_as("ef" * 64)
    assert not RECORD.known_as(None)
