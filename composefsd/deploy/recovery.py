"""Finishing or undoing what was interrupted: at the start of the daemon, and before each change.

A record that is neither complete nor retiring tells of a deploy that was cut short.  Its entry decides: is it there,
exactly as planned, and the payload too, then a loader may have started it already, and the deployment is finished;
otherwise everything of it goes, from the entry inwards, and its record last.  A record that is retiring is retired to
its end, unless the deployment was booted in between.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial

from composefsd.deploy import entries, payload, persistent
from composefsd.deploy.places import Places
from composefsd.deploy.state import JOURNAL, Deployment, Phase
from composefsd.errors import ComposefsdError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a recovery did.

    finished became complete; undone and retired are gone, so that their repository tags can go; problems has a line
    for each thing that could not be put right.
    """

    finished: tuple[Deployment, ...] = ()
    undone: tuple[Deployment, ...] = ()
    retired: tuple[Deployment, ...] = ()
    problems: tuple[str, ...] = ()


def recover(places: Places, booted: str | None = None) -> Recovery:
    """Bring everything into a state that the journal calls finished.  booted is the digest of the running boot image.

    What fails is reported and left for the next time.  Raises LockedError while another process changes deployments.
    """
    if places.sysroot.stat(JOURNAL) is None:
        return Recovery()
    with places.journal.locked():
        return recover_locked(places, booted)


def recover_locked(places: Places, booted: str | None) -> Recovery:
    """`recover` for who holds the journal's lock."""
    loaded = places.journal.load()
    outcome: dict[str, list[Deployment]] = {"finished": [], "undone": [], "retired": [], "kept": []}
    problems = [*loaded.problems, *sweep(places)]
    for record in loaded.deployments:
        if record.phase is Phase.ENTRY:
            continue
        try:
            outcome[_settle(places, record, booted)].append(record)
        except ComposefsdError as error:
            problems.append(f"deployment {record.seq}: {error}")
    for problem in problems:
        log.warning("recovery: %s", problem)
    finished, undone, retired = (tuple(outcome[key]) for key in ("finished", "undone", "retired"))
    return Recovery(finished, undone, retired, tuple(problems))


def sweep(places: Places) -> list[str]:
    """Remove temporary files and directories of ours everywhere; answers with what went wrong.

    It comes first, for a directory can be removed only when nothing unfinished lies in it.
    """
    sweeps = (
        partial(entries.sweep, places.boot),
        partial(payload.sweep, places.boot),
        partial(persistent.sweep, places.sysroot),
        places.journal.sweep,
    )
    problems = []
    for sweep_one in sweeps:
        try:
            sweep_one()
        except ComposefsdError as error:
            problems.append(str(error))
    return problems


def _settle(places: Places, record: Deployment, booted: str | None) -> str:
    """Finish, undo or retire one record; answers with which it was."""
    mine = [found for found in entries.scan(places.boot) if found.is_of(record.seq, record.id)]
    runs = record.known_as(booted)
    if record.phase is Phase.RETIRING:
        record = replace(record, remove_state=record.remove_state and not runs)
        if runs and mine:
            places.journal.advance(record, Phase.ENTRY)
            return "kept"
        retire(places, record)
        return "retired"
    as_planned = any(found.data == record.entry_text.encode() for found in mine)
    if record.phase is Phase.PAYLOAD and as_planned and payload.is_whole(places.boot, record.files, content=True):
        places.journal.advance(record, Phase.ENTRY)
        return "finished"
    undo(places, record, booted)
    return "undone"


def undo(places: Places, record: Deployment, booted: str | None) -> None:
    """Remove what an unfinished deploy made; state that was there before it, or that is in use, stays."""
    keep_state = record.state_existed or record.known_as(booted)
    retire(places, replace(record, remove_state=not keep_state))


def retire(places: Places, record: Deployment) -> int:
    """Remove a deployment from the entry inwards and forget it.  Answers with the bytes freed on $BOOT.

    Each step is durable before the next begins, and can be repeated.
    """
    space = places.boot.space()
    freed = space.rounded(entries.remove(places.boot, record.seq, record.id))
    freed += payload.remove(places.boot, record.files)
    if record.remove_state:
        persistent.remove(places.sysroot, record)
    places.journal.forget(record.id)
    return freed
