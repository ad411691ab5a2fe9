"""A collection explains itself on the bus: its document, and what keeps what."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from dbus_next import Variant
from helpers.bus import Stage, worker_processes
from helpers.client import Answer, Call, Client, connect
from helpers.random_repository import listing

from composefsd.service import names

DRY_RUN = Variant("b", True)  # noqa: FBT003 - the value of a variant
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def run(stage: Stage, test: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with connect(stage.address) as client:
            await test(client)

    asyncio.run(connected())


async def pull(client: Client, layout: str, *tags: str) -> None:
    for tag in tags:
        options = {"name": Variant("s", tag), "generate": Variant("as", ["normative"])}
        job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:{tag}", **options)
        assert not (await client.wait(job)).error


async def collect(client: Client, **options: Variant) -> tuple[int, Mapping[str, Any]]:
    """A collection that has ended; its id and result."""
    job = await client.start(names.REPOSITORY, "CollectGarbage", **options)
    answer = await client.wait(job)
    assert not answer.error, answer.body
    return job, answer.body[1]


def document(job: int, member: str, which: str = "garbage") -> Call:
    return Call(names.JOB, member, "sa{sv}", [which, {}], names.job_path(job))


async def lines(client: Client, job: int) -> list[dict[str, Any]]:
    (text,) = await client.ask(document(job, "ReadDocument"))
    return [json.loads(line) for line in text.splitlines()]


async def explain(client: Client, what: str) -> list[list[str]]:
    (reasons,) = await client.ask(Call(names.REPOSITORY, "Explain", "s", [what]))
    assert isinstance(reasons, list)
    return reasons


def paths_that_go(found: list[dict[str, Any]]) -> set[str]:
    """Where in the repository the things of a listing are."""
    return {
        f"objects/{line['digest'][7:9]}/{line['digest'][9:]}" if line["goes"] == "object" else line["path"]
        for line in found
        if "goes" in line
    }


def test_a_dry_run_tells_what_the_collection_then_removes(stage: Stage, layout: str) -> None:
    repository = stage.folder / "repository"

    async def test(client: Client) -> None:
        await pull(client, layout, "small", "other")
        await client.ask(Call(names.MANAGER, "Untag", "sa{sv}", ["small", {}]))
        (repository / "objects/.tmp-object-abcdefABCDEF").write_bytes(b"left")
        (repository / "streams/refs/nowhere").symlink_to("../nothing/..")
        before = listing(repository)
        told, expected = await collect(client, dry_run=DRY_RUN)
        assert listing(repository) == before
        done, result = await collect(client)
        assert result == expected
        assert result["unlisted"] == 0
        removed = set(before) - set(listing(repository))
        planned, happened = await lines(client, told), await lines(client, done)
        assert paths_that_go(planned) == paths_that_go(happened) == removed
        assert {line["goes"] for line in happened[:-1]} == {"temporary", "image", "stream", "object", "ref"}
        assert happened[-1] == {"end": True, "unlisted": 0}
        sizes = [line["bytes"] for line in planned if line.get("goes") == "object"]
        assert (len(sizes), sum(sizes)) == (result["objects-removed"], result["freed-bytes"])
        (root,) = [line for line in planned if "stays" in line]
        assert (root["stays"], root["name"]) == ("tag", "other")
        objects = [int(size) for path, size in listing(repository).items() if path.startswith("objects/")]
        assert (root["objects"], root["bytes"]) == (len(objects), sum(objects))
        assert (root["objects_alone"], root["bytes_alone"]) == (root["objects"], root["bytes"])

    run(stage, test)


def test_the_document_is_a_sealed_memfd_that_all_readers_share(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small")
        job, _ = await collect(client, dry_run=DRY_RUN)
        first, second = [await client.descriptor(document(job, "OpenDocument")) for _ in range(2)]
        assert fcntl.fcntl(first, fcntl.F_GET_SEALS) == SEALS
        assert os.fstat(first).st_ino == os.fstat(second).st_ino
        (text,) = await client.ask(document(job, "ReadDocument"))
        for fd in (first, second):
            with os.fdopen(fd, encoding="ascii") as file:
                assert file.read() == text

    run(stage, test)


def test_there_is_no_document_of_another_name_or_job_or_before_the_end(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small")
        for call in (
            document(1, "OpenDocument"),
            document(1, "ReadDocument"),
            document(1, "ReadDocument", "manifest"),
        ):
            assert (await client.call(call)).error == f"{names.ERRORS}.NoSuchDocument"
        odd = Call(names.JOB, "ReadDocument", "sa{sv}", ["garbage", {"x": DRY_RUN}], names.job_path(1))
        assert (await client.call(odd)).error == f"{names.FREEDESKTOP_ERRORS}.InvalidArgs"
        job = await client.start(names.REPOSITORY, "CollectGarbage", dry_run=DRY_RUN)
        async with asyncio.timeout(30):
            while not (found := worker_processes(stage.pid)):
                await asyncio.sleep(0.001)
        os.kill(found[0], signal.SIGSTOP)
        early = await client.call(document(job, "ReadDocument"))
        os.kill(found[0], signal.SIGCONT)
        assert not (await client.wait(job)).error
        assert early.error == f"{names.ERRORS}.NoSuchDocument"
        assert (await lines(client, job))[-1] == {"end": True, "unlisted": 0}

    run(stage, test)


def test_a_collection_whose_worker_dies_keeps_what_it_told(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small")
        job = await client.start(names.REPOSITORY, "CollectGarbage")
        async with asyncio.timeout(30):
            while not (found := worker_processes(stage.pid)):
                await asyncio.sleep(0.001)
        os.kill(found[0], signal.SIGKILL)
        answer = await client.wait(job)
        assert answer.error in (f"{names.ERRORS}.Interrupted", "")
        assert not (await client.call(document(job, "ReadDocument"))).error
        _, result = await collect(client)
        assert result["objects-removed"] == 0

    run(stage, test)


def test_what_keeps_something_is_told(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small", "other")
        (path,) = await client.ask(Call(names.MANAGER, "GetImage", "s", ["small"]))
        image = await client.get_all(path, names.IMAGE)
        manifest, config = image["ManifestDigest"], image["ConfigDigest"]
        composefs = image["Digests"][0][4]
        asked = ("small", manifest, config, f"oci-manifest-{manifest}", composefs, composefs.partition(":")[2])
        assert [await explain(client, what) for what in asked] == [[["tag", "small"]]] * len(asked)
        await client.ask(Call(names.MANAGER, "Tag", "ssa{sv}", ["small", "again", {}]))
        assert await explain(client, composefs) == [["tag", "again"], ["tag", "small"]]
        options = {"verity": Variant("s", "deferred"), "type": Variant("s", "type1")}
        job = await client.start(names.BOOT, "Deploy", "small", **options)
        assert not (await client.wait(job)).error
        for name in ("again", "small"):
            await client.ask(Call(names.MANAGER, "Untag", "sa{sv}", [name, {}]))
        assert await explain(client, composefs) == [["deployment", manifest]]
        await client.ask(Call(names.MANAGER, "Untag", "sa{sv}", ["other", {}]))
        (gone,) = {line["path"] for line in await garbage(client) if line.get("path", "").startswith("streams/oci-m")}
        assert await explain(client, gone.removeprefix("streams/")) == []

    run(stage, test)


async def garbage(client: Client) -> list[dict[str, Any]]:
    job, _ = await collect(client, dry_run=DRY_RUN)
    return await lines(client, job)


def test_what_cannot_be_explained_is_an_error_that_says_why(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small")

        async def error(what: str) -> str:
            return (await client.call(Call(names.REPOSITORY, "Explain", "s", [what]))).error

        for what in ("nothing", "", "sha512:" + "0" * 128, "../.."):
            assert await error(what) == f"{names.ERRORS}.NoSuchObject"
        assert await error("x" * 5000) == f"{names.FREEDESKTOP_ERRORS}.InvalidArgs"
        (stream,) = (stage.folder / "repository/streams").glob("oci-manifest-*")
        stream.resolve().unlink()
        assert await error("small") == f"{names.ERRORS}.ObjectMissing"

    run(stage, test)


def test_a_client_asks_one_thing_at_a_time_and_a_collection_waits_for_it_only_once(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small")
        asks = [asyncio.create_task(client.call(Call(names.REPOSITORY, "Explain", "s", ["small"]))) for _ in range(3)]
        job = await client.start(names.REPOSITORY, "CollectGarbage")
        answers: list[Answer] = await asyncio.gather(*asks)
        assert sorted(answer.error for answer in answers) == ["", *[f"{names.ERRORS}.LimitExceeded"] * 2]
        assert not (await client.wait(job)).error
        assert await explain(client, "small") == [["tag", "small"]]

    run(stage, test)


# On the command line


def ctl(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "composefsctl"), f"--bus={stage.address}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_gc_and_explain_tell_people_and_programs(stage: Stage, layout: str) -> None:
    for tag in ("small", "other"):
        assert ctl(stage, "pull", f"oci:{layout}:{tag}", f"--name={tag}", "--generate=normative").returncode == 0
    assert ctl(stage, "untag", "other").returncode == 0
    answer = json.loads(ctl(stage, "--json", "gc", "--dry-run").stdout)
    assert [(root["kind"], root["name"]) for root in answer["stays"]] == [("tag", "small")]
    objects = [one for one in answer["goes"] if one["kind"] == "object"]
    assert (len(objects), sum(one["bytes"] for one in objects)) == (answer["objects_removed"], answer["freed_bytes"])
    text = ctl(stage, "gc", "--dry-run", "--quiet").stdout
    rows = [line.split() for line in text.splitlines()]
    assert text.startswith("nothing was removed")
    assert ["objects", str(len(objects))] in [row[:2] for row in rows]
    assert ["tag", "small"] in [row[:2] for row in rows]
    assert objects[0]["name"] not in text
    everything = ctl(stage, "gc", "--dry-run", "--quiet", "--verbose").stdout
    assert all(one["name"] in everything for one in answer["goes"])
    gone = ctl(stage, "explain", objects[0]["name"])
    assert (gone.returncode, gone.stdout, gone.stderr) == (1, "nothing keeps it\n", "")
    kept = ctl(stage, "explain", "small", "--json")
    assert (kept.returncode, kept.stderr) == (0, "")
    reasons = [{"kind": "tag", "name": "small"}]
    assert json.loads(kept.stdout) == {"object": "small", "kept": True, "reasons": reasons}
    removed = ctl(stage, "gc", "--quiet", "--verbose")
    assert all(one["name"] in removed.stdout for one in answer["goes"])
    missing = ctl(stage, "explain", objects[0]["name"])
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("composefsctl: no object, stream, image or tag")
