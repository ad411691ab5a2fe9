"""Expected digests through composefsctl and the bus, and generation as a job like any other."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import Stage, children, worker_processes
from helpers.client import Call, Client, connect
from real import drifting
from real.oci_layout import Layout

from composefsd.client.exits import Exit
from composefsd.service import names

CTL = str(Path(sys.executable).parent / "composefsctl")
BASE = drifting.base()
OLD = ("--kind=boot", "--profile=0.9.2")
UNKNOWN = "5" * 128


def run(stage: Stage, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [CTL, f"--bus={stage.address}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def ask(stage: Stage, *arguments: str) -> Any:
    answer = run(stage, "--json", *arguments)
    assert (answer.returncode, answer.stderr) == (Exit.DONE, "")
    return json.loads(answer.stdout)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.add_image("plain", [BASE, drifting.seal(())])
    made.add_image("odd", [BASE, drifting.seal([f"composefs={UNKNOWN}"])])
    return made


@pytest.fixture
def ready(stage: Stage, layout: Layout) -> Stage:
    """A daemon that has pulled the image `plain`, without composefs images."""
    ask(stage, "pull", f"oci:{layout.path}:plain", "--name=plain", "--generate=none")
    return stage


def digests(stage: Stage, name: str) -> set[str]:
    return {one["digest"] for one in ask(stage, "inspect", name)["digests"] if one["kind"] == "boot"}


def test_a_uki_of_an_earlier_version_is_pulled_with_its_image_and_shown(ready: Stage, layout: Layout) -> None:
    old = ask(ready, "compute", "plain", *OLD)["boot_digest"]
    usual = ask(ready, "compute", "plain", "--kind=boot")["boot_digest"]
    assert old != usual
    layout.add_image("old", [BASE, drifting.seal([f"composefs={old.removeprefix('sha512:')}"])])
    pulled = run(ready, "pull", f"oci:{layout.path}:old", "--name=old")
    assert "is the digest of boot v1, composefs-rs up to 0.9.2, with 2 differences" in pulled.stdout
    assert "/boot: mtime 1.250000000 -> 1.500000000" in pulled.stdout
    assert digests(ready, "old") == {old, usual}
    (outcome,) = ask(ready, "inspect", "old", "--document=expected-digests")["outcomes"]
    assert (outcome["wanted"], outcome["found"]["profile"]) == (old.removeprefix("sha512:"), "0.9.2")


def test_an_expected_digest_is_generated_whatever_was_asked_for_beside_it(ready: Stage) -> None:
    old = ask(ready, "compute", "plain", *OLD)["boot_digest"]
    found = ask(ready, "compute", "plain", "--kind=boot", f"--expect={old}")
    assert found["boot_digest"] == old
    assert digests(ready, "plain") == set()
    bare = old.removeprefix("sha512:")
    made = ask(ready, "generate", "plain", "--kind=boot", f"--expect={bare}")
    assert made["boot_digest"] == old
    assert made["expected_digests"] == found["expected_digests"]
    assert digests(ready, "plain") == {old}
    assert ask(ready, "generate", "plain", *OLD)["boot_digest"] == old
    assert ask(ready, "fsck", "--depth=full")["findings"] == []


def test_compute_id_and_diff_know_the_profiles_without_a_daemon(ready: Stage, layout: Layout) -> None:
    source = f"oci:{layout.path}:plain"
    old = run(ready, "compute-id", source, "--bootable", "--profile=0.9.2").stdout.strip()
    assert f"sha512:{old}" == ask(ready, "compute", "plain", *OLD)["boot_digest"]
    dump = run(ready, "compute-id", source, "--bootable", "--profile=0.9.2", "--dumpfile").stdout
    (layout.path / "old.dump").write_text(dump)
    compared = run(ready, "diff", source, str(layout.path / "old.dump"), "--bootable")
    assert "/boot: mtime 1.250000000 -> 1.500000000" in compared.stdout
    same = run(ready, "diff", source, str(layout.path / "old.dump"), "--bootable", "--profile=0.9.2")
    assert same.returncode == Exit.DONE


def test_an_expected_digest_that_nothing_has_fails_with_all_that_was_tried(ready: Stage) -> None:
    failed = run(ready, "generate", "plain", "--kind=boot", f"--expect=sha512:{UNKNOWN}")
    assert failed.returncode == Exit.FAILED
    assert "is the digest of none of 8 variants" in failed.stderr
    assert "boot v1, composefs-rs up to 0.9.2 has sha512:" in failed.stderr
    assert digests(ready, "plain") == set()


def test_a_pull_whose_uki_names_an_unknown_digest_succeeds_and_says_so(ready: Stage, layout: Layout) -> None:
    assert run(ready, "inspect", "plain", "--document=expected-digests").returncode == Exit.FAILED
    answer = ask(ready, "pull", f"oci:{layout.path}:odd", "--name=odd")
    assert "none of 8 variants" in answer["expected_digests"][0]
    assert ask(ready, "inspect", "odd")["trust"]["state"] == "mismatch"
    assert len(ask(ready, "inspect", "odd", "--document=expected-digests")["outcomes"][0]["tried"]) == 8
    assert run(ready, "remove", "odd").returncode == Exit.DONE


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"profile": "0.9.3"}, f"{names.FREEDESKTOP_ERRORS}.InvalidArgs"),
        ({"expect": "sha1:00"}, f"{names.FREEDESKTOP_ERRORS}.InvalidArgs"),
        ({"expect": "00"}, f"{names.ERRORS}.Format"),
        ({"expect": f"sha256:{'0' * 64}"}, f"{names.ERRORS}.DigestMismatch"),
    ],
)
def test_bad_options_are_errors_by_name(ready: Stage, options: dict[str, str], error: str) -> None:
    async def test() -> str:
        given = {key: Variant("s", value) for key, value in options.items()}
        async with connect(ready.address) as client:
            await client.subscribe()
            answer = await client.call(Call(names.MANAGER, "Generate", "ssa{sv}", ["plain", "boot", given]))
            if answer.error:
                return answer.error
            return (await client.wait(answer.body[0])).error

    assert asyncio.run(test()) == error


async def _generating(stage: Stage, client: Client) -> tuple[int, list[int]]:
    """A job that searches in vain, and its workers, which are stopped."""
    job = await client.start(names.MANAGER, "Generate", "plain", "boot", expect=Variant("s", UNKNOWN))
    async with asyncio.timeout(30):
        while not (workers := worker_processes(stage.pid)):
            await asyncio.sleep(0.005)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    return job, workers


def test_everything_answers_while_an_image_is_generated_and_cancelling_leaves_nothing(ready: Stage) -> None:
    before = sorted((ready.folder / "repository").rglob("*"))

    async def test() -> None:
        async with connect(ready.address) as client:
            await client.subscribe()
            job, _ = await _generating(ready, client)
            began = time.monotonic()
            for interface in (names.MANAGER, names.REPOSITORY, names.BOOT):
                await client.get_all(names.ROOT_PATH, interface)
            ((image,),) = await client.ask(Call(names.MANAGER, "ListImages", "a{sv}", [{}]))
            await client.get_all(image[2], names.IMAGE)
            config = Call(names.IMAGE, "ReadDocument", "sa{sv}", ["config", {}], image[2])
            assert (await client.ask(config))[0].startswith("{")
            assert time.monotonic() - began < 2
            await client.ask(Call(names.MANAGER, "CancelJob", "ta{sv}", [job, {}]))
            assert (await client.wait(job)).error == f"{names.ERRORS}.Cancelled"

    asyncio.run(test())
    assert not list(children(ready.pid))
    assert sorted((ready.folder / "repository").rglob("*")) == before
