"""Image objects: what an OCI image of the repository says of itself."""

from typing import Annotated, Any, Final

from dbus_next import Variant

from composefsd.digests import BLOCK_BITS
from composefsd.errors import FormatError, UnsupportedError
from composefsd.operations.host import Host
from composefsd.operations.images import document
from composefsd.operations.model import ImageInfo
from composefsd.service import names
from composefsd.service.catalog import ImageFacts
from composefsd.service.dumps import DUMPFILE, Dumps
from composefsd.service.export import View
from composefsd.service.interface import AO, AS, ASV, Channel, H, S, T, U, dbus_method, dbus_property
from composefsd.service.loans import Loans
from composefsd.service.memfd import sealed
from composefsd.service.options import Options
from composefsd.service.wire import variant

_DOCUMENT_BYTES: Final = 4 << 20
_REPLY_BYTES: Final = _DOCUMENT_BYTES + 4096

LENT_BYTES: Final = 32 << 20
"""Of all manifests and configs that callers have open, which anybody may ask for."""

Digests = Annotated[list[tuple[str, str, str, int, str]], "a(sssus)"]
Trust = Annotated[tuple[str, str, dict[str, Variant]], "(ssa{sv})"]
Bootable = Annotated[tuple[bool, tuple[str, ...]], "(bas)"]
BootResources = Annotated[list[tuple[str, str, str, dict[str, Variant]]], "a(sssa{sv})"]

_DETAIL_TYPES: Final = {bool: "b", int: "t", str: "s", tuple: "as"}


class ImageObject(View[ImageFacts], interface=names.IMAGE):
    """An image on the bus."""

    def __init__(self, channel: Channel, host: Host, dumps: Dumps, loans: Loans, facts: ImageFacts) -> None:
        super().__init__(channel, names.image_path(facts.info.manifest_digest), facts)
        self._host = host
        self._dumps = dumps
        self._loans = loans

    @property
    def _info(self) -> ImageInfo:
        return self.facts.info

    @dbus_method("OpenDocument", reads=True)
    async def open_document(self, which: S, options: ASV) -> H:
        """The manifest, the config or the dumpfile in a sealed memfd, which the caller gets."""
        if which == DUMPFILE:
            return await self._dumps.open(self._info.manifest_digest, options)
        data = await self._document(which, options)
        self._loans.require(len(data))
        return self._loans.lend(sealed(which, data))

    @dbus_method("ReadDocument", reads=True, reply_bytes=_REPLY_BYTES)
    async def read_document(self, which: S, options: ASV) -> S:
        """The same as text, but for the dumpfile, which can be larger than any reply."""
        if which == DUMPFILE:
            raise UnsupportedError("a dumpfile is read with OpenDocument", subject=which)
        try:
            return (await self._document(which, options)).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"the {which} is not UTF-8; read it with OpenDocument", subject=which) from error

    async def _document(self, which: str, options: dict[str, Variant]) -> bytes:
        Options(options)
        return await document(self._host, self._info.manifest_digest, which)

    @dbus_property("ManifestDigest")
    def manifest_digest(self) -> S:
        return str(self._info.manifest_digest)

    @dbus_property("ConfigDigest")
    def config_digest(self) -> S:
        return str(self._info.config_digest)

    @dbus_property("ArtifactType")
    def artifact_type(self) -> S:
        return self._info.artifact_type

    @dbus_property("References")
    def references(self) -> AS:
        return self._info.references

    @dbus_property("Architecture")
    def architecture(self) -> S:
        return self._info.architecture

    @dbus_property("Os")
    def os(self) -> S:
        return self._info.os

    @dbus_property("Title")
    def title(self) -> S:
        return self._info.title

    @dbus_property("OsVersion")
    def os_version(self) -> S:
        return self._info.os_version

    @dbus_property("Created")
    def created(self) -> T:
        return self._info.created

    @dbus_property("Size")
    def size(self) -> T:
        return self._info.size_bytes

    @dbus_property("LayerCount")
    def layer_count(self) -> U:
        return self._info.layer_count

    @dbus_property("Names")
    def names(self) -> AS:
        return self._info.names

    @dbus_property("Digests")
    def digests(self) -> Digests:
        return [
            (image.kind, image.format.label, image.digest.algorithm.value, 1 << BLOCK_BITS, str(image.digest))
            for image in self._info.images
        ]

    @dbus_property("Trust")
    def trust(self) -> Trust:
        found = self._info.trust
        evidence = {name: variant("s", text) for name, text in found.evidence.items()}
        evidence["chain"] = variant("a(sss)", [(link.name, link.state, link.text) for link in found.chain])
        evidence["ends"] = variant("s", found.ends)
        return found.state, found.summary, evidence

    @dbus_property("Bootable")
    def bootable(self) -> Bootable:
        return self._info.bootable, self._info.reasons

    @dbus_property("BootResources")
    def boot_resources(self) -> BootResources:
        return [
            (resource.type, resource.path, resource.kernel_version, _details(resource.details))
            for resource in self._info.boot_resources
        ]

    @dbus_property("Deployments")
    def deployments(self) -> AO:
        return self.facts.deployments


def _details(values: dict[str, Any]) -> dict[str, Variant]:
    return {key: variant(_DETAIL_TYPES[type(value)], value) for key, value in values.items()}
