"""What deploying an image would do, worked out before anything is touched.

Pure: from a Request (the image, as the caller found it) and a Survey (partitions and state, as they are) to a Plan.
`lay_out` is the half that needs no survey: which boot image, which files, and each reason against it that lies in the
image itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.deploy import names
from composefsd.deploy.entries import entry_text, menu_title, one_line
from composefsd.deploy.loader import Loader
from composefsd.deploy.payload import PlannedFile
from composefsd.deploy.persistent import DEPLOY, Directory, Layout
from composefsd.deploy.state import Deployment, DeploymentState, DeploymentType, File, Phase, VerityPolicy
from composefsd.deploy.volume import Space, parent
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import FormatError, NoSpaceError, NotBootableError, ReadOnlyError

RESERVE_BYTES: Final = 1 << 20
"""Left free on $BOOT for the renames of boot counting, loader updates and firmware capsules."""

_MAX_FILE_BYTES: Final = (1 << 32) - 1  # of VFAT
_MAX_COMMAND_LINE_BYTES: Final = 2047  # COMMAND_LINE_SIZE of x86 and arm64, without the NUL
_LEGACY_FORMAT: Final = 2
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class BootImage:
    """The boot image in one EROFS format (0, 1 or 2); stored tells whether `images/` has it."""

    digest: ObjectId
    format: int
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Content:
    """Content to put on the partition: `source` names it among the descriptors that `deploy` is given."""

    source: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Addon:
    """An addon of a UKI, by its file name; command_line is what it appends to that of the UKI."""

    name: str
    content: Content
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class Uki:
    """A unified kernel image; command_lines are those of all its profiles, the base first."""

    path: str
    content: Content
    command_lines: tuple[str, ...]
    addons: tuple[Addon, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with its initrd, if it has one; options are the kernel arguments that the image asks for."""

    path: str
    content: Content
    initrd: Content | None
    options: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """An image to deploy.

    images are the formats of its boot image, that of the repository's default first.  payload is None where the image
    has none or several, and `reasons` then says so; a reason is one line.  sealed tells whether the repository has
    fs-verity.  kernel_digest is the SHA-256 of kernel and initrd, if known.  etc and var describe the directories of
    the boot image.  tag is the repository's tag that keeps the image, reference the transport's name of its source.
    """

    images: tuple[BootImage, ...]
    payload: Uki | Kernel | None
    manifest_digest: OciDigest
    tag: str
    sealed: bool
    verity: VerityPolicy = VerityPolicy.REQUIRE
    reference: str = ""
    os_id: str = ""
    title: str = ""
    os_version: str = ""
    kernel_arguments: tuple[str, ...] = ()
    kernel_digest: str = ""
    etc: Directory = field(default_factory=Directory)
    var: Directory = field(default_factory=Directory)
    pinned: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def default(self) -> BootImage:
        """The format to boot unless the payload names another: the first that is stored."""
        return next((image for image in self.images if image.stored), self.images[0])


@dataclass(frozen=True, slots=True)
class Draft:
    """The half of a plan that follows from the request alone; boots are the entry's keys, `uki` not yet decided."""

    boot_digest: ObjectId
    aliases: tuple[ObjectId, ...]
    type: DeploymentType
    files: tuple[PlannedFile, ...]
    boots: tuple[tuple[str, str], ...]
    kernel_arguments: tuple[str, ...]
    reasons: tuple[str, ...]


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


# From the request alone


def lay_out(request: Request) -> Draft:
    """The draft for a request, which has at least one image."""
    match request.payload:
        case Uki() as uki:
            draft = _lay_out_uki(request, uki)
        case Kernel() as kernel:
            draft = _lay_out_kernel(request, kernel)
        case None:
            none = () if request.reasons else ("the image has neither a UKI nor a kernel with an initrd",)
            draft = Draft(request.default.digest, (), DeploymentType.UKI, (), (), (), none)
    reasons = (*request.reasons, *_request_reasons(request), *draft.reasons, *_file_reasons(draft.files))
    return replace(draft, reasons=tuple(dict.fromkeys(reasons)))


def _request_reasons(request: Request) -> Iterator[str]:
    if request.verity is VerityPolicy.REQUIRE and not request.sealed:
        yield "the repository has no fs-verity, which verity=require asks for"
    if not request.default.stored:
        yield "the repository does not hold the boot image"


def _lay_out_uki(request: Request, uki: Uki) -> Draft:
    many = len(uki.command_lines) > 1
    checked = [
        _check_profile(request, f"{uki.path}, profile {profile}" if many else uki.path, line)
        for profile, line in enumerate(uki.command_lines)
    ]
    boot, *others = dict.fromkeys([digest for digest, _ in checked] or [request.default.digest])
    files = [PlannedFile(names.uki_path(boot.hex), uki.content.size_bytes, uki.content.source)]
    for addon in uki.addons:
        path = names.addon_path(boot.hex, addon.name)
        files.append(PlannedFile(path, addon.content.size_bytes, addon.content.source))
    reasons = [reason for _, found in checked for reason in found]
    if request.kernel_arguments:
        reasons.append("kernel arguments cannot be added to a UKI, which carries its own")
    reasons += [reason for addon in uki.addons for reason in _addon_reasons(request, addon)]
    added = [addon.command_line for addon in sorted(uki.addons, key=lambda addon: addon.name)]
    arguments = tuple(cmdline.split(" ".join([*uki.command_lines[:1], *added])))
    boots = (("uki", f"/{files[0].path}"),)
    return Draft(boot, tuple(others), DeploymentType.UKI, tuple(files), boots, arguments, tuple(reasons))


def _check_profile(request: Request, where: str, line: str) -> tuple[ObjectId, list[str]]:
    """The digest that an initrd mounts for a command line, the first that is stored; and what is wrong with it."""
    images = {image.digest: image for image in request.images}
    reasons = _line_reasons(line)
    try:
        arguments = cmdline.check(line, images, request.default.digest.algorithm)
    except NotBootableError as error:
        arguments = ()
        reasons += str(error).splitlines()
    stored = [argument.digest for argument in arguments if images[argument.digest].stored]
    if arguments and not stored:
        reasons.append("the command line names a format of the boot image that the repository does not hold")
    reasons += [reason for argument in arguments for reason in _mark_reasons(request.verity, argument)]
    return next(iter(stored), request.default.digest), [f"{where}: {reason}" for reason in reasons]


def _mark_reasons(verity: VerityPolicy, argument: ComposefsArgument) -> Iterator[str]:
    """Whether the mark for "mount even without fs-verity" is what the policy says."""
    if argument.insecure and verity is not VerityPolicy.OPTIONAL:
        yield f"the command line lets the system boot without fs-verity (`?`), which verity={verity} does not"
    if not argument.insecure and verity is VerityPolicy.OPTIONAL:
        yield "the command line insists on fs-verity (there is no `?`), and verity=optional does not"


def _addon_reasons(request: Request, addon: Addon) -> Iterator[str]:
    """An addon's arguments follow those of the UKI: it need not name an image, but may not name another one."""
    if not names.ADDON_NAME.fullmatch(addon.name):
        yield f"the addon name {addon.name[:200]!r} is not one that a boot partition should hold"
    keys = {token.replace('"', "").partition("=")[0] for token in cmdline.split(addon.command_line)}
    if keys & {cmdline.LEGACY, cmdline.DESCRIBED}:
        yield from _check_profile(request, addon.name, addon.command_line)[1]


def _lay_out_kernel(request: Request, kernel: Kernel) -> Draft:
    """The entry names the image as composefs-rs spells it for its format, and as its initrd tool reads it."""
    image = request.default
    version = None if image.format == _LEGACY_FORMAT else 1
    argument = ComposefsArgument(image.digest, version, insecure=request.verity is VerityPolicy.OPTIONAL)
    reasons = [reason for given in request.kernel_arguments for reason in _argument_reasons(given)]
    try:
        options = cmdline.with_argument(" ".join((kernel.options, *request.kernel_arguments)), argument)
    except FormatError as error:
        reasons.append(str(error))
        options = str(argument)
    reasons += _line_reasons(options)
    files = [(names.kernel_path(image.digest.hex), kernel.content)]
    boots = [("linux", f"/{files[0][0]}")]
    if kernel.initrd is None:
        reasons.append(f"{kernel.path} has no initrd, and nothing else could mount the image")
    else:
        files.append((names.initrd_path(image.digest.hex), kernel.initrd))
        boots.append(("initrd", f"/{files[1][0]}"))
    planned = tuple(PlannedFile(path, content.size_bytes, content.source) for path, content in files)
    boots.append(("options", options))
    arguments = tuple(cmdline.split(options))
    return Draft(image.digest, (), DeploymentType.TYPE1, planned, tuple(boots), arguments, tuple(reasons))


def _argument_reasons(argument: str) -> Iterator[str]:
    if cmdline.split(argument) != [argument] or argument.count('"') % 2:
        yield f"{argument[:200]!r} is not one kernel argument"
    elif not cmdline.without_arguments(argument):
        yield f"{argument[:200]!r}: which image is mounted is not for a kernel argument to say"


def _line_reasons(line: str) -> list[str]:
    reasons = []
    if len(line.encode()) > _MAX_COMMAND_LINE_BYTES:
        reasons.append(f"the kernel command line is longer than the {_MAX_COMMAND_LINE_BYTES} bytes that Linux takes")
    if any(_CONTROL.search(token) for token in cmdline.split(line)):
        reasons.append("the kernel command line holds control characters")
    return reasons


def _file_reasons(files: tuple[PlannedFile, ...]) -> Iterator[str]:
    for file in files:
        if not 0 < file.size <= _MAX_FILE_BYTES:
            yield f"{file.source} has {file.size} bytes, and {file.path} can have 1 to {_MAX_FILE_BYTES}"
    paths = [file.path.lower() for file in files]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"two files would be called {path}: VFAT ignores case"


# With the survey


def make_plan(request: Request, draft: Draft, survey: Survey) -> Plan:
    """The plan for a draft on this machine."""
    if survey.existing is not None and not survey.broken:
        return Plan(request, survey.boot, survey.existing, survey.space, draft.reasons, exists=True)
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
