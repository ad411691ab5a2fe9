"""Making an insecure repository secure: fs-verity for all that it holds, and demanded from then on."""

import asyncio
from dataclasses import dataclass
from typing import Final

from composefsd.errors import CorruptError, VerityRequiredError
from composefsd.operations.collect import KEEPER
from composefsd.operations.host import Host
from composefsd.operations.model import Finding
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository, secure
from composefsd.workers.pool import Event, number, worker

_NAMED_FINDINGS: Final = 5


@dataclass(frozen=True, slots=True)
class VerityResult:
    """What was done: nothing if the repository was secure already; enabled counts objects that had no fs-verity."""

    already_secure: bool = False
    objects_checked: int = 0
    objects_enabled: int = 0
    bytes_checked: int = 0


async def enable_verity(host: Host, progress: Progress) -> VerityResult:
    """Have an insecure repository demand fs-verity of every object, whole or not at all.

    Until the very last step it is what it was, whatever stops this, and calling again goes on where it stopped.
    Other tools are kept out meanwhile, so that no object can come in between.

    Raises VerityRequiredError on a filesystem without fs-verity, CorruptError if an object is not what its name says
    (every one is told to `progress`), LockedError if the repository is in use for more than a minute, or somebody has
    an object open for writing, ReadOnlyError, NoSpaceError and DeviceError.
    """
    async with host.alone() as (repository, lock):
        if repository.verity:
            await asyncio.to_thread(repository.make_secure)
            result = VerityResult(already_secure=True)
        else:
            await asyncio.to_thread(_prepare, repository)
            result = await _enable(repository, lock, progress)
    host.look_again()
    return result


def _prepare(repository: Repository) -> None:
    if not secure.probe(repository):
        raise VerityRequiredError(
            f"the filesystem of {repository.path} has no fs-verity with {repository.algorithm.value}; "
            "an ext4 gets it by `tune2fs -O verity`"
        )
    repository.clean_temporaries()


class _Damages:
    """The findings: the first few, and how many there were."""

    def __init__(self) -> None:
        self._first: list[Finding] = []
        self.total = 0

    def add(self, found: Finding) -> None:
        self.total += 1
        if len(self._first) < _NAMED_FINDINGS:
            self._first.append(found)

    def error(self) -> CorruptError:
        """One error for all of them."""
        named = "; ".join(f"{found.subject}: {found.message}" for found in self._first)
        more = f"; and {self.total - len(self._first)} more" if self.total > len(self._first) else ""
        return CorruptError(
            f"the repository stays insecure, as objects are damaged ({self.total}): {named}{more}",
            subject=self._first[0].subject,
            findings=self.total,
        )


async def _enable(repository: Repository, lock: int, progress: Progress) -> VerityResult:
    damages = _Damages()

    def tell(event: Event) -> None:
        if "finding" in event:
            found = Finding(*event["finding"])
            damages.add(found)
            progress.finding(found.severity, found.code, found.subject, found.message)
            return
        progress.bytes(reused=0, done=number(event, "bytes"), total=number(event, "bytes_total"))
        progress.items(done=number(event, "done"), total=number(event, "total"))

    def tell_enabled(event: Event) -> None:
        progress.items(done=number(event, "done"), total=number(event, "total"))

    fds = (repository.fd, lock)
    async with worker(KEEPER, sandboxed=False) as keeper:
        progress.stage(Stage.VERIFY)
        checked = await keeper.call("find_damages", {}, fds, tell)
        if damages.total:
            raise damages.error()
        progress.stage(Stage.ENABLE)
        enabled = await keeper.call("enable_verity", {}, fds, tell_enabled)
        progress.stage(Stage.COMMIT)
        progress.point_of_no_return()
        await keeper.call("make_secure", {}, fds)
    return VerityResult(
        objects_checked=number(checked, "objects"),
        objects_enabled=number(enabled, "enabled"),
        bytes_checked=number(checked, "bytes"),
    )
