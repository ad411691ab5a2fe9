"""Why two digests differ: two sources as trees, compared, and what a comparison of trees cannot show.

An image file is compared by the tree that it says, and its digest is that of its bytes.  If the tree is the same and
the digest is not, the file is not what composefs-rs would write; where it first departs from that is told.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BufferedReader
from typing import Final, Self

from composefsd import verity
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import MAX_IMAGE_BYTES, FormatVersion, Head
from composefsd.erofs.locate import Part, Spot, first_difference
from composefsd.erofs.reader import object_ids, read_tree
from composefsd.erofs.writer import compute_id
from composefsd.errors import ComposefsdError, FormatError, LimitExceededError
from composefsd.operations.sources import Reading, Source, SourceKind, read, starts_image
from composefsd.tree import dumpfile
from composefsd.tree.difference import Aspect, Change, Difference, Side, compare
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile
from composefsd.tree.table import Tree


class SubjectKind(StrEnum):
    """What is compared; the values are for people and programs."""

    DIRECTORY = "directory"
    OCI = "oci"
    DUMPFILE = "dumpfile"
    EROFS = "erofs"
    STORED = "stored"  # an image of the daemon's repository


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the sources are to be made images; None is the format, or hash, of the first that has one of its own."""

    bootable: bool = False
    version: FormatVersion | None = None
    algorithm: Algorithm | None = None
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    as_is: bool = False
    profile: Profile = Profile.CURRENT


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An EROFS image: its bytes, and what they say."""

    data: bytes
    tree: Tree
    version: FormatVersion

    @classmethod
    def parse(cls, data: bytes, algorithm: Algorithm | None) -> Self:
        """Raises FormatError for what composefs-rs would not read, LimitExceededError for more than 1 GiB.

        An image does not tell its hash, but the digests in it have one: `algorithm`, SHA-512 if it is None, is that
        of an image without any.
        """
        preferred = algorithm or Algorithm.SHA512
        (other,) = set(Algorithm) - {preferred}
        try:
            tree = read_tree(data, preferred)
        except FormatError:
            if not object_ids(data, other):
                raise
            tree = read_tree(data, other)
        return cls(data, tree, Head.parse(data).version)


@contextmanager
def _naming(text: str) -> Iterator[None]:
    """Put what is being read before the message of an error: there are two sides."""
    try:
        yield
    except ComposefsdError as error:
        raise type(error)(f"{text}: {error.message}", **error.facts) from error


@dataclass(frozen=True, slots=True)
class Subject:
    """One side before its tree is read; file is a dumpfile to read it from, image an image that was.

    algorithm and version are those that it has of its own.
    """

    text: str
    kind: SubjectKind
    file: BufferedReader | None = None
    image: ImageFile | None = None
    algorithm: Algorithm | None = None
    version: FormatVersion | None = None

    @classmethod
    def of_file(cls, text: str, file: BufferedReader, algorithm: Algorithm | None) -> Self:
        """A file that is open: an image if it starts as one, else a dumpfile.  Raises as `ImageFile.parse`."""
        if not starts_image(file):
            return cls(text, SubjectKind.DUMPFILE, file)
        with _naming(text):
            image = ImageFile.parse(file.read(MAX_IMAGE_BYTES + 1), algorithm)
        return cls(text, SubjectKind.EROFS, None, image, image.tree.algorithm, image.version)

    @classmethod
    def of_source(cls, source: Source, wanted: Wanted) -> Self:
        """A directory or an OCI image.  Raises InvalidArgumentsError for one that cannot be had as wanted."""
        source.check(Reading(bootable=wanted.bootable, as_is=wanted.as_is))
        return cls(source.text, SubjectKind.OCI if source.kind is SourceKind.OCI else SubjectKind.DIRECTORY)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One side: its tree, the format of its image, and that image's digest."""

    text: str
    kind: SubjectKind
    tree: Tree
    version: FormatVersion
    digest: ObjectId
    image: bytes | None = None


class ReasonCode(StrEnum):
    """Why digests differ, or not, beside the differences of the trees."""

    FORMAT = "format"
    HASH = "hash"
    BYTES = "bytes"
    UNSTORED = "unstored"
    SAME_IMAGE = "same-image"


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason, with a sentence for people; side, and where in its file, for BYTES only."""

    code: ReasonCode
    message: str
    side: Side | None = None
    spot: Spot | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides."""

    a: Loaded
    b: Loaded

    @property
    def equal(self) -> bool:
        """Whether the images have one digest."""
        return self.a.digest == self.b.digest

    def differences(self, *, expand: bool = False) -> Iterator[Difference]:
        """What differs of the trees, in their order."""
        return compare(self.a.tree, self.b.tree, expand=expand)

    def is_stored(self, change: Change) -> bool:
        """Whether the formats store what changed: V2 has no nanoseconds."""
        if change.aspect is not Aspect.MTIME or FormatVersion.V2 not in (self.a.version, self.b.version):
            return True
        return not (isinstance(change.a, tuple) and isinstance(change.b, tuple) and change.a[0] == change.b[0])

    def reasons(self, stored: int, unstored: int) -> tuple[Reason, ...]:
        """What is to be said when so many differences were found that the formats store, and do not store."""
        found = [*self._of_kind()]
        if unstored:
            text = f"nanoseconds that differ, and which format v2 does not store: {unstored} times"
            found.append(Reason(ReasonCode.UNSTORED, text))
        if self.equal and stored:
            text = f"the images are the same: format {self.a.version.label} does not store what differs"
            found.append(Reason(ReasonCode.SAME_IMAGE, text))
        if not self.equal and not stored:
            found += self._of_bytes()
        return tuple(found)

    def _of_kind(self) -> Iterator[Reason]:
        hashes = self.a.digest.algorithm.value, self.b.digest.algorithm.value
        if hashes[0] != hashes[1]:
            text = f"the hashes differ: A has {hashes[0]}, B has {hashes[1]}; objects were compared by size alone"
            yield Reason(ReasonCode.HASH, text)
        if self.a.version != self.b.version:
            text = f"the formats differ: A has {self.a.version.label}, B has {self.b.version.label}"
            yield Reason(ReasonCode.FORMAT, text)

    def _of_bytes(self) -> Iterator[Reason]:
        for side, one in ((Side.A, self.a), (Side.B, self.b)):
            if one.image is None:
                continue
            text = f"{side.name} is not the image that composefs-rs writes for its tree"
            try:
                spot = first_difference(one.image, one.tree, one.version)
            except (FormatError, LimitExceededError) as error:
                yield Reason(ReasonCode.BYTES, f"{text}, since it writes none: {error.message}", side)
                continue
            if spot is not None:
                yield Reason(ReasonCode.BYTES, f"{text}: {_describe(spot)}", side, spot)


_PARTS: Final = {
    Part.HEADER: "the header of composefs",
    Part.PADDING: "padding",
    Part.SUPERBLOCK: "the superblock",
    Part.INODE: "the inode of",
    Part.XATTRS: "the extended attributes of",
    Part.TAIL: "what is behind the inode of",
    Part.XATTR_TABLE: "the table of shared extended attributes",
    Part.DATA: "the data blocks of",
}


def _describe(spot: Spot) -> str:
    if spot.part is Part.END:
        return f"one of them ends at byte {spot.offset}, the other one does not"
    owner = "" if spot.path is None else f" {dumpfile.quote(spot.path)}"
    return f"the first byte that differs is {spot.offset}, in {_PARTS[spot.part]}{owner}"


def choose(subjects: Sequence[Subject], wanted: Wanted) -> tuple[Reading, FormatVersion]:
    """How those sides are read that are no images yet: as wanted, else as an image file is, else as any side is."""
    ranked = sorted(subjects, key=lambda subject: subject.image is None)
    versions = [wanted.version, *(one.version for one in ranked), FormatVersion.V1]
    algorithms = [wanted.algorithm, *(one.algorithm for one in ranked), Algorithm.SHA512]
    version = next(one for one in versions if one is not None)
    algorithm = next(one for one in algorithms if one is not None)
    return Reading(algorithm, wanted.bootable, wanted.xattrs, wanted.as_is, wanted.profile), version


def load(subject: Subject, reading: Reading, version: FormatVersion) -> Loaded:
    """Read a side.  Raises what `sources.read`, `dumpfile.parse` and the writer raise."""
    if subject.image is not None:
        image = subject.image
        digest = verity.compute(image.data, image.tree.algorithm)
        return Loaded(subject.text, subject.kind, image.tree, image.version, digest, image.data)
    if subject.file is None:
        tree = read(Source.parse(subject.text), reading)
    else:
        with _naming(subject.text):
            tree = dumpfile.parse(subject.file, reading.algorithm)
    return Loaded(subject.text, subject.kind, tree, version, compute_id(tree, version))
