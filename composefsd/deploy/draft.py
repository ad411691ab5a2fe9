"""The half of a plan that follows from the image alone: which boot image, which files, and every reason against it.

The rules for kernel command lines are composefs-rs's, read strictly: every argument in every profile of a UKI has to
name this very boot image, since what the tools compare and what an initrd mounts may be different arguments.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.deploy import names
from composefsd.deploy.payload import PlannedFile
from composefsd.deploy.request import Addon, Kernel, Request, Uki
from composefsd.deploy.state import DeploymentType, VerityPolicy
from composefsd.digests import ObjectId
from composefsd.errors import FormatError, NotBootableError

_MAX_FILE_BYTES: Final = (1 << 32) - 1  # of VFAT
_MAX_COMMAND_LINE_BYTES: Final = 2047  # COMMAND_LINE_SIZE of x86 and arm64, without the NUL
_LEGACY_FORMAT: Final = 2
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]")


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
    lines = uki.command_lines or ("",)
    checked = [
        _check_profile(request, f"{uki.path}, profile {profile}" if len(lines) > 1 else uki.path, line)
        for profile, line in enumerate(lines)
    ]
    boot, *others = dict.fromkeys(digest for digest, _ in checked)
    files = [PlannedFile(names.uki_path(boot.hex), uki.content.size_bytes, uki.content.source)]
    for addon in uki.addons:
        path = names.addon_path(boot.hex, addon.name)
        files.append(PlannedFile(path, addon.content.size_bytes, addon.content.source))
    reasons = [reason for _, found in checked for reason in found]
    if request.kernel_arguments:
        reasons.append("kernel arguments cannot be added to a UKI, which carries its own")
    reasons += [reason for addon in uki.addons for reason in _addon_reasons(request, addon)]
    added = [addon.command_line for addon in sorted(uki.addons, key=lambda addon: addon.name)]
    arguments = tuple(cmdline.split(" ".join([lines[0], *added])))
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
