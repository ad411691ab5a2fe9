"""What an inode has beside its own extended attributes, and which of it is shared.

The attributes that name an object differ from file to file.  Whether they are in the shared table depends on whether
another file has the same object: that is all that has to be known of the digests before an image is laid out.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from composefsd.erofs import xattrs
from composefsd.erofs.numbering import Numbering
from composefsd.erofs.xattrs import METACOPY, REDIRECT, Xattr
from composefsd.tree.table import Kind


class Flavor(IntEnum):
    """What an inode has beside its own attributes."""

    PLAIN = 0
    SPARSE = 1
    UNVERIFIED = 2
    UNVERIFIED_SHARED = 3  # its object is another file's, too, so the redirect is shared
    EXTERNAL = 4
    EXTERNAL_REDIRECT = 5  # its object is another file's, too, but that one is unverified
    EXTERNAL_SHARED = 6
    WHITEOUT = 7
    WITH_WHITEOUTS = 8
    ROOT = 9
    ROOT_WITH_WHITEOUTS = 10
    STUB = 11


_OF_KIND: Final = bytes(
    {Kind.SPARSE: Flavor.SPARSE, Kind.UNVERIFIED: Flavor.UNVERIFIED, Kind.EXTERNAL: Flavor.EXTERNAL}.get(kind, 0)
    for kind in Kind
)
VERIFIED: Final = (Flavor.EXTERNAL, Flavor.EXTERNAL_REDIRECT, Flavor.EXTERNAL_SHARED)
REDIRECTED: Final = (*VERIFIED, Flavor.UNVERIFIED, Flavor.UNVERIFIED_SHARED)
SHARED_REDIRECT: Final = (Flavor.EXTERNAL_REDIRECT, Flavor.EXTERNAL_SHARED, Flavor.UNVERIFIED_SHARED)


class SharedObjects:
    """Which objects several inodes have, found without keeping the digest of every file.

    metacopies and redirects count the inodes by digest; flavors has those inodes only whose redirect is shared.
    """

    def __init__(self, numbering: Numbering) -> None:
        self._tree = numbering.tree
        self.metacopies: Counter[bytes] = Counter()
        self.redirects: Counter[bytes] = Counter()
        self.flavors: dict[int, Flavor] = {}
        candidates = self._candidates(numbering.source)
        for inode in candidates:
            digest = self._tree.digest(inode)
            self.redirects[digest] += 1
            self.metacopies[digest] += self._tree.kind[inode] == Kind.EXTERNAL
        for inode in candidates:
            digest = self._tree.digest(inode)
            if self.redirects[digest] > 1:
                self.flavors[inode] = self._flavor(inode, digest)

    def _candidates(self, source: "array[int]") -> "array[int]":
        """Inodes whose digest starts like another's; the few that only look alike are sorted out later."""
        kind, payload, words_each = self._tree.kind, self._tree.payload, self._tree.algorithm.digest_bytes // 4
        with_object = (int(Kind.EXTERNAL), int(Kind.UNVERIFIED))
        external = array("I", (inode for inode in source if kind[inode] in with_object))
        mask = (1 << (8 * len(external)).bit_length()) - 1
        seen = bytearray(mask + 1)
        with memoryview(self._tree.digests) as digests, digests.cast("I") as words:
            for inode in external:
                slot = words[payload[inode] * words_each] & mask
                seen[slot] = 2 if seen[slot] else 1
            return array("I", (inode for inode in external if seen[words[payload[inode] * words_each] & mask] > 1))

    def _flavor(self, inode: int, digest: bytes) -> Flavor:
        if self._tree.kind[inode] == Kind.UNVERIFIED:
            return Flavor.UNVERIFIED_SHARED
        return Flavor.EXTERNAL_SHARED if self.metacopies[digest] > 1 else Flavor.EXTERNAL_REDIRECT

    def shared(self) -> Iterator[Xattr]:
        """The attributes that more than one inode has."""
        head = xattrs.metacopy_head(self._tree.algorithm)
        for digest, count in self.redirects.items():
            if count > 1:
                yield REDIRECT, xattrs.redirect_path(digest)
            if self.metacopies[digest] > 1:
                yield METACOPY, head + digest


def flavors_of(numbering: Numbering, objects: SharedObjects) -> bytearray:
    """The Flavor of every inode of the image."""
    kind = numbering.tree.kind
    flavors = bytearray(_OF_KIND[kind[inode]] for inode in numbering.source)
    for inode, flavor in objects.flavors.items():
        flavors[numbering.index[inode]] = flavor
    for index in numbering.stubs.values():
        flavors[index] = Flavor.STUB
    if numbering.version.c_compatible:
        flavors[0] = Flavor.ROOT
    for index in numbering.whiteouts:
        parent = numbering.parent[index]
        flavors[index] = Flavor.WHITEOUT
        flavors[parent] = Flavor.WITH_WHITEOUTS if parent else Flavor.ROOT_WITH_WHITEOUTS
    return flavors
