"""Verify a seal: whether the UKIs of an OCI image name the boot image that a host would make of it.

What a UKI names is compared with all variants that a host tries: formats, ways to treat extended attributes, and past
versions of composefs-rs.  A signature has to fit the UKI, but need not be there: whose keys count is for the firmware
to say, unless the caller names a certificate.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.boot import cmdline
from composefsd.boot.authenticode import State
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.resources import ResourceType
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, FormatError, InvalidArgumentsError
from composefsd.linux.oserrors import translated
from composefsd.oci.reference import Platform
from composefsd.oci.storage import ImageKind
from composefsd.operations.facts import BootFact, Facts
from composefsd.operations.sealing.looking import Looker
from composefsd.operations.sources import Source, scratch
from composefsd.operations.variants import ImageOrder, variants
from composefsd.tree.normative import XattrMode

_WHERE: Final = "/boot/EFI/Linux/"
_ADDONS: Final = (ResourceType.ADDON, ResourceType.GLOBAL_ADDON)
_CERTIFICATE_BYTES: Final = 1 << 20
_USUAL: Final = ImageOrder(ImageKind.BOOT, FormatVersion.V1, XattrMode.ALLOWLIST_ONLY)

Computed = dict[ObjectId, str]
"""Digests of boot images, and in words the first variant that has each."""


@dataclass(frozen=True, slots=True)
class NamedImage:
    """A composefs argument of a command line; variant tells in words which image it is, empty for none of ours."""

    argument: str
    digest: str
    variant: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One of the command lines a UKI may boot with, what it names, and the profiles that have it, if there are any.

    A profile is told by its ID, or else by its title or number: the first has 0.
    """

    text: str
    images: tuple[NamedImage, ...]
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UkiSignature:
    """A signature: its state as `composefsd.boot.authenticode` has it, and whose it is.

    certificate is the SHA-256 of the signer's, in hexadecimal.
    """

    state: str
    subject: str
    certificate: str
    problem: str


@dataclass(frozen=True, slots=True)
class SealedUki:
    """A UKI."""

    path: str
    kernel_version: str
    signatures: tuple[UkiSignature, ...]
    command_lines: tuple[CommandLine, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SealReport:
    """What a host would find; computed are the boot images, of the algorithms that UKIs name or else SHA-512."""

    manifest_digest: OciDigest
    computed: tuple[tuple[str, str], ...]
    ukis: tuple[SealedUki, ...]
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the image is sealed, and all of it right."""
        return not self.problems


def verify(text: str, platform: str | None = None, certificate: Path | None = None) -> SealReport:
    """The report on an OCI layout or archive; with a `certificate` every UKI has to be signed by its key.

    Raises InvalidArgumentsError for another source, InvalidReferenceError for what is no platform, and whatever the
    source's format, or reading it, gives cause for: a report is about images that can be read.
    """
    reference = Source.parse(text).reference
    if reference is None:
        raise InvalidArgumentsError(f"{text} is no OCI image: oci:PATH[:TAG] or oci-archive:PATH[:TAG]")
    wanted = None if platform is None else Platform.parse(platform)
    signer = None if certificate is None else fingerprint(certificate)
    with scratch(Algorithm.SHA512) as host:
        looker = Looker(host)

        async def look() -> SealReport:
            return await examine(looker, await looker.pull(reference, wanted), signer)

        return asyncio.run(look())


def fingerprint(certificate: Path) -> str:
    """The SHA-256 of the first certificate of a PEM file, in hexadecimal.

    Raises FormatError if there is none, and what `translated` makes of a file that cannot be read.
    """
    with translated(f"reading {certificate}"), certificate.open("rb") as file:
        text = file.read(_CERTIFICATE_BYTES).decode("ascii", "replace")
    start, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        der = ssl.PEM_cert_to_DER_cert(text[max(0, start) : max(0, end) + len(ssl.PEM_FOOTER)])
    except ValueError as error:
        raise FormatError(f"{certificate} has no certificate in PEM", subject=str(certificate)) from error
    return hashlib.sha256(der).hexdigest()


async def examine(looker: Looker, image: OciDigest, signer: str | None = None) -> SealReport:
    """The report on an image that was pulled; signer is the fingerprint of the certificate that is to have signed."""
    facts = await looker.facts(image)
    ukis = [one for one in facts.resources if one.type == ResourceType.UKI and one.path.startswith(_WHERE)]
    problems = list(_unbootable(facts, ukis))
    computed: Computed = {}
    addons = [one for one in facts.resources if one.type in _ADDONS and one.path.startswith("/boot/")]
    for algorithm in _algorithms([*ukis, *addons]):
        try:
            made = await looker.digests(image, variants([_USUAL]), algorithm)
        except ComposefsdError as error:
            problems += error.message.splitlines()
            break
        for order, digest in zip(variants([_USUAL]), made, strict=True):
            computed.setdefault(digest, order.words)
    examined = tuple(_examined(one, computed, signer) for one in ukis)
    problems += (f"{one.path}: {problem}" for one in examined for problem in one.problems)
    problems += (f"{one.path}: {problem}" for one in addons for problem in _added(one, computed))
    listed = tuple((words, str(digest)) for digest, words in computed.items())
    return SealReport(image, listed, examined, tuple(dict.fromkeys(problems)))


def _unbootable(facts: Facts, ukis: Sequence[BootFact]) -> Iterable[str]:
    """What stands against the image as a whole."""
    if not ukis:
        yield f"there is no UKI in {_WHERE.rstrip('/')}: the image is not sealed"
    yield from facts.reasons


def _algorithms(ukis: Iterable[BootFact]) -> list[Algorithm]:
    found = {argument.digest.algorithm for one in ukis for line in one.command_lines for argument in _arguments(line)}
    return [one for one in Algorithm if one in found] or [Algorithm.SHA512]


def _arguments(line: str) -> tuple[ComposefsArgument, ...]:
    """Those that can be read; `cmdline.check` complains about the others."""
    found = []
    for token in cmdline.split(line):
        try:
            argument = ComposefsArgument.parse(token)
        except FormatError:
            continue
        if argument is not None:
            found.append(argument)
    return tuple(found)


def _examined(uki: BootFact, computed: Computed, signer: str | None) -> SealedUki:
    lines = tuple(CommandLine(line, _named(line, computed), _profiles(uki, line)) for line in uki.command_lines)
    problems = uki.problem.splitlines()
    if not lines:
        problems.append("it has no command line, so it names no image")
    for line in lines:
        place = f"profile {', '.join(line.profiles)}: " if line.profiles else ""
        problems += (f"{place}{problem}" for problem in _wrong(line.text, computed))
    problems += _badly_signed(uki, signer)
    signatures = tuple(UkiSignature(one.state, one.subject, one.fingerprint, one.problem) for one in uki.signatures)
    return SealedUki(uki.path, uki.kernel_version, signatures, lines, tuple(dict.fromkeys(problems)))


def _named(line: str, computed: Computed) -> tuple[NamedImage, ...]:
    return tuple(
        NamedImage(str(argument), str(argument.digest), computed.get(argument.digest, ""))
        for argument in _arguments(line)
    )


def _profiles(uki: BootFact, line: str) -> tuple[str, ...]:
    names = ((one.id or one.title or str(number), one.cmdline) for number, one in enumerate(uki.profiles))
    return tuple(name for name, own in names if own == line)


def _added(addon: BootFact, computed: Computed) -> Iterable[str]:
    """What an addon adds to a command line: it need not name an image, but may not name another one."""
    for line in addon.command_lines:
        keys = {token.replace('"', "").partition("=")[0] for token in cmdline.split(line)}
        if keys & {cmdline.LEGACY, cmdline.DESCRIBED}:
            yield from _wrong(line, computed)


def _wrong(line: str, computed: Computed) -> Iterable[str]:
    """Why a command line does not boot this image, and only with fs-verity."""
    arguments = _arguments(line)
    first = arguments[0].digest.algorithm if arguments else Algorithm.SHA512
    try:
        cmdline.check(line, computed, first)
    except ComposefsdError as error:
        yield from error.message.splitlines()
    if any(argument.insecure for argument in arguments):
        yield "the command line has the mark ?, so the image is mounted without fs-verity, too"


def _badly_signed(uki: BootFact, signer: str | None) -> Iterable[str]:
    """Why no firmware takes the signatures that there are, or not the wanted one is among them."""
    usable = (State.GOOD, State.UNSUPPORTED)
    if uki.signatures and not any(one.state in usable for one in uki.signatures):
        yield from (f"a signature is of no use: {one.problem}" for one in uki.signatures)
    if signer is not None and not any(
        one.state == State.GOOD and one.fingerprint == signer for one in uki.signatures
    ):
        yield "it is not signed by the key of the wanted certificate"
