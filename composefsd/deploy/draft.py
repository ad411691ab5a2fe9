"""The half of a plan that follows from the image alone: which boot image, which files, and every reason against it.

The rules for kernel command lines are composefs-rs's, read strictly: every argument in every profile of a UKI has to
name this very boot image, since what the tools compare and what an initrd mounts may be different arguments.  How the
kernel arguments of a type 1 entry are merged stands in docs/kernel-arguments.md.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from composefsd.boot import cmdline, kargs
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.deploy import names
from composefsd.deploy.payload import PlannedFile
from composefsd.deploy.request import Addon, Content, Kernel, Request, Uki
from composefsd.deploy.state import DeploymentType, VerityPolicy
from composefsd.digests import ObjectId
from composefsd.errors import FormatError, NotBootableError

_MAX_FILE_BYTES: Final = (1 << 32) - 1  # of VFAT
_MAX_COMMAND_LINE_BYTES: Final = 2047  # COMMAND_LINE_SIZE of x86 and arm64, without the NUL
_MAX_INITRDS: Final = 16
_MAX_REASONS: Final = 200
_MAX_REASON: Final = 4096
_TOO_LONG: Final = f"the kernel command line is longer than the {_MAX_COMMAND_LINE_BYTES} bytes that Linux takes"
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
    return replace(draft, reasons=bounded(reasons))


def bounded(reasons: Iterable[str]) -> tuple[str, ...]:
    """Each reason once, and how many more there are than anybody reads: an image may give cause for thousands."""
    different = dict.fromkeys(reasons)
    told = [reason[:_MAX_REASON] for reason in islice(different, _MAX_REASONS)]
    more = len(different) - len(told)
    return (*told, *((f"and {more} more reasons",) if more else ()))


def _request_reasons(request: Request) -> Iterator[str]:
    if request.verity is VerityPolicy.REQUIRE and not request.sealed:
        yield "the repository has no fs-verity, which verity=require asks for"
    if not request.default.stored:
        yield "the repository does not hold the boot image"


def _lay_out_uki(request: Request, uki: Uki) -> Draft:
    lines = uki.command_lines or ("",)
    places = [f"{uki.path}, profile {number}" if len(lines) > 1 else uki.path for number in range(len(lines))]
    checked = [_check_profile(request, place, line) for place, line in zip(places, lines, strict=True)]
    boot, *others = dict.fromkeys(digest for digest, _ in checked)
    addons = sorted(map(_placed, uki.addons), key=lambda addon: addon.name)  # as systemd-stub loads them
    added = [addon.command_line for addon in addons if addon.command_line]
    reasons = [reason for _, found in checked for reason in found]
    if request.kernel_arguments or request.removed_arguments:
        reasons.append("kernel arguments cannot be changed in a UKI, which carries its own")
    reasons += [reason for addon in addons for reason in _name_reasons(addon)]
    reasons += _order_reasons(addons)
    if sum(map(len, added)) > _MAX_COMMAND_LINE_BYTES:
        reasons.append(f"{uki.path}, with addons: {_TOO_LONG}")
        added = []
    else:
        reasons += [reason for addon in addons for reason in _addon_reasons(request, addon)]
    for place, line in zip(places, lines, strict=True):
        reasons += (f"{place}, with addons: {reason}" for reason in _joined_reasons(line, added))
    files = [(names.uki_path(boot.hex), uki.content)]
    files += ((names.addon_path(boot.hex, addon.name), addon.content) for addon in addons)
    arguments = tuple(cmdline.split(" ".join([lines[0], *added])))
    boots = (("uki", f"/{files[0][0]}"),)
    return Draft(boot, tuple(others), DeploymentType.UKI, _planned(files), boots, arguments, tuple(reasons))


def _planned(files: Sequence[tuple[str, Content]]) -> tuple[PlannedFile, ...]:
    return tuple(PlannedFile(path, content.size_bytes, content.source) for path, content in files)


def _placed(addon: Addon) -> Addon:
    """An addon by its name beside our UKI: there is one for each deployment, for what lay in `loader/addons` would
    take part in the boot of every other one as well.
    """
    return replace(addon, name=names.SHARED_ADDON_PREFIX + addon.name) if addon.shared else addon


def _order_reasons(addons: Sequence[Addon]) -> Iterator[str]:
    """Against addons of the UKI that would be loaded before one for all UKIs."""
    last = max((at for at, addon in enumerate(addons) if addon.shared), default=0)
    for addon in addons[:last]:
        if not addon.shared:
            yield f"the addon {addon.name} would be loaded before the image's addons for all UKIs"


def _joined_reasons(line: str, added: Sequence[str]) -> Iterator[str]:
    """What is wrong with a command line only once those of addons follow it."""
    if not added:
        return
    if any(part.count('"') % 2 for part in (line, *added)):
        yield "kernel arguments with an open quote"
    if not _line_reasons(line):
        yield from _line_reasons(" ".join((line, *added)))


def _check_profile(request: Request, where: str, line: str) -> tuple[ObjectId, list[str]]:
    """The digest that an initrd mounts for a command line, the first that is stored; and what is wrong with it."""
    images = {image.digest: image for image in request.images}
    reasons = _line_reasons(line)
    try:
        arguments = cmdline.check(line, images, request.default.digest.algorithm)
    except NotBootableError as error:
        arguments = ()
        reasons += (reason + _advice(where, reason) for reason in str(error).splitlines())
    stored = [argument.digest for argument in arguments if images[argument.digest].stored]
    if arguments and not stored:
        reasons.append("the command line names a format of the boot image that the repository does not hold")
    reasons += [reason for argument in arguments for reason in _mark_reasons(request.verity, argument)]
    return next(iter(stored), request.default.digest), [f"{where}: {reason}" for reason in reasons]


def _advice(where: str, reason: str) -> str:
    """What to do about a UKI that names no image."""
    if reason != cmdline.NO_IMAGE:
        return ""
    if where.startswith("/usr/"):
        return (
            "; the digest covers /usr, so a UKI there cannot name it: one under /boot/EFI/Linux can, "
            "or a kernel with an initrd be deployed (type1)"
        )
    return "; only who builds the UKI can add one, or a kernel with an initrd be deployed (type1)"


def _mark_reasons(verity: VerityPolicy, argument: ComposefsArgument) -> Iterator[str]:
    """Whether the mark for "mount even without fs-verity" is what the policy says."""
    if argument.insecure and verity is not VerityPolicy.OPTIONAL:
        yield f"the command line lets the system boot without fs-verity (`?`), which verity={verity} does not"
    if not argument.insecure and verity is VerityPolicy.OPTIONAL:
        yield "the command line insists on fs-verity (there is no `?`), and verity=optional does not"


def _name_reasons(addon: Addon) -> Iterator[str]:
    if not names.ADDON_NAME.fullmatch(addon.name):
        yield f"the addon name {addon.name[:200]!r} is not one that a boot partition should hold"


def _addon_reasons(request: Request, addon: Addon) -> Iterator[str]:
    """An addon's arguments follow those of the UKI: it need not name an image, but may not name another one."""
    keys = {token.replace('"', "").partition("=")[0] for token in cmdline.split(addon.command_line)}
    if keys & {cmdline.LEGACY, cmdline.DESCRIBED}:
        yield from _check_profile(request, addon.name, addon.command_line)[1]


def _lay_out_kernel(request: Request, kernel: Kernel) -> Draft:
    image = request.default
    insecure = request.verity is VerityPolicy.OPTIONAL
    argument = ComposefsArgument.of(image.digest, image.format, request.spelling, insecure=insecure)
    options, reasons = _options(request, kernel, argument)
    files = [(names.kernel_path(image.digest.hex), kernel.content)]
    files += ((names.initrd_path(image.digest.hex, at), initrd) for at, initrd in enumerate(kernel.initrds, start=1))
    linux, *initrds = (f"/{path}" for path, _ in files)
    boots = (("linux", linux), *(("initrd", initrd) for initrd in initrds), ("options", options))
    if not kernel.initrds:
        reasons.append(f"{kernel.path} has no initrd, and nothing else could mount the image")
    if len(kernel.initrds) > _MAX_INITRDS:
        reasons.append(f"{kernel.path} has {len(kernel.initrds)} initrds, where {_MAX_INITRDS} are allowed")
    arguments = tuple(cmdline.split(options))
    return Draft(image.digest, (), DeploymentType.TYPE1, _planned(files), boots, arguments, tuple(reasons))


def _options(request: Request, kernel: Kernel, argument: ComposefsArgument) -> tuple[str, list[str]]:
    """The line of kernel arguments, and what is wrong with it."""
    unwanted = request.removed_arguments
    reasons = [reason for given in (*unwanted, *request.kernel_arguments) for reason in _argument_reasons(given)]
    defaults, missed = kargs.without(kernel.defaults, unwanted)
    own, also_missed = kargs.without(cmdline.split(kernel.options), unwanted)
    for unmatched in missed:
        if unmatched in also_missed:
            reasons.append(f"the image asks for no kernel argument {unmatched[:200]!r} that could be left out")
    try:
        line = cmdline.with_argument(" ".join(kargs.merge(defaults, own, request.kernel_arguments)), argument)
    except FormatError as error:
        reasons.append(str(error))
        line = str(argument)
    return line, [*reasons, *_line_reasons(line)]


def _argument_reasons(argument: str) -> Iterator[str]:
    if cmdline.split(argument) != [argument] or argument.count('"') % 2:
        yield f"{argument[:200]!r} is not one kernel argument"
    elif not cmdline.without_arguments(argument):
        yield f"{argument[:200]!r}: which image is mounted is not for a kernel argument to say"


def _line_reasons(line: str) -> list[str]:
    reasons = []
    if len(line.encode()) > _MAX_COMMAND_LINE_BYTES:
        reasons.append(_TOO_LONG)
    if any(_CONTROL.search(token) for token in cmdline.split(line)):
        reasons.append("the kernel command line holds control characters")
    return reasons


def _file_reasons(files: tuple[PlannedFile, ...]) -> Iterator[str]:
    for file in files:
        if not 0 < file.size <= _MAX_FILE_BYTES:
            yield f"{file.source} has {file.size} bytes, and {file.path} can have 1 to {_MAX_FILE_BYTES}"
    counts = Counter(file.path.lower() for file in files)
    for path in sorted(path for path, count in counts.items() if count > 1):
        yield f"two files would be called {path}: VFAT ignores case"
