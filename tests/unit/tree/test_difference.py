"""Trees compared: each kind of difference, and what holds of any two trees."""

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import write
from composefsd.tree.difference import Aspect, Change, Changed, Difference, Only, Side, Value, compare
from composefsd.tree.table import ROOT, Kind, Stat, Tree, XattrSet

PLAIN = Stat(0o644, 0, 0, 5, 6)
FOLDER = Stat(0o755, 0, 0, 5, 6)
A, B = Side
DIGEST = b"\x11" * 32
Fill = Callable[[Tree], object]


def build(fill: Fill, algorithm: Algorithm = Algorithm.SHA256) -> Tree:
    tree = Tree(algorithm)
    tree.set_stat(ROOT, FOLDER)
    fill(tree)
    tree.freeze()
    return tree


def file(tree: Tree, name: bytes, content: bytes = b"", stat: Stat = PLAIN, parent: int = ROOT) -> int:
    inode = tree.add_inline(stat, content)
    tree.insert(parent, name, inode)
    return inode


def folder(tree: Tree, name: bytes, parent: int = ROOT) -> int:
    inode = tree.add_directory(FOLDER)
    tree.insert(parent, name, inode)
    return inode


def with_stat(stat: Stat) -> Tree:
    return build(lambda tree: file(tree, b"f", b"x", stat))


def differences(a: Fill, b: Fill, *, expand: bool = False) -> list[Difference]:
    return list(compare(build(a), build(b), expand=expand))


def change(a: Tree, b: Tree) -> Change:
    """The only change, which is that of /f."""
    (found,) = compare(a, b)
    assert isinstance(found, Changed)
    assert found.path == b"/f"
    (one,) = found.changes
    return one


def nothing(_tree: Tree) -> None:
    pass


# Names on one side


def test_a_name_on_one_side_is_told_with_its_type_and_size() -> None:
    assert differences(lambda tree: file(tree, b"f", b"abc"), nothing) == [Only(b"/f", A, Kind.INLINE, 3, 0, None)]
    device = differences(nothing, lambda tree: tree.insert(ROOT, b"d", tree.add_special(Kind.BLOCK, PLAIN, 259)))
    assert device == [Only(b"/d", B, Kind.BLOCK, 0, 0, None)]


def deep(tree: Tree) -> None:
    top = folder(tree, b"top")
    file(tree, b"a", parent=top)
    below = folder(tree, b"b", top)
    file(tree, b"c", parent=below)


def test_a_subtree_on_one_side_is_one_difference_with_a_count() -> None:
    assert differences(nothing, deep) == [Only(b"/top", B, Kind.DIRECTORY, 0, 3, None)]


def test_a_subtree_on_one_side_is_told_name_by_name_if_that_is_wanted() -> None:
    found = differences(deep, nothing, expand=True)
    assert [one.path for one in found] == [b"/top", b"/top/a", b"/top/b", b"/top/b/c"]
    assert all(isinstance(one, Only) and (one.side, one.below) == (A, 0) for one in found)


def test_a_name_on_one_side_that_is_a_hard_link_says_to_what() -> None:
    def linked(tree: Tree) -> None:
        tree.insert(ROOT, b"z", file(tree, b"a"))

    assert differences(linked, lambda tree: file(tree, b"a")) == [Only(b"/z", A, Kind.INLINE, 0, 0, b"/a")]


def test_differences_come_in_the_order_of_a_walk() -> None:
    def fill(tree: Tree) -> None:
        for name in (b"b", b"a.c", b"a"):
            file(tree, b"inside", parent=folder(tree, name))

    def other(tree: Tree) -> None:
        folder(tree, b"a")
        folder(tree, b"a.c")

    assert [one.path for one in differences(fill, other)] == [b"/a/inside", b"/a.c/inside", b"/b"]


# What differs of a name


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        (Stat(0o4755, 0, 0, 5, 6), Change(Aspect.MODE, 0o644, 0o4755)),
        (Stat(0o644, 1000, 0, 5, 6), Change(Aspect.UID, 0, 1000)),
        (Stat(0o644, 0, 7, 5, 6), Change(Aspect.GID, 0, 7)),
        (Stat(0o644, 0, 0, -5, 6), Change(Aspect.MTIME, (5, 6), (-5, 6))),
        (Stat(0o644, 0, 0, 5, 7), Change(Aspect.MTIME, (5, 6), (5, 7))),
    ],
)
def test_metadata_that_differs_is_told(stat: Stat, expected: Change) -> None:
    assert change(with_stat(PLAIN), with_stat(stat)) == expected


def test_type_bits_that_a_mode_brought_along_do_not_count() -> None:
    assert list(compare(with_stat(PLAIN), with_stat(Stat(0o100644, 0, 0, 5, 6)))) == []


def test_metadata_of_the_root_is_told_too() -> None:
    other = build(lambda tree: tree.set_stat(ROOT, Stat(0o700, 0, 0, 5, 6)))
    assert list(compare(build(nothing), other)) == [Changed(b"/", (Change(Aspect.MODE, 0o755, 0o700),))]


def with_xattrs(*xattrs: tuple[bytes, bytes]) -> Tree:
    return with_stat(Stat(0o644, 0, 0, 5, 6, xattrs))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((), ((b"user.a", b"1"),), Change(Aspect.XATTR, None, b"1", b"user.a")),
        (((b"user.a", b"1"),), (), Change(Aspect.XATTR, b"1", None, b"user.a")),
        (((b"user.a", b""),), ((b"user.a", b"2"),), Change(Aspect.XATTR, b"", b"2", b"user.a")),
    ],
)
def test_extended_attributes_are_told_one_by_one(a: XattrSet, b: XattrSet, expected: Change) -> None:
    both = (b"user.z", b"same")
    assert change(with_xattrs(*a, both), with_xattrs(*b, both)) == expected


def test_small_files_differ_by_content_and_size() -> None:
    (found,) = differences(lambda tree: file(tree, b"f", b"ab"), lambda tree: file(tree, b"f", b"abc"))
    assert isinstance(found, Changed)
    assert found.changes == (Change(Aspect.SIZE, 2, 3), Change(Aspect.CONTENT, b"ab", b"abc"))


def with_leaf(add: Callable[[Tree], int], algorithm: Algorithm = Algorithm.SHA256) -> Tree:
    return build(lambda tree: tree.insert(ROOT, b"f", add(tree)), algorithm)


def test_objects_differ_by_digest() -> None:
    a = with_leaf(lambda tree: tree.add_external(PLAIN, 100, DIGEST))
    b = with_leaf(lambda tree: tree.add_external(PLAIN, 100, b"\x22" * 32))
    assert change(a, b) == Change(Aspect.DIGEST, DIGEST, b"\x22" * 32)


def test_digests_of_two_algorithms_are_not_compared_but_sizes_are() -> None:
    a = with_leaf(lambda tree: tree.add_external(PLAIN, 100, DIGEST))
    for size, expected in ((100, []), (101, [Changed(b"/f", (Change(Aspect.SIZE, 100, 101),))])):
        add = partial(Tree.add_external, stat=PLAIN, size_bytes=size, digest=bytes(64))
        b = with_leaf(add, Algorithm.SHA512)
        assert list(compare(a, b)) == expected


def test_where_content_lies_is_told_with_the_content() -> None:
    a = with_leaf(lambda tree: tree.add_inline(PLAIN, b"abc"))
    b = with_leaf(lambda tree: tree.add_external(PLAIN, 3, DIGEST))
    (found,) = compare(a, b)
    assert isinstance(found, Changed)
    assert found.changes == (
        Change(Aspect.STORAGE, Kind.INLINE, Kind.EXTERNAL),
        Change(Aspect.DIGEST, None, DIGEST),
        Change(Aspect.CONTENT, b"abc", None),
    )


def test_an_object_without_a_digest_in_the_image_is_another_file() -> None:
    a = with_leaf(lambda tree: tree.add_external(PLAIN, 3, DIGEST))
    b = with_leaf(lambda tree: tree.add_external(PLAIN, 3, DIGEST, Kind.UNVERIFIED))
    assert change(a, b) == Change(Aspect.STORAGE, Kind.EXTERNAL, Kind.UNVERIFIED)


def test_links_differ_by_target_and_devices_by_number() -> None:
    a, b = (with_leaf(partial(Tree.add_symlink, stat=PLAIN, target=to)) for to in (b"x", b"y"))
    assert change(a, b) == Change(Aspect.TARGET, b"x", b"y")
    a, b = (with_leaf(partial(Tree.add_special, kind=Kind.CHAR, stat=PLAIN, rdev=rdev)) for rdev in (0, 259))
    assert change(a, b) == Change(Aspect.DEVICE, 0, 259)


def test_another_type_is_told_with_the_metadata_that_differs_but_not_the_rest() -> None:
    a = with_leaf(lambda tree: tree.add_special(Kind.CHAR, PLAIN, 5))
    b = with_leaf(lambda tree: tree.add_special(Kind.BLOCK, Stat(0o600, 0, 0, 5, 6), 6))
    (found,) = compare(a, b)
    assert isinstance(found, Changed)
    assert found.changes == (Change(Aspect.TYPE, Kind.CHAR, Kind.BLOCK), Change(Aspect.MODE, 0o644, 0o600))


def test_a_directory_in_the_place_of_a_file_counts_what_is_in_it() -> None:
    def other(tree: Tree) -> None:
        tree.insert(ROOT, b"top", tree.add_symlink(FOLDER, b"x"))

    (found,) = differences(other, deep)
    kinds = Change(Aspect.TYPE, Kind.SYMLINK, Kind.DIRECTORY)
    assert found == Changed(b"/top", (kinds,), 3)
    first, *rest = differences(other, deep, expand=True)
    assert first == Changed(b"/top", (kinds,))
    assert [one.path for one in rest] == [b"/top/a", b"/top/b", b"/top/b/c"]


# Hard links


def names(**groups: str) -> Tree:
    """Files, each with one or several names of one letter."""

    def fill(tree: Tree) -> None:
        for letters in groups.values():
            inode = tree.add_inline(PLAIN, b"x")
            for letter in letters:
                tree.insert(ROOT, letter.encode(), inode)

    return build(fill)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (["ab"], ["a", "b"], {b"/b": (b"/a", None)}),
        (["abc"], ["a", "bc"], {b"/b": (b"/a", None), b"/c": (b"/a", b"/b")}),
        (["ab", "c"], ["a", "bc"], {b"/b": (b"/a", None), b"/c": (None, b"/b")}),
        (["ab", "cd"], ["ab", "cd"], {}),
        (["ac", "bd"], ["ad", "bc"], {b"/c": (b"/a", b"/b"), b"/d": (b"/b", b"/a")}),
    ],
)
def test_which_names_share_an_inode_is_compared(
    a: list[str], b: list[str], expected: dict[bytes, tuple[Value, Value]]
) -> None:
    one, other = (names(**{f"n{number}": group for number, group in enumerate(groups)}) for groups in (a, b))
    found = list(compare(one, other))
    assert all(isinstance(each, Changed) and each.changes[0].aspect is Aspect.LINK for each in found)
    told = {each.path: (each.changes[0].a, each.changes[0].b) for each in found if isinstance(each, Changed)}
    assert told == expected


def test_what_differs_of_an_inode_with_several_names_is_told_once() -> None:
    def fill(content: bytes) -> Fill:
        return lambda tree: tree.insert(ROOT, b"g", file(tree, b"f", content))

    (found,) = differences(fill(b"x"), fill(b"y"))
    assert found == Changed(b"/f", (Change(Aspect.CONTENT, b"x", b"y"),))


def test_a_link_that_is_left_behind_by_a_name_on_one_side_is_no_difference_of_its_own() -> None:
    assert list(compare(names(x="abc"), names(x="bc"))) == [Only(b"/a", A, Kind.INLINE, 1, 0, None)]


# Any two trees

Row = tuple[int, int, int, int, int, int]
ROW = st.tuples(*(st.integers(0, most) for most in (3, 5, 9, 2, 2, 2)))
ROWS = st.lists(ROW, max_size=14)
XATTRS: tuple[XattrSet, ...] = ((), ((b"user.a", b"1"),), ((b"security.selinux", b"l"), (b"user.a", b"2")))


def grow(rows: list[Row]) -> Tree:
    """A tree; a row tells the directory, the name, what it is, metadata, attributes and content."""

    def fill(tree: Tree) -> None:
        directories, leaves = [ROOT], list[int]()
        for parent, name, what, meta, xattrs, content in rows:
            stat = Stat(0o600 + meta, meta, 0, 5, meta, XATTRS[xattrs])
            directory = directories[parent % len(directories)]
            inode = add(tree, leaves, what, stat, content)
            if tree.lookup(directory, b"n%d" % name) is None:
                tree.insert(directory, b"n%d" % name, inode)
                (directories if tree.kind[inode] == Kind.DIRECTORY else leaves).append(inode)

    return build(fill)


def add(tree: Tree, leaves: list[int], what: int, stat: Stat, content: int) -> int:
    match what:
        case 0 | 1:
            return tree.add_directory(stat)
        case 2:
            return tree.add_external(stat, 100 + content, bytes((content,)) * 32)
        case 3:
            return tree.add_external(stat, 100, bytes((content,)) * 32, Kind.UNVERIFIED)
        case 4:
            return tree.add_sparse(stat, 100 + content)
        case 5:
            return tree.add_symlink(stat, b"t%d" % content)
        case 6:
            return tree.add_special(Kind.CHAR, stat, 1 + content)
        case 7:
            return tree.add_special(Kind.FIFO, stat)
        case 8 if leaves:
            return leaves[content % len(leaves)]
    return tree.add_inline(stat, b"c" * content)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """Two trees with few differences, or none."""
    rows = draw(ROWS)
    other = list(rows)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(other)))
        other[at : at + draw(st.integers(0, 1))] = draw(st.lists(ROW, max_size=1))
    return grow(rows), grow(other)


def mirrored(difference: Difference) -> Difference:
    if isinstance(difference, Only):
        side = B if difference.side is A else A
        return Only(difference.path, side, difference.kind, difference.size, difference.below, difference.link)
    changes = tuple(Change(one.aspect, one.b, one.a, one.name) for one in difference.changes)
    return Changed(difference.path, changes, difference.below)


def image(tree: Tree) -> bytes:
    return b"".join(write(tree, FormatVersion.V1))


@settings(deadline=None)
@given(ROWS)
def test_a_tree_does_not_differ_from_itself_or_from_one_made_alike(rows: list[Row]) -> None:
    assert list(compare(grow(rows), grow(rows))) == []


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_trees_differ_exactly_if_their_images_do(both: tuple[Tree, Tree]) -> None:
    assert (not list(compare(*both))) == (image(both[0]) == image(both[1]))


@settings(deadline=None)
@given(pairs(), st.booleans())
def test_the_other_way_round_is_the_mirror_image(both: tuple[Tree, Tree], expand: bool) -> None:  # noqa: FBT001
    there, back = compare(*both, expand=expand), compare(*reversed(both), expand=expand)
    assert list(map(mirrored, there)) == list(back)


@settings(deadline=None)
@given(pairs())
def test_what_is_counted_is_what_is_told_when_asked(both: tuple[Tree, Tree]) -> None:
    brief, full = list(compare(*both)), list(compare(*both, expand=True))
    assert len(full) == sum(1 + one.below for one in brief)
    assert [one.path for one in full if isinstance(one, Changed)] == [
        one.path for one in brief if isinstance(one, Changed)
    ]


def test_trees_that_are_alike_are_compared_within_a_few_bytes_for_an_inode() -> None:
    def fill(tree: Tree) -> None:
        for number in range(100):
            parent = folder(tree, b"d%d" % number)
            for name in range(100):
                file(tree, b"f%d" % name, b"%d" % name, parent=parent)

    a, b = build(fill), build(fill)
    tracemalloc.start()
    try:
        assert not any(compare(a, b))
        peak: Any = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(a.kind)
