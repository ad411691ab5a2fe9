"""Collecting garbage: removing what no name reaches, telling what that is, and why the rest stays."""

from typing import Any

from composefsd.operations.host import Host
from composefsd.operations.model import CollectResult
from composefsd.operations.progress import Progress, Stage
from composefsd.operations.reasons import Reason, Why
from composefsd.workers.pool import Event, number, worker

KEEPER = "composefsd.operations.keeper"


async def collect_garbage(
    host: Host, *, dry_run: bool, progress: Progress, listing: int | None = None
) -> CollectResult:
    """Remove, or with `dry_run` only list, objects, streams and images that no name keeps.

    `listing` is an empty file to write the list to, which then also stands for what was removed before an error; its
    form is told in `listing`.  Waits up to a minute for others to let go of the repository, then raises LockedError.
    Raises CorruptError or ObjectMissingError, and removes nothing, if something that is kept cannot be read.
    """
    if not dry_run:
        async with host.writing():
            pass  # only to refuse what may not be written

    def tell(event: Event) -> None:
        done, total = number(event, "done"), number(event, "total")
        if total:
            progress.stage(Stage.SWEEP)
        progress.items(done=done, total=total)

    progress.stage(Stage.MARK)
    args: dict[str, Any] = {"repository": str(host.settings.repository), "dry_run": dry_run}
    async with worker(KEEPER, sandboxed=False) as keeper:
        answer = await keeper.call("collect", args, () if listing is None else (listing,), tell)
    return CollectResult(**answer)


async def explain(host: Host, what: str) -> list[Reason]:
    """The roots that keep something; none if the collector would take it.

    `what` is an object's digest with or without its algorithm, the name of a stream, the digest of a manifest, config
    or layer, or a tag.  If there are too many roots, the last one listed says so.  Raises NoSuchObjectError,
    LockedError, and as `collect_garbage`.
    """
    args = {"repository": str(host.settings.repository), "what": what}
    async with worker(KEEPER, sandboxed=False) as keeper:
        answer = await keeper.call("explain", args)
    return [Reason(Why(why), name) for why, name in answer["reasons"]]
