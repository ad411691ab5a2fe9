"""What is told of each thing in an image that boots: values that survive the way from the imager to the daemon.

The imager describes what the boot room has found; the daemon reads it back through checked getters.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from composefsd.boot.authenticode import Signature, State
from composefsd.boot.bls import obstacles
from composefsd.boot.files import text
from composefsd.boot.pcrs import PcrSignature
from composefsd.boot.resources import BootResource, ResourceType
from composefsd.boot.uki import Profile
from composefsd.document import Document
from composefsd.errors import ComposefsdError
from composefsd.tree.table import Kind, Tree

_DIGEST: Final = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})?")
_FINGERPRINT: Final = re.compile(r"(?:[0-9a-f]{64})?")

Detail = str | int | bool | tuple[str, ...]
"""What is told of a boot resource under one name."""


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file of the image as an object: its path, size, and the object's digest; empty if it has no object."""

    path: str
    size_bytes: int
    digest: str

    @classmethod
    def of(cls, document: Document) -> Self:
        return cls(document.text("path"), document.integer("size_bytes"), document.text("digest", form=_DIGEST))


@dataclass(frozen=True, slots=True)
class SignatureFact:
    """A signature of a UKI or an addon: `state` is one of authenticode's, fingerprint the SHA-256 of a certificate.

    problem tells why the state is not good; subject and issuer are names as the certificate has them.
    """

    state: str
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    hash_algorithm: str = ""
    problem: str = ""

    @classmethod
    def of(cls, document: Document) -> Self:
        return cls(
            document.choice("state", State).value,
            document.text("subject"),
            document.text("issuer"),
            document.text("fingerprint", form=_FINGERPRINT),
            document.text("hash_algorithm"),
            document.text("problem"),
        )

    def __str__(self) -> str:
        signer = f"{self.subject}, sha256:{self.fingerprint}" if self.fingerprint else ""
        issuer = f"issued by {self.issuer}" if self.issuer not in ("", self.subject) else ""
        return "; ".join(filter(None, (self.state, signer, issuer, self.hash_algorithm, self.problem)))


@dataclass(frozen=True, slots=True)
class ProfileFact:
    """A profile of a UKI with the command line and kernel that it boots; own are the names of its own sections."""

    id: str
    title: str
    cmdline: str
    uname: str
    own: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: Document) -> Self:
        return cls(
            document.text("id"),
            document.text("title"),
            document.text("cmdline"),
            document.text("uname"),
            document.texts("own"),
        )

    def __str__(self) -> str:
        name = f"{self.id}: {self.title}" if self.title else self.id
        return f"{name} ({self.cmdline})" if self.cmdline else name


@dataclass(frozen=True, slots=True)
class BootFact:
    """One thing that boots, or takes part in it; `files` are its own file and those it needs.

    command_lines are those of all profiles of a UKI; claims are the digests of images that they name; options are the
    kernel arguments of an entry of type 1.  sbat, pcr_signatures and notes are for people, a text for each; pcr_key
    is the SHA-256 of the public key that a UKI brings.  What of these is not there is empty.
    """

    type: str
    path: str
    kernel_version: str
    files: tuple[FileFact, ...]
    title: str = ""
    version: str = ""
    architecture: str = ""
    signed: bool = False
    command_lines: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    problem: str = ""
    options: str = ""
    uname: str = ""
    profiles: tuple[ProfileFact, ...] = ()
    signatures: tuple[SignatureFact, ...] = ()
    sbat: tuple[str, ...] = ()
    pcr_signatures: tuple[str, ...] = ()
    pcr_key: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: Document) -> Self:
        """Raises FormatError or LimitExceededError."""
        return cls(
            type=document.text("type"),
            path=document.text("path"),
            kernel_version=document.text("kernel_version"),
            files=tuple(map(FileFact.of, document.children("files"))),
            title=document.text("title"),
            version=document.text("version"),
            architecture=document.text("architecture"),
            signed=document.flag("signed"),
            command_lines=document.texts("command_lines"),
            claims=document.texts("claims"),
            problem=document.text("problem"),
            options=document.text("options"),
            uname=document.text("uname"),
            profiles=tuple(map(ProfileFact.of, document.children("profiles"))),
            signatures=tuple(map(SignatureFact.of, document.children("signatures"))),
            sbat=document.texts("sbat"),
            pcr_signatures=document.texts("pcr_signatures"),
            pcr_key=document.text("pcr_key", form=_FINGERPRINT),
            notes=document.texts("notes"),
        )

    @property
    def details(self) -> dict[str, Detail]:
        """What there is to tell of it, for people."""
        told: dict[str, Detail] = {
            "title": self.title,
            "version": self.version,
            "architecture": self.architecture,
            "digest": ", ".join(self.claims),
            "problem": self.problem,
            "size": sum(file.size_bytes for file in self.files),
            "command-lines": self.command_lines,
            "options": self.options,
            "uname": self.uname,
            "profiles": tuple(map(str, self.profiles)),
            "signatures": tuple(map(str, self.signatures)),
            "sbat": self.sbat,
            "pcr-signatures": self.pcr_signatures,
            "pcr-key": f"sha256:{self.pcr_key}" if self.pcr_key else "",
            "notes": self.notes,
        }
        if self.type == ResourceType.UKI:
            told["signed"] = self.signed
        return {key: value for key, value in told.items() if value not in ("", ())}

    @property
    def usable(self) -> bool:
        """Whether it can be deployed by itself, as far as the image is concerned."""
        if self.problem:
            return False
        if self.type == ResourceType.KERNEL:
            return len(self.files) > 1
        return self.type in (ResourceType.UKI, ResourceType.TYPE1)

    @property
    def reasons(self) -> Iterator[str]:
        """Everything that is in the way of using it."""
        if self.type == ResourceType.ABOOT:
            yield f"{self.path}: Android boot images cannot be deployed"
        elif self.type == ResourceType.KERNEL and len(self.files) < 2:
            yield f"{self.path} has no initramfs.img beside it"
        for line in self.problem.splitlines():
            yield line if line.startswith((f"{self.path} ", f"{self.path}: ")) else f"{self.path}: {line}"


def reasons(found: Iterable[BootFact]) -> Iterator[str]:
    """Why nothing of what was found can be deployed, all of it at once; nothing if something can."""
    found = tuple(found)
    if any(one.usable for one in found):
        return
    yield (
        "the image has no UKI under /boot/EFI/Linux, no boot entry that can be deployed, "
        "and no kernel with an initrd under /usr/lib/modules"
    )
    for one in found:
        yield from one.reasons


# Describing, in the imager


def describe(tree: Tree, one: BootResource) -> BootFact:
    """What there is to tell of a resource of a tree."""
    uki = one.uki
    return BootFact(
        type=one.type.value,
        path=text(one.path),
        kernel_version=one.kernel_version or (uki.uname if uki else None) or "",
        files=tuple(
            _file(tree, path, inode)
            for path, inode in ((one.path, one.inode), *((file.path, file.inode) for file in one.files))
        ),
        title=one.title or "",
        version=one.version or "",
        architecture=_architecture(one),
        signed=uki is not None and uki.signed,
        command_lines=uki.command_lines if uki else (),
        claims=_claims(one),
        problem=one.problem or _obstacles(one),
        options=one.entry.options if one.entry else "",
        uname=(uki.uname if uki else None) or "",
        profiles=tuple(map(_profile, uki.profiles)) if uki else (),
        signatures=tuple(map(_signature, uki.signatures)) if uki else (),
        sbat=tuple(f"{entry.component} {entry.generation}" for entry in uki.sbat) if uki else (),
        pcr_signatures=tuple(map(_pcr_signature, uki.pcr_signatures)) if uki else (),
        pcr_key=uki.pcr_key.fingerprint if uki and uki.pcr_key else "",
        notes=one.notes,
    )


def _claims(one: BootResource) -> tuple[str, ...]:
    if one.uki is None:
        return ()
    with suppress(ComposefsdError):  # a malformed argument stands in `problem` already
        return tuple(dict.fromkeys(argument.digest.hex for argument in one.uki.arguments))
    return ()


def _architecture(one: BootResource) -> str:
    """UEFI's name of the architecture that a UKI or an entry is for, in lower case."""
    if one.entry is not None:
        return (one.entry.value("architecture") or "").lower()
    return one.uki.architecture.value if one.uki else ""


def _obstacles(one: BootResource) -> str:
    """Why an entry cannot be deployed as a type 1 entry of ours, one a line."""
    if one.entry is None:
        return ""
    return "\n".join(obstacles(one.entry, [text(file.path) for file in one.files]))


def _profile(one: Profile) -> ProfileFact:
    return ProfileFact(one.id or "", one.title or "", one.cmdline or "", one.uname or "", one.own)


def _signature(one: Signature) -> SignatureFact:
    return SignatureFact(one.state.value, one.subject, one.issuer, one.fingerprint, one.hash_algorithm, one.problem)


def _pcr_signature(one: PcrSignature) -> str:
    pcrs = "+".join(map(str, one.pcrs))
    return f"{one.bank}, PCR {pcrs}: policy {one.policy}, by key {one.key}"


def _file(tree: Tree, path: bytes, inode: int) -> FileFact:
    external = tree.kind[inode] == Kind.EXTERNAL
    return FileFact(text(path), tree.size[inode], tree.object_id(inode).hex if external else "")
