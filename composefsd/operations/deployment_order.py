"""What a deployment follows from, as far as it lies in image and repository; small enough to hand to a worker."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from composefsd import deploy as room
from composefsd.boot.resources import ResourceType
from composefsd.deploy.plan import Addon, BootImage, Content, Kernel, Uki
from composefsd.digests import ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.operations.facts import BootFact, DirectoryFact, Facts, FileFact
from composefsd.operations.model import DeployRequest, PayloadType

DEPLOYMENT_TAG: Final = "deployment/"
"""Names under this prefix keep the images of deployments; they are not shown, and nobody else may give them."""

DEPLOYMENT_REFS: Final = "composefsd-deployed"
"""Refs below `images/refs` that keep the boot images of deployments, whatever another tool makes of the configs that
name them."""


def deployment_tag(image: OciDigest) -> str:
    """The name that keeps an image while it is deployed."""
    return f"{DEPLOYMENT_TAG}{image.hex}"


@dataclass(frozen=True, slots=True)
class BootImageFact:
    """A boot image of the OCI image, and whether the repository holds it."""

    digest: ObjectId
    format: FormatVersion
    stored: bool


@dataclass(frozen=True, slots=True)
class DeploymentOrder:
    """An image to deploy, with all that planning has to know of it; images has at least one, the default first."""

    manifest_digest: OciDigest
    reference: str
    images: tuple[BootImageFact, ...]
    facts: Facts
    sealed: bool
    request: DeployRequest

    @property
    def tag(self) -> str:
        """The name that keeps the image while it is deployed."""
        return deployment_tag(self.manifest_digest)

    def to_wire(self) -> dict[str, Any]:
        """As values that JSON can carry."""
        return {
            "manifest_digest": str(self.manifest_digest),
            "reference": self.reference,
            "images": [[one.digest.hex, one.format.value, one.stored] for one in self.images],
            "facts": asdict(self.facts),
            "sealed": self.sealed,
            "request": asdict(self.request),
        }

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> Self:
        """From what `to_wire` gave; both ends are ours."""
        return cls(
            OciDigest.parse(values["manifest_digest"]),
            values["reference"],
            tuple(
                BootImageFact(ObjectId.parse(hexes), FormatVersion(version), stored)
                for hexes, version, stored in values["images"]
            ),
            Facts.from_wire(values["facts"]),
            values["sealed"],
            DeployRequest.from_wire(values["request"]),
        )

    def contents(self) -> Iterator[FileFact]:
        """The files of the image that the deployment may need, each by its path."""
        for resource in self.facts.resources:
            yield from (file for file in resource.files if file.digest)

    def for_room(self) -> room.Request:
        """The request as the deploy room takes it; what cannot be decided stands in its reasons."""
        payload, reasons = self._choose()
        facts = self.facts
        return room.Request(
            images=tuple(BootImage(one.digest, one.format.value, one.stored) for one in self.images),
            payload=payload,
            manifest_digest=self.manifest_digest,
            tag=self.tag,
            sealed=self.sealed,
            verity=self.request.verity,
            reference=self.reference,
            os_id=facts.os_id,
            title=" ".join(filter(None, (facts.title, "" if facts.os_version in facts.title else facts.os_version))),
            os_version=facts.os_version,
            kernel_arguments=self.request.kargs,
            etc=_directory(facts.etc),
            var=_directory(facts.var),
            reasons=(*facts.reasons, *reasons),
        )

    def _choose(self) -> tuple[Uki | Kernel | None, tuple[str, ...]]:
        """The one payload that the options leave, or why there is not exactly one."""
        wanted = self.request.type
        ukis = [one for one in self._usable(ResourceType.UKI) if self.request.uki in (None, one.path)]
        kernels = [one for one in self._usable(ResourceType.KERNEL) if len(one.files) > 1]
        if self.request.uki is not None and not ukis:
            return None, (f"the image has no UKI {self.request.uki} that can be used",)
        if ukis and wanted is not PayloadType.TYPE1:
            return self._only(ukis, "UKIs; name one with the option uki", self._uki)
        if kernels and wanted is not PayloadType.UKI:
            return self._only(kernels, "kernels, and only one can be deployed", _kernel)
        return None, () if self.facts.reasons else (f"the image has nothing of the type {wanted.value} to boot",)

    def _usable(self, kind: ResourceType) -> list[BootFact]:
        return [one for one in self.facts.resources if one.type == kind and not one.problem]

    @staticmethod
    def _only(found: list[BootFact], what: str, make: Any) -> tuple[Uki | Kernel | None, tuple[str, ...]]:
        if len(found) > 1:
            paths = ", ".join(one.path for one in found)
            return None, (f"the image has {len(found)} {what}: {paths}",)
        return make(found[0]), ()

    def _uki(self, fact: BootFact) -> Uki:
        addons = (
            Addon(addon.path.rpartition("/")[2], _content(addon.files[0]), " ".join(addon.command_lines))
            for addon in self._usable(ResourceType.ADDON)
            if addon.path.startswith(f"{fact.path}.extra.d/")
        )
        return Uki(fact.path, _content(fact.files[0]), fact.command_lines, tuple(addons))


def _kernel(fact: BootFact) -> Kernel:
    kernel, initrd = fact.files[:2]
    return Kernel(fact.path, _content(kernel), _content(initrd))


def _content(file: FileFact) -> Content:
    return Content(file.path, file.size_bytes)


def _directory(fact: DirectoryFact) -> room.Directory:
    return room.Directory(fact.mode, fact.uid, fact.gid, fact.label.encode())
