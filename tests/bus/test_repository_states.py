"""Repositories that are not as the daemon would make them: insecure, from older or later times, or none at all."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import Stage
from helpers.client import Answer, Call, Client, connect

from composefsd.digests import Algorithm
from composefsd.repository import Metadata, Repository
from composefsd.service import names

META = "repository/meta.json"
DEFERRED = {"verity": Variant("s", "deferred"), "type": Variant("s", "type1")}


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[Stage]:
    """A bus, and a daemon yet to be started."""
    stage = Stage(tmp_path)
    stage.start_bus()
    yield stage
    stage.close()


@pytest.fixture
def filled(unstarted: Stage, layout: str) -> Stage:
    """A stage whose repository has the image `small`, and a deployment of it; the daemon has been stopped."""

    async def fill(client: Client) -> None:
        await done(client, names.MANAGER, "Pull", f"oci:{layout}:small", name=Variant("s", "small"))
        await done(client, names.BOOT, "Deploy", "small", **DEFERRED)

    unstarted.start()
    with_client(unstarted, fill)
    unstarted.stop()
    return unstarted


def with_client(stage: Stage, work: Any) -> Any:
    """What a coroutine makes of a client."""

    async def run() -> Any:
        async with connect(stage.address) as client:
            return await work(client)

    return asyncio.run(run())


async def done(client: Client, interface: str, member: str, *arguments: str, **options: Variant) -> dict[str, Any]:
    """The result of a job."""
    answer = await client.wait(await client.start(interface, member, *arguments, **options))
    assert not answer.error, answer.body
    result = answer.body[1]
    assert isinstance(result, dict)
    return result


async def attempt(client: Client, call: tuple[str, str, list[str], str]) -> Answer:
    """The error of a call, or of the job that it starts."""
    interface, member, arguments, path = call
    signature = "s" * len(arguments) + "a{sv}"
    options = DEFERRED if member == "Deploy" else {}
    message = Call(interface, member, signature, [*arguments, options], path)
    answer = await client.call(message)
    if answer.error or len(answer.body) != 2:
        return answer
    return await client.wait(answer.body[0])


def problems(stage: Stage) -> list[tuple[str, str]]:
    """What the daemon says is wrong: errors without their prefix, and texts."""
    found = with_client(stage, lambda client: client.get(names.ROOT_PATH, names.MANAGER, "Problems"))
    return [(name.removeprefix(f"{names.ERRORS}."), text) for name, text in found]


def listed(stage: Stage) -> list[str]:
    """The names of the images."""
    call = Call(names.MANAGER, "ListImages", "a{sv}", [{}])
    (rows,) = with_client(stage, lambda client: client.ask(call))
    return [name for row in rows for name in row[1]]


def rewrite(stage: Stage, **changes: object) -> None:
    """Change keys of `meta.json`."""
    path = stage.folder / META
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Insecure


def test_a_filesystem_without_verity_is_told_and_the_repository_stays_insecure(stage: Stage) -> None:
    before = (stage.folder / META).stat()

    async def call(client: Client) -> Answer:
        answer = await client.wait(await client.start(names.REPOSITORY, "EnableVerity"))
        assert not await client.get(names.ROOT_PATH, names.REPOSITORY, "Verity")
        return answer

    answer = with_client(stage, call)
    assert answer.error == f"{names.ERRORS}.Unsupported"
    assert "has no fs-verity with sha512; an ext4 gets it by `tune2fs -O verity`" in answer.body[0]
    assert (stage.folder / META).stat() == before


def test_an_insecure_repository_is_a_problem_that_names_the_way_out(filled: Stage) -> None:
    filled.config.write_text("")
    filled.start()
    ((name, text),) = problems(filled)
    assert name == "Unsupported"
    assert "enable-verity" in text
    assert listed(filled) == ["small"]


# Of older times


def test_an_old_repository_is_upgraded_when_the_daemon_starts(filled: Stage) -> None:
    text = (filled.folder / META).read_bytes()
    (filled.folder / META).unlink()
    filled.start()
    assert (filled.folder / META).read_bytes() == text
    assert problems(filled) == []
    assert listed(filled) == ["small"]


def test_an_old_repository_without_objects_is_refused_and_the_daemon_stays(unstarted: Stage, layout: str) -> None:
    (unstarted.folder / "repository/objects").mkdir(parents=True)
    unstarted.start()
    ((name, text),) = problems(unstarted)
    assert name == "IncompatibleRepository"
    assert "no object that could tell" in text
    pull = (names.MANAGER, "Pull", [f"oci:{layout}:small"], names.ROOT_PATH)
    answer = with_client(unstarted, lambda client: attempt(client, pull))
    assert answer.error == f"{names.ERRORS}.IncompatibleRepository"
    assert not (unstarted.folder / META).exists()


def test_an_old_repository_of_another_hash_than_configured_is_refused(unstarted: Stage) -> None:
    with Repository.create(unstarted.folder / "repository", Metadata.new(Algorithm.SHA256), insecure=True) as made:
        made.objects.store(b"hello world")
    (unstarted.folder / META).unlink()
    unstarted.start()
    ((name, text),) = problems(unstarted)
    assert name == "IncompatibleRepository"
    assert "named by sha256, not by sha512" in text
    assert not (unstarted.folder / META).exists()
    unstarted.stop()
    unstarted.config.write_text("[Daemon]\nInsecure=yes\nAlgorithm=sha256\n")
    unstarted.start()
    assert problems(unstarted) == []


# Of later times


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 2}, "repository version 2 is newer than 1"),
        ({"features": {"incompatible": ["frobnicated"]}}, "needs features we do not know: 'frobnicated'"),
        ({"algorithm": "fsverity-sha512-16"}, "fsverity-sha512-16"),
        ({"erofs_formats": {"default": 7}}, "unknown image format 7"),
    ],
)
def test_a_repository_of_later_times_is_refused_and_the_daemon_stays(
    unstarted: Stage, layout: str, changes: dict[str, object], told: str
) -> None:
    Repository.create(unstarted.folder / "repository", Metadata.new(Algorithm.SHA512), insecure=True).close()
    rewrite(unstarted, **changes)
    before = (unstarted.folder / META).read_bytes()
    unstarted.start()
    ((name, text),) = problems(unstarted)
    assert name == "IncompatibleRepository"
    assert told in text
    for call in ((names.MANAGER, "Pull", [f"oci:{layout}:small"]), (names.REPOSITORY, "EnableVerity", [])):
        answer = with_client(unstarted, lambda client, call=call: attempt(client, (*call, names.ROOT_PATH)))
        assert answer.error == f"{names.ERRORS}.IncompatibleRepository"
    assert (unstarted.folder / META).read_bytes() == before


def test_unknown_features_for_readers_allow_to_read_and_nothing_else(filled: Stage, layout: str) -> None:
    rewrite(filled, features={"compatible": ["x"], "read-only-compatible": ["v1_erofs", "frobnicated"]})
    filled.start()
    ((name, text),) = problems(filled)
    assert (name, "'frobnicated'" in text) == ("ReadOnly", True)
    assert listed(filled) == ["small"]
    before = snapshot(filled)

    async def read(client: Client) -> tuple[dict[str, Any], str, list[Any]]:
        assert not await client.get(names.ROOT_PATH, names.REPOSITORY, "Writable")
        (image,) = await client.ask(Call(names.MANAGER, "GetImage", "s", ["small"]))
        await client.ask(Call(names.IMAGE, "ReadDocument", "sa{sv}", ["manifest", {}], image))
        await done(client, names.REPOSITORY, "CollectGarbage", dry_run=Variant("b", value=True))
        await done(client, names.MANAGER, "ComputeDigest", "small", "normative")
        (deployments,) = await client.ask(Call(names.BOOT, "ListDeployments", "a{sv}", [{}]))
        checked = await done(client, names.REPOSITORY, "Check", depth=Variant("s", "full"))
        return (
            checked,
            deployments[0][2],
            [await attempt(client, call) for call in mutating(deployments[0][2], layout)],
        )

    checked, deployment, answers = with_client(filled, read)
    assert [found for found in checked["findings"] if found[0] == "error"] == []
    for call, answer in zip(mutating(deployment, layout), answers, strict=True):
        assert (call[1], answer.error) == (call[1], f"{names.ERRORS}.ReadOnly")
        assert "'frobnicated'" in answer.body[0]
    assert snapshot(filled) == before


def mutating(deployment: str, layout: str) -> list[tuple[str, str, list[str], str]]:
    """A call of everything that changes something: interface, method, its strings, object."""
    root = names.ROOT_PATH
    return [
        (names.MANAGER, "Pull", [f"oci:{layout}:other"], root),
        (names.MANAGER, "Generate", ["small", "all"], root),
        (names.MANAGER, "Tag", ["small", "new"], root),
        (names.MANAGER, "Untag", ["small"], root),
        (names.MANAGER, "RemoveImage", ["small"], root),
        (names.REPOSITORY, "CollectGarbage", [], root),
        (names.REPOSITORY, "EnableVerity", [], root),
        (names.BOOT, "Deploy", ["small"], root),
        (names.DEPLOYMENT, "Remove", [], deployment),
    ]


def snapshot(stage: Stage) -> dict[str, tuple[int, int]]:
    """Every name of the repository with what would change with it."""
    found = {str(path): path.lstat() for path in (stage.folder / "repository").rglob("*")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}
