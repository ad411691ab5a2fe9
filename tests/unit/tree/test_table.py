"""The tree as columns: names, hard links, freezing, copies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import table
from composefsd.tree.table import NONE, ROOT, Kind, Rows, Stat, Tree

PLAIN = Stat(0o644, 0, 0, 0, 0)


def new_tree() -> Tree:
    return Tree(Algorithm.SHA256)


def names(tree: Tree, directory: int = ROOT) -> list[bytes]:
    return [tree.name(entry) for entry in tree.entries(directory)]


def test_a_new_tree_is_a_root_of_mode_0_and_nothing_in_it() -> None:
    tree = new_tree()
    tree.freeze()
    assert tree.stat(ROOT) == Stat(0, 0, 0, 0, 0)
    assert names(tree) == []
    assert list(tree.walk()) == []


def test_entries_are_sorted_by_the_bytes_of_their_names() -> None:
    tree = new_tree()
    for name in (b"b", b"a.b", b"\xff", b"a", b"a-b", b"A"):
        tree.insert(ROOT, name, tree.add_inline(PLAIN, name))
    tree.freeze()
    assert names(tree) == [b"A", b"a", b"a-b", b"a.b", b"b", b"\xff"]


def test_each_kind_of_inode_keeps_what_it_was_made_of() -> None:
    tree = new_tree()
    assert tree.text(tree.add_inline(PLAIN, b"content")) == b"content"
    assert tree.text(tree.add_symlink(PLAIN, b"/target")) == b"/target"
    external = tree.add_external(PLAIN, 100, b"d" * 32)
    assert (tree.digest(external), tree.size[external]) == (b"d" * 32, 100)
    assert tree.object_id(external).hex == "64" * 32
    device = tree.add_special(Kind.CHAR, PLAIN, 0x0103)
    assert (tree.kind[device], tree.size[device]) == (Kind.CHAR, 0x0103)
    assert tree.size[tree.add_sparse(PLAIN, 1 << 40)] == 1 << 40


def test_a_digest_of_the_other_width_is_refused() -> None:
    with pytest.raises(FormatError):
        new_tree().add_external(PLAIN, 100, b"d" * 64)


def test_a_name_goes_to_the_last_inode_that_was_given_it() -> None:
    tree = new_tree()
    first, second = tree.add_inline(PLAIN, b"1"), tree.add_inline(PLAIN, b"2")
    assert tree.insert(ROOT, b"x", first) is None
    assert tree.insert(ROOT, b"x", second) == first
    assert tree.lookup(ROOT, b"x") == second
    assert tree.remove(ROOT, b"x") == second
    assert tree.remove(ROOT, b"x") is None
    assert tree.lookup(ROOT, b"x") is None
    tree.freeze()
    assert names(tree) == []
    assert NONE in tree.child


def test_a_directory_that_was_cleared_is_empty_and_can_be_filled_again() -> None:
    tree = new_tree()
    directory = tree.add_directory(PLAIN)
    tree.insert(ROOT, b"d", directory)
    tree.insert(directory, b"old", tree.add_inline(PLAIN, b""))
    tree.clear(directory)
    assert tree.lookup(directory, b"old") is None
    tree.insert(directory, b"new", tree.add_inline(PLAIN, b""))
    tree.freeze()
    assert names(tree, directory) == [b"new"]
    tree.clear(directory)
    assert names(tree, directory) == []
    assert tree.find(b"/d/new") is None


def test_equal_sets_of_extended_attributes_are_kept_once() -> None:
    tree = new_tree()
    stat = Stat(0o644, 0, 0, 0, 0, ((b"user.a", b"1"),))
    first, second = tree.add_inline(stat, b""), tree.add_inline(stat, b"")
    assert tree.xattrs[first] == tree.xattrs[second] == 1
    assert tree.stat(first) == stat
    tree.set_stat(first, PLAIN)
    assert (tree.stat(first), tree.stat(second)) == (PLAIN, stat)
    tree.copy_stat(second, first)
    assert tree.stat(first) == stat


def test_walk_goes_down_where_it_meets_a_directory() -> None:
    tree = new_tree()
    outer, inner = tree.add_directory(PLAIN), tree.add_directory(PLAIN)
    tree.insert(ROOT, b"b", outer)
    tree.insert(outer, b"y", inner)
    file = tree.add_inline(PLAIN, b"")
    for directory, name in ((ROOT, b"a"), (ROOT, b"c"), (outer, b"z"), (inner, b"deep")):
        tree.insert(directory, name, file)
    tree.freeze()
    assert [path for path, _entry, _inode in tree.walk()] == [b"/a", b"/b", b"/b/y", b"/b/y/deep", b"/b/z", b"/c"]
    assert tree.find(b"/b/y/deep") == file
    assert tree.find(b"/b/y/deep/er") is None
    assert tree.find(b"/") == ROOT


def test_a_fork_changes_without_its_original() -> None:
    tree = new_tree()
    file, directory = tree.add_inline(PLAIN, b"x"), tree.add_directory(PLAIN)
    for parent, name, inode in (
        (ROOT, b"a", file),
        (ROOT, b"b", file),
        (ROOT, b"d", directory),
        (directory, b"c", file),
    ):
        tree.insert(parent, name, inode)
    tree.freeze()
    fork = tree.fork()
    entry = fork.find_entry(ROOT, b"b")
    assert entry is not None
    own = fork.split(entry)
    fork.set_stat(own, Stat(0o600, 1, 1, 1, 1, ((b"user.new", b""),)))
    fork.clear(directory)
    assert (fork.find(b"/b"), fork.find(b"/a"), fork.find(b"/d/c")) == (own, file, None)
    assert (tree.find(b"/b"), tree.find(b"/d/c")) == (file, file)
    assert len(tree.xattr_sets) == 1
    assert fork.text(own) == b"x"


def rows(tree: Tree, kinds: list[Kind]) -> Rows:
    other = Tree(tree.algorithm)
    for kind in kinds:
        other._add(kind, PLAIN, 0, 0)
    return Rows(*(getattr(other, name)[1:] for name in Rows.__slots__))


def test_rows_added_at_once_are_inodes_and_their_directories_are_empty() -> None:
    tree = new_tree()
    first = tree.add_rows(rows(tree, [Kind.FIFO, Kind.DIRECTORY, Kind.DIRECTORY]))
    tree.insert(ROOT, b"one", first + 1)
    tree.insert(ROOT, b"two", first + 2)
    tree.insert(first + 1, b"f", first)
    tree.freeze()
    assert [path for path, _entry, _inode in tree.walk()] == [b"/one", b"/one/f", b"/two"]


def test_a_tree_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_INODES", 3)
    tree = new_tree()
    tree.add_rows(rows(tree, [Kind.FIFO] * 2))
    with pytest.raises(LimitExceededError):
        tree.add_rows(rows(tree, [Kind.FIFO]))


NAMES = st.binary(min_size=1, max_size=2).filter(lambda name: b"/" not in name)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("idc"), st.integers(0, 3), NAMES), max_size=40))
def test_a_tree_behaves_like_dictionaries(steps: list[tuple[str, int, bytes]]) -> None:
    tree = new_tree()
    inodes = [ROOT, *(tree.add_directory(PLAIN) for _ in range(3))]
    model: list[dict[bytes, int]] = [{} for _ in inodes]
    for step, at, name in steps:
        if step == "i":
            inode = tree.add_inline(PLAIN, name)
            assert tree.insert(inodes[at], name, inode) == model[at].get(name)
            model[at][name] = inode
        elif step == "d":
            assert tree.remove(inodes[at], name) == model[at].pop(name, None)
        else:
            tree.clear(inodes[at])
            model[at].clear()
    tree.freeze()
    for inode, expected in zip(inodes, model, strict=True):
        assert {tree.name(entry): tree.child[entry] for entry in tree.entries(inode)} == expected
        assert names(tree, inode) == sorted(expected)
