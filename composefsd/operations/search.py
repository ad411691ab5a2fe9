"""The search for the variant of an image that has a wanted digest; in the imager, where the trees are.

A digest that no variant has is explained: by the tree that has it, if there is one to be had, compared with that of
each variant.  Such a tree comes from an image of that digest in the object store, put there by another tool, or from
a dumpfile that a builder has left beside the UKI that claims it.  Neither is believed before its own digest is the
wanted one, and neither can make the search fail.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from composefsd import verity
from composefsd.boot.files import ObjectReader, get_file, read_file
from composefsd.digests import ObjectId
from composefsd.erofs.format import MAX_IMAGE_BYTES, FormatVersion, Head
from composefsd.erofs.reader import read_tree
from composefsd.erofs.writer import compute_id
from composefsd.errors import ComposefsdError, NotBootableError, ObjectMissingError
from composefsd.oci.storage import ImageKind
from composefsd.operations.difference_lines import Row, line, rows
from composefsd.operations.transformed import NORMATIVE, Recipe, Trees
from composefsd.operations.variants import ImageOrder
from composefsd.tree import dumpfile
from composefsd.tree.difference import Aspect, Change, Changed, Only, compare
from composefsd.tree.table import Tree

MAX_WANTED: Final = 16
"""How many digests are searched for; an image whose UKIs claim more has the rest unexplained."""

MAX_LINES: Final = 20
"""How many differences are told; the rest is counted."""

_LINE_CHARACTERS: Final = 1000
_DUMP_BYTES: Final = 256 << 20
_DUMPS: Final = 2
_UKI_SUFFIX: Final = ".efi"
_DUMP_SUFFIX: Final = ".dump"
_FORMATS: Final = (FormatVersion.V1, FormatVersion.V2)
_EMPTIED: Final = (b"/boot", b"/sysroot", b"/run")


@dataclass(frozen=True, slots=True)
class Claim:
    """A wanted digest in hexadecimal, and the UKIs of the image to look beside for its dumpfile.

    An expected digest is the caller's; any other is that of a boot image, as a UKI names it.
    """

    digest: str
    ukis: tuple[str, ...]
    is_expected: bool = False


@dataclass(frozen=True, slots=True)
class _WantedTree:
    """A tree that has the wanted digest, the format of the image that has it, and where it comes from."""

    tree: Tree
    format: FormatVersion
    source: str


@dataclass
class Search:
    """Searches one image's variants; `compute` gives the digest of a variant in hexadecimal."""

    trees: Trees
    read: ObjectReader
    orders: Sequence[ImageOrder]
    compute: Callable[[ImageOrder], str]
    _dumps: dict[str, Tree | str] = field(default_factory=dict)

    def find(self, claim: Claim) -> dict[str, Any]:
        """What `expected.Outcome` reads: the variant, or what there is to be said about there being none."""
        tried, notes = list[tuple[ImageOrder, str]](), list[str]()
        for order in self.orders:
            if not claim.is_expected and order.kind is not ImageKind.BOOT:
                continue
            try:
                digest = self.compute(order)
            except ComposefsdError as error:
                notes.append(f"{order.words} cannot be made: {error.message}")
                continue
            tried.append((order, digest))
            if digest == claim.digest:
                return self._outcome(claim, tried, notes, found=order, **self._told_apart(order))
        explained = self._explained(claim, [order for order, _ in tried], notes)
        return self._outcome(claim, tried, notes, **explained)

    def _outcome(
        self,
        claim: Claim,
        tried: Sequence[tuple[ImageOrder, str]],
        notes: Sequence[str],
        *,
        found: ImageOrder | None = None,
        **told: Any,
    ) -> dict[str, Any]:
        return {
            "wanted": claim.digest,
            "algorithm": self.trees.algorithm.value,
            "found": None if found is None else found.values(),
            "tried": [order.values() | {"digest": digest} for order, digest in tried],
            "notes": [note[:_LINE_CHARACTERS] for note in notes],
            **told,
        }

    def _told_apart(self, found: ImageOrder) -> dict[str, Any]:
        """How the variant that was found differs from the one that is made by default."""
        usual = next(order for order in self.orders if order.kind is found.kind)
        if usual == found:
            return {}
        told, total = _told(self.trees.get(usual), self.trees.get(found), found.format)
        return {"closest": usual.values(), "lines": told, "differences": total}

    def _explained(self, claim: Claim, orders: Sequence[ImageOrder], notes: list[str]) -> dict[str, Any]:
        """Which of the variants comes closest to the tree that has the digest, if there is one to be had."""
        wanted = self._wanted_tree(claim, notes)
        if wanted is None:
            return {}
        compared = dict[Recipe, ImageOrder]()
        for order in orders:
            if order.format is wanted.format:
                compared.setdefault(self.trees.recipe(order), order)
        told_of = [(_told(self.trees.get(order), wanted.tree, wanted.format), order) for order in compared.values()]
        if not told_of:
            return {}
        (told, total), order = min(told_of, key=lambda one: one[0][1])
        if not total:
            notes.append("the trees are the same, but not the bytes of the images")
        return {"source": wanted.source, "closest": order.values(), "lines": told, "differences": total}

    def _wanted_tree(self, claim: Claim, notes: list[str]) -> _WantedTree | None:
        try:
            return self._stored(claim.digest, notes) or self._dumped(claim, notes)
        except MemoryError:
            notes.append("the tree that has the digest needs more memory than a worker may use")
            return None

    def _stored(self, digest: str, notes: list[str]) -> _WantedTree | None:
        algorithm = self.trees.algorithm
        wanted = ObjectId.parse(digest, algorithm)
        try:
            data = self.read(wanted.digest, MAX_IMAGE_BYTES)
            if verity.compute(data, algorithm) != wanted:
                notes.append(f"object {digest} is damaged")
                return None
            return _WantedTree(read_tree(data, algorithm), Head.parse(data).version, "the image in the repository")
        except (KeyError, ObjectMissingError):
            return None
        except ComposefsdError as error:
            notes.append(f"object {digest} is no image that can be compared: {error.message}")
            return None

    def _dumped(self, claim: Claim, notes: list[str]) -> _WantedTree | None:
        for path in [_dump_path(uki) for uki in claim.ukis][:_DUMPS]:
            tree = self._dump(path)
            if isinstance(tree, str):
                if tree:
                    notes.append(f"{path} cannot be compared: {tree}")
                continue
            for version in _FORMATS:
                with suppress(ComposefsdError):
                    if compute_id(tree, version).hex == claim.digest:
                        return _WantedTree(tree, version, path)
            notes.append(f"{path} is not the tree that has this digest")
        return None

    def _dump(self, path: str) -> Tree | str:
        """A dumpfile of the image; else why it cannot be had, or nothing if there is none."""
        if path not in self._dumps:
            self._dumps[path] = self._read_dump(path)
        return self._dumps[path]

    def _read_dump(self, path: str) -> Tree | str:
        image = self.trees.get(NORMATIVE)
        try:
            inode = get_file(image, path.encode(errors="surrogateescape"))
        except NotBootableError:
            return ""
        try:
            return dumpfile.parse(BytesIO(read_file(image, inode, self.read, _DUMP_BYTES)), image.algorithm)
        except ComposefsdError as error:
            return error.message


def _dump_path(uki: str) -> str:
    return uki.removesuffix(_UKI_SUFFIX) + _DUMP_SUFFIX


def _told(ours: Tree, wanted: Tree, version: FormatVersion) -> tuple[list[str], int]:
    """The first differences as lines, ours first, and how many there are that the format stores."""
    lines, total = list[str](), 0
    for row in _rows(ours, wanted):
        if version is FormatVersion.V2 and _is_unstored(row):
            continue
        total += 1
        if len(lines) < MAX_LINES:
            lines.append(_line(row))
    return lines, total


def _line(row: Row) -> str:
    """A difference and what is known of it; without contents of files, as anybody may read of it."""
    remark = _remark(row)
    if not isinstance(row, Only) and row[1].aspect is Aspect.CONTENT:
        return f"{dumpfile.quote(row[0].path)[:_LINE_CHARACTERS]}: content differs"
    return line(row)[:_LINE_CHARACTERS] + (f" ({remark})" if remark else "")


def _rows(a: Tree, b: Tree) -> Iterator[Row]:
    for difference in compare(a, b):
        yield from rows(difference)


def _is_unstored(row: Row) -> bool:
    """Whether only nanoseconds differ, which V2 does not store."""
    if isinstance(row, Only):
        return False
    a, b = row[1].a, row[1].b
    return row[1].aspect is Aspect.MTIME and isinstance(a, tuple) and isinstance(b, tuple) and a[0] == b[0]


def _remark(row: Row) -> str:
    """What is known of a difference from what composefs-rs did at one time or another."""
    if isinstance(row, Only):
        below = any(row.path.startswith(folder + b"/") for folder in _EMPTIED)
        return "boot images have nothing below /boot, /sysroot and /run" if below else ""
    return _remark_on_change(*row)


def _remark_on_change(found: Changed, change: Change) -> str:
    if change.aspect is Aspect.MTIME and found.path in _EMPTIED[:2]:
        return "composefs-rs sets it to that of /usr, up to 0.9.2 without the nanoseconds"
    if found.path == b"/":
        return "composefs-rs gives the root what /usr has"
    if change.aspect is not Aspect.XATTR:
        return ""
    if change.name == b"security.selinux":
        return "the label follows from the policy in /etc/selinux"
    if change.name.startswith(b"user."):
        return "composefs-rs keeps it with keep-user-xattrs, and 0.7.0 always"
    return "composefs-rs 0.7.0 kept all extended attributes"
