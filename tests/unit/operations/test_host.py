"""The host's repository: locks that do not wait for ever, and problems that are told instead of raised."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.errors import IncompatibleRepositoryError, LockedError, ReadOnlyError, VerityRequiredError
from composefsd.linux import fsverity
from composefsd.operations import host as module
from composefsd.operations.host import Host, Settings
from composefsd.operations.progress import Silent, Stage
from composefsd.operations.verity import enable_verity
from composefsd.repository import Metadata, Repository


class Watching(Silent):
    """Remembers stages."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def stage(self, stage: Stage) -> None:
        self.stages.append(stage)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "repository", tmp_path, None, None, tmp_path / "state", insecure=True)


@pytest.fixture
def busy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host whose repository somebody else uses, as `cfsctl transaction` does."""
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.3)
    host = Host.open(settings)
    with Repository.open(settings.repository) as other, other.shared_lock(0):
        yield host


def names(host: Host) -> list[str]:
    return [name for name, _ in host.problems]


async def alone(host: Host) -> None:
    async with host.alone() as (repository, lock):
        os.fstat(lock)
        with Repository.open(repository.path) as other, pytest.raises(LockedError), other.shared_lock(0):
            pass


def test_nobody_else_has_the_repository_meanwhile(settings: Settings) -> None:
    asyncio.run(alone(Host.open(settings)))
    with Repository.open(settings.repository) as other, other.exclusive_lock(0):
        pass


def test_a_repository_that_stays_in_use_is_told_as_locked(busy: Host) -> None:
    with pytest.raises(LockedError, match="in use by another process"):
        asyncio.run(alone(busy))


def test_a_repository_in_use_is_not_made_secure(busy: Host) -> None:
    watching = Watching()
    with pytest.raises(LockedError):
        asyncio.run(enable_verity(busy, watching))
    assert watching.stages == []


def test_a_repository_that_cannot_be_written_is_not_made_secure(settings: Settings) -> None:
    Host.open(settings)
    meta = settings.repository / "meta.json"
    meta.write_text(meta.read_text().replace('"v1_erofs"', '"v1_erofs", "frobnicated"'))
    host = Host.open(settings)
    assert names(host) == ["ReadOnly"]
    with pytest.raises(ReadOnlyError, match="'frobnicated'"):
        asyncio.run(enable_verity(host, Silent()))


def test_without_verity_in_the_filesystem_nothing_is_begun(settings: Settings) -> None:
    host = Host.open(settings)
    with Repository.open(settings.repository) as repository:
        if fsverity.probe(repository.fd, repository.algorithm):
            pytest.skip("needs a filesystem without fs-verity")
    watching = Watching()
    with pytest.raises(VerityRequiredError, match=f"the filesystem of {settings.repository} has no fs-verity"):
        asyncio.run(enable_verity(host, watching))
    assert watching.stages == []
    assert [path.name for path in settings.repository.iterdir()] == ["meta.json"]


def test_problems_are_found_anew_when_they_may_be_gone(settings: Settings) -> None:
    Host.open(settings)
    host = Host.open(replace(settings, insecure=False))
    assert names(host) == ["VerityRequired"]
    host.settings = settings
    host.look_again()
    assert names(host) == []
    (settings.repository / "meta.json").write_text("{")
    host.look_again()
    assert names(host) == ["Format"]


def test_a_missing_repository_is_made_and_an_old_one_upgraded(settings: Settings) -> None:
    assert Host.open(settings).algorithm is Algorithm.SHA512
    with Repository.open(settings.repository) as repository:
        repository.objects.store(b"hello world")
    (settings.repository / "meta.json").unlink()
    host = Host.open(settings)
    assert names(host) == []
    assert host.metadata == Metadata.new(Algorithm.SHA512)


def test_an_old_repository_that_cannot_be_upgraded_is_a_problem_of_every_operation(settings: Settings) -> None:
    (settings.repository / "objects").mkdir(parents=True)
    host = Host.open(settings)
    assert names(host) == ["IncompatibleRepository"]
    with pytest.raises(IncompatibleRepositoryError):
        asyncio.run(alone(host))
    host.look_again()
    assert names(host) == ["IncompatibleRepository"]
