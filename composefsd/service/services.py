"""What the interfaces share: the host, and those who know about callers, rights, jobs and objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dbus_next import Variant

from composefsd.operations.host import Host
from composefsd.service import names
from composefsd.service.caller import Caller, Callers
from composefsd.service.catalog import Catalog
from composefsd.service.export import ObjectTree
from composefsd.service.job import JobDesk
from composefsd.service.jobs import ENDED, Order, Work
from composefsd.service.meter import JobKind
from composefsd.service.options import JobKeys
from composefsd.service.polkit import Polkit

COUNTERS: Final = ("bytes-fetched", "bytes-reused", "objects-added", "bytes-freed")


class Tally:
    """Counts since the daemon started."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0) | {f"jobs-{state}": 0 for state in sorted(ENDED)}

    def add(self, name: str, count: int) -> None:
        """Count `count` more."""
        self.counts[name] += count


@dataclass(frozen=True, slots=True)
class Services:
    """Handed to every interface; one for the life of the daemon."""

    host: Host
    tree: ObjectTree
    callers: Callers
    polkit: Polkit
    desk: JobDesk
    catalog: Catalog
    tally: Tally

    async def start(
        self,
        kind: JobKind,
        caller: Caller,
        keys: JobKeys,
        description: str,
        arguments: Mapping[str, Variant],
        work: Work,
        *,
        is_exclusive: bool = False,
    ) -> tuple[int, str]:
        """Start a job for an authorized caller; id and path of its object.  Raises as `JobTable.start`."""
        unit = await self.callers.unit_of(caller)
        order = Order(kind, description, arguments, keys, caller.uid, unit, caller.client, is_exclusive)
        job_id = await self.desk.jobs.start(order, work)
        return job_id, names.job_path(job_id)
