"""Where an image departs from the writer's, for each part that an image has."""

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import BLOCK_BYTES, FormatVersion, is_image
from composefsd.erofs.layout import Layout
from composefsd.erofs.locate import Part, Spot, first_difference
from composefsd.erofs.writer import write
from composefsd.tree.table import ROOT, Stat, Tree

V0, V1, V2 = FormatVersion
LABEL = ((b"security.selinux", b"label"),)


def make_tree() -> Tree:
    """A large directory, an inline file that takes a block, and attributes that are shared."""
    tree = Tree(Algorithm.SHA256)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, 5, 6))
    many = tree.add_directory(Stat(0o755, 0, 0, 5, 6, LABEL))
    tree.insert(ROOT, b"many", many)
    for number in range(300):
        tree.insert(many, b"name-%03d" % number, tree.add_symlink(Stat(0o777, 0, 0, 5, 6, LABEL), b"target"))
    tree.insert(ROOT, b"own", tree.add_inline(Stat(0o644, 1, 1, 7, 8, ((b"user.own", b"x" * 40),)), b"content"))
    tree.freeze()
    return tree


TREE = make_tree()
IMAGE = b"".join(write(TREE, V1))
LAYOUT = Layout(TREE, V1)


def flipped(offset: int) -> bytes:
    return IMAGE[:offset] + bytes((IMAGE[offset] ^ 0xFF,)) + IMAGE[offset + 1 :]


def spot(offset: int) -> Spot:
    found = first_difference(flipped(offset), TREE, V1)
    assert found is not None
    assert found.offset == offset
    return found


def slot(path: bytes) -> int:
    """The offset of an inode."""
    inode = TREE.find(path)
    assert inode is not None
    return LAYOUT.slot[LAYOUT.numbering.index[inode]] * 32


@pytest.mark.parametrize("version", FormatVersion)
def test_the_writers_own_image_does_not_differ(version: FormatVersion) -> None:
    assert first_difference(b"".join(write(TREE, version)), TREE, version) is None


@pytest.mark.parametrize(
    ("offset", "part"),
    [(0, Part.HEADER), (31, Part.HEADER), (32, Part.PADDING), (1024, Part.SUPERBLOCK), (1151, Part.SUPERBLOCK)],
)
def test_a_difference_before_the_inodes(offset: int, part: Part) -> None:
    assert spot(offset) == Spot(offset, part)


def test_a_difference_in_an_inode_names_its_first_path() -> None:
    start = slot(b"/own")  # an extended inode of 64 bytes: its time is not the oldest
    assert spot(start) == Spot(start, Part.INODE, b"/own")
    assert spot(start + 63) == Spot(start + 63, Part.INODE, b"/own")
    assert spot(start + 64) == Spot(start + 64, Part.XATTRS, b"/own")
    end = IMAGE.index(b"content", start)
    assert spot(end) == Spot(end, Part.TAIL, b"/own")


def test_a_difference_in_the_root_and_in_a_stub() -> None:
    start = LAYOUT.slot[0] * 32
    assert spot(start) == Spot(start, Part.INODE, b"/")
    stub = LAYOUT.slot[LAYOUT.numbering.stubs[b"3f"]] * 32
    assert spot(stub) == Spot(stub, Part.INODE, b"/3f")


def test_a_difference_behind_the_inodes() -> None:
    table = LAYOUT.inodes_end
    assert spot(table) == Spot(table, Part.XATTR_TABLE)
    padding = LAYOUT.table_end - 1
    assert spot(padding) == Spot(padding, Part.PADDING)
    assert spot(LAYOUT.table_end) == Spot(LAYOUT.table_end, Part.DATA, b"/")  # the stubs make it a large directory
    assert spot(len(IMAGE) - 1) == Spot(len(IMAGE) - 1, Part.DATA, b"/many")


def test_one_that_goes_on_differs_where_the_other_ends() -> None:
    end = len(IMAGE)
    assert first_difference(IMAGE + bytes(BLOCK_BYTES), TREE, V1) == Spot(end, Part.END)
    assert first_difference(IMAGE[:-BLOCK_BYTES], TREE, V1) == Spot(end - BLOCK_BYTES, Part.END)
    assert first_difference(b"", TREE, V1) == Spot(0, Part.END)


def test_another_format_differs_in_the_header() -> None:
    for version in (V0, V2):
        assert first_difference(IMAGE, TREE, version) == Spot(12, Part.HEADER)


def test_what_starts_as_an_image_is_one_whatever_follows() -> None:
    assert is_image(IMAGE[:1152])
    assert is_image(IMAGE[:4])
    assert is_image(bytes(1024) + IMAGE[1024:1028])  # another program's
    assert not is_image(b"/ 0 40755 2 0 0 0 0.0 - - -\n")
    assert not is_image(b"")
