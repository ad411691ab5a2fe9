"""What the caller knows of an image that is to be deployed."""

from dataclasses import dataclass, field

from composefsd.boot.cmdline import Spelling
from composefsd.deploy.persistent import Directory
from composefsd.deploy.state import DeploymentType, VerityPolicy
from composefsd.digests import ObjectId, OciDigest


@dataclass(frozen=True, slots=True)
class BootImage:
    """The boot image in one EROFS format (0, 1 or 2); stored tells whether `images/` has it."""

    digest: ObjectId
    format: int
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Content:
    """Content to put on the partition: `source` names it among the descriptors that `deploy` is given."""

    source: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Addon:
    """An addon of a UKI, by its file name; command_line is what it appends to that of the UKI.

    shared tells that it is the image's addon for all UKIs, not this one's alone.
    """

    name: str
    content: Content
    command_line: str = ""
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Uki:
    """A unified kernel image; command_lines are those of all its profiles, the base first."""

    path: str
    content: Content
    command_lines: tuple[str, ...]
    addons: tuple[Addon, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with its initrds, in the order in which they are loaded.

    defaults are the kernel arguments that the image asks for on any kernel, options those for this one.
    """

    path: str
    content: Content
    initrds: tuple[Content, ...]
    options: str = ""
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """An image to deploy.

    images are the formats of its boot image, that of the repository's default first.  payload is None where the image
    has none or several, and `reasons` then says so; a reason is one line.  sealed tells whether the repository has
    fs-verity.  kernel_digest is the SHA-256 of kernel and initrd, if known.  etc and var describe the directories of
    the boot image.  tag is the repository's tag that keeps the image, reference the transport's name of its source.
    kernel_arguments are to be added to those of a Kernel, after removed_arguments were taken from what the image asks
    for; spelling is how its argument names the image.  type is the one that the caller wants, if any; chosen tells
    that the caller has named the payload.
    """

    images: tuple[BootImage, ...]
    payload: Uki | Kernel | None
    manifest_digest: OciDigest
    tag: str
    sealed: bool
    verity: VerityPolicy = VerityPolicy.REQUIRE
    reference: str = ""
    os_id: str = ""
    title: str = ""
    os_version: str = ""
    kernel_arguments: tuple[str, ...] = ()
    removed_arguments: tuple[str, ...] = ()
    spelling: Spelling = Spelling.AUTO
    type: DeploymentType | None = None
    chosen: bool = False
    kernel_digest: str = ""
    etc: Directory = field(default_factory=Directory)
    var: Directory = field(default_factory=Directory)
    pinned: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def default(self) -> BootImage:
        """The format to boot unless the payload names another: the first that is stored."""
        return next((image for image in self.images if image.stored), self.images[0])
