"""Deploy and remove on real directories, stopped before every step and failing at every step."""

import errno
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from composefsd.boot.cmdline import ComposefsArgument
from composefsd.deploy import change, persistent, state
from composefsd.deploy.change import remove
from composefsd.deploy.listing import list_deployments, plan_deploy
from composefsd.deploy.partitions import BootPartitions
from composefsd.deploy.persistent import Directory, Layout
from composefsd.deploy.places import Places
from composefsd.deploy.plan import Addon, BootImage, Content, Kernel, Request, Uki
from composefsd.deploy.recovery import Recovery, recover
from composefsd.deploy.state import Deployment, DeploymentState, Phase, VerityPolicy
from composefsd.deploy.volume import Step, Volume, unheard
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import (
    ComposefsdError,
    CorruptError,
    DeviceError,
    InUseError,
    JobCancelledError,
    NoSpaceError,
    NoSuchDeploymentError,
    NotBootableError,
    ObjectMissingError,
    ReadOnlyError,
)

A, B, C = ("1a" * 64, "2b" * 64, "3c" * 64)
PIECE = 3000
"""Bytes of a payload file in these tests, where a chunk has been made 1024."""


class Crash(BaseException):
    """The power fails: no handler of errors runs."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("composefsd.deploy.payload._CHUNK", 1024)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls is what counts here, and it is seen in the steps; the host's disk need not be slow."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_arguments: None)


def content(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * (PIECE // 32) + name.encode()


def uki_request(digest: str, **changes: object) -> Request:
    boot_digest = ObjectId.parse(digest)
    line = str(ComposefsArgument(boot_digest, 1))
    name = f"uki {digest}"
    base = Request(
        images=(BootImage(boot_digest, 1),),
        payload=Uki("/boot/EFI/Linux/x.efi", Content(name, len(content(name))), (line,)),
        manifest_digest=OciDigest.parse("sha256:" + digest[:64]),
        tag=f"tag-{digest[:12]}",
        sealed=False,
        verity=VerityPolicy.DEFERRED,
        reference="oci:/layout",
        os_id="debian",
        title="Debian",
        etc=Directory(0o755),
    )
    return replace(base, **changes)  # type: ignore[arg-type] - the tests name fields of Request


def kernel_request(digest: str) -> Request:
    names = f"kernel {digest}", f"initrd {digest}", f"2-initrd {digest}"
    kernel, *initrds = (Content(name, len(content(name))) for name in names)
    return uki_request(digest, payload=Kernel("/usr/lib/modules/6.12", kernel, tuple(initrds), "quiet"))


def addon_request(digest: str) -> Request:
    wanted = uki_request(digest)
    assert isinstance(wanted.payload, Uki)
    addon = Addon("console.addon.efi", Content("addon", len(content("addon"))))
    return replace(wanted, payload=replace(wanted.payload, addons=(addon,)))


def source_names(wanted: Request) -> list[str]:
    match wanted.payload:
        case Uki(content=main, addons=addons):
            return [main.source, *(addon.content.source for addon in addons)]
        case Kernel(content=main, initrds=initrds):
            return [main.source, *(initrd.source for initrd in initrds)]
    return []


@contextmanager
def opened_sources(wanted: Request) -> Iterator[dict[str, int]]:
    sources = {}
    try:
        for name in source_names(wanted):
            sources[name] = os.memfd_create("source")
            os.write(sources[name], content(name))
        yield sources
    finally:
        for fd in sources.values():
            os.close(fd)


@dataclass(frozen=True)
class Machine:
    """A sysroot and an ESP, which is a plain directory."""

    root: Path

    @property
    def sysroot(self) -> Path:
        return self.root / "sysroot"

    @property
    def esp(self) -> Path:
        return self.root / "esp"

    @contextmanager
    def places(self, step: Step = unheard) -> Iterator[Places]:
        with Places.open(self.sysroot, BootPartitions(self.esp), step) as opened:
            yield opened

    def deploy(self, wanted: Request, step: Step = unheard, booted: str | None = None) -> Deployment:
        with self.places(step) as places, opened_sources(wanted) as sources:
            return change.deploy(places, wanted, sources, booted=booted)

    def remove(self, digest: str, step: Step = unheard, *, remove_state: bool = False) -> int:
        with self.places(step) as places:
            return remove(places, digest, remove_state=remove_state).freed_bytes

    def list(self, booted: str | None = None) -> tuple[Deployment, ...]:
        with self.places() as places:
            return list_deployments(places, booted).deployments

    def recover(self, booted: str | None = None) -> Recovery:
        with self.places() as places:
            return recover(places, booted)

    def files(self) -> dict[str, bytes]:
        """Everything that lies anywhere, without the number that the journal remembers."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = str(path.readlink()).encode()
            elif path.is_file() and path.name != "system.json":
                found[name] = path.read_bytes()
        return found

    def foreign(self) -> None:
        """What other systems keep on the same ESP."""
        for path, text in {
            "EFI/BOOT/BOOTX64.EFI": "#### LoaderInfo: systemd-boot 254 ####",
            "EFI/Microsoft/Boot/bootmgfw.efi": "windows",
            f"EFI/Linux/bootc/bootc_composefs-{'9f' * 64}.efi": "bootc's",
            "EFI/Linux/.#foreign": "another tool's temporary file",
            "loader/entries.srel": "type1\n",
            "loader/entries/bootc_x-1-1.conf": f"efi /EFI/Linux/bootc/bootc_composefs-{'9f' * 64}.efi\n",
            "loader/loader.conf": "timeout 5\n",
        }.items():
            (self.esp / path).parent.mkdir(parents=True, exist_ok=True)
            (self.esp / path).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.sysroot.mkdir()
    made.esp.mkdir()
    return made


@pytest.fixture
def another(machine: Machine, tmp_path: Path) -> Callable[[int], Machine]:
    """Copies of a machine that has other systems on its ESP, and A deployed."""
    machine.foreign()
    machine.deploy(uki_request(A))

    def copy(number: int) -> Machine:
        copied = Machine(tmp_path / f"copy{number}")
        shutil.copytree(machine.sysroot, copied.sysroot, symlinks=True)
        shutil.copytree(machine.esp, copied.esp)
        return copied

    return copy


def stop_before(number: int, error: BaseException | None = None) -> Step:
    """Raise `error`, or cut the power, before step `number` (from 1)."""
    left = number

    def step(_step: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error or Crash

    return step


def fail_from(number: int, code: int, words: str) -> Step:
    """Fail every step whose text holds `words` from step `number` on, as a full or dead partition does."""
    done = 0

    def step(text: str) -> None:
        nonlocal done
        done += 1
        if done >= number and words in text:
            raise OSError(code, os.strerror(code))

    return step


def check_invariant(machine: Machine) -> None:
    """An entry implies its whole payload, and both imply the state."""
    for entry in (machine.esp / "loader/entries").glob("composefsd-*.conf"):
        fields = [line.split(None, 1) for line in entry.read_text().splitlines()]
        paths = [value for key, value in fields if key in ("efi", "uki", "linux", "initrd")]
        assert paths
        for path in paths:
            data = (machine.esp / path.lstrip("/")).read_bytes()
            digest = path.partition("bootc_composefs-")[2][:128]
            name = Path(path).name
            kind = {"vmlinuz": "kernel"}.get(name, name if name.endswith("initrd") else "uki")
            assert data == content(f"{kind} {digest}")
            with Volume.open(machine.sysroot) as sysroot:
                assert persistent.find(sysroot, digest) is Layout.OVERLAY


def check_clean(machine: Machine) -> None:
    """Nothing temporary is left, and nothing that no record knows."""
    names = [path.name for path in machine.root.rglob("*")]
    assert not [name for name in names if name.endswith((".composefsd", ".tmp", ".gone"))]
    listed = {deployment.id for deployment in machine.list()}
    with machine.places() as places:
        loaded = places.journal.load()
    assert all(record.phase is Phase.ENTRY for record in loaded.deployments)
    assert loaded.problems == ()
    for digest in (A, B, C):
        if digest not in listed:
            assert not [name for name in names if f"bootc_composefs-{digest}" in name]


def intact(machine: Machine, before: dict[str, bytes]) -> None:
    after = machine.files()
    assert {name: after.get(name) for name in before} == before


# Deploying


@pytest.mark.parametrize("make", [uki_request, kernel_request, addon_request])
def test_a_deployment_is_listed_as_it_was_made(machine: Machine, make: Callable[[str], Request]) -> None:
    made = machine.deploy(make(B))
    check_invariant(machine)
    check_clean(machine)
    (seen,) = machine.list()
    assert seen == made
    assert seen.default
    assert (seen.id, seen.seq, seen.phase, seen.state) == (B, 1, Phase.ENTRY, DeploymentState.ARMED)
    assert seen.verity is VerityPolicy.DEFERRED
    for file in seen.files:
        data = (machine.esp / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (machine.esp / "loader/entries.srel").read_bytes() == b"type1\n"


def test_the_plan_is_what_the_deploy_does(machine: Machine) -> None:
    machine.foreign()
    wanted = addon_request(B)
    with machine.places() as places:
        planned = plan_deploy(places, wanted)
    before = machine.files()
    machine.deploy(wanted)
    written = {
        name.removeprefix("esp/") for name in machine.files().keys() - before.keys() if name.startswith("esp/")
    }
    assert written == {path for action, path, _ in planned.actions if action in ("write", "write-entry")}
    intact(machine, before)


def test_nothing_is_changed_by_a_plan(machine: Machine) -> None:
    def refuse(step: str) -> None:
        pytest.fail(f"a plan does not {step}")

    with machine.places(refuse) as places:
        assert plan_deploy(places, uki_request(B)).objections == ()
        list_deployments(places)
        assert recover(places) == Recovery()
    assert machine.files() == {}


def test_the_same_digest_again_is_the_same_deployment(machine: Machine) -> None:
    first = machine.deploy(uki_request(B))
    before = machine.files()
    assert machine.deploy(uki_request(B)) == first
    assert machine.files() == before


def test_numbers_grow_and_are_never_used_again(machine: Machine) -> None:
    assert [machine.deploy(uki_request(digest)).seq for digest in (A, B)] == [1, 2]
    machine.remove(A)
    machine.remove(B)
    assert machine.deploy(uki_request(A)).seq == 3
    (machine.sysroot / state.JOURNAL / "system.json").unlink()
    (machine.sysroot / state.JOURNAL / f"{A}.json").unlink()
    assert machine.deploy(uki_request(B)).seq == 4  # the entry on the partition tells


def test_the_newest_is_the_default(machine: Machine) -> None:
    for digest in (A, B, C):
        machine.deploy(uki_request(digest))
    assert [(seen.id, seen.default) for seen in machine.list()] == [(C, True), (B, False), (A, False)]


def test_the_booted_one_is_known_by_any_of_its_digests(machine: Machine) -> None:
    boot, other = ObjectId.parse(A), ObjectId.parse(C)
    lines = (str(ComposefsArgument(boot, 1)), str(ComposefsArgument(other)))
    wanted = uki_request(A)
    assert isinstance(wanted.payload, Uki)
    wanted = replace(
        wanted,
        images=(BootImage(boot, 1), BootImage(other, 2)),
        payload=replace(wanted.payload, command_lines=lines),
    )
    machine.deploy(wanted)
    assert [seen.booted for seen in machine.list(C)] == [True]
    assert (machine.sysroot / "state/deploy" / C).resolve() == machine.sysroot / "state/deploy" / A


def test_xbootldr_gets_entry_and_payload(machine: Machine, tmp_path: Path) -> None:
    xbootldr = tmp_path / "xbootldr"
    xbootldr.mkdir()
    wanted = uki_request(B)
    with (
        Places.open(machine.sysroot, BootPartitions(machine.esp, xbootldr)) as places,
        opened_sources(wanted) as sources,
    ):
        made = change.deploy(places, wanted, sources)
        assert list_deployments(places).deployments[0].default
    assert (xbootldr / made.files[0].path).exists()
    assert (xbootldr / "loader/entries" / made.entry).exists()
    assert list(machine.esp.iterdir()) == []


def test_an_image_that_cannot_boot_changes_nothing(machine: Machine) -> None:
    machine.foreign()
    before = machine.files()
    for wanted in (uki_request(B, payload=None), uki_request(B, verity=VerityPolicy.REQUIRE)):
        with pytest.raises(NotBootableError):
            machine.deploy(wanted)
    assert machine.files() == before


def test_payload_that_is_there_already_is_used(machine: Machine) -> None:
    machine.foreign()
    path = machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi"
    path.write_bytes(content(f"uki {B}"))
    inode = path.stat().st_ino
    made = machine.deploy(uki_request(B))
    assert path.stat().st_ino == inode
    assert made.files[0].sha256 == hashlib.sha256(content(f"uki {B}")).hexdigest()


def test_other_content_in_its_place_is_replaced_unless_an_entry_boots_it(machine: Machine) -> None:
    path = machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * len(content(f"uki {B}")))
    machine.deploy(uki_request(B))
    assert path.read_bytes() == content(f"uki {B}")
    machine.remove(B)
    machine.foreign()
    path.write_bytes(b"theirs")
    (machine.esp / "loader/entries/bootc_x-1-0.conf").write_text(f"uki /EFI/Linux/bootc/{path.name}\n")
    before = machine.files()
    with pytest.raises(CorruptError, match="an entry boots it"):
        machine.deploy(uki_request(B))
    intact(machine, before)
    check_clean_of_temporaries(machine)


def check_clean_of_temporaries(machine: Machine) -> None:
    assert not [path for path in machine.root.rglob("*") if path.name.endswith((".composefsd", ".tmp", ".gone"))]


def test_a_content_that_is_not_as_planned_is_refused_and_undone(machine: Machine) -> None:
    machine.deploy(uki_request(A))
    before = machine.files()
    wanted = uki_request(B)
    assert isinstance(wanted.payload, Uki)
    too_long = replace(wanted.payload, content=replace(wanted.payload.content, size_bytes=PIECE * 2))
    with pytest.raises(CorruptError, match="ends after"):
        machine.deploy(replace(wanted, payload=too_long))
    with machine.places() as places, pytest.raises(ObjectMissingError, match="nothing was opened"):
        change.deploy(places, wanted, {})
    assert machine.files() == before


def test_what_the_device_gives_back_is_compared(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.deploy(uki_request(A))
    before = machine.files()
    publish = Volume.publish

    def rotten(volume: Volume, path: str) -> None:
        publish(volume, path)
        if path.endswith(".efi"):
            with (Path(volume.label) / path).open("r+b") as file:
                file.write(b"rot")

    monkeypatch.setattr(Volume, "publish", rotten)
    with pytest.raises(DeviceError, match="reads back"):
        machine.deploy(uki_request(B))
    monkeypatch.undo()
    assert machine.files() == before


def test_a_deployment_that_was_wiped_is_made_again(machine: Machine) -> None:
    machine.deploy(uki_request(B))
    (machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi").unlink()
    (broken,) = machine.list()
    assert broken.state is DeploymentState.FAILED
    assert broken.problems == ("its payload is incomplete",)
    again = machine.deploy(uki_request(B))
    assert again.seq == 2
    assert [path.name for path in (machine.esp / "loader/entries").iterdir()] == [again.entry]
    check_invariant(machine)
    check_clean(machine)


def test_bytes_written_are_told(machine: Machine) -> None:
    wanted = kernel_request(B)
    counts: list[int] = []
    with machine.places() as places, opened_sources(wanted) as sources:
        made = change.deploy(places, wanted, sources, written=counts.append)
    assert sum(counts) == sum(file.size for file in made.files)


def test_every_step_is_durable_before_the_next(machine: Machine) -> None:
    steps: list[str] = []
    made = machine.deploy(uki_request(B), steps.append)
    uki, entry, record = f"EFI/Linux/bootc/bootc_composefs-{B}.efi", made.entry, f"{state.JOURNAL}/{B}.json"
    order = [
        f"replace {record}",
        f"rename state/deploy/.{B}.1.tmp",
        "sync state/deploy/",
        f"replace {record}",
        f"sync {uki}",
        f"rename {uki}",
        "sync EFI/Linux/bootc/",
        f"replace {record}",
        f"sync {state.JOURNAL}/",
        f"sync loader/entries/{entry}",
        f"rename loader/entries/{entry}",
        "sync loader/entries/",
        f"replace {record}",
        f"sync {state.JOURNAL}/",
    ]
    remaining = iter(steps)
    assert [step for step in order if step in remaining] == order


# Stopping and failing anywhere


@pytest.mark.parametrize("make", [kernel_request, addon_request])
def test_power_may_fail_before_any_step_of_a_deploy(
    another: Callable[[int], Machine], make: Callable[[str], Request]
) -> None:
    outcomes = set()
    for number in range(1, 1000):
        one = another(number)
        before = one.files()
        try:
            one.deploy(make(B), stop_before(number))
        except Crash:
            check_invariant(one)
            intact(one, before)
        else:
            assert number > 50
            assert outcomes == {"finished", "undone", "nothing"}
            return
        result = one.recover()
        assert result.problems == ()
        outcomes.add("finished" if result.finished else "undone" if result.undone else "nothing")
        check_invariant(one)
        check_clean(one)
        intact(one, before)
        if [seen.id for seen in one.list()] == [A]:
            assert {name for name in one.files().keys() - before.keys() if "esp/" in name} == set()
        assert one.deploy(make(B)).id == B
        assert [seen.id for seen in one.list()] == [B, A]
        check_clean(one)
    pytest.fail("the deploy never ended")


@pytest.mark.parametrize("remove_state", [False, True])
@pytest.mark.parametrize("make", [kernel_request, addon_request])
def test_power_may_fail_before_any_step_of_a_removal(
    another: Callable[[int], Machine], make: Callable[[str], Request], *, remove_state: bool
) -> None:
    for number in range(1, 1000):
        one = another(number)
        one.deploy(make(B))
        one.deploy(uki_request(C))  # B is not the default any more
        before = {name: data for name, data in one.files().items() if B not in name and B[:12] not in name}
        try:
            one.remove(B, stop_before(number), remove_state=remove_state)
        except Crash:
            check_invariant(one)
            intact(one, before)
        else:
            assert number > 15
            return
        assert one.recover().problems == ()
        check_invariant(one)
        check_clean(one)
        intact(one, before)
        if B in [seen.id for seen in one.list()]:
            one.remove(B, remove_state=remove_state)
        assert [seen.id for seen in one.list()] == [C, A]
        assert (one.sysroot / "state/deploy" / B).exists() is not remove_state
    pytest.fail("the removal never ended")


def test_recovery_may_be_interrupted_as_well(another: Callable[[int], Machine]) -> None:
    for number in range(1, 1000):
        one = another(number)
        with suppress(Crash):
            one.deploy(addon_request(B), fail_entry)
        try:
            with one.places(stop_before(number)) as places:
                recover(places)
        except Crash:
            check_invariant(one)
        else:
            assert number > 10
            return
        one.recover()
        check_clean(one)
        assert [seen.id for seen in one.list()] == [A]
    pytest.fail("the recovery never ended")


def fail_entry(step: str) -> None:
    if step.startswith("rename loader/entries/"):
        raise Crash


@pytest.mark.parametrize(
    ("code", "expected", "stride"),
    [(errno.EIO, DeviceError, 1), (errno.ENOSPC, NoSpaceError, 4), (errno.EROFS, ReadOnlyError, 4)],
)
def test_a_failure_of_any_single_step_of_a_deploy_leaves_nothing(
    another: Callable[[int], Machine], code: int, expected: type[ComposefsdError], stride: int
) -> None:
    for number in range(1, 1000, stride):
        one = another(number)
        before = one.files()
        try:
            one.deploy(addon_request(B), stop_before(number, OSError(code, os.strerror(code))))
        except expected:
            assert one.files() == before
            check_clean(one)
        else:
            assert number > 50
            return
    pytest.fail("the deploy never ended")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_partition_that_dies_during_a_deploy_is_settled_once_it_is_back(
    another: Callable[[int], Machine], code: int
) -> None:
    for number in range(1, 1000, 3):
        one = another(number)
        before = one.files()
        try:
            one.deploy(addon_request(B), fail_from(number, code, ""))
        except ComposefsdError:
            check_invariant(one)
            intact(one, before)
        else:
            return
        outcome = one.recover()
        check_clean(one)
        assert outcome.finished or one.files() == before
    pytest.fail("the deploy never ended")


def test_a_full_partition_tells_what_was_needed(machine: Machine) -> None:
    with pytest.raises(NoSpaceError) as caught:
        machine.deploy(uki_request(B), fail_from(1, errno.ENOSPC, "write EFI/"))
    facts = caught.value.facts
    assert facts["partition"] == str(machine.esp)
    assert isinstance(facts["needed_bytes"], int)
    assert facts["needed_bytes"] > PIECE
    assert isinstance(facts["free_bytes"], int)


def test_a_deploy_can_be_cancelled_at_any_step(machine: Machine) -> None:
    def cancel(step: str) -> None:
        if step.startswith("write EFI/"):
            raise JobCancelledError("asked to stop")

    with pytest.raises(JobCancelledError):
        machine.deploy(uki_request(B), cancel)
    check_clean(machine)
    assert machine.list() == ()


def test_a_removal_that_fails_is_completed_later(machine: Machine) -> None:
    for digest in (B, A):
        machine.deploy(uki_request(digest))
    with pytest.raises(DeviceError):
        machine.remove(B, fail_from(1, errno.EIO, "remove EFI/"))
    assert [(seen.id, seen.state) for seen in machine.list()] == [
        (A, DeploymentState.ARMED),
        (B, DeploymentState.RETIRING),
    ]
    assert [seen.id for seen in machine.recover().retired] == [B]
    assert [seen.id for seen in machine.list()] == [A]
    check_clean(machine)


# Recovery


def test_a_deployment_booted_while_it_was_going_stays(machine: Machine) -> None:
    for digest in (B, A):
        machine.deploy(uki_request(digest))
    with suppress(Crash):
        machine.remove(B, fail_before("remove loader/entries/"))
    assert machine.recover(booted=B).retired == ()
    assert {seen.id: seen.state for seen in machine.list()}[B] is DeploymentState.ARMED


def test_a_running_system_keeps_its_state_even_where_its_entry_is_gone(machine: Machine) -> None:
    for digest in (B, A):
        machine.deploy(uki_request(digest))
    with suppress(Crash):
        machine.remove(B, fail_before("remove EFI/"), remove_state=True)
    assert [gone.id for gone in machine.recover(booted=B).retired] == [B]
    assert (machine.sysroot / "state/deploy" / B / "etc/upper").is_dir()


def fail_before(words: str) -> Step:
    def step(text: str) -> None:
        if text.startswith(words):
            raise Crash

    return step


def test_state_that_was_there_before_survives_an_undone_deploy(machine: Machine) -> None:
    machine.deploy(uki_request(B))
    hostname = machine.sysroot / "state/deploy" / B / "etc/upper/hostname"
    hostname.write_text("here\n")
    machine.remove(B)
    with suppress(Crash):
        machine.deploy(uki_request(B), fail_entry)
    assert [seen.id for seen in machine.recover().undone] == [B]
    assert hostname.read_text() == "here\n"


def test_the_state_of_the_running_system_is_never_undone(machine: Machine) -> None:
    with suppress(Crash):
        machine.deploy(uki_request(B), fail_entry)
    machine.recover(booted=B)
    assert (machine.sysroot / "state/deploy" / B).is_dir()


def test_an_entry_torn_by_the_power_cut_is_removed_with_its_deployment(machine: Machine) -> None:
    with suppress(Crash):
        machine.deploy(uki_request(B), fail_entry)
    (record,) = machine.list()
    (machine.esp / "loader/entries" / record.entry).write_bytes(b"\0" * 100)
    assert len(machine.recover().undone) == 1
    check_clean(machine)
    assert list((machine.esp / "loader/entries").glob("composefsd-*")) == []


def test_a_broken_record_is_reported_and_hinders_nothing(machine: Machine) -> None:
    machine.deploy(uki_request(A))
    (machine.sysroot / state.JOURNAL / f"{C}.json").write_bytes(b"{")
    assert len(machine.recover().problems) == 1
    machine.deploy(uki_request(B))
    assert [seen.id for seen in machine.list()] == [B, A]


def test_a_lost_journal_is_made_up_for_by_the_partition(machine: Machine) -> None:
    for digest, make in ((A, kernel_request), (B, addon_request)):
        made = machine.deploy(make(digest))
        (machine.sysroot / state.JOURNAL / f"{digest}.json").unlink()
        seen = machine.list()[0]
        assert (seen.id, seen.seq, seen.type, seen.title) == (made.id, made.seq, made.type, made.title)
        assert {(file.path, file.size) for file in seen.files} == {(file.path, file.size) for file in made.files}
        assert seen.manifest_digest == made.manifest_digest
    machine.remove(A)
    assert [seen.id for seen in machine.list()] == [B]


def test_quoted_arguments_of_an_entry_without_a_record_stay_whole(machine: Machine) -> None:
    made = machine.deploy(replace(kernel_request(A), kernel_arguments=('dyndbg="file a.c +p"',)))
    (machine.sysroot / state.JOURNAL / f"{A}.json").unlink()
    (seen,) = machine.list()
    assert seen.kernel_arguments == made.kernel_arguments
    assert 'dyndbg="file a.c +p"' in seen.kernel_arguments


# Listing


def test_a_deployment_without_its_entry_or_state_has_failed(machine: Machine) -> None:
    made = machine.deploy(uki_request(B))
    persistent_state = machine.sysroot / "state/deploy" / B
    persistent_state.rename(persistent_state.parent / "away")
    (machine.esp / "loader/entries" / made.entry).unlink()
    (seen,) = machine.list()
    assert seen.state is DeploymentState.FAILED
    assert seen.problems == ("its boot entry is gone", "its state is gone")
    assert not seen.default


def test_counters_are_read_from_the_name_whoever_wrote_them(machine: Machine) -> None:
    made = machine.deploy(uki_request(B))
    directory = machine.esp / "loader/entries"
    for counters, tries, expected in (
        ("+2-1", (2, 1), DeploymentState.ARMED),
        ("+0-3", (0, 3), DeploymentState.FAILED),
    ):
        (directory / machine.list()[0].entry).rename(directory / made.entry.replace(".conf", f"{counters}.conf"))
        (seen,) = machine.list()
        assert (seen.tries_left, seen.tries_done) == tries
        assert seen.state is expected
        assert seen.entry == made.entry.replace(".conf", f"{counters}.conf")
    machine.remove(B)
    assert list(directory.iterdir()) == []


# Removing


def test_removing_gives_back_everything_but_the_state(machine: Machine) -> None:
    machine.foreign()
    before = machine.files()
    made = machine.deploy(addon_request(B))
    freed = machine.remove(B)
    after = {name: data for name, data in machine.files().items() if not name.startswith("sysroot/state/deploy")}
    assert after == before
    assert freed >= sum(file.size for file in made.files)
    assert (machine.sysroot / "state/deploy" / B / "etc/upper").is_dir()


def test_the_state_goes_only_when_asked(machine: Machine) -> None:
    machine.deploy(uki_request(B))
    machine.remove(B, remove_state=True)
    assert list((machine.sysroot / "state/deploy").iterdir()) == []


def test_payload_that_somebody_s_entry_names_stays(machine: Machine) -> None:
    machine.foreign()
    machine.deploy(addon_request(B))
    theirs = machine.esp / "loader/entries/bootc_debian-13-1.conf"
    theirs.write_text(f"title x\nuki /EFI/Linux/bootc/bootc_composefs-{B}.efi\n")
    machine.remove(B)
    assert (machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi").exists()
    assert (machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi.extra.d/console.addon.efi").exists()
    assert theirs.exists()
    assert machine.list() == ()


def test_an_addon_of_somebody_else_stays_with_its_directory(machine: Machine) -> None:
    machine.deploy(addon_request(B))
    theirs = machine.esp / f"EFI/Linux/bootc/bootc_composefs-{B}.efi.extra.d/local.addon.efi"
    theirs.touch()
    machine.remove(B)
    assert [path.name for path in theirs.parent.iterdir()] == [theirs.name]


def test_booted_and_pinned_ones_are_never_removed(machine: Machine) -> None:
    machine.deploy(uki_request(A, pinned=True))
    machine.deploy(uki_request(B))
    before = machine.files()
    with machine.places() as places:
        for digest, booted, reason in ((A, None, "pinned"), (B, B, "booted")):
            with pytest.raises(InUseError, match=reason):
                remove(places, digest, booted=booted)
    assert machine.files() == before


def test_the_default_is_removed_only_when_it_is_the_last(machine: Machine) -> None:
    for digest in (A, B):
        machine.deploy(uki_request(digest))
    with pytest.raises(InUseError, match="default"):
        machine.remove(B)
    machine.remove(A)
    machine.remove(B)
    assert machine.list() == ()


def test_a_deployment_that_is_not_there_cannot_be_removed(machine: Machine) -> None:
    with pytest.raises(NoSuchDeploymentError):
        machine.remove(B)


def test_names_that_are_no_utf8_neither_hinder_nor_reach_the_bus(machine: Machine) -> None:
    directory = machine.esp / "loader/entries"
    directory.mkdir(parents=True)
    hostile = directory / os.fsdecode(b"\xff.conf")
    hostile.mkdir()
    machine.deploy(uki_request(B))
    hostile.rmdir()
    os.mkfifo(hostile)
    assert [seen.id for seen in machine.list()] == [B]
    (directory.parent / "entries.srel").unlink()
    with pytest.raises(NotBootableError) as caught:
        machine.deploy(uki_request(A))
    assert "\\udcff.conf" in caught.value.message
    assert caught.value.message.encode()


def test_files_in_the_place_of_directories_are_refused(machine: Machine) -> None:
    (machine.esp / "loader").write_text("not a directory")
    with pytest.raises(ComposefsdError, match="Not a directory"):
        machine.deploy(uki_request(B))
    assert list(machine.esp.iterdir()) == [machine.esp / "loader"]


def test_plans_and_deployments_travel_between_processes(machine: Machine) -> None:
    with machine.places() as places:
        planned = plan_deploy(places, addon_request(B))
    assert pickle.loads(pickle.dumps(planned)) == planned


def test_links_on_the_partition_lead_nowhere(machine: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (machine.esp / "EFI").symlink_to(outside)
    with pytest.raises(ComposefsdError, match="not followed"):
        machine.deploy(uki_request(B))
    assert list(outside.iterdir()) == []
    assert machine.list() == ()
