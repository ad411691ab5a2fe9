"""Which inodes an image has, and in which order."""

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FileType, FormatVersion
from composefsd.erofs.numbering import STUB_NAMES, Numbering
from composefsd.errors import FormatError
from composefsd.tree.table import ROOT, Kind, Stat, Tree

V1, V2 = FormatVersion.V1, FormatVersion.V2
PLAIN = Stat(0o644, 0, 0, 0, 0)


def empty_tree() -> Tree:
    return Tree(Algorithm.SHA256)


def frozen(tree: Tree) -> Tree:
    tree.freeze()
    return tree


def add(tree: Tree, directory: int, name: bytes, inode: int) -> int:
    tree.insert(directory, name, inode)
    return inode


def order(numbering: Numbering) -> list[int]:
    """The rows of the tree in the order of the image, without stubs and the root."""
    return [inode for inode in numbering.source if inode != ROOT]


def linked_tree() -> tuple[Tree, int, int, int, int]:
    """/a/deep/x and /b are one file."""
    tree = empty_tree()
    file = tree.add_inline(PLAIN, b"")
    a = add(tree, ROOT, b"a", tree.add_directory(PLAIN))
    deep = add(tree, a, b"deep", tree.add_directory(PLAIN))
    tree.insert(deep, b"x", file)
    tree.insert(ROOT, b"b", file)
    c = add(tree, ROOT, b"c", tree.add_directory(PLAIN))
    return frozen(tree), a, deep, file, c


def test_a_hard_link_is_numbered_where_its_first_path_is() -> None:
    tree, a, deep, file, c = linked_tree()
    numbering = Numbering(tree, V1)
    assert order(numbering) == [a, c, deep, file]
    assert numbering.links[file] == 2
    names, indexes = numbering.listing(0)
    assert indexes[names.index(b"b")] == numbering.index[file]


def test_format_2_numbers_depth_first() -> None:
    tree, a, deep, file, c = linked_tree()
    assert order(Numbering(tree, V2)) == [a, deep, file, c]


def test_directories_have_a_link_for_each_directory_in_them() -> None:
    tree, a, deep, _, _ = linked_tree()
    links = Numbering(tree, V1).links
    assert (links[ROOT], links[a], links[deep]) == (4, 3, 2)


def test_the_root_gets_256_stubs_but_not_in_format_2() -> None:
    tree = frozen(empty_tree())
    numbering = Numbering(tree, V1)
    assert list(numbering.stubs) == list(STUB_NAMES)
    assert list(numbering.file_type) == [FileType.DIRECTORY] + 256 * [FileType.CHAR]
    assert len(Numbering(tree, V2).source) == 1


def test_an_entry_of_any_kind_suppresses_the_stub_of_its_name() -> None:
    tree = empty_tree()
    file = add(tree, ROOT, b"0f", tree.add_inline(PLAIN, b""))
    numbering = Numbering(frozen(tree), V1)
    assert b"0f" not in numbering.stubs
    assert numbering.source[1 + 0x0F] == file


def test_a_whiteout_is_escaped_unless_it_looks_like_a_stub() -> None:
    tree = empty_tree()
    tree.set_stat(ROOT, Stat(0o755, 1, 2, 3, 4, ((b"security.selinux", b"x"), (b"user.a", b"b"))))
    stub = Stat(0o644, 1, 2, 3, 4, ((b"security.selinux", b"x"),))
    like = add(tree, ROOT, b"aa", tree.add_special(Kind.CHAR, stub))
    named = add(tree, ROOT, b"AA", tree.add_special(Kind.CHAR, stub))
    labelled = add(tree, ROOT, b"bb", tree.add_special(Kind.CHAR, Stat(0o644, 1, 2, 3, 4)))
    directory = add(tree, ROOT, b"d", tree.add_directory(PLAIN))
    deeper = add(tree, directory, b"aa", tree.add_special(Kind.CHAR, stub))
    numbering = Numbering(frozen(tree), V1)
    assert {numbering.source[index] for index in numbering.whiteouts} == {named, labelled, deeper}
    assert numbering.file_type[numbering.index[like]] == FileType.CHAR
    assert numbering.file_type[numbering.index[deeper]] == FileType.REGULAR


def test_format_2_escapes_nothing() -> None:
    tree = empty_tree()
    add(tree, ROOT, b"w", tree.add_special(Kind.CHAR, PLAIN))
    assert not Numbering(frozen(tree), V2).whiteouts


@pytest.mark.parametrize("version", FormatVersion)
def test_a_whiteout_with_two_names_is_refused(version: FormatVersion) -> None:
    tree = empty_tree()
    whiteout = add(tree, ROOT, b"w", tree.add_special(Kind.CHAR, PLAIN))
    tree.insert(ROOT, b"x", whiteout)
    with pytest.raises(FormatError, match="whiteout") as caught:
        Numbering(frozen(tree), version)
    assert caught.value.facts == {"subject": "/w"}


@pytest.mark.parametrize("version", FormatVersion)
@pytest.mark.parametrize("above", [True, False])
def test_a_directory_with_two_names_is_refused(version: FormatVersion, *, above: bool) -> None:
    tree = empty_tree()
    directory = add(tree, ROOT, b"d", tree.add_directory(PLAIN))
    tree.insert(directory if above else ROOT, b"e", ROOT if above else directory)
    with pytest.raises(FormatError, match="two names"):
        Numbering(frozen(tree), version)


@pytest.mark.parametrize("version", FormatVersion)
def test_what_nothing_reaches_does_not_count(version: FormatVersion) -> None:
    tree = empty_tree()
    gone = add(tree, ROOT, b"d", tree.add_directory(PLAIN))
    file = add(tree, gone, b"f", tree.add_inline(PLAIN, b""))
    tree.insert(ROOT, b"f", file)
    tree.remove(ROOT, b"d")
    numbering = Numbering(frozen(tree), version)
    assert order(numbering) == [file]
    assert numbering.links[file] == 1


@pytest.mark.parametrize("version", FormatVersion)
def test_depth_is_no_limit(version: FormatVersion) -> None:
    tree = empty_tree()
    directory = ROOT
    for _ in range(5000):
        directory = add(tree, directory, b"d", tree.add_directory(PLAIN))
    assert len(order(Numbering(frozen(tree), version))) == 5000


def test_names_that_sort_before_the_dots_come_before_them() -> None:
    tree = empty_tree()
    for name in (b"!", b"-", b"...", b"a"):
        add(tree, ROOT, name, tree.add_inline(PLAIN, b""))
    assert Numbering(frozen(tree), V2).listing(0)[0] == [b"!", b"-", b".", b"..", b"...", b"a"]
