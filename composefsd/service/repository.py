"""The interface of the repository as a whole: collecting garbage, checking, and what it is."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Annotated, Final

from dbus_next import Variant

from composefsd.digests import OciDigest
from composefsd.errors import InvalidArgumentsError
from composefsd.operations.check import DEPTHS, check
from composefsd.operations.collect import collect_garbage, explain
from composefsd.operations.model import CheckResult
from composefsd.operations.repair import repair
from composefsd.operations.verity import enable_verity
from composefsd.service import names
from composefsd.service.caller import current_call
from composefsd.service.condition import Condition
from composefsd.service.dumps import Dumps
from composefsd.service.interface import ASV, TO, B, S, Served, T, U, dbus_method, dbus_property
from composefsd.service.jobs import Result, now_usec
from composefsd.service.meter import JobKind, Meter
from composefsd.service.milestones import Milestones
from composefsd.service.options import JOB_OPTIONS, Options, choice, flag, job_keys, number, text
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.service.turns import Turns
from composefsd.service.wire import variant

log = logging.getLogger(__name__)

MAX_FINDINGS: Final = 1000

GARBAGE: Final = "garbage"
"""The document of a collection, whose form `operations.listing` tells."""

EXPLAIN_SECONDS: Final = 60.0
_WHAT_CHARACTERS: Final = 4096

CheckedAt = Annotated[tuple[int, bool], "(tb)"]
Reasons = Annotated[Sequence[tuple[str, str]], "a(ss)"]

_DRY_RUN = flag("dry-run")
_DEPTH = choice("depth", DEPTHS)
_IMAGE = text("image")
_REPAIR = flag("repair")
_MAX_FINDINGS = number("max-findings")


@dataclass(frozen=True, slots=True)
class _Check:
    depth: str
    image: OciDigest | None
    max_findings: int
    repairs: bool


def _result(result: CheckResult) -> dict[str, Variant]:
    rows = [(found.severity, found.code, found.subject, found.message) for found in result.findings]
    return {
        "findings": variant("a(ssss)", rows),
        "finding-facts": variant("aa{ss}", [dict(found.facts) for found in result.findings]),
        "findings-total": variant("t", result.findings_total),
        "objects-checked": variant("t", result.objects_checked),
    }


def _repaired(result: CheckResult) -> dict[str, Variant]:
    return {"repaired": variant("a(sss)", [(one.code, one.subject, one.how) for one in result.repaired])}


class RepositoryInterface(Served, interface=names.REPOSITORY):
    """The repository on the bus."""

    def __init__(self, services: Services, condition: Condition, dumps: Dumps) -> None:
        super().__init__(services.tree, names.ROOT_PATH)
        self._services = services
        self._host = services.host
        self._condition = condition
        self._dumps = dumps
        self._milestones = Milestones.load(self._host.settings.state)
        self._explaining = Turns("explaining", waiting=8, seconds=EXPLAIN_SECONDS)

    @dbus_method("CollectGarbage")
    async def collect_garbage(self, options: ASV) -> TO:
        """Start removing, or listing, what no name reaches."""
        given = Options(options, _DRY_RUN, *JOB_OPTIONS)
        keys, dry_run = job_keys(given), given.get(_DRY_RUN, default=False)
        caller = await self._services.callers.identify()
        if not dry_run:
            await self._services.polkit.require(Action.COLLECT, caller, {})
        return await self._services.start(
            JobKind.COLLECT, caller, keys, "List garbage" if dry_run else "Collect garbage",
            {"dry-run": variant("b", dry_run)}, partial(self._collect, dry_run=dry_run), is_exclusive=not dry_run,
        )  # fmt: skip

    async def _collect(self, meter: Meter, *, dry_run: bool) -> Result:
        listing = meter.documents.begin(GARBAGE)
        async with nullcontext() if dry_run else self._undisturbed():
            found = await collect_garbage(self._host, dry_run=dry_run, progress=meter, listing=listing.fd)
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
            "unlisted": variant("t", found.unlisted),
        }

    @asynccontextmanager
    async def _undisturbed(self) -> AsyncIterator[None]:
        """For a block that takes the exclusive lock: calls that hold the shared one, again and again, wait for it."""
        async with self._explaining.pause(), self._dumps.pause():
            yield

    @dbus_method("Explain", reads=True)
    async def explain(self, what: S) -> Reasons:
        """Tell what keeps an object, stream or image."""
        if len(what) > _WHAT_CHARACTERS:
            raise InvalidArgumentsError(f"a name of {len(what)} characters is too long")
        async with self._explaining.take(current_call().client):
            return await explain(self._host, what)

    @dbus_method("Check")
    async def check(self, options: ASV) -> TO:
        """Start checking."""
        given = Options(options, _DEPTH, _REPAIR, _IMAGE, _MAX_FINDINGS, *JOB_OPTIONS)
        keys, depth = job_keys(given), given.get(_DEPTH, "quick")
        most = min(given.get(_MAX_FINDINGS, MAX_FINDINGS), MAX_FINDINGS)
        name = given.get(_IMAGE, "")
        image = (await self._services.catalog.find_image(name)).manifest_digest if name else None
        caller = await self._services.callers.identify()
        repairs = given.get(_REPAIR, default=False)
        details = {"depth": depth, "image": str(image or "")}
        for action in (Action.CHECK, *([Action.REPAIR] if repairs else [])):
            await self._services.polkit.require(action, caller, details)
        arguments = {name: variant("s", detail) for name, detail in details.items()}
        return await self._services.start(
            JobKind.CHECK, caller, keys, f"{'Repair' if repairs else 'Check'} {image or 'the repository'} ({depth})",
            arguments | {"repair": variant("b", repairs)}, partial(self._check, _Check(depth, image, most, repairs)),
            is_exclusive=repairs,
        )  # fmt: skip

    async def _check(self, order: _Check, meter: Meter) -> Result:
        self._announce_findings(meter, order.max_findings)
        work = repair if order.repairs else check
        try:
            result = await work(
                self._host, depth=order.depth, image=order.image, max_findings=order.max_findings, progress=meter
            )
        finally:
            if order.repairs:
                await self._services.catalog.refresh()
        if order.image is None:
            was_clean = not result.errors_total
            await self._remember(replace(self._milestones, checked_usec=now_usec(), was_clean=was_clean))
            self.changed("LastCheck")
        return _result(result) | (_repaired(result) if order.repairs else {})

    def _announce_findings(self, meter: Meter, most: int) -> None:
        """Have the first findings announced as they are made."""
        told = count()

        def on_finding(severity: str, code: str, subject: str, message: str) -> None:
            if next(told) < most:
                self.emit("Finding", meter.job_id, severity, code, subject, message)

        meter.on_finding = on_finding

    @dbus_method("EnableVerity")
    async def enable_verity(self, options: ASV) -> TO:
        """Start making the repository secure."""
        keys = job_keys(Options(options, *JOB_OPTIONS))
        caller = await self._services.callers.identify()
        await self._services.polkit.require(Action.ENABLE_VERITY, caller, {})
        return await self._services.start(
            JobKind.ENABLE_VERITY, caller, keys, "Enable fs-verity on the repository",
            {}, self._enable_verity, is_exclusive=True,
        )  # fmt: skip

    async def _enable_verity(self, meter: Meter) -> Result:
        self._announce_findings(meter, MAX_FINDINGS)
        try:
            async with self._undisturbed():
                done = await enable_verity(self._host, meter)
        finally:
            # however it ended: a worker may have died right after the step that counts
            self._host.look_again()
            await self._condition.examine()
            self.changed("Verity", "Writable")
            self._services.tree.changed(names.ROOT_PATH, names.MANAGER, "Problems", "Features")
            await self._services.catalog.refresh()  # what images are trusted for, and deployments enforce
        return {
            "already-secure": variant("b", done.already_secure),
            "objects-checked": variant("t", done.objects_checked),
            "objects-enabled": variant("t", done.objects_enabled),
            "bytes-checked": variant("t", done.bytes_checked),
        }

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
        return self._condition.repository.verity

    @dbus_property("Writable")
    def writable(self) -> B:
        return self._condition.repository.writable

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
