"""The normative tree: what the root, /run and extended attributes become."""

import pytest

from composefsd.digests import Algorithm
from composefsd.errors import FormatError
from composefsd.tree.normative import XattrMode, kept_names, make_normative
from composefsd.tree.profile import Profile
from composefsd.tree.table import ROOT, Stat, Tree, XattrSet

CAPABILITY = (b"security.capability", b"\1\0\0\2")
XATTRS: XattrSet = ((b"security.capability.x", b""), (b"security.selinux", b"l"), (b"user", b""), (b"user.a", b"1"))
ALL: XattrSet = tuple(sorted((CAPABILITY, *XATTRS)))


def make_tree(*names: bytes) -> Tree:
    """Directories and, for names with a dot, files; all with every extended attribute."""
    tree = Tree(Algorithm.SHA256)
    directories = {b"": ROOT}
    for number, path in enumerate(names, 1):
        parent, _, name = path.rpartition(b"/")
        stat = Stat(0o40700 + number, number, number, number, number, ALL)
        inode = tree.add_inline(stat, path) if b"." in name else tree.add_directory(stat)
        tree.insert(directories[parent], name, inode)
        directories[path] = inode
    tree.freeze()
    return tree


def inode(tree: Tree, path: bytes) -> int:
    found = tree.find(path)
    assert found is not None
    return found


def test_the_root_takes_all_metadata_of_usr() -> None:
    tree = make_tree(b"etc", b"usr")
    make_normative(tree, XattrMode.KEEP_USER)
    assert tree.stat(ROOT) == tree.stat(inode(tree, b"usr"))
    assert tree.stat(ROOT).mode == 0o40702


def test_run_is_emptied_and_gets_the_time_of_usr() -> None:
    tree = make_tree(b"run", b"run/lock", b"run/lock/a.pid", b"usr")
    make_normative(tree, XattrMode.ALLOWLIST_ONLY)
    run = tree.stat(inode(tree, b"run"))
    assert (run.mtime, run.nsec, run.mode, run.uid) == (4, 4, 0o40701, 1)
    assert [path for path, _entry, _inode in tree.walk()] == [b"/run", b"/usr"]


@pytest.mark.parametrize("names", [(), (b"etc",), (b"etc", b"etc/usr")])
def test_a_tree_without_usr_is_refused(names: tuple[bytes, ...]) -> None:
    with pytest.raises(FormatError, match="/usr"):
        make_normative(make_tree(*names), XattrMode.ALLOWLIST_ONLY)


@pytest.mark.parametrize("name", [b"usr", b"run"])
def test_usr_and_run_have_to_be_directories(name: bytes) -> None:
    plain, tree = Stat(0, 0, 0, 0, 0), Tree(Algorithm.SHA256)
    tree.insert(ROOT, b"usr", tree.add_directory(plain))
    tree.insert(ROOT, name, tree.add_symlink(plain, b"usr"))
    tree.freeze()
    with pytest.raises(FormatError, match=f"/{name.decode()}"):
        make_normative(tree, XattrMode.ALLOWLIST_ONLY)


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(XattrMode.ALLOWLIST_ONLY, (CAPABILITY,)), (XattrMode.KEEP_USER, (CAPABILITY, (b"user.a", b"1")))],
)
def test_extended_attributes_are_filtered_everywhere(mode: XattrMode, kept: XattrSet) -> None:
    tree = make_tree(b"run", b"usr", b"usr/a.file")
    make_normative(tree, mode)
    for path in (b"/", b"/run", b"/usr", b"/usr/a.file"):
        assert tree.stat(inode(tree, path)).xattrs == kept


@pytest.mark.parametrize("mode", XattrMode)
@pytest.mark.parametrize("profile", Profile)
def test_only_0_7_0_keeps_all_extended_attributes_and_the_names_kept_are_told(
    mode: XattrMode, profile: Profile
) -> None:
    tree = make_tree(b"run", b"usr", b"usr/a.file")
    names = kept_names(tree, mode, profile)
    make_normative(tree, mode, profile)
    assert {name for name, _ in tree.stat(inode(tree, b"usr/a.file")).xattrs} == names
    assert (tree.stat(ROOT).xattrs == ALL) is (profile is Profile.V0_7_0)


def test_a_normative_tree_stays_as_it_is() -> None:
    tree = make_tree(b"run", b"usr", b"usr/a.file")
    make_normative(tree, XattrMode.ALLOWLIST_ONLY)
    before = [(path, tree.stat(inode)) for path, _entry, inode in tree.walk()]
    make_normative(tree, XattrMode.ALLOWLIST_ONLY)
    assert [(path, tree.stat(inode)) for path, _entry, inode in tree.walk()] == before


def test_the_modes_have_the_names_of_composefs_rs() -> None:
    assert [mode.value for mode in XattrMode] == ["allowlist-only", "keep-user-xattrs"]
