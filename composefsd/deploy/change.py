"""Deploying and removing: the two changes, each in an order that may be cut anywhere.

    deploy:  number, record → state → payload → entry
    remove:  record says so → entry → payload → state, if asked → record

Every arrow is durable before the next step begins, so that on stable storage always holds: an entry has its complete
payload, and both have their state.  A loader sees only the entry, hence nothing incomplete.  The image with its
objects, and the tag that keeps them, are the caller's to have before and to drop after.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from composefsd.deploy import entries, payload, persistent
from composefsd.deploy.listing import list_deployments, plan_deploy
from composefsd.deploy.payload import Written
from composefsd.deploy.places import Places
from composefsd.deploy.plan import Plan, Request
from composefsd.deploy.recovery import recover_locked, retire, sweep, undo
from composefsd.deploy.state import Deployment, Phase
from composefsd.errors import ComposefsdError, InUseError, NoSpaceError, NoSuchDeploymentError

log = logging.getLogger(__name__)


def _unheard(_count: int) -> None:
    """The listener of a deploy that nobody follows."""


def deploy(
    places: Places,
    request: Request,
    sources: Mapping[str, int],
    *,
    booted: str | None = None,
    written: Written = _unheard,
) -> Deployment:
    """Make a boot image bootable.  Answers with the deployment, be it the one that was there already.

    sources are descriptors, readable from any offset, of the contents that the request names.  booted is the digest
    of the running boot image; `written` is told the bytes of each chunk that went to $BOOT.  What was interrupted
    earlier is settled first.  Raises NotBootableError, ReadOnlyError or NoSpaceError before anything is changed;
    whatever is raised later leaves nothing behind but, at worst, what the next recovery removes.
    """
    with places.journal.locked():
        recover_locked(places, booted)
        wanted = plan_deploy(places, request)
        wanted.check()
        if wanted.exists:
            return _listed(places, wanted.deployment.id, booted)
        record = replace(wanted.deployment, created_usec=time.time_ns() // 1000)
        _make_way(places, wanted)
        try:
            _carry_out(places, wanted, record, sources, written)
        except Exception as error:
            _undo_quietly(places, record, booted)
            if isinstance(error, NoSpaceError) and error.facts.get("partition") == places.boot.label:
                error.facts.setdefault("needed_bytes", wanted.needed_bytes)
            raise
        log.info("deployment %d: boot image %s is bootable", record.seq, record.id[:12])
        return _listed(places, record.id, booted)


def _listed(places: Places, deployment_id: str, booted: str | None) -> Deployment:
    for deployment in list_deployments(places, booted).deployments:
        if deployment.id == deployment_id:
            return deployment
    raise NoSuchDeploymentError(f"there is no deployment {deployment_id}", deployment=deployment_id)


def _make_way(places: Places, wanted: Plan) -> None:
    """Use up the number, and remove what is left of a deployment of the same boot image that does not boot."""
    planned = {file.path for file in wanted.files}
    try:
        for broken in list_deployments(places).deployments:
            if broken.id == wanted.deployment.id:
                entries.remove(places.boot, broken.seq, broken.id)
                payload.remove(places.boot, [file for file in broken.files if file.path not in planned])
        places.journal.reserve(wanted.deployment.seq)
    except Exception:
        sweep(places)
        raise


def _carry_out(
    places: Places, wanted: Plan, record: Deployment, sources: Mapping[str, int], written: Written
) -> None:
    journal, boot, request = places.journal, places.boot, wanted.request
    record = journal.save(record)
    persistent.create(places.sysroot, record, request.etc, request.var, request.kernel_digest)
    record = journal.advance(record, Phase.STATE)
    staged = payload.stage(boot, wanted.files, sources, written)
    _check_space(places, record)
    record = replace(record, files=payload.publish(boot, staged))
    record = journal.advance(record, Phase.PAYLOAD)
    entries.write(boot, record.entry, record.entry_text)
    journal.advance(record, Phase.ENTRY)


def _check_space(places: Places, record: Deployment) -> None:
    """With the payload written, the entry must still fit: a file, and a directory that may grow."""
    space = places.boot.space()
    needed = space.rounded(len(record.entry_text.encode())) + space.cluster_bytes
    if space.free_bytes < needed:
        text = f"{places.boot.label} has no room left for the entry"
        raise NoSpaceError(text, partition=places.boot.label, needed_bytes=needed, free_bytes=space.free_bytes)


def _undo_quietly(places: Places, record: Deployment, booted: str | None) -> None:
    """After a failure, whose error is the one to tell; what cannot be undone now waits for the next recovery."""
    for problem in sweep(places):
        log.warning("deployment %d: %s", record.seq, problem)
    try:
        undo(places, record, booted)
    except ComposefsdError as error:
        log.warning("deployment %d was not undone: %s", record.seq, error)


# Removing


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed: the deployment as it was, and the bytes that got free on $BOOT."""

    deployment: Deployment
    freed_bytes: int


def remove(places: Places, deployment_id: str, *, booted: str | None = None, remove_state: bool = False) -> Removal:
    """Remove a deployment: its entry, its payload and, with `remove_state`, its /etc and /var.

    /var is shared, and goes only with the last state that uses it.  Raises NoSuchDeploymentError, and InUseError for
    one that is booted, pinned, or the default while there are others: make another one the default first.  The last
    deployment is the default for want of others; where it does not run, removing it undoes its deploy.
    """
    with places.journal.locked():
        recover_locked(places, booted)
        found = _listed(places, deployment_id, booted)
        _refuse_in_use(found, list_deployments(places, booted).deployments)
        retiring = replace(found, phase=Phase.RETIRING, remove_state=remove_state)
        places.journal.save(retiring)
        removal = Removal(found, retire(places, retiring))
        log.info("deployment %d: boot image %s is no longer deployed", found.seq, found.id[:12])
        return removal


def _refuse_in_use(found: Deployment, listed: tuple[Deployment, ...]) -> None:
    others = [deployment for deployment in listed if deployment.id != found.id and not deployment.problems]
    reasons = {
        "it is booted": found.booted,
        "it is pinned": found.pinned,
        "it is the default, and there are others": found.default and bool(others),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InUseError(f"deployment {found.id[:12]} cannot be removed: {reason}", deployment=found.id)
