"""composefsctl against the real daemon: every verb, its JSON, and every exit status.

Races that the real daemon does not lose on demand are in test_client_follow.py.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
from helpers.bus import GAMES, PolkitStage, Stage, children, why_no_polkit
from real import handmade
from real.layers import directory, regular, tar_layer
from real.oci_layout import Layout

from composefsd import VERSION
from composefsd.client import cli, online
from composefsd.client.exits import Exit
from composefsd.client.schema import RESULTS

SECONDS = 60
CTL = str(Path(sys.executable).parent / "composefsctl")


def add_image(path: Path) -> None:
    """A layout whose image `os` has a UKI that names its boot image; `base` is the same without it."""
    layout = Layout(path)
    base = layout.add_image("base", list(handmade.layers()))
    command = [CTL, "compute-id", "--bootable", f"oci:{path}:base"]
    digest = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    folders = [directory(name) for name in ("boot", "boot/EFI", "boot/EFI/Linux")]
    uki = handmade.uki(f"composefs.digest=v1-sha512-12:{digest} rw")
    layout.add_image("os", [*base.layers, tar_layer((*folders, regular("boot/EFI/Linux/os.efi", uki)))])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout") / "oci"
    add_image(path)
    return path


@pytest.fixture(scope="module")
def shared(shared_stage: Stage, images: Path) -> Stage:
    """A daemon whose repository holds the image `os`."""
    ask(shared_stage, "pull", f"oci:{images}:os", "--name=os")
    return shared_stage


def command(stage: Stage, *arguments: str) -> list[str]:
    return [CTL, f"--bus={stage.address}", *arguments]


def run(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(stage, *arguments), capture_output=True, text=True, check=False)


def ask(stage: Stage, *arguments: str) -> Any:
    """What composefsctl answers with `--json`."""
    return json.loads(done(run(stage, "--json", *arguments)))


def boot_digest(stage: Stage) -> str:
    """The boot image of `os`, as the repository has it."""
    (digest,) = (entry["digest"] for entry in ask(stage, "inspect", "os")["digests"] if entry["kind"] == "boot")
    assert isinstance(digest, str)
    return digest


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stderr) == (Exit.DONE, "")
    return result.stdout


def failed(result: subprocess.CompletedProcess[str], status: Exit = Exit.FAILED) -> str:
    """The one line that a failure prints."""
    assert result.returncode == status
    (line,) = result.stderr.splitlines()
    assert line.startswith("composefsctl: ")
    assert line.isprintable()
    return line.removeprefix("composefsctl: ")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def keys_are_documented(verb: str, answer: Mapping[str, object]) -> bool:
    return set(answer) <= {"job", "state", *RESULTS[verb]}


# Looking


def test_status_tells_about_daemon_repository_and_boot_partition(shared: Stage) -> None:
    found = ask(shared, "status")
    assert found["daemon"]["version"] == VERSION
    assert found["repository"]["path"] == str(shared.folder / "repository")
    assert found["repository"]["verity"] is False
    assert found["boot"]["esp"] == str(shared.esp)
    assert found["problems"] == []
    assert f"composefsd  {VERSION}" in done(run(shared, "status"))


@pytest.mark.parametrize(("option", "variable"), [([], "SYSTEM"), (["--user"], "SESSION")])
def test_the_bus_is_found_as_every_program_finds_it(shared: Stage, option: list[str], variable: str) -> None:
    environment = {**os.environ, f"DBUS_{variable}_BUS_ADDRESS": shared.address}
    done(subprocess.run([CTL, *option, "images"], env=environment, capture_output=True, text=True, check=False))


def test_images_are_listed_with_whole_digests(shared: Stage) -> None:
    (image,) = [entry for entry in ask(shared, "images") if "os" in entry["names"]]
    assert image["bootable"] is True
    assert image["trust"]["state"] == "matching"
    assert {entry["kind"] for entry in image["digests"]} == {"normative", "boot"}
    assert image["manifest_digest"] in done(run(shared, "images"))


def test_an_image_is_inspected_by_name_digest_or_prefix(shared: Stage) -> None:
    image = ask(shared, "inspect", "os")
    digest = image["manifest_digest"]
    for text in (digest, digest.removeprefix("sha256:")[:12]):
        assert ask(shared, "inspect", text) == image
    assert "bootable      yes" in done(run(shared, "inspect", "os"))


def test_a_document_is_printed_as_it_is(shared: Stage) -> None:
    manifest = done(run(shared, "inspect", "os", "--document=manifest"))
    digest = hashlib.sha256(manifest.removesuffix("\n").encode()).hexdigest()
    assert f"sha256:{digest}" == ask(shared, "inspect", "os")["manifest_digest"]


def test_what_does_not_exist_is_one_line(shared: Stage) -> None:
    assert "nothing" in failed(run(shared, "inspect", "nothing"))
    assert "nothing" in failed(run(shared, "undeploy", "nothing"))
    assert "999" in failed(run(shared, "cancel", "999"))


def test_a_table_fits_the_terminal(shared: Stage) -> None:
    main, other = os.openpty()
    environment = {**os.environ, "COLUMNS": "50", "TERM": "xterm"}
    subprocess.run(command(shared, "images"), stdout=other, env=environment, check=True)
    os.close(other)
    lines = os.read(main, 65536).decode().splitlines()
    os.close(main)
    plain = [line.replace("\x1b[1m", "").replace("\x1b[32m", "").replace("\x1b[0m", "") for line in lines]
    assert max(map(len, plain)) <= 50
    assert ask(shared, "inspect", "os")["manifest_digest"] not in plain[1]


# Bringing images in, naming them, removing them


def test_a_pull_shows_its_stages_and_what_it_brought(stage: Stage, images: Path) -> None:
    lines = done(run(stage, "pull", f"oci:{images}:os", "--name=os")).splitlines()
    # changes come five times a second at the most, so a stage of a small image may pass unseen, but not all of them
    assert {"resolve", "fetch", "unpack", "generate", "commit"} & set(lines)
    assert any(line.startswith("manifest digest   sha256:") for line in lines)
    answer = ask(stage, "pull", f"oci:{images}:os", "--name=os")
    assert keys_are_documented("pull", answer)
    assert (answer["state"], answer["bytes_fetched"]) == ("succeeded", 0)
    assert answer["boot_digest"] == boot_digest(stage)


def test_a_relative_path_is_meant_from_where_the_client_is(stage: Stage, images: Path) -> None:
    result = subprocess.run(
        command(stage, "pull", f"oci:{images.name}:base", "--name=base", "--quiet"),
        cwd=images.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    done(result)
    assert ask(stage, "inspect", "base")["names"] == ["base"]


def test_options_of_a_pull_reach_the_daemon(stage: Stage, images: Path) -> None:
    reference = f"oci:{images}:base"
    assert "sha256:" in failed(run(stage, "pull", reference, f"--require-digest=sha256:{'0' * 64}"))
    assert "v2" in failed(run(stage, "pull", reference, "--format=v2"))
    assert ask(stage, "pull", reference, "--name=base", "--generate=normative").keys() >= {"normative_digest"}
    assert [entry["kind"] for entry in ask(stage, "inspect", "base")["digests"]] == ["normative"]
    assert "base" in failed(run(stage, "pull", f"oci:{images}:os", "--name=base"))
    ask(stage, "pull", f"oci:{images}:os", "--name=base", "--replace")
    assert ask(stage, "inspect", "base")["bootable"] is True


def test_a_job_that_is_not_waited_for_has_an_id_and_a_request_gives_it_once(stage: Stage, images: Path) -> None:
    command = ("pull", f"oci:{images}:os", "--name=os", "--no-wait", "--request-id=mine")
    job = int(done(run(stage, *command)))
    assert ask(stage, *command)["job"] == job
    until(lambda: ask(stage, "jobs", "--state=succeeded"))
    (listed,) = ask(stage, "jobs", "--type=pull")
    assert (listed["id"], listed["state"], listed["error"]) == (job, "succeeded", "")
    assert str(job) in done(run(stage, "jobs"))


def test_bad_input_is_one_line(stage: Stage, images: Path, tmp_path: Path) -> None:
    assert "none" in failed(run(stage, "pull", f"oci:{tmp_path}/none"))
    assert failed(run(stage, "pull", "nothing:at/all"))
    assert failed(run(stage, "pull", f"oci:{images}:os", f"--name={'x' * 300}"))
    assert failed(run(stage, "pull", f"oci:{images}:\udcff"))


def test_names_are_given_moved_and_taken_away(stage: Stage, images: Path) -> None:
    ask(stage, "pull", f"oci:{images}:os", "--name=os")
    ask(stage, "pull", f"oci:{images}:base", "--name=base")
    assert done(run(stage, "tag", "os", "stable")) == ""
    assert "stable" in failed(run(stage, "tag", "base", "stable"))
    assert ask(stage, "tag", "base", "stable", "--replace") == {"image": "base", "name": "stable"}
    assert ask(stage, "inspect", "base")["names"] == ["base", "stable"]
    assert failed(run(stage, "remove", "base"))
    assert sorted(ask(stage, "remove", "base", "--force")["names"]) == ["base", "stable"]
    assert failed(run(stage, "untag", "stable"))
    assert ask(stage, "untag", "stable", "--missing-ok") == {"name": "stable"}
    assert ask(stage, "gc")["objects_removed"] > 0


def test_generated_and_computed_digests_are_the_same(shared: Stage) -> None:
    generated, computed = ask(shared, "generate", "os"), ask(shared, "compute", "os")
    for verb, answer in (("generate", generated), ("compute", computed)):
        assert keys_are_documented(verb, answer)
    assert generated["boot_digest"] == computed["boot_digest"] == boot_digest(shared)
    assert ask(shared, "compute", "os", "--kind=boot", "--hash=sha256")["boot_digest"].startswith("sha256:")
    (line,) = done(run(shared, "compute", "os", "--kind=boot")).splitlines()
    assert line.split() == ["boot", "digest", computed["boot_digest"]]
    assert failed(run(shared, "generate", "os", "--kind=boot", f"--expect=sha512:{'0' * 128}"))


def test_compute_id_agrees_with_the_daemon_and_needs_none(shared: Stage, images: Path) -> None:
    command = [CTL, "compute-id", "--bootable", f"oci:{images}:os"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done(printed) == boot_digest(shared).removeprefix("sha512:") + "\n"


# Deploying


def test_a_plan_that_would_be_refused_is_shown_and_fails(shared: Stage) -> None:
    planned = run(shared, "deploy", "os", "--dry-run")
    assert "EFI/Linux" in planned.stdout
    assert "would be refused: " in failed(planned)
    assert "fs-verity" in failed(run(shared, "deploy", "os"))
    assert ask(shared, "deployments") == []


def test_an_image_is_planned_deployed_listed_and_undeployed(shared: Stage) -> None:
    plan = ask(shared, "deploy", "os", "--dry-run", "--verity=deferred")
    assert keys_are_documented("deploy", plan)
    assert {"action", "path", "bytes"} == set(plan["plan"][0])
    assert {"free_before", "needed", "free_after"} == set(plan["space"])
    assert list(shared.esp.iterdir()) == []
    assert keys_are_documented("deploy", ask(shared, "deploy", "os", "--verity=deferred", "--type=uki"))
    (deployment,) = ask(shared, "deployments")
    assert deployment["default"] is True
    assert deployment["boot_digest"] == boot_digest(shared)
    assert ask(shared, "inspect", "os")["deployments"] == [deployment["path"]]
    assert [entry["id"] for entry in ask(shared, "status")["deployments"]] == [deployment["id"]]
    assert deployment["id"] in done(run(shared, "deployments"))
    assert "deployed" in failed(run(shared, "remove", "os"))
    freed = ask(shared, "undeploy", deployment["id"][:12])
    assert keys_are_documented("undeploy", freed)
    assert freed["freed_bytes"] > 0
    assert done(run(shared, "deployments")) == "no deployments\n"


def test_kernel_arguments_reach_the_entry(shared: Stage) -> None:
    ask(shared, "deploy", "os", "--verity=optional", "--type=type1", "--kargs=quiet console=ttyS0")
    try:
        (deployment,) = ask(shared, "deployments")
        assert deployment["type"] == "type1"
        assert [argument for argument in deployment["kernel_arguments"] if argument in ("quiet", "console=ttyS0")]
    finally:
        ask(shared, "undeploy", "default", "--state")


# Upkeep


def test_garbage_is_only_counted_in_a_dry_run(shared: Stage) -> None:
    assert done(run(shared, "gc", "--dry-run", "--quiet")).startswith("nothing was removed")
    assert keys_are_documented("gc", ask(shared, "gc"))
    assert ask(shared, "images")


def test_a_sound_repository_is_clean(shared: Stage) -> None:
    for depth in ("metadata", "quick", "full"):
        answer = ask(shared, "fsck", f"--depth={depth}")
        assert keys_are_documented("fsck", answer)
        assert answer["findings"] == []
    assert done(run(shared, "fsck")).splitlines()[-1] == "clean"


def test_a_damaged_repository_fails_the_check_and_the_findings_are_told(stage: Stage, images: Path) -> None:
    ask(stage, "pull", f"oci:{images}:os", "--name=os")
    victim = max((stage.folder / "repository" / "objects").rglob("*/*"), key=lambda path: path.stat().st_size)
    victim.chmod(0o600)
    victim.write_bytes(b"something else")
    checked = run(stage, "fsck", "--depth=full", "--json")
    assert checked.returncode == Exit.FAILED
    assert not checked.stderr
    assert any(finding["severity"] == "error" for finding in json.loads(checked.stdout)["findings"])
    assert "error" in run(stage, "fsck", "--depth=full").stdout


# Cancelling, and what happens to those who wait


def workers(stage: Stage) -> list[int]:
    """The daemon's workers; not a child that is about to become one: who stops that stops the daemon as well."""
    found = [Path(f"/proc/{pid}") for pid in children(stage.pid)]
    return [int(path.name) for path in found if b"composefsd.workers" in (path / "cmdline").read_bytes()]


class Stuck:
    """A pull that does not come further, since the daemon's workers are stopped; composefsctl waits for it."""

    def __init__(self, stage: Stage, layout: str) -> None:
        self.client = subprocess.Popen(
            command(stage, "pull", f"oci:{layout}:slow", "--name=slow", "--generate=none"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: workers(stage))
        self._workers = workers(stage)
        self._send(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGCONT)
        self.client.kill()
        self.client.communicate()

    def end(self) -> subprocess.CompletedProcess[str]:
        out, err = self.client.communicate(timeout=SECONDS)
        return subprocess.CompletedProcess([], self.client.returncode, out, err)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if Path(f"/proc/{worker}").exists():
                os.kill(worker, number)


def state_of_the_pull(stage: Stage) -> Any:
    (job,) = ask(stage, "jobs", "--type=pull")
    return job["state"]


def test_an_interrupted_client_cancels_its_job(stage: Stage, layout: str) -> None:
    with Stuck(stage, layout) as pull:
        pull.client.send_signal(signal.SIGINT)
        assert failed(pull.end(), Exit.CANCELLED)
        assert state_of_the_pull(stage) == "cancelled"
    done(run(stage, "pull", f"oci:{layout}:slow", "--name=slow", "--generate=none"))


def test_a_job_that_is_cancelled_by_somebody_else_ends_the_wait(stage: Stage, layout: str) -> None:
    with Stuck(stage, layout) as pull:
        (job,) = ask(stage, "jobs", "--type=pull")
        assert ask(stage, "cancel", str(job["id"])) == {"job": job["id"]}
        assert failed(pull.end(), Exit.CANCELLED)


def test_a_client_that_is_killed_takes_its_job_along(stage: Stage, layout: str) -> None:
    with Stuck(stage, layout) as pull:
        pull.client.kill()
        until(lambda: state_of_the_pull(stage) == "cancelled")


def test_while_a_job_is_stuck_everything_else_is_answered(stage: Stage, layout: str) -> None:
    with Stuck(stage, layout):
        (job,) = ask(stage, "status")["jobs"]
        assert job["type"] == "pull"
        assert done(run(stage, "images")) == "no images\n"


def test_a_job_that_dies_with_the_daemon_is_told_by_the_next_one(stage: Stage, layout: str) -> None:
    with Stuck(stage, layout) as pull:
        stage.stop(signal.SIGKILL)
        stage.start()
        ended = pull.end()
        assert failed(ended, Exit.CANCELLED)
        assert "the daemon left the bus" in ended.stdout
    done(run(stage, "pull", f"oci:{layout}:slow", "--name=slow", "--generate=none"))


def test_without_a_daemon_and_without_a_bus_it_is_status_5(stage: Stage) -> None:
    stage.stop()
    assert "no daemon on this bus" in failed(run(stage, "images"), Exit.NO_SERVICE)
    assert stage.bus is not None
    stage.bus.kill()
    stage.bus.wait()
    assert "cannot connect" in failed(run(stage, "images"), Exit.NO_SERVICE)


def test_wrong_usage_is_status_2(stage: Stage) -> None:
    assert failed(run(stage, "deploy"), Exit.USAGE)


# Rights


def run_as(uid: int, argv: list[str]) -> tuple[int, str]:
    """Exit status and standard error of composefsctl as another user, who could not read this environment."""
    assert online, "loaded before the fork: the child cannot import"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the end of the process
            sys.stderr = os.fdopen(writer, "w")
            status = cli.main(argv)
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as source:
        said = source.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


@pytest.mark.skipif(bool(why_no_polkit()), reason=why_no_polkit() or "-")
def test_a_user_without_rights_may_look_and_gets_status_4_for_the_rest(images: Path) -> None:
    with TemporaryDirectory(prefix="composefsd-test-") as folder, PolkitStage(Path(folder), "") as stage:
        bus = f"--bus={stage.address}"
        assert run_as(GAMES, [bus, "status"]) == (Exit.DONE, "")
        assert run_as(GAMES, [bus, "gc", "--dry-run"]) == (Exit.DONE, "")
        for command in (["pull", f"oci:{images}:os"], ["gc"], ["untag", "os"], ["fsck"]):
            status, said = run_as(GAMES, [bus, *command])
            assert status == Exit.NOT_AUTHORIZED
            assert said.startswith("composefsctl: ")
            assert said.count("\n") == 1
