"""Collecting garbage: removing what no name reaches."""

from typing import Any

from composefsd.operations.host import Host
from composefsd.operations.model import CollectResult
from composefsd.operations.progress import Progress, Stage
from composefsd.workers.pool import Event, number, worker

KEEPER = "composefsd.operations.keeper"


async def collect_garbage(host: Host, *, dry_run: bool, progress: Progress) -> CollectResult:
    """Remove, or with `dry_run` only count, objects, streams and images that no name keeps.

    Waits up to a minute for others to let go of the repository, then raises LockedError.  Raises CorruptError or
    ObjectMissingError, and removes nothing, if something that is kept cannot be read.
    """
    if not dry_run:
        async with host.writing():
            pass  # only to refuse what may not be written

    def tell(event: Event) -> None:
        progress.items(done=number(event, "done"), total=number(event, "total"))

    progress.stage(Stage.MARK)
    args: dict[str, Any] = {"repository": str(host.settings.repository), "dry_run": dry_run}
    async with worker(KEEPER, sandboxed=False) as keeper:
        answer = await keeper.call("collect", args, (), tell)
    return CollectResult(**answer)
