"""The daemon on a bus in the virtual machine: the one call, and what clients see of it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import bus, client
from helpers.bus import Stage
from helpers.client import connect
from vm.guest import IMAGE, copy_template, findings, has_verity, tool

from composefsd.service import names


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A daemon that demands fs-verity, on a repository that was made without."""
    monkeypatch.setattr(bus, "_WAIT_SECONDS", 300.0)  # all is slow here
    monkeypatch.setattr(client, "WAIT_SECONDS", 300.0)
    copy_template(tmp_path)
    made = Stage(tmp_path)
    made.config.write_text("[Daemon]\nInsecure=no\n")
    with made:
        yield made


def test_properties_and_problems_follow_at_once(stage: Stage) -> None:
    async def call() -> None:
        async with connect(stage.address) as user:
            assert [name for name, _ in await user.get(names.ROOT_PATH, names.MANAGER, "Problems")] == [
                f"{names.ERRORS}.Unsupported"
            ]
            assert not await user.get(names.ROOT_PATH, names.REPOSITORY, "Verity")
            await user.subscribe()
            answer = await user.wait(await user.start(names.REPOSITORY, "EnableVerity"))
            assert answer.error == "", answer.body
            assert answer.body[1]["objects-enabled"] == answer.body[1]["objects-checked"] > 8
            changed = {
                name: value
                for signal in user.received("PropertiesChanged")
                if signal.path == names.ROOT_PATH
                for name, value in signal.body[1].items()
            }
            assert changed["Verity"] is True
            assert changed["Problems"] == []
            assert "verity" in changed["Features"]
            answer = await user.wait(await user.start(names.REPOSITORY, "EnableVerity"))
            assert answer.body[1]["already-secure"] is True

    asyncio.run(call())
    assert has_verity(stage.folder / "repository/meta.json")


def test_the_command_line_makes_it_secure_and_an_image_can_be_pulled_then(stage: Stage) -> None:
    command = ["composefsctl", f"--bus={stage.address}"]
    with pytest.raises(AssertionError, match="enable-verity"):
        tool(*command, "pull", IMAGE)
    assert tool(*command, "enable-verity", "--quiet").startswith("the repository is secure: ")
    tool(*command, "pull", IMAGE, "--quiet")
    assert findings(stage.folder / "repository") == set()
