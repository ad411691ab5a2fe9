"""Why an image cannot be deployed, whatever the options: all reasons at once."""

from typing import Final

from composefsd.boot.resources import ResourceType
from composefsd.deploy.plan import bounded, lay_out
from composefsd.deploy.state import VerityPolicy
from composefsd.oci.manifest import ImageConfig
from composefsd.oci.storage import ImageKind, StoredImage
from composefsd.operations.deployment_order import BootImageFact, DeploymentOrder
from composefsd.operations.facts import Facts
from composefsd.operations.model import DeployRequest

_BOOTING: Final = (ResourceType.UKI, ResourceType.TYPE1, ResourceType.KERNEL)
_POLICIES: Final = (VerityPolicy.DEFERRED, VerityPolicy.OPTIONAL)
"""Between them they take a command line with `?` and one without, on a repository of any kind."""


def obstacles(stored: StoredImage, facts: Facts) -> tuple[str, ...]:
    """Every reason against everything in the image that could boot; nothing if one of these can be deployed.

    Command lines are compared with the boot images that were made; before there are any, nothing speaks against them.
    """
    images = tuple(
        BootImageFact(one.digest, one.format, stored=True) for one in stored.images if one.kind is ImageKind.BOOT
    )
    if facts.reasons or not images:
        return facts.reasons
    found: dict[str, None] = {}
    for resource in facts.resources:
        if resource.type not in _BOOTING:
            continue
        reasons = [_reasons(stored, facts, images, DeployRequest(one, payload=resource.path)) for one in _POLICIES]
        if () in reasons:
            return ()
        fewest: tuple[str, ...] = min(reasons, key=len)  # without that of a policy which does not fit
        found |= dict.fromkeys(fewest)
    return bounded(found)


def _reasons(
    stored: StoredImage, facts: Facts, images: tuple[BootImageFact, ...], request: DeployRequest
) -> tuple[str, ...]:
    config = stored.content.config
    order = DeploymentOrder(
        manifest_digest=stored.digest,
        reference="",
        images=images,
        facts=facts,
        sealed=True,
        request=request,
        architecture=config.platform.architecture if isinstance(config, ImageConfig) else "",
    )
    return lay_out(order.for_room()).reasons
