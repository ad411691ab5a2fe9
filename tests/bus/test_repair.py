"""Repairing over the bus and with composefsctl: what is told, how it ends, and who may."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import GAMES, PolkitStage, Stage, why_no_polkit
from helpers.client import Call, Client, call_as, connect
from real.damage import dangling_tag, flip_file

from composefsd.client.exits import Exit
from composefsd.client.schema import RESULTS
from composefsd.service import names

CTL = str(Path(sys.executable).parent / "composefsctl")
REPAIR = {"depth": Variant("s", "full"), "repair": Variant("b", value=True)}
INTERACTION = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"

RULES = """
polkit.addRule(function(action, subject) {
    if (subject.user == "games" && action.id == "org.composefs.Composefs1.fsck")
        return polkit.Result.YES;
    return polkit.Result.NOT_HANDLED;
});
"""


async def result_of(client: Client, job: int) -> dict[str, Any]:
    answer = await client.wait(job)
    assert not answer.error, answer.body
    result = answer.body[1]
    assert isinstance(result, dict)
    return result


async def pull(client: Client, layout: str) -> None:
    job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", name=Variant("s", "small"))
    await result_of(client, job)


def repository(stage: Stage) -> Path:
    return stage.folder / "repository"


def test_a_repair_tells_what_it_did_and_what_is_left_and_each_finding_once(stage: Stage, layout: str) -> None:
    async def test() -> None:
        async with connect(stage.address) as client:
            await client.subscribe()
            await pull(client, layout)
            damaged, tag = flip_file(repository(stage)), dangling_tag(repository(stage))
            job = await client.start(names.REPOSITORY, "Check", **REPAIR)
            result = await result_of(client, job)
            assert {row[1] for row in result["findings"]} == {"tag-dangling", "broken-symlink"}
            assert [tag in row[2] for row in result["findings"]] == [True, True]
            assert all(facts["unrepaired"] for facts in result["finding-facts"])
            assert len(result["finding-facts"]) == len(result["findings"]) == result["findings-total"]
            assert ("object-digest-mismatch", damaged) in {(row[0], row[1]) for row in result["repaired"]}
            assert any(row[2] == f"fetched again from oci:{layout}:small" for row in result["repaired"])
            told = [tuple(signal.body) for signal in client.received("Finding")]
            assert len(told) == len(set(told)) == len(result["findings"]) + len(result["repaired"])
            assert {row[0] for row in told} == {job}
            stages = {value for signal in client.received("PropertiesChanged") if (value := stage_in(signal.body))}
            assert stages & {"verify", "fetch", "unpack", "commit"}
            assert (await client.get(names.ROOT_PATH, names.REPOSITORY, "LastCheck"))[1] is False
            arguments = await client.get(names.job_path(job), names.JOB, "Arguments")
            assert arguments == {"depth": "full", "image": "", "repair": True}
            await client.ask(Call(names.MANAGER, "Untag", "sa{sv}", [tag, {}]))
            again = await result_of(client, await client.start(names.REPOSITORY, "Check", **REPAIR))
            assert (again["findings"], again["repaired"]) == ([], [])
            assert (await client.get(names.ROOT_PATH, names.REPOSITORY, "LastCheck"))[1] is True

    asyncio.run(test())


def stage_in(body: list[Any]) -> str:
    found = body[1].get("Stage", "") if body[0] == names.JOB else ""
    assert isinstance(found, str)
    return found


def test_one_image_is_repaired_by_its_name(stage: Stage, layout: str) -> None:
    async def test() -> None:
        async with connect(stage.address) as client:
            await pull(client, layout)
            flip_file(repository(stage))
            job = await client.start(names.REPOSITORY, "Check", image=Variant("s", "small"), **REPAIR)
            result = await result_of(client, job)
            assert result["findings"] == []
            assert {row[0] for row in result["repaired"]} == {"layer-digest-mismatch"}
            clean = await result_of(client, await client.start(names.REPOSITORY, "Check", depth=REPAIR["depth"]))
            assert clean["findings"] == []
            assert "repaired" not in clean

    asyncio.run(test())


def run(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [CTL, f"--bus={stage.address}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_composefsctl_ends_with_success_only_if_nothing_is_left(stage: Stage, layout: str) -> None:
    assert run(stage, "pull", f"oci:{layout}:small", "--name=small").returncode == Exit.DONE
    subject = flip_file(repository(stage))
    checked = run(stage, "fsck", "--depth=full", "--json")
    assert checked.returncode == Exit.FAILED
    (facts,) = [row["facts"] for row in json.loads(checked.stdout)["findings"] if row["subject"] == subject]
    assert set(facts) == {"actual"}
    repaired = run(stage, "fsck", "--depth=full", "--repair")
    assert (repaired.returncode, repaired.stderr) == (Exit.DONE, "")
    assert "object-digest-mismatch" in repaired.stdout
    assert repaired.stdout.splitlines()[-1] == "clean"
    dangling_tag(repository(stage))
    left = run(stage, "fsck", "--repair")
    assert left.returncode == Exit.FAILED
    assert "not repaired: its image is not here any more" in left.stdout
    answer = json.loads(run(stage, "fsck", "--repair", "--json").stdout)
    assert set(answer) <= {"job", "state", *RESULTS["fsck"]}
    assert answer["repaired"] == []
    assert {row["facts"]["target"][-64:] for row in answer["findings"]} == {"0" * 64}


def test_a_warning_that_is_left_by_a_repair_fails_it(stage: Stage, layout: str) -> None:
    assert run(stage, "pull", f"oci:{layout}:small", "--name=small").returncode == Exit.DONE
    (repository(stage) / "streams" / "oci-config-nonsense").symlink_to("../meta.json")
    assert "stream-name-invalid" in (left := run(stage, "fsck", "--repair")).stdout
    assert left.returncode == Exit.FAILED


@pytest.fixture(scope="module")
def polkit() -> Iterator[PolkitStage]:
    if reason := why_no_polkit():
        pytest.skip(reason)
    with TemporaryDirectory(prefix="composefsd-test-") as folder, PolkitStage(Path(folder), RULES) as stage:
        yield stage


def check(**options: Variant) -> Call:
    return Call(names.REPOSITORY, "Check", "a{sv}", [options])


def test_who_may_check_may_not_repair_for_that(polkit: PolkitStage) -> None:
    checked, repaired = call_as(GAMES, polkit.address, [check(), check(**REPAIR)])
    assert checked.error == ""
    assert repaired.error == INTERACTION
    assert "repair" in repaired.body[0]


def test_root_may_repair(polkit: PolkitStage) -> None:
    (answer,) = call_as(0, polkit.address, [check(**REPAIR)])
    assert answer.error == ""
