"""The extended attributes of all inodes of an image: who has which, which are shared, and their bytes.

Inodes with the same set of attributes and the same *flavor* have the same *recipe*; there are a few hundred of them
in a tree of any size.  An area is encoded once for a recipe, save for what names an object, which is put in for each
file.  Attributes that occur more than once in an image are *shared*: they stand in a table behind the inodes, and
areas refer to them by their offset.
"""

from array import array
from binascii import hexlify
from collections.abc import Iterator
from typing import Final, NamedTuple

from composefsd.erofs import xattrs
from composefsd.erofs.flavors import REDIRECTED, SHARED_REDIRECT, VERIFIED, Flavor, SharedObjects, flavors_of
from composefsd.erofs.format import BLOCK_BYTES, XATTR_AREA, XATTR_ENTRY, FormatVersion
from composefsd.erofs.numbering import Numbering, stub_xattrs
from composefsd.erofs.xattrs import METACOPY, OPAQUE, REDIRECT, Xattr
from composefsd.errors import FormatError

Template = tuple[bytes, ...]
"""An area without the parts that differ from file to file: what is before, between and behind them."""

_FLAVORS: Final = len(Flavor)
_EXTERNAL_ALONE: Final = int(Flavor.EXTERNAL)
_MAX_REFERENCES: Final = 0xFF
_MAX_AREA_BYTES: Final = XATTR_AREA.size + 4 * (0xFFFF - 1)


class _Name(NamedTuple):
    """How a name is stored, and its bit in the filter."""

    prefix: int
    rest: bytes
    filter_bit: int


class _Item(NamedTuple):
    """One attribute of a recipe; the last `varies` bytes of its value differ from file to file.

    Of one that varies, shared tells whether it is in the shared table: for all files of the recipe, or for none.
    """

    name: bytes
    value: bytes
    varies: int = 0
    shared: bool = False


class Areas:
    """What every inode of an image has.

    recipe is a column of the image's inodes, area_bytes and known are columns of the recipes: the size of the area,
    and the area itself once it was made, if it is the same for several inodes.  table_bytes is the size of the shared
    table.
    """

    def __init__(self, numbering: Numbering) -> None:
        """Raises FormatError if an inode has more, or longer, attributes than an image can hold."""
        self._tree, self._version = numbering.tree, numbering.version
        self._c_compatible = numbering.version.c_compatible
        self._digest_bytes = self._tree.algorithm.digest_bytes
        self._own_of_stub = stub_xattrs(self._tree)
        self._metacopy_head = xattrs.metacopy_head(self._tree.algorithm)
        self._added = [
            [*self._overlay_items(flavor), *(_Item(name, value) for name, value in self._marks(flavor))]
            for flavor in Flavor
        ]
        self.recipe = array("I")
        self._names: dict[bytes, _Name] = {}
        self._keys = array("Q")  # of each recipe: xattr set * _FLAVORS + flavor
        self._users = array("I")
        objects = SharedObjects(numbering)
        self._assign(numbering, flavors_of(numbering, objects))
        self.has_acl = False
        self._offsets, self.table_bytes = self._share(objects)
        self.area_bytes = array("I", map(self._measure, range(len(self._keys))))
        self._base_bytes = 0
        self._templates: dict[int, Template] = {}
        self.known: list[bytes | None] = [None] * len(self._keys)

    # Who has which recipe

    def _assign(self, numbering: Numbering, flavors: bytearray) -> None:
        recipes: dict[int, int] = {}
        sets, users, column = self._tree.xattrs, self._users, self.recipe
        for inode, flavor in zip(numbering.source, flavors, strict=True):
            key = sets[inode] * _FLAVORS + flavor
            recipe = recipes.get(key)
            if recipe is None:
                recipe = recipes[key] = len(users)
                users.append(0)
            users[recipe] += 1
            column.append(recipe)
        self._keys.extend(recipes)

    # What a recipe consists of

    def _items(self, recipe: int) -> list[_Item]:
        """The attributes of a recipe, in the order in which they stand in an area."""
        which, flavor = divmod(self._keys[recipe], _FLAVORS)
        own = self._own_of_stub if flavor == Flavor.STUB else self._tree.xattr_sets[which]
        items = self._added[flavor] + [_Item(xattrs.escape(name), value) for name, value in own]
        if self._c_compatible:
            items.sort(key=lambda item: _sort_key(item.name, item.value))
        return items

    def _overlay_items(self, flavor: Flavor) -> Iterator[_Item]:
        """What tells overlayfs where the content is."""
        digest = bytes(self._tree.algorithm.digest_bytes)
        if flavor in VERIFIED:
            shared = flavor == Flavor.EXTERNAL_SHARED
            yield _Item(METACOPY, self._metacopy_head + digest, len(digest), shared)
        elif flavor in REDIRECTED or flavor == Flavor.SPARSE:
            yield _Item(METACOPY, b"")
        if flavor in REDIRECTED:
            shared = flavor in SHARED_REDIRECT
            yield _Item(REDIRECT, xattrs.redirect_path(digest), 2 * len(digest) + 1, shared)

    def _marks(self, flavor: Flavor) -> Iterator[Xattr]:
        """What makes whiteouts, and the root opaque; only in formats that sort, so it does not matter where."""
        if flavor == Flavor.WHITEOUT:
            yield from xattrs.WHITEOUT_MARKS
        if flavor in (Flavor.WITH_WHITEOUTS, Flavor.ROOT_WITH_WHITEOUTS):
            yield from xattrs.DIRECTORY_MARKS
            if self._version == FormatVersion.V1:
                yield from xattrs.OPAQUE_MARKS
        if flavor in (Flavor.ROOT, Flavor.ROOT_WITH_WHITEOUTS):
            yield OPAQUE, b"y"

    def _name(self, name: bytes) -> _Name:
        known = self._names.get(name)
        if known is None:
            index, rest = xattrs.split_name(name, lustre=not self._c_compatible)
            known = self._names[name] = _Name(index, rest, xattrs.filter_bit(index, rest))
        return known

    # The shared table

    def _share(self, objects: SharedObjects) -> tuple[dict[Xattr, int], int]:
        """The offsets of shared attributes in their table, in the order of the table, and its size."""
        users: dict[Xattr, int] = {}
        for recipe, count in enumerate(self._users):
            for item in self._items(recipe):
                if not item.varies:
                    pair = item[:2]
                    users[pair] = users.get(pair, 0) + count
        shared = [*objects.shared(), *(pair for pair, count in users.items() if count > 1)]
        if self._c_compatible:
            shared.sort(key=lambda pair: _sort_key(*pair), reverse=True)
        else:
            shared.sort(key=lambda pair: (*self._name(pair[0])[:2], pair[1]))
        offsets, end = {}, 0
        for name, value in shared:
            offsets[name, value] = end
            end += xattrs.entry_bytes(self._name(name).rest, value)
        return offsets, end

    def table(self) -> Iterator[bytes]:
        """The entries of the shared table."""
        for name, value in self._offsets:
            yield xattrs.serialize_entry(*self._name(name)[:2], value)

    def place(self, table_offset: int) -> None:
        """Tell where in the image the table begins."""
        self._base_bytes = table_offset % BLOCK_BYTES if self._c_compatible else table_offset

    def _reference(self, name: bytes, value: bytes) -> bytes:
        return ((self._base_bytes + self._offsets[name, value]) // 4).to_bytes(4, "little")

    # Areas

    def _cut(self, recipe: int) -> tuple[list[_Item], list[_Item]]:
        """The shared and the local attributes of a recipe."""
        shared: list[_Item] = []
        local: list[_Item] = []
        for item in self._items(recipe):
            is_shared = item.shared if item.varies else (item.name, item.value) in self._offsets
            (shared if is_shared else local).append(item)
        return shared, local

    def _measure(self, recipe: int) -> int:
        """The size of an area, and whether any has an ACL."""
        shared, local = self._cut(recipe)
        if not shared and not local:
            return 0
        if self._c_compatible and any(self._name(item.name).prefix in xattrs.ACL_INDEXES for item in shared + local):
            self.has_acl = True
        size = XATTR_AREA.size + 4 * len(shared)
        size += sum(xattrs.entry_bytes(self._name(item.name).rest, item.value) for item in local)
        if len(shared) > _MAX_REFERENCES or size > _MAX_AREA_BYTES:
            raise FormatError("a file has more extended attributes than an image can hold")
        return size

    def _template(self, recipe: int) -> Template:
        shared, local = self._cut(recipe)
        if not shared and not local:
            return (b"",)
        name_filter = 0
        for item in shared + local:
            name_filter |= self._name(item.name).filter_bit
        pieces = [XATTR_AREA.pack(name_filter ^ 0xFFFF_FFFF, len(shared))]
        for item in shared:
            if item.varies:
                pieces.append(b"")
            else:
                pieces[-1] += self._reference(item.name, item.value)
        for item in local:
            index, rest, _ = self._name(item.name)
            entry = xattrs.serialize_entry(index, rest, item.value)
            if item.varies:
                end = XATTR_ENTRY.size + len(rest) + len(item.value)
                pieces[-1] += entry[: end - item.varies]
                pieces.append(entry[end:])
            else:
                pieces[-1] += entry
        return tuple(pieces)

    def make(self, recipe: int, inode: int) -> bytes:
        """The area of an inode whose recipe `known` does not have; to be called after `place`."""
        template = self._templates.get(recipe)
        if template is None:
            template = self._template(recipe)
            if self._users[recipe] > 1:
                self._templates[recipe] = template
                self.known[recipe] = template[0] if len(template) == 1 else None
        if len(template) == 1:
            return template[0]
        start = self._tree.payload[inode] * self._digest_bytes
        digest = self._tree.digests[start : start + self._digest_bytes]
        flavor = self._keys[recipe] % _FLAVORS
        if flavor == _EXTERNAL_ALONE:
            digits = hexlify(digest)
            return b"".join((template[0], digest, template[1], digits[:2], b"/", digits[2:], template[2]))
        return self._fill(template, flavor, bytes(digest))

    def _fill(self, template: Template, flavor: int, digest: bytes) -> bytes:
        """The area of a file whose object is another file's, too, or not verified."""
        path = xattrs.redirect_path(digest)
        if flavor == Flavor.UNVERIFIED:
            return template[0] + path[1:] + template[1]
        redirect = self._reference(REDIRECT, path)
        if flavor == Flavor.UNVERIFIED_SHARED:
            return template[0] + redirect + template[1]
        if flavor == Flavor.EXTERNAL_SHARED:
            first, second = self._reference(METACOPY, self._metacopy_head + digest), redirect
        else:  # references come before entries, so the redirect before the metacopy
            first, second = redirect, digest
        return template[0] + first + template[1] + second + template[2]


def _sort_key(name: bytes, value: bytes) -> tuple[bytes, int, bytes]:
    """The order of C composefs: values by their length first."""
    return name, len(value), value
