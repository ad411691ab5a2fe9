"""The trees of the images of one OCI image, and their digests: each is made once, and only when it is asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot.transform import EMPTIED, make_boot
from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ImageKind
from composefsd.operations.variants import ImageOrder
from composefsd.tree.normative import XattrMode, kept_names, make_normative
from composefsd.tree.table import ROOT, Tree

_LABEL: Final = b"security.selinux"

NORMATIVE: Final = ImageOrder(ImageKind.NORMATIVE, FormatVersion.V1, XattrMode.ALLOWLIST_ONLY)
BOOT: Final = replace(NORMATIVE, kind=ImageKind.BOOT)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that the tree of an image depends on, beside the merged tree: orders that have the same have one tree.

    kept are the names of the extended attributes that stay.
    """

    kind: ImageKind
    kept: frozenset[bytes]
    keeps_nanoseconds: bool


class Trees:
    """The trees of one merged tree."""

    def __init__(self, merged: Tree, read: Callable[[bytes, int], bytes]) -> None:
        self.algorithm = merged.algorithm
        self._merged = merged
        self._read = read
        self._made: dict[Recipe, Tree] = {}
        self._digests: dict[tuple[Recipe, FormatVersion], str] = {}
        self._has_own_nanoseconds = _has_own_nanoseconds(merged)

    def recipe(self, order: ImageOrder) -> Recipe:
        """What the tree of an image depends on."""
        kept = kept_names(self._merged, order.xattrs, order.profile)
        if order.kind is ImageKind.BOOT:  # whose labels are made anew by all profiles
            kept -= {_LABEL}
        keeps = order.kind is ImageKind.BOOT and order.profile.keeps_nanoseconds and self._has_own_nanoseconds
        return Recipe(order.kind, kept, keeps)

    def get(self, order: ImageOrder) -> Tree:
        """The tree of an image.  Raises what `make_normative` and `make_boot` raise."""
        recipe = self.recipe(order)
        if recipe not in self._made:
            self._made[recipe] = self._make(order)
        return self._made[recipe]

    def digest(self, order: ImageOrder, compute: Callable[[], str]) -> str:
        """The digest of an image in hexadecimal; computed if no image that is the same has been."""
        recipe = self.recipe(order)
        if order.format is FormatVersion.V2:  # which stores none
            recipe = replace(recipe, keeps_nanoseconds=False)
        key = recipe, order.format
        if key not in self._digests:
            self._digests[key] = compute()
        return self._digests[key]

    def _make(self, order: ImageOrder) -> Tree:
        if order.kind is ImageKind.BOOT:
            normative = self.get(replace(order, kind=ImageKind.NORMATIVE))
            return make_boot(normative, self._read, profile=order.profile)
        tree = self._merged.fork()
        make_normative(tree, order.xattrs, order.profile)
        return tree


def _has_own_nanoseconds(merged: Tree) -> bool:
    """Whether a directory that is emptied has other nanoseconds than /usr."""
    usr = merged.find(b"/usr")
    return any(_nanoseconds(merged, inode) != _nanoseconds(merged, usr) for inode in _emptied(merged))


def _emptied(merged: Tree) -> Iterator[int]:
    for name in EMPTIED:
        entry = merged.find_entry(ROOT, name)
        if entry is not None:
            yield merged.child[entry]


def _nanoseconds(tree: Tree, inode: int | None) -> int:
    return 0 if inode is None else tree.nsec[inode]
