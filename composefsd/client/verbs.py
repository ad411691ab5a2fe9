"""The verbs that go over the bus: from parsed arguments to calls, and from answers to output."""

import os
import re
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from composefsd.client import garbage, proxy, show, show_image
from composefsd.client.exits import ClientError, Exit
from composefsd.client.follow import Outcome
from composefsd.client.properties import Properties
from composefsd.client.proxy import JobRequest, Options
from composefsd.client.records import Deployment
from composefsd.client.render import SHORT_DIGITS, Screen
from composefsd.client.results import result_json
from composefsd.client.session import Session

KINDS: Final = {"all": ("normative", "boot"), "normative": ("normative",), "boot": ("boot",), "none": ()}

_KERNEL_ARGUMENT: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_ROLES: Final = frozenset({"booted", "default", "staged", "rollback"})
_LOCAL_TRANSPORTS: Final = ("oci:", "oci-archive:")


async def status(session: Session, args: Namespace) -> Exit:
    """The machine at a glance."""
    found = await session.proxy.status()
    session.answer(found, lambda screen: show.status(screen, found))
    return Exit.DONE


async def pull(session: Session, args: Namespace) -> Exit:
    """Fetch an OCI image and generate its composefs images."""
    options: Options = {
        "name": args.name,
        "platform": args.platform,
        "require-digest": args.require_digest,
        "generate": None if args.generate is None else KINDS[args.generate],
        "format": args.format,
        "replace": args.replace or None,
    }
    return await _work(session, JobRequest(proxy.PULL, [absolute(args.reference)], options))


async def images(session: Session, args: Namespace) -> Exit:
    """List the OCI images of the repository."""
    found = await session.proxy.images()
    session.answer(found, lambda screen: show.images(screen, found))
    return Exit.DONE


async def inspect(session: Session, args: Namespace) -> Exit:
    """Everything about one image, or one of its documents as it is."""
    found = await session.proxy.image(args.image)
    if args.document == "dumpfile":
        with os.fdopen(await session.proxy.open_document(found, "dumpfile", {"kind": args.kind}), "rb") as file:
            session.copy(file)
    elif args.document:
        session.document(await session.proxy.document(found, args.document))
    else:
        deployed = await session.proxy.deployments() if found.deployments else []
        session.answer(found, lambda screen: show_image.image(screen, found, deployed))
    return Exit.DONE


async def tag(session: Session, args: Namespace) -> Exit:
    """Give an image a name."""
    await session.proxy.tag(args.image, args.name, replace=args.replace)
    session.answer({"image": args.image, "name": args.name})
    return Exit.DONE


async def untag(session: Session, args: Namespace) -> Exit:
    """Take a name away."""
    await session.proxy.untag(args.name, missing_ok=args.missing_ok)
    session.answer({"name": args.name})
    return Exit.DONE


async def remove(session: Session, args: Namespace) -> Exit:
    """Take an image and its names out of the repository."""
    gone = await session.proxy.remove(args.image, force=args.force)
    session.answer({"names": gone}, lambda screen: screen.line(f"removed {', '.join(gone) or args.image}"))
    return Exit.DONE


async def generate(session: Session, args: Namespace) -> Exit:
    """Build composefs images of an OCI image."""
    return await _work(session, JobRequest(proxy.GENERATE, [args.image, args.kind], _variant(args)))


async def compute(session: Session, args: Namespace) -> Exit:
    """Digests of composefs images, storing nothing."""
    outcome = await session.job(JobRequest(proxy.COMPUTE, [args.image, args.kind], _variant(args)))
    if outcome is not None:
        session.answer(
            result_json(outcome.job.id, outcome.result), lambda screen: show.digests(screen, outcome.result)
        )
    return Exit.DONE


def _variant(args: Namespace) -> Options:
    return {name: getattr(args, name) for name in ("format", "hash", "xattrs", "profile", "expect")}


async def deploy(session: Session, args: Namespace) -> Exit:
    """Put an image on the boot partition, or tell what that would do."""
    options: Options = {
        "verity": args.verity,
        "type": args.type,
        "uki": args.uki,
        "payload": args.payload,
        "kargs": kernel_arguments(args.kargs) or None,
        "kargs-delete": kernel_arguments(args.kargs_delete) or None,
        "karg-form": args.karg_form,
    }
    if args.dry_run:
        return await _plan(session, JobRequest(proxy.PLAN, [args.image], options))
    return await _work(session, JobRequest(proxy.DEPLOY, [args.image], options))


async def _plan(session: Session, request: JobRequest) -> Exit:
    """A plan that would be refused is shown all the same, and fails."""
    outcome = await session.job(request)
    if outcome is None:
        return Exit.DONE
    session.answer(result_json(outcome.job.id, outcome.result), lambda screen: show.result(screen, outcome.result))
    if objections := Properties(outcome.result).texts("objections"):
        raise ClientError(f"would be refused: {'; '.join(objections)}")
    return Exit.DONE


async def deployments(session: Session, args: Namespace) -> Exit:
    """List deployments in boot order."""
    found, boot = await session.proxy.deployments(), await session.proxy.boot()
    session.answer(found, lambda screen: show.deployments(screen, found, boot))
    return Exit.DONE


async def undeploy(session: Session, args: Namespace) -> Exit:
    """Remove a deployment."""
    path = find_deployment(await session.proxy.deployments(), args.deployment)
    path = path or await session.proxy.deployment_path(args.deployment)
    return await _work(session, JobRequest(proxy.UNDEPLOY, [], {"state": args.state or None}, path))


async def gc(session: Session, args: Namespace) -> Exit:
    """Remove what nothing refers to, or tell what that is and why the rest stays."""
    outcome = await session.job(JobRequest(proxy.COLLECT, [], {"dry-run": args.dry_run or None}))
    if outcome is None:
        return Exit.DONE
    listing = await _listing(session, outcome) if args.dry_run or args.verbose else None
    answer: dict[str, object] = {**result_json(outcome.job.id, outcome.result)}
    if listing is not None:
        answer |= {"stays": listing.stays, "goes": listing.goes}
    ids = garbage.deployed(await session.proxy.deployments()) if args.dry_run else {}

    def show_it(screen: Screen) -> None:
        if args.dry_run:
            garbage.dry_run(screen, outcome.result, listing, ids)
        else:
            show.result(screen, outcome.result)
        if listing is not None and args.verbose:
            screen.line()
            garbage.every_line(screen, listing)

    session.answer(answer, show_it)
    return Exit.DONE


async def _listing(session: Session, outcome: Outcome) -> garbage.Listing | None:
    descriptor = await session.proxy.job_document(outcome.job, garbage.DOCUMENT)
    return None if descriptor is None else garbage.Listing.read(descriptor)


async def explain(session: Session, args: Namespace) -> Exit:
    """Tell what keeps an object, stream or image; fails if nothing does."""
    found = [garbage.Reason(*one) for one in await session.proxy.explain(args.object)]
    ids = garbage.deployed(await session.proxy.deployments()) if found else {}
    session.answer(
        {"object": args.object, "kept": bool(found), "reasons": found},
        lambda screen: garbage.reasons(screen, found, ids),
    )
    return Exit.DONE if found else Exit.FAILED


async def fsck(session: Session, args: Namespace) -> Exit:
    """Check the repository, or repair it; fails if something is wrong with it, or left by the repair."""
    options = {
        "depth": args.depth,
        "repair": args.repair or None,
        "image": args.image,
        "max-findings": args.max_findings,
    }
    outcome = await session.job(JobRequest(proxy.CHECK, [], options))
    if outcome is None:
        return Exit.DONE
    reader = Properties(outcome.result)
    session.answer(
        result_json(outcome.job.id, outcome.result),
        lambda screen: show.findings(screen, reader),
    )
    is_left = args.repair and reader.number("findings-total")
    return Exit.FAILED if is_left or is_damaged(reader) else Exit.DONE


async def enable_verity(session: Session, args: Namespace) -> Exit:
    """Make an insecure repository secure."""
    outcome = await session.job(JobRequest(proxy.ENABLE_VERITY))
    if outcome is not None:
        session.answer(
            result_json(outcome.job.id, outcome.result), lambda screen: show.made_secure(screen, outcome.result)
        )
    return Exit.DONE


async def jobs(session: Session, args: Namespace) -> Exit:
    """List the jobs that run or ended a short while ago."""
    found = await session.proxy.jobs(kind=args.type, state=args.state)
    session.answer(found, lambda screen: show.jobs(screen, found))
    return Exit.DONE


async def cancel(session: Session, args: Namespace) -> Exit:
    """Ask a job to stop."""
    await session.proxy.cancel_job(args.job)
    session.answer({"job": args.job}, lambda screen: screen.line(f"cancelling job {args.job}"))
    return Exit.DONE


async def _work(session: Session, request: JobRequest, intro: str | None = None) -> Exit:
    outcome = await session.job(request)
    if outcome is not None:
        session.answer(
            result_json(outcome.job.id, outcome.result), lambda screen: show.result(screen, outcome.result, intro)
        )
    return Exit.DONE


def absolute(reference: str) -> str:
    """A reference to a local file as the daemon, which runs in another directory, has to be told it."""
    for transport in _LOCAL_TRANSPORTS:
        path = reference.removeprefix(transport)
        if path != reference and path and not path.startswith("/"):
            return f"{transport}{Path.cwd()}/{path}"
    return reference


def kernel_arguments(texts: Sequence[str]) -> tuple[str, ...]:
    """Kernel arguments one by one: white space separates them, but not within double quotes, as in the kernel."""
    return tuple(argument for text in texts for argument in _KERNEL_ARGUMENT.findall(text))


def find_deployment(found: Sequence[Deployment], text: str) -> str | None:
    """The object of the only deployment whose id is `text`, or which `deployments` shows so on a terminal.

    None leaves it to the daemon, which knows unique prefixes and words such as `booted`.
    """
    if text in _ROLES:
        return None
    exact = [deployment.path for deployment in found if deployment.id == text]
    digits, dot, number = text.partition(".")
    shown = [
        deployment.path
        for deployment in found
        if deployment.id.startswith(digits) and deployment.id.partition(".")[1:] == (dot, number)
    ]
    if exact or (len(shown) == 1 and len(digits) >= SHORT_DIGITS):
        return (exact or shown)[0]
    return None


def is_damaged(reader: Properties) -> bool:
    """Whether a check found errors; findings that were too many to be listed count as such."""
    found = reader.structs("findings", "severity", "code", "subject", "message")
    return (reader.number("findings-total") or 0) > len(found) or any(
        row.text("severity") == "error" for row in found
    )


VERBS: Final[dict[str, Callable[[Session, Namespace], Awaitable[Exit]]]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        status, pull, images, inspect, tag, untag, remove, generate, compute,
        deploy, deployments, undeploy, gc, explain, fsck, enable_verity, jobs, cancel,
    )
}  # fmt: skip
