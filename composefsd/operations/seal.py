"""Seal: from a root directory or an OCI image to an OCI image whose UKI names the digest of its own boot image.

The boot image has an empty /boot, so its digest does not depend on the UKI there.  It is computed by the code that a
host runs, over the base with the seal's directories; then the UKI is made with that digest on its command line, and
put on top as one layer; then the finished image is pulled, and has to pass `verify_seal`, before it gets its name.
"""

import asyncio
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.boot.resources import ResourceType
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import (
    ComposefsdError,
    DigestMismatchError,
    FormatError,
    NotBootableError,
)
from composefsd.linux.oserrors import translated
from composefsd.oci.manifest import Descriptor
from composefsd.oci.reference import Reference, Transport
from composefsd.oci.sealing import Claim, Role
from composefsd.oci.storage import ImageKind
from composefsd.operations import verify_seal
from composefsd.operations.sealing.documents import Base
from composefsd.operations.sealing.layer import SealLayer
from composefsd.operations.sealing.layout import StagedLayout, check_output, staging
from composefsd.operations.sealing.looking import Kernel, Looker
from composefsd.operations.sealing.reading import find, read_base
from composefsd.operations.sealing.request import SealRequest, is_name
from composefsd.operations.sealing.tools import Parts, Signing, Ukify, check_signed, sign_with_command
from composefsd.operations.sources import scratch
from composefsd.operations.variants import ImageOrder

_CANDIDATE: Final = "composefsctl-seal-candidate"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed image; unchanged tells that the output was this seal already, and was left as it is."""

    manifest_digest: OciDigest
    boot_digest: ObjectId
    argument: str
    uki: str
    kernel_version: str
    signed: bool
    unchanged: bool


def seal(request: SealRequest) -> Sealed:
    """Seal a source into `request.output`: whole, or not at all.

    Raises InvalidArgumentsError, NotBootableError for a source without what a UKI is made of, UnsupportedError
    without ukify, ComposefsdError with what ukify or the signer said, and whatever the source's format, reading it or
    writing the output gives cause for.
    """
    request.check()
    output = request.target
    ukify = Ukify.find(request.ukify, request.stub)
    check_output(output.path, output.tag)
    with (
        scratch(request.algorithm) as host,
        staging(output.path) as layout,
        tempfile.TemporaryDirectory(prefix="composefsctl-seal-") as work,
    ):
        return asyncio.run(_Sealer(request, layout, Looker(host), ukify, Path(work)).run())


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that the UKI and its layer are made from."""

    base: Base
    layer: SealLayer
    digest: ObjectId
    kernel: Kernel
    parts: Parts
    name: str
    dump: Path | None

    def files(self, uki: Path) -> dict[bytes, Path]:
        """What goes beside the UKI, and it, by their names."""
        dump = {f"{self.name}.dump".encode(): self.dump} if self.dump is not None else {}
        return {f"{self.name}.efi".encode(): uki, **dump}


@dataclass(frozen=True, slots=True)
class _Sealer:
    """One sealing."""

    request: SealRequest
    layout: StagedLayout
    looker: Looker
    ukify: Ukify
    work: Path

    async def run(self) -> Sealed:
        plan = await self._plan(await read_base(self.request.source, self.request.wanted_platform, self.layout))
        unsigned = self.work / "unsigned.efi"
        self.ukify.build(plan.parts, unsigned, Signing())
        inputs = self._inputs(plan, unsigned)
        there = await self._there(plan, inputs)
        if there is not None:
            return self._sealed(plan, there, unchanged=True)
        layer = self.layout.add_layer(plan.layer.pieces(plan.files(self._signed(plan, unsigned))))
        base = plan.base.sealed(layer, inputs)
        manifest, config = base.write(self.layout)
        image = await self._pulled(manifest, base)
        if self.request.annotate:
            base = base.annotated(await self._claims(image, plan))
            manifest, config = base.write(self.layout)
            image = await self._pulled(manifest, base)
        await self._check(image, plan)
        self.layout.keep_only([manifest.digest, config.digest, *(blob.digest for blob in base.layers)])
        output = self.request.target
        self.layout.set_tag(output.tag, manifest)
        self.layout.publish(output.path, output.tag)
        return self._sealed(plan, image, unchanged=False)

    async def _plan(self, base: Base) -> _Plan:
        image = await self._pulled(base.write(self.layout)[0], base)
        facts = await self.looker.facts(image)
        kernel = self.looker.kernel(facts, self.request.kernel)
        if not is_name(kernel.version):
            raise NotBootableError(f"{kernel.version!r} is no version of a kernel")
        name = self.request.uki_name or kernel.version
        others = [one.path for one in facts.resources if one.type == ResourceType.UKI]
        for path in others:
            if path.startswith("/boot/") and path != f"/boot/EFI/Linux/{name}.efi":
                raise NotBootableError(f"the image has the UKI {path} already, which would not be sealed")
        tree = await self.looker.tree(image)
        layer = SealLayer.plan(tree, kernel.version if self.request.remove_kernel else None)
        candidate = await self._candidate(image, base, layer)
        (digest,) = await self.looker.digests(candidate, [self._order])
        line = self.request.command_line(digest)
        os_release = self.looker.os_release(tree)
        architecture = str(base.config.get("architecture", ""))
        parts = Parts(kernel.linux, kernel.initrd, line, os_release, kernel.version, architecture)
        return _Plan(base, layer, digest, kernel, parts, name, await self._dump(candidate))

    async def _candidate(self, image: OciDigest, base: Base, layer: SealLayer) -> OciDigest:
        """An image that has the boot image of the sealed one: the base, if the layer does not count in it."""
        if not layer.counts:
            return image
        frame = base.extended(self.layout.add_layer(layer.pieces({})), by=_CANDIDATE)
        return await self._pulled(frame.write(self.layout)[0], frame)

    async def _dump(self, candidate: OciDigest) -> Path | None:
        if not self.request.dumpfile:
            return None
        path = self.work / "boot.dump"
        await self.looker.write_dump(candidate, self._order, path)
        return path

    @property
    def _order(self) -> ImageOrder:
        return ImageOrder(ImageKind.BOOT, self.request.version, self.request.xattrs)

    async def _pulled(self, manifest: Descriptor, base: Base) -> OciDigest:
        """Take in what has been written so far."""
        self.layout.set_tag(_CANDIDATE, manifest)
        return await self.looker.pull(
            Reference(Transport.OCI, self.layout.path.absolute(), _CANDIDATE), base.platform
        )

    def _signed(self, plan: _Plan, unsigned: Path) -> Path:
        signing, signed = self.request.signing, self.work / "signed.efi"
        if not signing.wanted:
            return unsigned
        if signing.key is not None:
            self.ukify.build(plan.parts, signed, signing)
        else:
            given = self.work / "given.efi"  # a copy: what the command does to it must not pass for what it was given
            with translated(f"writing {given}"):
                shutil.copyfile(unsigned, given)
            sign_with_command(signing, given, signed)
        check_signed(unsigned, signed)
        return signed

    def _inputs(self, plan: _Plan, unsigned: Path) -> str:
        """The digest of all that decides about the layer.  Signatures may tell the time, so they are not among it."""
        digest = hashlib.sha256()
        files = plan.files(unsigned)
        for piece in plan.layer.pieces(files):
            digest.update(piece)
        digest.update(self.request.signing.identity())
        digest.update(b"annotated" if self.request.annotate else b"")
        return f"sha256:{digest.hexdigest()}"

    async def _there(self, plan: _Plan, inputs: str) -> OciDigest | None:
        """The image of the output, if it is this very seal and still right."""
        output = self.request.target
        try:
            image = await find(output, plan.base.platform)
            there = Base.of(image)
            if there.was != inputs or not there.is_like(plan.base):
                return None
            digest = await self.looker.pull(output, plan.base.platform)
            await self._check(digest, plan)
        except ComposefsdError:
            return None
        return digest

    async def _claims(self, image: OciDigest, plan: _Plan) -> dict[str, str]:
        """The annotations of composefs-rs's inline seal."""
        normative = ImageOrder(ImageKind.NORMATIVE, self.request.version, self.request.xattrs)
        (digest,) = await self.looker.digests(image, [normative])
        digests = {Role.NORMATIVE: digest, Role.BOOT: plan.digest}
        version, scheme = self.request.version.label, self.request.algorithm.label
        return {Claim(role, version, scheme, one.hex).key: one.hex for role, one in digests.items()}

    async def _check(self, image: OciDigest, plan: _Plan) -> None:
        """Raises DigestMismatchError or FormatError unless a host would find the seal right."""
        certificate = self.request.signing.certificate
        signer = None if certificate is None else verify_seal.fingerprint(certificate)
        report = await verify_seal.examine(self.looker, image, signer)
        if str(plan.digest) not in dict(report.computed).values():
            made = ", ".join(f"{words} {digest}" for words, digest in report.computed)
            raise DigestMismatchError(
                f"the UKI names {plan.digest}, but the sealed image gives {made}",
                expected=str(plan.digest),
                actual=made,
            )
        if report.problems:
            raise FormatError(f"the sealed image is not right: {'; '.join(report.problems)}")

    def _sealed(self, plan: _Plan, image: OciDigest, *, unchanged: bool) -> Sealed:
        return Sealed(
            image, plan.digest, str(self.request.argument(plan.digest)), f"/boot/EFI/Linux/{plan.name}.efi",
            plan.kernel.version, signed=self.request.signing.wanted, unchanged=unchanged,
        )  # fmt: skip
