"""Layers onto a tree: what composefs-rs does, entry by entry."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree.layer import HARDLINK, LayerTable
from composefsd.tree.merge import apply_layer
from composefsd.tree.table import ROOT, Kind, Tree

Entry = tuple[int, bytes, bytes, int]


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return (Kind.DIRECTORY, path, b"", mode)


def file(path: bytes, content: bytes = b"") -> Entry:
    return (Kind.INLINE, path, content, 0o644)


def large(path: bytes) -> Entry:
    return (Kind.EXTERNAL, path, b"", 0o644)


def link(path: bytes, target: bytes) -> Entry:
    return (HARDLINK, path, target, 0)


def symlink(path: bytes, target: bytes) -> Entry:
    return (Kind.SYMLINK, path, target, 0o777)


def make_layer(*entries: Entry) -> LayerTable:
    layer = LayerTable()
    layer.append_rows(
        [
            (
                kind,
                mode,
                1,
                2,
                3,
                4,
                100 if kind == Kind.EXTERNAL else 0 if kind == HARDLINK else len(text),
                0,
                path,
                text,
            )
            for kind, path, text, mode in entries
        ]
    )
    return layer


def merge(*layers: list[Entry]) -> Tree:
    tree = Tree(Algorithm.SHA256)
    for number, entries in enumerate(layers):
        layer = make_layer(*entries)
        count = layer.count_external()
        apply_layer(tree, layer, b"".join(bytes((number, at)) * 16 for at in range(count)))
    tree.freeze()
    return tree


def paths(tree: Tree) -> list[bytes]:
    return [path for path, _entry, _inode in tree.walk()]


def inode(tree: Tree, path: bytes) -> int:
    found = tree.find(path)
    assert found is not None
    return found


def test_entries_get_their_names_and_metadata() -> None:
    tree = merge([directory(b"usr", 0o40755), file(b"usr/a", b"content"), symlink(b"usr/l", b"a"), large(b"usr/b")])
    assert paths(tree) == [b"/usr", b"/usr/a", b"/usr/b", b"/usr/l"]
    usr = tree.stat(inode(tree, b"/usr"))
    assert (usr.mode, usr.uid, usr.gid, usr.mtime, usr.nsec) == (0o40755, 1, 2, 3, 4)
    assert (tree.text(inode(tree, b"/usr/a")), tree.text(inode(tree, b"/usr/l"))) == (b"content", b"a")
    assert (tree.size[inode(tree, b"/usr/b")], tree.digest(inode(tree, b"/usr/b"))) == (100, b"\0\0" * 16)


def test_digests_go_to_the_external_files_in_their_order_and_whiteouts_take_theirs() -> None:
    tree = merge([large(b"a")], [large(b"b"), large(b".wh.x"), file(b"i"), large(b"c")])
    assert [tree.digest(inode(tree, path))[:2] for path in (b"/a", b"/b", b"/c")] == [b"\0\0", b"\1\0", b"\1\2"]


@pytest.mark.parametrize("digests", [b"", b"d" * 31, b"d" * 64])
def test_digests_that_are_not_as_many_as_the_external_files_are_refused(digests: bytes) -> None:
    with pytest.raises(FormatError):
        apply_layer(Tree(Algorithm.SHA256), make_layer(large(b"a")), digests)


def test_extended_attributes_of_layers_are_brought_together() -> None:
    tree = Tree(Algorithm.SHA256)
    for name in (b"user.a", b"user.b", b"user.a"):
        layer = LayerTable()
        xattrs = layer.intern(((name, b"v"),))
        layer.append_rows([(Kind.FIFO, 0, 0, 0, 0, 0, 0, xattrs, name + bytes((len(tree.kind),)), b"")])
        apply_layer(tree, layer, b"")
    assert tree.xattr_sets == [(), ((b"user.a", b"v"),), ((b"user.b", b"v"),)]
    assert tree.xattrs == array("I", (0, 1, 2, 1))


@pytest.mark.parametrize(
    "path", [b"usr/a", b"/usr/a", b"./usr/a", b"usr//a", b"//usr/./a", b"usr/a/", b"usr/a/.", b"usr/a//"]
)
def test_slashes_and_dots_vanish(path: bytes) -> None:
    for parent in (b"usr", b"usr/", b"./usr/", b"/usr"):
        assert paths(merge([directory(parent), file(path)])) == [b"/usr", b"/usr/a"]


@pytest.mark.parametrize("path", [b"/", b"./", b".", b"//.//", b"..", b"usr/..", b"none/.."])
def test_a_path_without_a_last_name_is_the_root(path: bytes) -> None:
    tree = merge([file(b"kept")], [directory(path, 0o700)])
    assert tree.mode[ROOT] == 0o700
    assert paths(tree) == [b"/kept"]
    with pytest.raises(FormatError, match="root"):
        merge([file(path)])


@pytest.mark.parametrize("path", [b"../a", b"usr/../a", b"usr/../../etc/passwd", b"/..//a"])
def test_dots_that_lead_up_are_refused(path: bytes) -> None:
    with pytest.raises(FormatError):
        merge([directory(b"usr"), file(path)])
    with pytest.raises(FormatError):
        merge([directory(b"usr"), file(b"a"), link(b"b", path)])


@pytest.mark.parametrize("parent", [b"none", b"file", b"link"])
def test_a_parent_that_is_no_directory_is_never_made_nor_followed(parent: bytes) -> None:
    entries = [directory(b"usr"), file(b"file"), symlink(b"link", b"usr")]
    for entry in (
        file(parent + b"/a"),
        directory(parent + b"/a"),
        file(parent + b"/.wh.a"),
        link(b"x", parent + b"/a"),
    ):
        with pytest.raises(FormatError) as caught:
            merge([*entries, entry])
        assert caught.value.facts["subject"] == entry[1].decode()


def test_a_directory_on_a_directory_keeps_the_entries_and_takes_the_metadata() -> None:
    tree = merge([directory(b"d"), file(b"d/a"), directory(b"d", 0o700)], [directory(b"d/", 0o711), file(b"d/b")])
    assert paths(tree) == [b"/d", b"/d/a", b"/d/b"]
    assert tree.mode[inode(tree, b"/d")] == 0o711


def test_anything_else_replaces_what_was_there() -> None:
    tree = merge(
        [directory(b"d"), directory(b"d/e"), file(b"d/e/a"), file(b"f")],
        [file(b"d", b"new"), directory(b"f"), file(b"f/b")],
    )
    assert paths(tree) == [b"/d", b"/f", b"/f/b"]
    assert tree.text(inode(tree, b"/d")) == b"new"


def test_a_directory_that_comes_back_is_empty() -> None:
    tree = merge([directory(b"d"), directory(b"d/e"), file(b"d/e/a"), file(b"d"), directory(b"d"), directory(b"d/e")])
    assert paths(tree) == [b"/d", b"/d/e"]


@pytest.mark.parametrize("gone", [[file(b"d")], [file(b".wh.d")], [file(b".wh..wh..opq")], [link(b"d", b"f")]])
def test_a_directory_that_went_away_is_no_parent_any_more(gone: list[Entry]) -> None:
    with pytest.raises(FormatError):
        merge([file(b"f"), directory(b"d"), directory(b"d/e"), file(b"d/e/a"), *gone, file(b"d/e/b")])


def test_hard_links_share_an_inode_across_layers() -> None:
    tree = merge(
        [directory(b"usr"), file(b"usr/a", b"1"), symlink(b"s", b"x")],
        [link(b"b", b"/usr/a"), link(b"./usr/c", b"./b"), link(b"s2", b"s")],
    )
    assert inode(tree, b"/usr/a") == inode(tree, b"/b") == inode(tree, b"/usr/c")
    assert inode(tree, b"/s") == inode(tree, b"/s2")


def test_replacing_one_name_leaves_the_others() -> None:
    tree = merge([file(b"a", b"old"), link(b"b", b"a")], [file(b"a", b"new")])
    assert (tree.text(inode(tree, b"/a")), tree.text(inode(tree, b"/b"))) == (b"new", b"old")


def test_a_hard_link_means_the_file_that_is_there_at_that_moment() -> None:
    tree = merge([file(b"a", b"1"), link(b"b", b"a"), file(b"a", b"2"), link(b"c", b"a"), link(b"a", b"a")])
    assert [tree.text(inode(tree, path)) for path in (b"/a", b"/b", b"/c")] == [b"2", b"1", b"2"]


@pytest.mark.parametrize("target", [b"", b"/", b".", b"none", b"d", b"d/", b"d/none", b"../a", b"a/.."])
def test_a_hard_link_to_what_is_no_file_is_refused(target: bytes) -> None:
    with pytest.raises(FormatError):
        merge([file(b"a"), directory(b"d"), link(b"x", target)])
    with pytest.raises(FormatError):
        merge([file(b"a"), directory(b"d"), link(b".wh.a", target)])


def test_a_whiteout_removes_a_name_of_any_layer_and_of_its_own() -> None:
    tree = merge(
        [directory(b"d"), file(b"d/a"), file(b"b"), file(b"c")],
        [file(b".wh.d"), file(b"new"), file(b".wh.new"), file(b".wh.none"), directory(b".wh.b"), file(b"b")],
    )
    assert paths(tree) == [b"/b", b"/c"]


def test_an_opaque_marker_empties_its_directory_at_that_moment() -> None:
    tree = merge(
        [directory(b"d"), file(b"d/old"), directory(b"d/e"), file(b"d/e/old")],
        [file(b"d/early"), file(b"d/.wh..wh..opq"), file(b"d/late"), directory(b"d/e")],
    )
    assert paths(tree) == [b"/d", b"/d/e", b"/d/late"]


def test_whiteouts_are_taken_literally() -> None:
    tree = merge([file(b"a"), file(b".whx"), file(b".wh."), file(b".wh..wh.plnk"), file(b".wh..."), file(b"b")])
    assert paths(tree) == [b"/.whx", b"/a", b"/b"]


def test_overlay_whiteouts_are_devices_like_any_other() -> None:
    tree = merge([file(b"a")], [(Kind.CHAR, b"a", b"", 0)])
    assert tree.kind[inode(tree, b"/a")] == Kind.CHAR


def test_a_name_of_256_bytes_is_refused_since_the_kernel_would_not_list_it() -> None:
    assert len(paths(merge([file(b"x" * 255)]))) == 1
    for entry in (file(b"x" * 256), directory(b"x" * 256), link(b"x" * 256, b"a")):
        with pytest.raises(LimitExceededError):
            merge([file(b"a"), entry])


NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
WHITEOUTS = st.tuples(st.lists(NAMES, max_size=2), st.sampled_from([b".wh.a", b".wh.b", b".wh..wh..opq"]))
ENTRIES = st.one_of(
    PATHS.map(directory),
    st.tuples(PATHS, st.binary(max_size=2)).map(lambda pair: file(*pair)),
    st.tuples(PATHS, PATHS).map(lambda pair: link(*pair)),
    WHITEOUTS.map(lambda pair: file(b"/".join((*pair[0], pair[1])))),
)
Model = dict[bytes, "Model | list[bytes]"]


def apply_to_model(model: Model, entry: Entry) -> None:
    """The rules on nested dictionaries; a file is a list, so that hard links are the same one.  KeyError refuses."""

    def parent_of(path: bytes) -> Model:
        at = model
        for name in path.split(b"/")[:-1]:
            below = at[name]
            if not isinstance(below, dict):
                raise KeyError(name)
            at = below
        return at

    kind, path, text, _mode = entry
    name = path.split(b"/")[-1]
    new: Model | list[bytes] = {} if kind == Kind.DIRECTORY else [text]
    if kind == HARDLINK:
        new = parent_of(text)[text.split(b"/")[-1]]
        if isinstance(new, dict):
            raise KeyError(text)
    parent = parent_of(path)
    if name == b".wh..wh..opq":
        parent.clear()
    elif name.startswith(b".wh."):
        parent.pop(name[4:], None)
    elif not (kind == Kind.DIRECTORY and isinstance(parent.get(name), dict)):
        parent[name] = new


def flatten(model: Model, prefix: bytes = b"") -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    for name, below in model.items():
        path = prefix + b"/" + name
        if isinstance(below, dict):
            found |= {path: None, **flatten(below, path)}
        else:
            found[path] = below[0]
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(ENTRIES, max_size=25))
def test_merging_agrees_with_the_rules_on_dictionaries(entries: list[Entry]) -> None:
    tree, model = Tree(Algorithm.SHA256), Model()
    for entry in [directory(b"a"), directory(b"a/b"), *entries]:
        try:
            apply_to_model(model, entry)
        except KeyError:
            with pytest.raises(FormatError):
                apply_layer(tree, make_layer(entry), b"")
        else:
            apply_layer(tree, make_layer(entry), b"")
    tree.freeze()
    contents = {
        path: None if tree.kind[inode] == Kind.DIRECTORY else tree.text(inode) for path, _entry, inode in tree.walk()
    }
    assert contents == flatten(model)


@settings(max_examples=200, deadline=None)
@given(st.lists(ENTRIES, max_size=25))
def test_one_layer_or_many_make_the_same_tree(entries: list[Entry]) -> None:
    kept: list[Entry] = [directory(b"a"), directory(b"a/b")]
    for entry in entries:
        try:
            merge([*kept, entry])
        except FormatError:
            continue
        kept.append(entry)
    assert paths(merge(kept)) == paths(merge(*([entry] for entry in kept)))
