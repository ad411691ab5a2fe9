"""An OCI image in a repository that lasts as long as the question: what it carries, and the digests it gives."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.boot.files import get_file, read_file
from composefsd.boot.resources import ResourceType
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.errors import LimitExceededError, NotBootableError
from composefsd.linux.oserrors import translated
from composefsd.oci.reference import Platform, Reference
from composefsd.oci.storage import ImageKind, load_image
from composefsd.operations import generate
from composefsd.operations.build import Built, build_images
from composefsd.operations.facts import BootFact, Facts, FileFact, load_facts
from composefsd.operations.generate import imaging_worker, stored_layers
from composefsd.operations.host import Host
from composefsd.operations.model import PullRequest
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.operations.variants import ImageOrder
from composefsd.tree import dumpfile
from composefsd.tree.normative import XattrMode
from composefsd.tree.table import Tree

_OS_RELEASES: Final = (b"/usr/lib/os-release", b"/etc/os-release")
_OS_RELEASE_BYTES: Final = 64 << 10
_DUMP_BYTES: Final = 1 << 30
_EVERYTHING: Final = ImageOrder(ImageKind.NORMATIVE, FormatVersion.V1, XattrMode.KEEP_USER)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and its initrd, as files of the repository."""

    version: str
    linux: Path
    initrd: Path


class Looker:
    """Looks at images with the eyes of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pulls = 0

    async def pull(self, reference: Reference, platform: Platform | None) -> OciDigest:
        """Take an image in without making anything of it; answers with its manifest's digest."""
        self._pulls += 1
        request = PullRequest(reference, name=f"image-{self._pulls}", platform=platform, kinds=frozenset())
        return (await pull(self._host, request, Silent())).manifest_digest

    async def facts(self, image: OciDigest) -> Facts:
        """What the image says about itself: the pull has gathered it, unless it was more than can be kept."""
        kept = load_facts(self._host.settings.state, image)
        return (await self._build(image, [], facts=True)).facts if kept is None else kept

    async def digests(
        self, image: OciDigest, orders: Sequence[ImageOrder], algorithm: Algorithm | None = None
    ) -> tuple[ObjectId, ...]:
        """The digests of composefs images.  Raises NotBootableError or FormatError for what has none."""
        made = await self._build(image, orders, algorithm, facts=False)
        return tuple(one.digest for one in made.images)

    async def _build(
        self, image: OciDigest, orders: Sequence[ImageOrder], algorithm: Algorithm | None = None, *, facts: bool
    ) -> Built:
        async with self._host.reading() as repository:
            layers = stored_layers(load_image(repository, image))
            async with imaging_worker(repository) as imager:
                return await build_images(
                    imager, repository, layers, orders, progress=Silent(), algorithm=algorithm, facts=facts
                )

    async def tree(self, image: OciDigest) -> Tree:
        """The normative tree with all the extended attributes that an image can have."""
        with tempfile.TemporaryFile() as file:
            await generate.dump(self._host, image, _EVERYTHING, file.fileno(), limit_bytes=_DUMP_BYTES)
            file.seek(0)
            return dumpfile.parse(file, self._host.algorithm)

    async def write_dump(self, image: OciDigest, order: ImageOrder, path: Path) -> None:
        """The dumpfile of an image as a file."""
        with translated(f"writing {path}"), path.open("wb") as file:
            await generate.dump(self._host, image, order, file.fileno(), limit_bytes=_DUMP_BYTES)

    def os_release(self, tree: Tree) -> bytes:
        """The os-release of the image.  Raises NotBootableError if there is none: no boot menu shows a UKI then."""
        for path in _OS_RELEASES:
            try:
                return read_file(tree, get_file(tree, path), self._read, _OS_RELEASE_BYTES)
            except NotBootableError:
                continue
        raise NotBootableError("the image has no /usr/lib/os-release, so no boot menu would show its UKI")

    def kernel(self, found: Facts, wanted: str | None) -> Kernel:
        """The kernel that a UKI is made of.  Raises NotBootableError if there is none, or several unnamed ones."""
        kernels = [one for one in found.resources if one.type == ResourceType.KERNEL]
        chosen = [one for one in kernels if wanted is None or one.kernel_version == wanted]
        if not chosen:
            raise NotBootableError(_no_kernel(kernels, wanted))
        if len(chosen) > 1:
            raise NotBootableError(f"the image has several kernels, {_versions(kernels)}: name one with --kernel")
        (kernel,) = chosen
        if kernel.problem:
            raise NotBootableError(kernel.problem)
        if len(kernel.files) != 2:
            raise NotBootableError(f"{kernel.path} has no initramfs.img beside it")
        linux, initrd = map(self._path, kernel.files)
        return Kernel(kernel.kernel_version, linux, initrd)

    def _path(self, file: FileFact) -> Path:
        if not file.digest:
            raise NotBootableError(f"{file.path} has {file.size_bytes} bytes: that is neither kernel nor initrd")
        return self._objects / f"{file.digest[:2]}/{file.digest[2:]}"

    @property
    def _objects(self) -> Path:
        return self._host.settings.repository / "objects"

    def _read(self, digest: bytes, limit_bytes: int) -> bytes:
        path = self._objects / ObjectId(digest).path
        with translated(f"reading {path}"), path.open("rb") as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise LimitExceededError(f"a file of more than {limit_bytes} bytes", limit=limit_bytes)
        return data


def _no_kernel(kernels: Sequence[BootFact], wanted: str | None) -> str:
    if kernels:
        return f"the image has no kernel {wanted}; it has {_versions(kernels)}"
    return "the image has no kernel: there is no vmlinuz in a directory of /usr/lib/modules"


def _versions(kernels: Iterable[BootFact]) -> str:
    return ", ".join(one.kernel_version for one in kernels)
