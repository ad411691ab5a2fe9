"""The interface of the repository as a whole: collecting garbage, checking, and what it is."""

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Annotated, Final, Self

from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError
from composefsd.operations.check import DEPTHS, check
from composefsd.operations.collect import collect_garbage
from composefsd.operations.host import Host
from composefsd.service import names
from composefsd.service.interface import ASV, TO, B, S, Served, T, U, dbus_method, dbus_property
from composefsd.service.jobs import Result, now_usec
from composefsd.service.meter import JobKind, Meter
from composefsd.service.milestones import Milestones
from composefsd.service.options import JOB_OPTIONS, Options, choice, flag, job_keys, number, text
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.service.wire import variant

log = logging.getLogger(__name__)

MAX_FINDINGS: Final = 1000

CheckedAt = Annotated[tuple[int, bool], "(tb)"]

_DRY_RUN = flag("dry-run")
_DEPTH = choice("depth", DEPTHS)
_IMAGE = text("image")
_MAX_FINDINGS = number("max-findings")


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """What holds for a repository as long as the daemon runs."""

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


@dataclass(frozen=True, slots=True)
class _Check:
    depth: str
    image: OciDigest | None
    max_findings: int


class RepositoryInterface(Served, interface=names.REPOSITORY):
    """The repository on the bus."""

    def __init__(self, services: Services, state: RepositoryState) -> None:
        super().__init__(services.tree, names.ROOT_PATH)
        self._services = services
        self._host = services.host
        self._state = state
        self._milestones = Milestones.load(self._host.settings.state)

    @dbus_method("CollectGarbage")
    async def collect_garbage(self, options: ASV) -> TO:
        """Start removing, or counting, what no name reaches."""
        given = Options(options, _DRY_RUN, *JOB_OPTIONS)
        keys, dry_run = job_keys(given), given.get(_DRY_RUN, default=False)
        caller = await self._services.callers.identify()
        if not dry_run:
            await self._services.polkit.require(Action.COLLECT, caller, {})
        return await self._services.start(
            JobKind.COLLECT, caller, keys, "Count garbage" if dry_run else "Collect garbage",
            {"dry-run": variant("b", dry_run)}, partial(self._collect, dry_run=dry_run), is_exclusive=not dry_run,
        )  # fmt: skip

    async def _collect(self, meter: Meter, *, dry_run: bool) -> Result:
        found = await collect_garbage(self._host, dry_run=dry_run, progress=meter)
        if not dry_run:
            self._services.tally.add("bytes-freed", found.bytes_freed)
            await self._remember(replace(self._milestones, collected_usec=now_usec()))
            await self._services.catalog.refresh()
            self.changed("LastGarbageCollection")
        return {
            "freed-bytes": variant("t", found.bytes_freed),
            "objects-removed": variant("t", found.objects_removed),
            "images-pruned": variant("t", found.images_pruned),
            "streams-pruned": variant("t", found.streams_pruned),
        }

    @dbus_method("Check")
    async def check(self, options: ASV) -> TO:
        """Start checking."""
        given = Options(options, _DEPTH, _IMAGE, _MAX_FINDINGS, *JOB_OPTIONS)
        keys, depth = job_keys(given), given.get(_DEPTH, "quick")
        most = min(given.get(_MAX_FINDINGS, MAX_FINDINGS), MAX_FINDINGS)
        name = given.get(_IMAGE, "")
        image = (await self._services.catalog.find_image(name)).manifest_digest if name else None
        caller = await self._services.callers.identify()
        await self._services.polkit.require(Action.CHECK, caller, {"depth": depth, "image": str(image or "")})
        return await self._services.start(
            JobKind.CHECK, caller, keys, f"Check {image or 'the repository'} ({depth})",
            {"depth": variant("s", depth), "image": variant("s", str(image or ""))},
            partial(self._check, _Check(depth, image, most)),
        )  # fmt: skip

    async def _check(self, order: _Check, meter: Meter) -> Result:
        errors = self._announce_findings(meter, order.max_findings)
        result = await check(
            self._host, depth=order.depth, image=order.image, max_findings=order.max_findings, progress=meter
        )
        if order.image is None:
            await self._remember(replace(self._milestones, checked_usec=now_usec(), was_clean=not errors))
            self.changed("LastCheck")
        rows = [(found.severity, found.code, found.subject, found.message) for found in result.findings]
        return {
            "findings": variant("a(ssss)", rows),
            "findings-total": variant("t", result.findings_total),
            "objects-checked": variant("t", result.objects_checked),
        }

    def _announce_findings(self, meter: Meter, most: int) -> list[str]:
        """Have the first findings announced as they are made; answers with a list that gets an error, if one is."""
        told, errors = count(), list[str]()

        def on_finding(severity: str, code: str, subject: str, message: str) -> None:
            if severity == "error" and not errors:
                errors.append(subject)
            if next(told) < most:
                self.emit("Finding", meter.job_id, severity, code, subject, message)

        meter.on_finding = on_finding
        return errors

    async def _remember(self, milestones: Milestones) -> None:
        self._milestones = milestones
        try:
            await asyncio.to_thread(milestones.save, self._host.settings.state)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._host.settings.state, error.strerror)

    @dbus_property("Path")
    def directory(self) -> S:
        return str(self._host.settings.repository)

    @dbus_property("Algorithm")
    def algorithm(self) -> S:
        return self._host.algorithm.label

    @dbus_property("Verity")
    def verity(self) -> B:
        return self._state.verity

    @dbus_property("Writable")
    def writable(self) -> B:
        return self._state.writable

    @dbus_property("FormatVersion")
    def format_version(self) -> S:
        return "" if self._host.metadata is None else str(self._host.metadata.version)

    @dbus_property("ImageCount")
    def image_count(self) -> U:
        return len(self._services.catalog.images)

    @dbus_property("LastGarbageCollection")
    def last_garbage_collection(self) -> T:
        return self._milestones.collected_usec

    @dbus_property("LastCheck")
    def last_check(self) -> CheckedAt:
        return self._milestones.checked_usec, self._milestones.was_clean

    @dbus_property("BytesFree")
    async def bytes_free(self) -> T:
        try:
            about = await asyncio.to_thread(os.statvfs, self._host.settings.repository)
        except OSError:  # there is no repository, which is among the Problems
            return 0
        return about.f_bavail * about.f_frsize
