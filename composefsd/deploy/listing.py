"""What is deployed: the entries and files on the partitions, and what the journal adds to them.

The scan wins: a record without its entry or its payload is shown as failed, and an entry of ours without a record is
still a deployment.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot import cmdline
from composefsd.deploy import entries, loader, names, payload, persistent
from composefsd.deploy.entries import Found
from composefsd.deploy.places import Places
from composefsd.deploy.plan import Draft, Plan, Request, Survey, lay_out, make_plan
from composefsd.deploy.state import Deployment, DeploymentState, DeploymentType, File, Phase, VerityPolicy
from composefsd.deploy.volume import parent
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import FormatError

_MAX_ORIGIN_BYTES: Final = 64 << 10
_NOT_BOOTING: Final = (DeploymentState.PREPARED, DeploymentState.FAILED, DeploymentState.RETIRING)


@dataclass(frozen=True, slots=True)
class Listing:
    """Deployments in boot order, those that no entry boots last; and a line for each record that cannot be read."""

    deployments: tuple[Deployment, ...]
    problems: tuple[str, ...]


def list_deployments(places: Places, booted: str | None = None) -> Listing:
    """Everything that is deployed.  booted is the digest of the boot image that runs, in hexadecimal.

    The default is the entry that systemd-boot would list first; EFI variables and `loader.conf` do not count yet.
    """
    present = entries.scan(places.boot)
    elsewhere = entries.scan(places.esp) if places.esp is not places.boot else []
    order = {found.file_name: rank for rank, found in enumerate(entries.in_menu_order([*present, *elsewhere]))}
    loaded = places.journal.load()
    known = [_seen(places, record, present) for record in loaded.deployments]
    adopted = [_adopted(places, found) for found in present if found.ours is not None and not _recorded(found, known)]
    everything = [*known, *(deployment for deployment in adopted if deployment is not None)]
    last = len(order)
    shown = [
        replace(deployment, booted=deployment.known_as(booted), default=order.get(deployment.entry) == 0)
        for deployment in everything
    ]
    shown.sort(key=lambda deployment: (order.get(deployment.entry, last), -deployment.seq))
    return Listing(tuple(shown), loaded.problems)


def _recorded(found: Found, known: Sequence[Deployment]) -> bool:
    return any(found.is_of(record.seq, record.id) for record in known)


def _seen(places: Places, record: Deployment, present: Sequence[Found]) -> Deployment:
    """A record with what the partition says about it."""
    entry = next((found for found in present if found.is_of(record.seq, record.id)), None)
    state, problems = record.state, []
    if record.phase is Phase.RETIRING:
        state = DeploymentState.RETIRING
    elif record.phase is not Phase.ENTRY:
        state = DeploymentState.PREPARED
    else:
        problems = _problems(places, record, entry)
        state = DeploymentState.FAILED if problems else state
    if entry is None or entry.name is None:
        return replace(record, state=state, problems=tuple(problems))
    left = -1 if entry.name.left is None else entry.name.left
    done = -1 if entry.name.left is None else entry.name.done or 0
    return replace(
        record,
        state=state,
        problems=tuple(problems),
        entry=entry.file_name,
        tries_left=left,
        tries_done=done,
        options=_options(entry),
    )


def _options(found: Found) -> str | None:
    """The command line that an entry gives a kernel; None if it starts a UKI, or no loader can read it."""
    if found.entry is None or found.entry.value("linux") is None:
        return None
    return found.entry.options


def _problems(places: Places, record: Deployment, entry: Found | None) -> list[str]:
    problems = []
    if entry is None:
        problems.append("its boot entry is gone")
    elif not all(entry.mentions(f"/{file.path}") for file in record.files if ".extra.d/" not in file.path):
        problems.append("its boot entry does not name its payload")
    elif entry.name is not None and entry.name.bad:
        problems.append("all tries to boot it are used up")
    if not payload.is_whole(places.boot, record.files):
        problems.append("its payload is incomplete")
    if persistent.find(places.sysroot, record.id) is persistent.Layout.MISSING:
        problems.append("its state is gone")
    return problems


# Without a record


def _adopted(places: Places, found: Found) -> Deployment | None:
    """The deployment that an entry of ours makes, as far as it can be told without its record."""
    if found.ours is None or found.entry is None or not (found.boot_digest or "").startswith(found.ours.digest):
        return None
    boot_digest = ObjectId.parse(found.boot_digest or "")
    type1 = found.entry.value("linux") is not None
    files = _payload_of(places, boot_digest.hex)
    return Deployment(
        id=boot_digest.hex,
        seq=found.ours.seq,
        phase=Phase.ENTRY,
        state=DeploymentState.ARMED if files else DeploymentState.FAILED,
        type=DeploymentType.TYPE1 if type1 else DeploymentType.UKI,
        verity=VerityPolicy.DEFERRED,  # nobody promised more
        boot_digest=boot_digest,
        manifest_digest=_origin(places, boot_digest.hex),
        title=entries.one_line(found.entry.value("title") or ""),
        entry=found.file_name,
        entry_text=(found.data or b"").decode(),
        kernel_arguments=tuple(cmdline.split(found.entry.options)) if type1 else (),
        files=files,
        state_existed=True,
        problems=("the journal has no record of it",),
        options=_options(found),
    )


def _payload_of(places: Places, boot_digest: str) -> tuple[File, ...]:
    uki, kernel = names.uki_path(boot_digest), parent(names.kernel_path(boot_digest))[0]
    inside = [f"{above}/{name.name}" for above in (f"{uki}.extra.d", kernel) for name in places.boot.names(above)]
    files = []
    for path in (uki, *inside):
        found = places.boot.stat(path)
        if found is not None and names.PAYLOAD_PATH.fullmatch(path):
            files.append(File(path, found.st_size))
    return tuple(files)


def _origin(places: Places, boot_digest: str) -> OciDigest | None:
    """The manifest digest in the state's origin file."""
    path = f"{persistent.DEPLOY}/{boot_digest}/{boot_digest}.origin"
    data = places.sysroot.read(path, _MAX_ORIGIN_BYTES) or b""
    for line in os.fsdecode(data).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "manifest_digest":
            try:
                return OciDigest.parse(value.strip())
            except FormatError:
                return None
    return None


# For a plan


def plan_deploy(places: Places, request: Request) -> Plan:
    """What deploying would do now.  Nothing is changed; look at `Plan.objections` before going on."""
    draft = lay_out(request)
    return make_plan(request, draft, survey(places, draft))


def survey(places: Places, draft: Draft) -> Survey:
    """What the plan for a draft has to know of this machine."""
    boot = places.boot
    listed = list_deployments(places).deployments
    existing = next((found for found in listed if found.id == draft.boot_digest.hex), None)
    present = entries.scan(boot)
    numbers = [places.journal.last_seq(), *(found.ours.seq for found in present if found.ours is not None)]
    above = names.ancestors({names.ENTRIES, *(parent(file.path)[0] for file in draft.files)})
    return Survey(
        boot=boot.label,
        space=boot.space(),
        loader=loader.find(places.esp),
        last_seq=max(numbers),
        existing=existing,
        broken=existing is not None and existing.state in _NOT_BOOTING,
        present=frozenset(file.path for file in draft.files if payload.is_whole(boot, [File(file.path, file.size)])),
        directories=frozenset(path for path in above if boot.stat(path) is not None),
        state=persistent.find(places.sysroot, draft.boot_digest.hex),
        objection=entries.objection(boot, present) or "",
    )
