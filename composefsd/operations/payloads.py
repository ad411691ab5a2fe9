"""Which of an image's boot resources is deployed, and why none is.

The order of `auto`: a UKI that names an image, an entry of the image, a kernel with an initrd, and last a UKI that
names none, to be refused in words.  The first kind of which there is anything has to have exactly one, unless the
caller names one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from composefsd.boot import kargs
from composefsd.boot.resources import ADDONS, MODULES, ResourceType
from composefsd.deploy.plan import Addon, Content, Kernel, Uki
from composefsd.operations.facts import BootFact, Facts, FileFact
from composefsd.operations.model import DeployRequest, PayloadType

_EFI_NAMES: Final = {
    "386": "ia32",
    "amd64": "x64",
    "arm": "arm",
    "arm64": "aa64",
    "loong64": "loongarch64",
    "riscv64": "riscv64",
}
"""What UEFI, and so a boot entry, calls the architectures of OCI."""

_SHARED: Final = (f"{ADDONS.decode()}/", f"{MODULES.decode()}/uki.extra.d/")
"""Where an image has addons for all its UKIs (UAPI.5)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The payload, or None and the reasons why; there may be reasons against a payload as well."""

    payload: Uki | Kernel | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Group:
    """Resources of one kind, with words for it, and what makes a payload of one."""

    words: str
    found: Sequence[BootFact]
    make: Callable[[BootFact], Choice]


def choose(facts: Facts, request: DeployRequest, architecture: str) -> Choice:
    """The one payload that the options leave; architecture is OCI's name of the image's, empty if it is not known."""
    return _Chooser(facts, request, architecture).choose()


@dataclass(frozen=True, slots=True)
class _Chooser:
    facts: Facts
    request: DeployRequest
    architecture: str

    def choose(self) -> Choice:
        group = next((group for group in self._groups() if group.found), None)
        if group is None:
            return Choice(None, tuple(self._why_nothing()))
        if len(group.found) > 1:
            paths = ", ".join(one.path for one in group.found)
            text = f"the image has {len(group.found)} {group.words}; name one with the option payload: {paths}"
            return Choice(None, (text,))
        return group.make(group.found[0])

    def _groups(self) -> Iterator[_Group]:
        """What may be deployed, the preferred kind first."""
        usable = [one for one in self.facts.resources if self._is_wanted(one) and not self._problem(one)]
        ukis = [one for one in usable if one.type == ResourceType.UKI]
        kernels = [one for one in usable if one.type == ResourceType.KERNEL]
        if self.request.type is not PayloadType.TYPE1:
            yield _Group("UKIs", [one for one in ukis if one.claims], self._uki)
        if self.request.type is not PayloadType.UKI:
            yield _Group("entries", [one for one in usable if one.type == ResourceType.TYPE1], self._entry)
            yield _Group("kernels with an initrd", [one for one in kernels if len(one.files) > 1], self._kernel)
        if self.request.type is not PayloadType.TYPE1:
            yield _Group("UKIs that name no image", [one for one in ukis if not one.claims], self._uki)

    def _is_wanted(self, one: BootFact) -> bool:
        payload, uki = self.request.payload, self.request.uki
        if uki is not None and (one.type != ResourceType.UKI or not _is_called(one, uki)):
            return False
        return payload is None or _is_called(one, payload)

    def _problem(self, one: BootFact) -> str:
        """Why this cannot be deployed, whatever the options are."""
        expected = _EFI_NAMES.get(self.architecture)
        if one.architecture and expected not in (None, one.architecture):
            what = "an entry" if one.type == ResourceType.TYPE1 else "an executable"
            return f"{what} for the architecture {one.architecture}, and the image is for {expected}"
        return one.problem

    def _why_nothing(self) -> Iterator[str]:
        named = self.request.payload or self.request.uki
        if named is None and self.facts.reasons:  # which tell all of it
            return
        if named is None:
            yield f"the image has nothing of the type {self.request.type.value} to boot"
        else:
            what = "UKI" if self.request.uki is not None else "boot resource"
            kind = "" if self.request.type is PayloadType.AUTO else f" of the type {self.request.type.value}"
            yield f"the image has no {what} {named}{kind} that can be used"
        for one in filter(self._is_wanted, self.facts.resources):
            yield from (f"{one.path}: {line}" for line in self._problem(one).splitlines())
            if one.type == ResourceType.KERNEL and len(one.files) == 1:
                yield f"{one.path} has no initrd, and nothing else could mount the image"

    # Making payloads

    def _uki(self, fact: BootFact) -> Choice:
        """A UKI with the addons that systemd-stub would load for it."""
        own = f"{fact.path}.extra.d/"
        unames = {fact.uname, *(profile.uname for profile in fact.profiles)} - {""}
        addons, reasons = [], list(_small(fact.files[:1]))
        for one in self.facts.resources:
            folder = one.path[: one.path.rfind("/") + 1]
            if one.type not in (ResourceType.ADDON, ResourceType.GLOBAL_ADDON) or folder not in (own, *_SHARED):
                continue
            if one.uname and unames and one.uname not in unames:
                continue  # for another kernel: the stub passes over it
            reasons += (f"{one.path}: {line}" for line in self._problem(one).splitlines())
            reasons += _small(one.files[:1])
            name, content = one.path[len(folder) :], _content(one.files[0])
            addons.append(Addon(name, content, " ".join(one.command_lines), shared=folder in _SHARED))
        return Choice(Uki(fact.path, _content(fact.files[0]), fact.command_lines, tuple(addons)), tuple(reasons))

    def _entry(self, fact: BootFact) -> Choice:
        return self._type1(fact, fact.files[1:])

    def _kernel(self, fact: BootFact) -> Choice:
        return self._type1(fact, fact.files)

    def _type1(self, fact: BootFact, files: Sequence[FileFact]) -> Choice:
        """A kernel and its initrds.  A drop-in that cannot be read counts against them, as it does in bootc."""
        kernel, *initrds = files
        broken = (f"{one.path}: {one.problem}" for one in self.facts.kargs if one.problem)
        defaults = kargs.of_architecture(self.facts.kargs, self.architecture)
        payload = Kernel(
            kernel.path, _content(kernel), tuple(map(_content, initrds)), options=fact.options, defaults=defaults
        )
        return Choice(payload, (*broken, *_small(files)))


def _is_called(one: BootFact, name: str) -> bool:
    names = [one.path, one.path.rpartition("/")[2]]
    if one.type == ResourceType.KERNEL:
        names.append(one.kernel_version)
    return name in names


def _small(files: Sequence[FileFact]) -> Iterator[str]:
    """Against files that are no objects: an image holds what is small, or holes alone, itself."""
    for file in files:
        if not file.digest:
            yield f"{file.path} ({file.size_bytes} bytes) is not stored as an object, so nothing that could boot"


def _content(file: FileFact) -> Content:
    return Content(file.path, file.size_bytes)
