"""What holds for the host as a whole: what it can do, what needs a person, what the repository is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from composefsd.errors import ComposefsdError
from composefsd.oci.reference import Transport
from composefsd.operations.deploy import recover
from composefsd.operations.host import Host
from composefsd.service.errors import name_of_class
from composefsd.service.history import Record


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """What holds for a repository until it is made secure."""

    verity: bool = False
    writable: bool = False

    @classmethod
    async def of(cls, host: Host) -> Self:
        """Of the host's repository; of one that cannot be opened, which is a problem of the host, nothing holds."""
        try:
            async with host.reading() as repository:
                return cls(repository.verity, repository.writable)
        except ComposefsdError:
            return cls()


class Condition:
    """The condition of a host; `interrupted` are the jobs that the last daemon lost."""

    def __init__(self, host: Host, interrupted: Sequence[Record]) -> None:
        self._host = host
        self._interrupted = tuple(interrupted)
        self._unsettled: Sequence[str] | None = None
        self.repository = RepositoryState()

    async def examine(self) -> None:
        """Find out what holds; once the repository can be written, settle what was interrupted before."""
        if self._unsettled is None and not self._host.problems:
            self._unsettled = await recover(self._host)
        self.repository = await RepositoryState.of(self._host)

    @property
    def features(self) -> tuple[str, ...]:
        """What this build and this host can do."""
        host = ("verity",) if self.repository.verity else ()
        return (*(transport.value for transport in Transport), "uki", "type1", "selinux", "dumpfile", *host)

    @property
    def problems(self) -> tuple[tuple[str, str], ...]:
        """What needs a person: names of errors, and texts."""
        found = [(name_of_class(name), text) for name, text in self._host.problems]
        found += [(name_of_class("Composefsd"), text) for text in self._unsettled or ()]
        found += [(one.error, f"job {one.id} ({one.description}): {one.message}") for one in self._interrupted]
        return tuple(found)
