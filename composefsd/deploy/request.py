"""What the caller knows of an image that is to be deployed."""

from dataclasses import dataclass, field

from composefsd.deploy.persistent import Directory
from composefsd.deploy.state import VerityPolicy
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
    """An addon of a UKI, by its file name; command_line is what it appends to that of the UKI."""

    name: str
    content: Content
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class Uki:
    """A unified kernel image; command_lines are those of all its profiles, the base first."""

    path: str
    content: Content
    command_lines: tuple[str, ...]
    addons: tuple[Addon, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with its initrd, if it has one; options are the kernel arguments that the image asks for."""

    path: str
    content: Content
    initrd: Content | None
    options: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """An image to deploy.

    images are the formats of its boot image, that of the repository's default first.  payload is None where the image
    has none or several, and `reasons` then says so; a reason is one line.  sealed tells whether the repository has
    fs-verity.  kernel_digest is the SHA-256 of kernel and initrd, if known.  etc and var describe the directories of
    the boot image.  tag is the repository's tag that keeps the image, reference the transport's name of its source.
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
    kernel_digest: str = ""
    etc: Directory = field(default_factory=Directory)
    var: Directory = field(default_factory=Directory)
    pinned: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def default(self) -> BootImage:
        """The format to boot unless the payload names another: the first that is stored."""
        return next((image for image in self.images if image.stored), self.images[0])
