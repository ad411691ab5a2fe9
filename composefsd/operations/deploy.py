"""Deploying: what an image says about how it boots, put on the boot partition as a deliberate second step.

Planning and listing only look, and run in a thread; every change runs in a worker of its own.  The order of the whole
is boot image, the tag that keeps the image, then what the deploy room does; removing goes the other way.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from composefsd import deploy as room
from composefsd.boot import cmdline
from composefsd.deploy.plan import Plan
from composefsd.deploy.state import Deployment
from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError, EspNotFoundError, NoSuchDeploymentError, NotBootableError
from composefsd.oci.storage import ImageKind, load_image, manifest_stream
from composefsd.operations.deployment_order import (
    DEPLOYMENT_REFS,
    DEPLOYMENT_TAG,
    BootImageFact,
    DeploymentOrder,
)
from composefsd.operations.generate import compute_digest, generate
from composefsd.operations.host import Host
from composefsd.operations.images import image_facts
from composefsd.operations.model import DeployRequest, GenerateRequest
from composefsd.operations.progress import Progress, Stage
from composefsd.repository import Repository
from composefsd.repository.links import Category
from composefsd.workers.pool import Event, number, worker

DEPLOYER: Final = "composefsd.operations.deployer"

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_CMDLINE: Final = Path("/proc/cmdline")
_SOURCE: Final = "composefs:"
_OWN_SYSROOTS: Final = (Path("/"), Path("/sysroot"))
Needed = Mapping[str, Sequence[str]]
"""What deployments need, as the deployer tells it."""

_BOOT: Final = GenerateRequest(frozenset({ImageKind.BOOT}), claims=True)


async def plan_deploy(host: Host, image: OciDigest, request: DeployRequest, progress: Progress) -> Plan:
    """What `deploy` would do with the same arguments; nothing is changed.

    A plan that cannot be carried out has `objections`.  Raises NoSuchImageError, EspNotFoundError, NotBootableError
    for an image that has no boot image at all, and what reading the image gives cause for.
    """
    progress.stage(Stage.PLAN)
    order = await _order(host, image, request, progress, make_boot_image=False)
    return await asyncio.to_thread(_plan, host, order)


async def deploy(host: Host, image: OciDigest, request: DeployRequest, progress: Progress) -> Deployment:
    """Make an image bootable; its boot image is made if there is none yet.

    Answers with the deployment, be it the one that was there already.  Raises NotBootableError with every reason,
    NoSpaceError, ReadOnlyError or EspNotFoundError before anything is changed on the boot partition.
    """
    progress.stage(Stage.PLAN)
    order = await _order(host, image, request, progress, make_boot_image=True)
    plan = await asyncio.to_thread(_plan, host, order)
    plan.check()
    progress.stage(Stage.WRITE)
    progress.point_of_no_return()
    async with host.writing() as repository, host.deploying:
        try:
            async with host.naming:
                await asyncio.to_thread(_keep, repository, order)
            await asyncio.to_thread(repository.sync)  # the boot image is on the disk before its entry
            deployment_id, needed = await _write(host, repository, order, plan, progress)
        except ComposefsdError:
            await _settle(host, repository)
            raise
        await _drop_unneeded(host, repository, needed)
    return await _find(host, deployment_id)


async def list_deployments(host: Host) -> list[Deployment]:
    """All deployments in boot order; none where no boot partition is found."""
    return await asyncio.to_thread(_listed, host)


async def remove_deployment(host: Host, deployment_id: str, *, state: bool, progress: Progress) -> int:
    """Remove a deployment, with `state` also its /etc and, if nobody else has it, /var.

    Answers with the bytes that got free on the boot partition.  Raises NoSuchDeploymentError or InUseError.
    """
    progress.stage(Stage.SWEEP)
    progress.point_of_no_return()
    args = _places(host) | {"deployment": deployment_id, "state": state}
    async with host.writing() as repository, host.deploying:
        async with worker(DEPLOYER, sandboxed=False) as deployer:
            answer = await deployer.call("remove", args)
        await _drop_unneeded(host, repository, answer["needed"])
    return int(answer["freed_bytes"])


async def recover(host: Host) -> tuple[str, ...]:
    """Settle what was interrupted; to be called before the first change.  Answers with what could not be settled."""
    if not host.settings.sysroot.is_dir():
        return ()
    try:
        async with host.writing() as repository, host.deploying:
            return await _settle(host, repository)
    except ComposefsdError as error:
        return (error.message,)


async def _settle(host: Host, repository: Repository) -> tuple[str, ...]:
    """Finish or undo what was interrupted, and drop tags that nothing needs.  Answers with what could not be done."""
    try:
        args = _places(host)
    except EspNotFoundError:  # nothing was ever written, or it cannot be seen now
        return ()
    try:
        async with worker(DEPLOYER, sandboxed=False) as deployer:
            answer = await deployer.call("recover", args)
        await _drop_unneeded(host, repository, answer["needed"])
    except ComposefsdError as error:
        return (error.message,)
    return tuple(answer["problems"])


def _keep(repository: Repository, order: DeploymentOrder) -> None:
    """Have the collector keep the image and its boot images while they are deployed."""
    repository.tag(order.tag, manifest_stream(order.manifest_digest))
    for one in order.images:
        if one.stored:
            repository.set_ref(Category.IMAGES, f"{DEPLOYMENT_REFS}/{one.digest.hex}", one.digest.hex)


async def _drop_unneeded(host: Host, repository: Repository, needed: Needed | None) -> None:
    """Let go of what deployments needed that are gone, whoever has removed them; None: nobody knows for sure."""
    if needed is not None:
        async with host.naming:
            await asyncio.to_thread(_drop, repository, needed)


def _drop(repository: Repository, needed: Needed) -> None:
    for tag in repository.tags():
        if tag.startswith(DEPLOYMENT_TAG) and tag not in needed["tags"]:
            repository.untag(tag)
    for name in repository.refs(Category.IMAGES):
        folder, _, digest = name.partition("/")
        if folder == DEPLOYMENT_REFS and digest not in needed["images"]:
            repository.remove_ref(Category.IMAGES, name)


def partitions(host: Host) -> room.BootPartitions:
    """The boot partitions of the host.  Raises EspNotFoundError."""
    settings = host.settings
    return room.BootPartitions.find(settings.esp, settings.xbootldr, sysroot=settings.sysroot)


async def _order(
    host: Host, image: OciDigest, request: DeployRequest, progress: Progress, *, make_boot_image: bool
) -> DeploymentOrder:
    """Everything that a plan follows from, as far as it lies in image and repository."""
    partitions(host)  # to fail before any work is done
    async with host.reading() as repository:
        stored = load_image(repository, image)
        config = stored.require_image().config
        facts = await image_facts(host, repository, stored)
        held = [
            BootImageFact(one.digest, one.format, repository.has_image(one.digest.digest))
            for one in stored.images
            if one.kind is ImageKind.BOOT
        ]
        sealed = repository.verity
        names = sorted(tag for tag, stream in repository.tags().items() if stream == manifest_stream(image))
    found = [one for one in held if one.stored]
    if not found and facts.bootable:
        make = generate if make_boot_image else compute_digest  # a plan takes it as made: the deploy makes it first
        made = await make(host, image, _BOOT, progress)
        found = [BootImageFact(one.digest, one.format, stored=True) for one in made]
    if not found:
        raise NotBootableError("\n".join(facts.reasons))
    return DeploymentOrder(
        manifest_digest=image,
        reference=next((name for name in names if not name.startswith(DEPLOYMENT_TAG)), ""),
        images=tuple(sorted(found, key=lambda one: one.format is not host.formats[0])),
        facts=facts,
        sealed=sealed,
        request=request,
        architecture=config.platform.architecture,
    )


def _plan(host: Host, order: DeploymentOrder) -> Plan:
    with room.Places.open(host.settings.sysroot, partitions(host)) as places:
        return room.plan_deploy(places, order.for_room())


def _listed(host: Host) -> list[Deployment]:
    try:
        found = partitions(host)
    except EspNotFoundError:
        return []
    if not host.settings.sysroot.is_dir():
        return []
    with room.Places.open(host.settings.sysroot, found) as places:
        return list(room.list_deployments(places, booted_digest(host.settings.sysroot)).deployments)


async def _find(host: Host, deployment_id: str) -> Deployment:
    for deployment in await list_deployments(host):
        if deployment.id == deployment_id:
            return deployment
    raise NoSuchDeploymentError(f"deployment {deployment_id} went away", deployment=deployment_id)


async def _write(
    host: Host, repository: Repository, order: DeploymentOrder, plan: Plan, progress: Progress
) -> tuple[str, Needed | None]:
    """Have the deployer carry the order out; answers with the deployment's id, and with what is needed now."""
    total = sum(file.size for file in plan.files if file.path not in plan.present)

    def tell(event: Event) -> None:
        progress.bytes(reused=0, done=number(event, "written"), total=total)

    wanted = {file.source for file in plan.files}
    with ExitStack() as stack:
        sources = {}
        for file in order.contents():
            if file.path in wanted and file.path not in sources:
                sources[file.path] = repository.objects.open(bytes.fromhex(file.digest))
                stack.callback(os.close, sources[file.path])
        args = _places(host) | {"order": order.to_wire(), "sources": list(sources)}
        async with worker(DEPLOYER, sandboxed=False) as deployer:
            answer = await deployer.call("deploy", args, tuple(sources.values()), tell)
    return str(answer["deployment"]), answer["needed"]


def _places(host: Host) -> dict[str, Any]:
    """Where the deployer works, and what must not go."""
    found = partitions(host)
    return {
        "sysroot": str(host.settings.sysroot),
        "esp": str(found.esp),
        "xbootldr": None if found.xbootldr is None else str(found.xbootldr),
        "booted": booted_digest(host.settings.sysroot),
    }


def booted_digest(sysroot: Path) -> str | None:
    """The digest of the boot image that runs, in hexadecimal; None if none does, or the sysroot is another machine's.

    The source of the root mount tells, as composefs-setup-root names it; the command line only where that does not,
    since it is stale after a soft reboot.
    """
    if sysroot not in _OWN_SYSROOTS:
        return None
    for line in _MOUNTINFO.read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        source = after.split(" ")[1:2]
        if before.split(" ")[4:5] == ["/"] and source and source[0].startswith(_SOURCE):
            return source[0].removeprefix(_SOURCE)
    with suppress(ComposefsdError, OSError):
        for argument in cmdline.find_all(_CMDLINE.read_text(errors="replace")):
            return argument.digest.hex
    return None
