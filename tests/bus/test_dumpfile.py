"""The dumpfile of a stored image: over the bus, in `composefsctl inspect`, and as a side of `composefsctl diff`."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dbus_next import Variant
from helpers.bus import GAMES, PolkitStage, Stage, why_no_polkit
from helpers.client import Call, Client, call_as, connect

from composefsd.client.exits import Exit
from composefsd.service import names
from composefsd.service.dumps import WAITING

CTL = str(Path(sys.executable).parent / "composefsctl")


@pytest.fixture(scope="module")
def shared(shared_stage: Stage, layout: str) -> Stage:
    """A daemon whose repository holds the images `small` and `other`."""
    ctl(shared_stage, "pull", f"oci:{layout}:small", "--name=small", "--quiet")
    ctl(shared_stage, "pull", f"oci:{layout}:other", "--name=other", "--generate=none", "--quiet")
    return shared_stage


def ctl(stage: Stage, *arguments: str, status: int = 0) -> str:
    command = [CTL, f"--bus={stage.address}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def run(stage: Stage, test: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with connect(stage.address) as client:
            await test(client)

    asyncio.run(connected())


async def image_path(client: Client, name: str) -> str:
    (path,) = await client.ask(Call(names.MANAGER, "GetImage", "s", [name]))
    return str(path)


def open_dump(path: str, **options: str) -> Call:
    given = {name: Variant("s", value) for name, value in options.items()}
    return Call(names.IMAGE, "OpenDocument", "sa{sv}", ["dumpfile", given], path)


# The document


def test_a_dumpfile_is_that_of_the_layout_and_cannot_be_changed(shared: Stage, layout: str) -> None:
    async def test(client: Client) -> None:
        path = await image_path(client, "small")
        for options, arguments in (
            ({}, []),
            ({"kind": "boot"}, ["--bootable"]),
            ({"hash": "sha256", "xattrs": "keep-user-xattrs"}, ["--hash=sha256", "--xattrs=keep-user-xattrs"]),
        ):
            descriptor = await client.descriptor(open_dump(path, **options))
            with os.fdopen(descriptor, "rb") as file:
                expected = ctl(shared, "compute-id", f"oci:{layout}:small", "--dumpfile", *arguments)
                assert file.read().decode() == expected
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE

    run(shared, test)


def test_what_cannot_be_had_is_refused_by_name(shared: Stage) -> None:
    async def test(client: Client) -> None:
        path = await image_path(client, "other")
        invalid = "org.freedesktop.DBus.Error.InvalidArgs"
        for options, error in (
            ({"kind": "both"}, invalid),
            ({"hash": "md5"}, invalid),
            ({"format": "v1"}, invalid),
            ({"kind": "boot"}, f"{names.ERRORS}.NotBootable"),  # it has no /boot
        ):
            assert (await client.call(open_dump(path, **options))).error == error
        read = Call(names.IMAGE, "ReadDocument", "sa{sv}", ["dumpfile", {}], path)
        assert (await client.call(read)).error == f"{names.ERRORS}.Unsupported"

    run(shared, test)


def test_many_who_ask_at_once_are_refused_while_others_are_answered(stage: Stage, layout: str) -> None:
    ctl(stage, "pull", f"oci:{layout}:slow", "--name=slow", "--generate=none", "--quiet")

    async def test(client: Client) -> None:
        path = await image_path(client, "slow")
        asked = [asyncio.ensure_future(client.bus.call(open_dump(path).message())) for _ in range(2 * WAITING)]
        longest = 0.0
        while not all(one.done() for one in asked):
            started = time.monotonic()
            await client.get(names.ROOT_PATH, names.MANAGER, "State")
            longest = max(longest, time.monotonic() - started)
            await asyncio.sleep(0.05)
        replies: list[Any] = [one.result() for one in asked]
        for reply in replies:
            for descriptor in reply.unix_fds:
                os.close(descriptor)
        refused = [reply.error_name for reply in replies if reply.error_name]
        assert refused == [f"{names.ERRORS}.LimitExceeded"] * WAITING
        assert longest < 5  # the machine may be busy; the dumpfiles together take longer

    run(stage, test)


@pytest.mark.skipif(bool(why_no_polkit()), reason=why_no_polkit() or "-")
def test_a_user_who_may_not_compute_gets_no_dumpfile(layout: str) -> None:
    with TemporaryDirectory(prefix="composefsd-test-") as folder, PolkitStage(Path(folder), "") as stage:
        ctl(stage, "pull", f"oci:{layout}:other", "--name=other", "--generate=none", "--quiet")
        find = Call(names.MANAGER, "GetImage", "s", ["other"])
        (found,) = call_as(GAMES, stage.address, [find])
        path = str(found.body[0])
        manifest = Call(names.IMAGE, "ReadDocument", "sa{sv}", ["manifest", {}], path)
        read, opened = call_as(GAMES, stage.address, [manifest, open_dump(path)])
        assert not read.error
        assert opened.error == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


# composefsctl


def test_inspect_prints_the_dumpfile(shared: Stage, layout: str) -> None:
    assert ctl(shared, "inspect", "other", "--document=dumpfile") == ctl(
        shared, "compute-id", f"oci:{layout}:other", "--dumpfile"
    )
    boot = ctl(shared, "inspect", "small", "--document=dumpfile", "--kind=boot")
    assert boot == ctl(shared, "compute-id", f"oci:{layout}:small", "--dumpfile", "--bootable")


def test_two_stored_images_are_compared(shared: Stage) -> None:
    out = ctl(shared, "diff", "image:small", "image:other", status=Exit.DIFFERENT)
    assert "stored image:small" in out
    assert "only in B: /usr/other (file, 6 bytes)" in out
    same = json.loads(ctl(shared, "diff", "image:small", "image:small", "--bootable", "--json"))
    boot = next(one for one in image_digests(shared, "small") if one["kind"] == "boot")
    assert (same["equal"], f"sha512:{same['a']['digest']}") == (True, boot["digest"])


def image_digests(stage: Stage, name: str) -> Any:
    return json.loads(ctl(stage, "inspect", name, "--json"))["digests"]


def test_a_stored_image_equals_the_layout_that_it_came_from(shared: Stage, layout: str) -> None:
    for arguments in (["--bootable"], ["--hash=sha256", "--format=v2"]):
        assert ctl(shared, "diff", "image:small", f"oci:{layout}:small", *arguments).endswith(
            "the digests are equal\n"
        )


def test_a_stored_image_is_found_by_the_digest_that_a_uki_names(shared: Stage) -> None:
    boot = next(one["digest"] for one in image_digests(shared, "small") if one["kind"] == "boot")
    for text in (boot, boot.partition(":")[2], boot.partition(":")[2][:12]):
        ctl(shared, "diff", f"image:{text}", "image:small", "--bootable")
    ctl(shared, "diff", f"image:{'0' * 128}", "image:small", status=Exit.TROUBLE)
