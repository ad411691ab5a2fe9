"""A repository that was made insecure becomes secure by one call: whole, after any stop, or not at all."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from vm.guest import DATA, Made, MakeHost, copy_template, findings, flipped, has_verity, tool, unseal

from composefsd.errors import CorruptError, LockedError, NoSpaceError, VerityRequiredError
from composefsd.operations.host import Host
from composefsd.operations.progress import Silent
from composefsd.operations.verity import VerityResult, enable_verity
from composefsd.repository import Repository

DYING = """
import asyncio, os, signal, sys
from pathlib import Path
from composefsd.operations.host import Host, Settings
from composefsd.operations.progress import Silent, Stage
from composefsd.operations.verity import enable_verity

class Dying(Silent):
    entered = None

    def stage(self, stage):
        self.entered = stage

    def items(self, *, done, total):
        if self.entered == sys.argv[2] and done >= int(sys.argv[3]):
            self.die()

    def point_of_no_return(self):
        if sys.argv[2] == "commit":
            self.die()

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
settings = Settings(folder / "repository", folder / "sysroot", folder / "esp", None, folder / "state")
asyncio.run(enable_verity(Host.open(settings), Dying()))
"""


def enable(host: Host) -> VerityResult:
    return asyncio.run(enable_verity(host, Silent()))


def test_an_insecure_repository_becomes_secure_by_one_call(insecure: Made, make_host: MakeHost) -> None:
    text = (insecure.root / "meta.json").read_bytes()
    host = make_host()
    assert [name for name, _ in host.problems] == ["VerityRequired"]
    result = enable(host)
    count = len(insecure.objects)
    assert (result.already_secure, result.objects_checked, result.objects_enabled) == (False, count, count)
    assert result.bytes_checked == sum(path.stat().st_size for path in insecure.objects)
    assert insecure.is_secure
    assert (insecure.root / "meta.json").read_bytes() == text
    assert host.problems == ()
    assert findings(insecure.root) == set()
    assert sorted(path.name for path in insecure.root.iterdir()) == ["images", "meta.json", "objects", "streams"]


def test_a_secure_repository_is_left_alone(secure: Made) -> None:
    meta = (secure.root / "meta.json").stat()
    assert enable(secure.host) == VerityResult(already_secure=True)
    assert (secure.root / "meta.json").stat() == meta


def test_objects_that_have_verity_already_are_measured_and_kept(insecure: Made, make_host: MakeHost) -> None:
    for path in insecure.objects[:3]:
        tool("fsverity", "enable", "--hash-alg=sha512", str(path))
    before = [path.stat().st_ino for path in insecure.objects]
    assert enable(make_host()).objects_enabled == len(insecure.objects) - 3
    assert [path.stat().st_ino for path in insecure.objects] == before


@pytest.mark.parametrize(("stage", "items"), [("enable", 128), ("commit", 0)])
def test_a_call_that_is_killed_leaves_an_insecure_repository_and_the_next_one_completes_it(
    insecure: Made, make_host: MakeHost, stage: str, items: int
) -> None:
    shutil.copytree(DATA / "more/objects", insecure.root / "objects", dirs_exist_ok=True)
    program = [sys.executable, "-c", DYING, str(insecure.root.parent), stage, str(items)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    host = make_host()
    _wait_for_lock(host)
    assert not has_verity(insecure.root / "meta.json")
    assert [name for name, _ in host.problems] == ["VerityRequired"]
    assert findings(insecure.root) == set()
    before = insecure.sealed
    assert before == len(insecure.objects) if stage == "commit" else items <= before <= len(insecure.objects)
    assert enable(host).objects_enabled == len(insecure.objects) - before
    assert insecure.is_secure
    assert host.problems == ()


def _wait_for_lock(host: Host) -> None:
    """Until the worker of the dead has noticed that nobody listens."""
    deadline = time.monotonic() + 30
    while True:
        with Repository.open(host.settings.repository) as repository:
            try:
                with repository.exclusive_lock(0):
                    return
            except LockedError:
                assert time.monotonic() < deadline
        time.sleep(0.1)


def test_damaged_objects_are_refused_all_at_once_and_no_other_is_touched(insecure: Made) -> None:
    changed, sealed, foreign, *_ = insecure.objects
    for path in (changed, sealed):
        path.write_bytes(flipped(path))
    tool("fsverity", "enable", "--hash-alg=sha512", str(sealed))
    tool("fsverity", "enable", "--hash-alg=sha256", str(foreign))
    with pytest.raises(CorruptError, match="stays insecure") as raised:
        enable(insecure.host)
    assert raised.value.facts["findings"] == 3
    for path in (changed, sealed, foreign):
        assert str(path.relative_to(insecure.root)) in raised.value.message
    assert not has_verity(insecure.root / "meta.json")
    assert {path for path in insecure.objects if has_verity(path)} == {sealed, foreign}


def test_an_object_that_is_open_for_writing_stops_the_call_and_not_the_next(
    insecure: Made, make_host: MakeHost
) -> None:
    with insecure.objects[5].open("r+b"), pytest.raises(LockedError, match="open for writing"):
        enable(make_host())
    assert not has_verity(insecure.root / "meta.json")
    enable(make_host())
    assert insecure.is_secure


def test_a_full_disk_stops_the_call_and_changes_nothing(small_disk: tuple[Path, Path], make_host: MakeHost) -> None:
    _, folder = small_disk
    copy_template(folder)
    made = Made(make_host(folder))
    with Repository.open(made.root) as repository:
        digest = repository.objects.store(os.urandom(2 << 20)).hex()
    unseal(made.root / "objects" / digest[:2] / digest[2:])
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(NoSpaceError):
        enable(made.host)
    assert not has_verity(made.root / "meta.json")
    filler.unlink()
    enable(made.host)
    assert made.is_secure


def test_a_filesystem_without_verity_is_refused_before_anything_is_done(make_host: MakeHost) -> None:
    folder = Path("/tmp/insecure")
    folder.mkdir()
    copy_template(folder)
    host = make_host(folder, insecure=True)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(VerityRequiredError, match="tune2fs"):
        enable(host)
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_repository_on_btrfs_becomes_secure(btrfs: Path, make_host: MakeHost) -> None:
    copy_template(btrfs)
    made = Made(make_host(btrfs))
    assert made.sealed == 0
    enable(made.host)
    assert made.is_secure
    assert findings(made.root) == set()
