"""What a deployment follows from, as far as it lies in image and repository; small enough to hand to a worker."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from composefsd import deploy as room
from composefsd.deploy.plan import BootImage
from composefsd.deploy.state import DeploymentType
from composefsd.digests import ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.operations.facts import DirectoryFact, Facts, FileFact
from composefsd.operations.model import DeployRequest, PayloadType
from composefsd.operations.payloads import choose

DEPLOYMENT_TAG: Final = "deployment/"
"""Names under this prefix keep the images of deployments; they are not shown, and nobody else may give them."""

DEPLOYMENT_REFS: Final = "composefsd-deployed"
"""Refs below `images/refs` that keep the boot images of deployments, whatever another tool makes of the configs that
name them."""

_TYPES: Final = {
    PayloadType.AUTO: None,
    PayloadType.UKI: DeploymentType.UKI,
    PayloadType.TYPE1: DeploymentType.TYPE1,
}


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
    """An image to deploy, with all that planning has to know of it; images has at least one, the default first.

    architecture is OCI's name of the image's, empty if its config tells none.
    """

    manifest_digest: OciDigest
    reference: str
    images: tuple[BootImageFact, ...]
    facts: Facts
    sealed: bool
    request: DeployRequest
    architecture: str = ""

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
            "architecture": self.architecture,
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
            values["architecture"],
        )

    def contents(self) -> Iterator[FileFact]:
        """The files of the image that the deployment may need, each by its path."""
        for resource in self.facts.resources:
            yield from (file for file in resource.files if file.digest)

    def for_room(self) -> room.Request:
        """The request as the deploy room takes it; what cannot be decided stands in its reasons."""
        facts = self.facts
        choice = choose(facts, self.request, self.architecture)
        return room.Request(
            images=tuple(BootImage(one.digest, one.format.value, one.stored) for one in self.images),
            payload=choice.payload,
            manifest_digest=self.manifest_digest,
            tag=self.tag,
            sealed=self.sealed,
            verity=self.request.verity,
            reference=self.reference,
            os_id=facts.os_id,
            title=" ".join(filter(None, (facts.title, "" if facts.os_version in facts.title else facts.os_version))),
            os_version=facts.os_version,
            kernel_arguments=self.request.kargs,
            removed_arguments=self.request.kargs_delete,
            spelling=self.request.karg_form,
            type=_TYPES[self.request.type],
            chosen=self.request.payload is not None or self.request.uki is not None,
            etc=_directory(facts.etc),
            var=_directory(facts.var),
            reasons=(*facts.reasons, *choice.reasons),
        )


def _directory(fact: DirectoryFact) -> room.Directory:
    return room.Directory(fact.mode, fact.uid, fact.gid, fact.label.encode())
