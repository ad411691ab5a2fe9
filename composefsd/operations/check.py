"""Checking the repository: every finding is told, and none stops the check."""

from composefsd.digests import OciDigest
from composefsd.errors import InvalidArgumentsError
from composefsd.operations.collect import KEEPER
from composefsd.operations.host import Host
from composefsd.operations.model import CheckResult, Finding
from composefsd.operations.progress import Progress, Stage
from composefsd.workers.pool import Event, number, worker

DEPTHS = ("metadata", "quick", "full")
"""How much is looked at: links and tables; the same and the existence of every object; every object's content."""


async def check(
    host: Host, *, depth: str, image: OciDigest | None, max_findings: int, progress: Progress
) -> CheckResult:
    """Check the repository, or what one image needs of it.

    The first `max_findings` findings are kept, all are told to `progress` and counted.  Raises InvalidArgumentsError
    for a depth that is none.
    """
    if depth not in DEPTHS:
        raise InvalidArgumentsError(f"no depth {depth[:40]!r}; there are {', '.join(DEPTHS)}", subject=depth[:40])
    findings: list[Finding] = []
    total = 0

    def tell(event: Event) -> None:
        nonlocal total
        if "finding" not in event:
            progress.items(done=number(event, "done"), total=number(event, "total"))
            return
        total += 1
        found = Finding(*event["finding"])
        progress.finding(found.severity, found.code, found.subject, found.message)
        if len(findings) < max_findings:
            findings.append(found)

    progress.stage(Stage.VERIFY)
    args = {
        "repository": str(host.settings.repository),
        "depth": depth,
        "image": None if image is None else str(image),
    }
    async with worker(KEEPER, sandboxed=False) as keeper:
        answer = await keeper.call("check", args, (), tell)
    return CheckResult(tuple(findings), total, int(answer["objects"]))
