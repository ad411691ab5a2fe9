"""Images and deployments on the bus: shown, named, read, removed, collected."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import Stage
from helpers.client import Call, Client, connect
from real.oci_layout import Layout

from composefsd.service import names
from composefsd.service.image import LENT_BYTES

NORMATIVE = Variant("as", ["normative"])


def run(stage: Stage, test: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with connect(stage.address) as client:
            await client.subscribe()
            await test(client)

    asyncio.run(connected())


async def pull(client: Client, layout: str, tag: str, **options: Variant) -> dict[str, Any]:
    """Pull and name an image; the job's result."""
    job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:{tag}", name=Variant("s", tag), **options)
    answer = await client.wait(job)
    assert not answer.error, answer.body
    result = answer.body[1]
    assert isinstance(result, dict)
    return result


async def manager(client: Client, member: str, *arguments: str, **options: Variant) -> Any:
    """Call a method of the manager that takes strings and options; its error, or what it answers."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    answer = await client.call(Call(names.MANAGER, member, "s" * len(arguments) + "a{sv}", [*arguments, named]))
    return answer.error.removeprefix(f"{names.ERRORS}.") or answer.body


def test_an_image_is_found_by_name_digest_and_prefix(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "other", generate=NORMATIVE)
        digest, path = result["manifest-digest"], result["image"]
        config = await client.get(path, names.IMAGE, "ConfigDigest")
        hexadecimal = digest.removeprefix("sha256:")
        for text in ("other", digest, config, hexadecimal[:12], f"sha256:{hexadecimal[:20]}"):
            assert await client.ask(Call(names.MANAGER, "GetImage", "s", [text])) == [path]
        for text in (hexadecimal[:11], "other2", ""):
            answer = await client.call(Call(names.MANAGER, "GetImage", "s", [text]))
            assert answer.error == f"{names.ERRORS}.NoSuchImage"

    run(stage, test)


def test_an_image_tells_what_it_is(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "small")
        shown = await client.get_all(result["image"], names.IMAGE)
        assert (shown["ManifestDigest"], shown["Names"]) == (result["manifest-digest"], ["small"])
        assert (shown["Os"], shown["Architecture"], shown["LayerCount"]) == ("linux", "amd64", 3)
        assert shown["ArtifactType"] == ""
        digests = {kind: digest for kind, _, _, _, digest in shown["Digests"]}
        assert digests == {"normative": result["normative-digest"], "boot": result["boot-digest"]}
        assert {tuple(row[1:4]) for row in shown["Digests"]} == {("v1", "sha512", 4096)}
        assert shown["Bootable"] == [True, []]
        ((digest, tags, path, details),) = (await manager(client, "ListImages"))[0]
        assert (digest, tags, path, details) == (result["manifest-digest"], ["small"], result["image"], shown)
        (managed,) = await client.ask(Call(names.OBJECT_MANAGER, "GetManagedObjects"))
        assert managed[path] == {names.IMAGE: shown}
        assert await client.get(names.ROOT_PATH, names.REPOSITORY, "ImageCount") == 1

    run(stage, test)


def test_an_artifact_is_shown_as_what_it_is_and_only_that(stage: Stage, tmp_path: Path) -> None:
    kind = "application/vnd.example.thing"
    made = Layout(tmp_path / "oci")
    made.add_artifact("thing", [made.add_blob(b"one", kind), made.add_blob(b"second", kind)])

    async def test(client: Client) -> None:
        result = await pull(client, str(made.path), "thing")
        assert set(result) == {"manifest-digest", "image", "bytes-fetched", "bytes-reused", "objects-added"}
        shown = await client.get_all(result["image"], names.IMAGE)
        assert (shown["ArtifactType"], shown["Names"], shown["Size"]) == (kind, ["thing"], 9)
        assert (shown["LayerCount"], shown["Os"], shown["Architecture"]) == (2, "", "")
        assert (shown["Digests"], shown["BootResources"]) == ([], [])
        assert shown["Bootable"] == [False, [f"an artifact of type {kind} has nothing to boot"]]
        refused = f"{result['manifest-digest']} is an artifact of type {kind}, not a container image"
        for interface, member, *arguments in (
            (names.MANAGER, "Generate", "thing", "all"),
            (names.MANAGER, "ComputeDigest", "thing", "boot"),
            (names.BOOT, "PlanDeploy", "thing"),
            (names.BOOT, "Deploy", "thing"),
        ):
            answer = await client.wait(await client.start(interface, member, *arguments))
            assert (answer.error, answer.body) == (f"{names.ERRORS}.Unsupported", [refused]), member
        assert await manager(client, "Tag", "thing", "second") == []
        assert await manager(client, "RemoveImage", "thing", force=Variant("b", value=True)) == [["second", "thing"]]

    run(stage, test)


def test_an_artifact_is_told_apart_on_the_command_line(stage: Stage, tmp_path: Path) -> None:
    kind = "application/vnd.example.thing"
    made = Layout(tmp_path / "oci")
    made.add_artifact("thing", [made.add_blob(b"data", kind)])

    def ctl(*arguments: str) -> str:
        command = [Path(sys.executable).parent / "composefsctl", f"--bus={stage.address}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    ctl("pull", f"oci:{made.path}:thing", "--name=thing")
    (shown,) = json.loads(ctl("images", "--json"))
    assert (shown["artifact_type"], shown["digests"], shown["bootable"]) == (kind, [], False)
    assert json.loads(ctl("inspect", "thing", "--json"))["artifact_type"] == kind
    assert kind in ctl("images")
    assert ["artifact", kind] in [line.split() for line in ctl("inspect", "thing").splitlines()]


def test_images_are_listed_in_pages(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        for tag in ("small", "other"):
            await pull(client, layout, tag, generate=NORMATIVE)
        brief = {"names_only": Variant("b", value=True)}
        (rows,) = await manager(client, "ListImages", **brief)
        assert [row[3] for row in rows] == [{}, {}]
        digests = [row[0] for row in rows]
        assert digests == sorted(digests)
        (first,) = await manager(client, "ListImages", limit=Variant("u", 1), **brief)
        (second,) = await manager(
            client, "ListImages", limit=Variant("u", 1), after=Variant("s", digests[0]), **brief
        )
        assert first + second == rows

    run(stage, test)


def test_a_document_is_read_byte_for_byte(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "other", generate=NORMATIVE)
        for which, name in (("manifest", "ManifestDigest"), ("config", "ConfigDigest")):
            (text,) = await client.ask(Call(names.IMAGE, "ReadDocument", "sa{sv}", [which, {}], result["image"]))
            digest = await client.get(result["image"], names.IMAGE, name)
            assert f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" == digest
            assert json.loads(text)
        unknown = await client.call(Call(names.IMAGE, "ReadDocument", "sa{sv}", ["diary", {}], result["image"]))
        assert unknown.error == f"{names.ERRORS}.NoSuchDocument"

    run(stage, test)


def test_an_open_document_cannot_be_changed(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "other", generate=NORMATIVE)
        call = Call(names.IMAGE, "OpenDocument", "sa{sv}", ["manifest", {}], result["image"])
        descriptor = await client.descriptor(call)
        writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(writable, 0)
        finally:
            os.close(writable)
            os.close(descriptor)

    run(stage, test)


def test_names_come_and_go(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "small", generate=NORMATIVE)
        await pull(client, layout, "other", generate=NORMATIVE)
        assert await manager(client, "Tag", "small", "second") == []
        assert await manager(client, "Tag", "small", "other") == "NameInUse"
        assert await manager(client, "Tag", "small", "other", replace=Variant("b", value=True)) == []
        assert await client.get(result["image"], names.IMAGE, "Names") == ["other", "second", "small"]
        changed = [s.body[1] for s in client.received("PropertiesChanged") if s.path == result["image"]]
        assert {"Names": ["second", "small"]} in changed
        assert await manager(client, "Untag", "second") == []
        assert await manager(client, "Untag", "second") == "NoSuchImage"
        assert await manager(client, "Untag", "second", missing_ok=Variant("b", value=True)) == []
        assert await manager(client, "RemoveImage", "small") == "InUse"
        assert await manager(client, "RemoveImage", "small", force=Variant("b", value=True)) == [["other", "small"]]
        assert client.received("ImageRemoved")[0].body == [result["manifest-digest"], result["image"]]
        gone = await client.call(Call(names.PROPERTIES, "GetAll", "s", [names.IMAGE], result["image"]))
        assert gone.error == "org.freedesktop.DBus.Error.UnknownObject"

    run(stage, test)


def test_generating_gives_what_was_computed(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small", generate=NORMATIVE)
        computing = await client.start(names.MANAGER, "ComputeDigest", "small", "boot")
        computed = (await client.wait(computing)).body[1]
        expected = {"expect": Variant("s", computed["boot-digest"])}
        generating = await client.start(names.MANAGER, "Generate", "small", "all", **expected)
        generated = (await client.wait(generating)).body[1]
        assert generated["boot-digest"] == computed["boot-digest"]
        other = {"hash": Variant("s", "sha256"), "format": Variant("s", "v2")}
        assert await manager(client, "Generate", "small", "boot", **other) == "Unsupported"
        with_other = await client.start(names.MANAGER, "ComputeDigest", "small", "boot", **other)
        assert (await client.wait(with_other)).body[1]["boot-digest"].startswith("sha256:")
        wrong = {"expect": Variant("s", "sha512:" + "0" * 128)}
        failing = await client.start(names.MANAGER, "Generate", "small", "normative", **wrong)
        assert (await client.wait(failing)).error == f"{names.ERRORS}.DigestMismatch"

    run(stage, test)


def test_a_deployment_is_planned_made_shown_and_removed(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        image = (await pull(client, layout, "small"))["image"]
        options = {"verity": Variant("s", "deferred"), "type": Variant("s", "type1")}
        plan = (await client.wait(await client.start(names.BOOT, "PlanDeploy", "small", **options))).body[1]
        assert plan["objections"] == []
        assert {"write", "write-entry"} <= {action for action, _, _ in plan["plan"]}
        assert list(stage.esp.iterdir()) == []
        made = (await client.wait(await client.start(names.BOOT, "Deploy", "small", **options))).body[1]
        shown = await client.get_all(made["deployment"], names.DEPLOYMENT)
        assert (shown["Image"], shown["Type"]) == (image, "type1")
        assert await client.get(image, names.IMAGE, "Deployments") == [made["deployment"]]
        ((number, _, path, details),) = (await client.ask(Call(names.BOOT, "ListDeployments", "a{sv}", [{}])))[0]
        assert (path, details) == (made["deployment"], shown)
        assert await client.ask(Call(names.BOOT, "GetDeployment", "s", [number[:12]])) == [path]
        assert await manager(client, "RemoveImage", "small") == "InUse"
        refused = await client.wait(await client.start(names.BOOT, "PlanDeploy", "small"))
        assert any("fs-verity" in reason for reason in refused.body[1]["objections"])
        job, _ = await client.ask(Call(names.DEPLOYMENT, "Remove", "a{sv}", [{}], path))
        assert (await client.wait(job)).body[1]["freed-bytes"] > 0
        gone = await client.call(Call(names.PROPERTIES, "GetAll", "s", [names.DEPLOYMENT], path))
        assert gone.error == "org.freedesktop.DBus.Error.UnknownObject"

    run(stage, test)


def test_a_damaged_repository_is_told_finding_by_finding(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        await pull(client, layout, "small", generate=NORMATIVE)
        check = {"depth": Variant("s", "full")}
        clean = (await client.wait(await client.start(names.REPOSITORY, "Check", **check))).body[1]
        assert (clean["findings"], clean["findings-total"]) == ([], 0)
        assert (await client.get(names.ROOT_PATH, names.REPOSITORY, "LastCheck"))[1] is True
        objects = [path for path in (stage.folder / "repository" / "objects").rglob("*") if path.is_file()]
        victim = max(objects, key=lambda path: path.stat().st_size)
        victim.chmod(0o600)
        victim.write_bytes(b"damaged")
        number = await client.start(names.REPOSITORY, "Check", **check)
        found = (await client.wait(number)).body[1]
        assert found["findings-total"] >= 1
        signals = [signal.body for signal in client.received("Finding")]
        assert [[number, *row] for row in found["findings"]] == signals
        assert (await client.get(names.ROOT_PATH, names.REPOSITORY, "LastCheck"))[1] is False

    run(stage, test)


def test_documents_that_clients_keep_open_are_counted(stage: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        result = await pull(client, layout, "other", generate=NORMATIVE)
        call = Call(names.IMAGE, "OpenDocument", "sa{sv}", ["manifest", {}], result["image"])
        kept: list[int] = []
        try:
            for _ in range(LENT_BYTES // (64 << 10)):
                kept.append(await client.descriptor(call))
                await asyncio.sleep(0.005)  # or the calls are too many
            assert (await client.call(call)).error == f"{names.ERRORS}.LimitExceeded"
            read = Call(names.IMAGE, "ReadDocument", "sa{sv}", ["manifest", {}], result["image"])
            assert not (await client.call(read)).error
        finally:
            for descriptor in kept:
                os.close(descriptor)
        with os.fdopen(await client.descriptor(call), "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == result["manifest-digest"].removeprefix("sha256:")

    run(stage, test)
