"""What a deployment enforces, told apart from what its image claims: the command line that it boots with decides.

Of an entry with a kernel that is read from the partition.  A UKI is not read again: its command lines are those that
were checked when it was deployed.  docs/trust.md explains the words.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from composefsd.boot import cmdline
from composefsd.deploy.state import Deployment, DeploymentType, VerityPolicy
from composefsd.errors import FormatError
from composefsd.operations.model import ImageInfo, LinkState
from composefsd.operations.trust import UKI_SIGNATURE

_UNKNOWN: Final = "unknown"


class Cover(StrEnum):
    """What covers the command line, and so the digest on it.

    signed: a signature of the UKI that fits it.  unsigned: the UKI has none.  local: the entry was written on this
    machine.  unknown: the image is gone, or has several UKIs that differ in this.
    """

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    LOCAL = "local"
    UNKNOWN = _UNKNOWN


@dataclass(frozen=True, slots=True)
class Enforcement:
    """verity is a VerityPolicy, or `unknown`; repository_verity is whether the repository demands fs-verity now."""

    type: str
    verity: str
    digest: Cover
    repository_verity: bool

    @property
    def summary(self) -> str:
        """In plain words."""
        here = "demands it" if self.repository_verity else "does not demand it of its objects"
        return f"{_VERITY_WORDS[self.verity]}, and the repository {here}; {_COVER_WORDS[self.digest]}"


_DEMANDED: Final = "the command line demands fs-verity"
_VERITY_WORDS: Final = {
    VerityPolicy.REQUIRE: _DEMANDED,
    VerityPolicy.DEFERRED: _DEMANDED,
    VerityPolicy.OPTIONAL: "the command line lets the system boot without fs-verity (`?`)",
    _UNKNOWN: "whether fs-verity is demanded is not known",
}
_COVER_WORDS: Final = {
    Cover.SIGNED: "the digest is covered by the UKI's signature",
    Cover.UNSIGNED: "the digest is in a UKI without a good signature",
    Cover.LOCAL: "the digest is in an entry that was written here, and no signature covers it",
    Cover.UNKNOWN: "what covers the digest is not known",
}


def enforcement(deployment: Deployment, image: ImageInfo | None, *, verity: bool) -> Enforcement:
    """What a deployment enforces; image is its image unless that went, verity what the repository demands."""
    return Enforcement(deployment.type, _policy(deployment), _cover(deployment, image), verity)


def _policy(deployment: Deployment) -> str:
    line = deployment.options
    if deployment.type is DeploymentType.UKI:
        line = " ".join(deployment.kernel_arguments)
    try:
        arguments = cmdline.find_all(line or "")
    except FormatError:
        return _UNKNOWN
    if not arguments:
        return _UNKNOWN
    if any(argument.insecure for argument in arguments):
        return VerityPolicy.OPTIONAL
    return VerityPolicy.REQUIRE if deployment.verity is VerityPolicy.OPTIONAL else deployment.verity


def _cover(deployment: Deployment, image: ImageInfo | None) -> Cover:
    if deployment.type is DeploymentType.TYPE1:
        return Cover.LOCAL
    if image is None:
        return Cover.UNKNOWN
    good = {link.state is LinkState.GOOD for link in image.trust.chain if link.name == UKI_SIGNATURE}
    return {frozenset({True}): Cover.SIGNED, frozenset({False}): Cover.UNSIGNED}.get(frozenset(good), Cover.UNKNOWN)
