"""What deploying an image would do, worked out before anything is touched.

Pure: from a Request (the image, as the caller found it) comes a Draft, and with a Survey of partitions and state that
becomes a Plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from composefsd.boot.cmdline import Spelling
from composefsd.deploy import names
from composefsd.deploy.draft import Draft, bounded, lay_out
from composefsd.deploy.entries import entry_text, menu_title, one_line
from composefsd.deploy.loader import Loader
from composefsd.deploy.payload import PlannedFile
from composefsd.deploy.persistent import DEPLOY, Layout
from composefsd.deploy.request import Addon, BootImage, Content, Kernel, Request, Uki
from composefsd.deploy.state import Deployment, DeploymentState, File, Phase
from composefsd.deploy.volume import Space, parent
from composefsd.errors import NoSpaceError, NotBootableError, ReadOnlyError

__all__ = [
    "Addon",
    "BootImage",
    "Content",
    "Draft",
    "Kernel",
    "Plan",
    "Request",
    "Survey",
    "Uki",
    "bounded",
    "lay_out",
    "make_plan",
]

RESERVE_BYTES: Final = 1 << 20
"""Left free on $BOOT for the renames of boot counting, loader updates and firmware capsules."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a plan has to know of the machine.

    existing is the deployment of this boot image, if there is one; broken tells that it does not boot.
    present and directories are those paths of the draft, and directories above them, that $BOOT has already (files in
    their full size).  objection is why entries must not be written to $BOOT, or empty.
    """

    boot: str
    space: Space
    loader: Loader | None
    last_seq: int
    existing: Deployment | None
    broken: bool
    present: frozenset[str]
    directories: frozenset[str]
    state: Layout
    objection: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deploy would do.

    deployment is the record it starts with, or with `exists` the deployment that is there and stays as it is.
    reasons are those against it, and then nothing is done; space is that of $BOOT, of which `needed_bytes` are taken.
    """

    request: Request
    boot: str
    deployment: Deployment
    space: Space
    reasons: tuple[str, ...]
    exists: bool = False
    files: tuple[PlannedFile, ...] = ()
    present: frozenset[str] = frozenset()
    new_directories: tuple[str, ...] = ()
    needed_bytes: int = 0
    creates_state: bool = False

    @property
    def free_after_bytes(self) -> int:
        """Free on $BOOT afterwards."""
        return max(0, self.space.free_bytes - self.needed_bytes)

    @property
    def fits(self) -> bool:
        """Whether $BOOT has the room, and a reserve."""
        return not self.needed_bytes or self.space.free_bytes - self.needed_bytes >= RESERVE_BYTES

    @property
    def actions(self) -> tuple[tuple[str, str, int], ...]:
        """Action, path and bytes in the order of things.

        `keep-deployment`; or `create-state` (below the sysroot), then `create-directory`, `write`, `keep` (a file of
        this name and size is there) and `write-entry` on $BOOT.
        """
        return tuple(self._actions())

    def _actions(self) -> Iterator[tuple[str, str, int]]:
        if self.exists:
            yield "keep-deployment", self.deployment.entry, 0
            return
        if self.creates_state:
            yield "create-state", f"{DEPLOY}/{self.deployment.id}", 0
        for directory in self.new_directories:
            yield "create-directory", directory, self.space.cluster_bytes
        for file in self.files:
            yield ("keep", file.path, 0) if file.path in self.present else ("write", file.path, file.size)
        entry = f"{names.ENTRIES}/{self.deployment.entry}"
        yield "write-entry", entry, len(self.deployment.entry_text.encode())

    @property
    def objections(self) -> tuple[str, ...]:
        """All that speaks against it: the reasons, a partition that cannot be written, and a lack of space."""
        read_only = (f"{self.boot} is mounted read-only",) if self.space.read_only and not self.exists else ()
        return (*self.reasons, *read_only, *(() if self.fits else (self._lack(),)))

    def _lack(self) -> str:
        needed, free = self.needed_bytes, self.space.free_bytes
        return f"{self.boot} has {free} bytes free; {needed} are needed, and {RESERVE_BYTES} have to stay free"

    def check(self) -> None:
        """Raises NotBootableError with the reasons, one a line; ReadOnlyError or NoSpaceError for the partition."""
        if self.reasons:
            raise NotBootableError("\n".join(self.reasons))
        if self.exists:
            return
        if self.space.read_only:
            raise ReadOnlyError(f"{self.boot} is mounted read-only", partition=self.boot)
        if not self.fits:
            facts = {"needed_bytes": self.needed_bytes, "free_bytes": self.space.free_bytes}
            raise NoSpaceError(self._lack(), partition=self.boot, **facts)


def make_plan(request: Request, draft: Draft, survey: Survey) -> Plan:
    """The plan for a draft on this machine."""
    if survey.existing is not None and not survey.broken:
        reasons = (*draft.reasons, *_differences(request, draft, survey.existing))
        return Plan(request, survey.boot, survey.existing, survey.space, reasons, exists=True)
    deployment = _record(request, draft, survey)
    missing = [file for file in draft.files if file.path not in survey.present]
    grown = {parent(file.path)[0] for file in missing} | {names.ENTRIES}
    new = sorted(directory for directory in names.ancestors(grown) if directory not in survey.directories)
    sizes = [*(file.size for file in missing), len(deployment.entry_text.encode())]
    directories = survey.space.cluster_bytes * len({*grown, *new})  # a name may be what makes a directory grow
    return Plan(
        request,
        survey.boot,
        deployment,
        survey.space,
        reasons=(*draft.reasons, *_survey_reasons(draft, survey)),
        files=draft.files,
        present=survey.present,
        new_directories=tuple(new),
        needed_bytes=sum(map(survey.space.rounded, sizes)) + directories,
        creates_state=survey.state is Layout.MISSING,
    )


def _differences(request: Request, draft: Draft, existing: Deployment) -> Iterator[str]:
    """Against a caller whose choice or kernel arguments would be passed over: the boot image is deployed with others.

    Of another file in the same place only the size can tell here.
    """
    if request.type not in (None, existing.type) or (request.chosen and _contents(draft) != _contents(existing)):
        yield "it is deployed already, with something else of the image that boots"
        return
    asks = request.kernel_arguments or request.removed_arguments or request.spelling is not Spelling.AUTO
    if (asks or request.chosen) and draft.kernel_arguments != existing.kernel_arguments:
        yield f"it is deployed already, with other kernel arguments: {' '.join(existing.kernel_arguments)}"


def _contents(draft: Draft | Deployment) -> set[tuple[str, int]]:
    return {(file.path, file.size) for file in draft.files}


def _record(request: Request, draft: Draft, survey: Survey) -> Deployment:
    seq = survey.last_seq + 1
    name = names.DeploymentName.make(request.os_id, seq, draft.boot_digest.hex)
    title = menu_title(request.title, seq)
    uki_key = "uki" if survey.loader is not None and survey.loader.knows_uki_key else "efi"
    boots = tuple((uki_key if key == "uki" else key, value) for key, value in draft.boots)
    return Deployment(
        id=draft.boot_digest.hex,
        seq=seq,
        phase=Phase.PLANNED,
        state=DeploymentState.ARMED,
        type=draft.type,
        verity=request.verity,
        boot_digest=draft.boot_digest,
        aliases=draft.aliases,
        manifest_digest=request.manifest_digest,
        reference=request.reference,
        tag=request.tag,
        title=title,
        os_version=one_line(request.os_version),
        entry=f"{name}.conf",
        entry_text=entry_text(title, name.os, seq, () if draft.reasons else boots),
        kernel_arguments=draft.kernel_arguments,
        files=tuple(File(file.path, file.size) for file in draft.files),
        pinned=request.pinned or (survey.existing is not None and survey.existing.pinned),
        state_existed=survey.state is not Layout.MISSING,
    )


def _survey_reasons(draft: Draft, survey: Survey) -> Iterator[str]:
    if survey.objection:
        yield survey.objection
    if survey.state is Layout.OTHER:
        yield f"{DEPLOY}/{draft.boot_digest.hex} is there, and not in the layout that an overlay on /etc needs"
