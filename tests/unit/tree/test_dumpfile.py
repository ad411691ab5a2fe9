"""The text form of a tree: vectors, both directions, and what is refused."""

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import dumpfile
from composefsd.tree.table import ROOT, Kind, Stat, Tree

VECTORS = Path(__file__).parents[2] / "vectors" / "erofs"
ROOT_LINE = "/ 0 40755 2 0 0 0 1.0 - - -"
DIGEST = "ab" * 32
OBJECT = f"ab/{'ab' * 31}"


def parse(*lines: str) -> Tree:
    return dumpfile.parse(io.BytesIO("\n".join((ROOT_LINE, *lines)).encode()), Algorithm.SHA256)


def serialize(tree: Tree) -> list[str]:
    return b"".join(dumpfile.serialize(tree)).decode().splitlines()


def inode(tree: Tree, path: bytes) -> int:
    found = tree.find(path)
    assert found is not None
    return found


# Vectors


def algorithm_of(path: Path) -> Algorithm:
    return Algorithm.SHA512 if ".sha512." in path.name else Algorithm.SHA256


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.dump")), ids=lambda path: path.name)
def test_every_vector_is_read_and_what_is_written_of_it_means_the_same(path: Path) -> None:
    data, algorithm = path.read_bytes(), algorithm_of(path)
    written = b"".join(dumpfile.serialize(dumpfile.parse(io.BytesIO(data), algorithm)))
    assert b"".join(dumpfile.serialize(dumpfile.parse(io.BytesIO(written), algorithm))) == written
    assert written.count(b"\n") == data.count(b"\n")


@pytest.mark.parametrize(
    "name", ["mini-rootfs", "mini-rootfs.sha512", "oci-layout", "hardlinks-cross-dir", "non-utf8-names", "devices",
             "fifo-socket", "mtimes-ns", "big-ids", "whiteouts", "symlinks", "external-files.sha512", "deep-nesting"],
)  # fmt: skip
def test_vectors_in_our_order_are_written_as_they_were(name: str) -> None:
    path = VECTORS / f"{name}.dump"
    tree = dumpfile.parse(io.BytesIO(path.read_bytes()), algorithm_of(path))
    assert b"".join(dumpfile.serialize(tree)) == path.read_bytes()


def test_the_index_names_the_dumps_that_are_there() -> None:
    entries = json.loads((VECTORS / "index.json").read_bytes())["vectors"]
    named = {entry[key] for entry in entries for key in ("dump", "dump_sha512") if key in entry}
    assert named == {path.name for path in VECTORS.glob("*.dump")}


# Reading


def test_fields_become_metadata() -> None:
    tree = parse("/f 3 104711 1 1000 4294967295 0 17.5 - abc -")
    assert tree.stat(inode(tree, b"/f")) == Stat(0o4711, 1000, 0xFFFF_FFFF, 17, 5)
    assert tree.stat(ROOT) == Stat(0o755, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("fields", "kind", "size"),
    [
        (f"/f 100 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST}", Kind.EXTERNAL, 100),
        (f"/f 100 100644 1 0 0 0 1.0 any/where - {DIGEST.upper()}", Kind.EXTERNAL, 100),
        (f"/f 100 100644 1 0 0 0 1.0 store/{OBJECT} - -", Kind.UNVERIFIED, 100),
        (f"/f 100 100644 1 0 0 0 1.0 {OBJECT} ignored -", Kind.UNVERIFIED, 100),
        ("/f 100 100644 1 0 0 0 1.0 - - -", Kind.SPARSE, 100),
        ("/f 0 100644 1 0 0 0 1.0 - - -", Kind.INLINE, 0),
        ("/f 99 100644 1 0 0 0 1.0 - abc -", Kind.INLINE, 3),
        ("/f 5 40755 1 0 0 0 1.0 payload - -", Kind.DIRECTORY, 0),
        ("/f 0 20644 1 0 0 259 1.0 - - -", Kind.CHAR, 259),
        ("/f 0 60644 1 0 0 18446744073709551615 1.0 - - -", Kind.BLOCK, (1 << 64) - 1),
        ("/f 0 10644 1 0 0 0 1.0 - - -", Kind.FIFO, 0),
        ("/f 0 140644 1 0 0 0 1.0 - - -", Kind.SOCKET, 0),
        ("/f 0 120777 1 0 0 0 1.0 to - -", Kind.SYMLINK, 2),
    ],
)
def test_type_and_fields_tell_the_kind(fields: str, kind: Kind, size: int) -> None:
    tree = parse(fields)
    found = inode(tree, b"/f")
    assert (tree.kind[found], tree.size[found]) == (kind, size)
    if kind in (Kind.EXTERNAL, Kind.UNVERIFIED):
        assert tree.object_id(found).hex == DIGEST


def test_escapes_are_undone_in_every_field() -> None:
    tree = parse(
        r"/a\x20\\\xff 1 100644 1 0 0 0 1.0 - \n\r\t\x2d - user.\x3d=\x00=é", "/é 0 120777 1 0 0 0 1.0 \\x2d - -"
    )
    found = inode(tree, b"/a \\\xff")
    assert tree.text(found) == b"\n\r\t-"
    assert tree.stat(found).xattrs == ((b"user.=", "\0=é".encode()),)
    assert tree.text(inode(tree, "/é".encode())) == b"-"


def test_of_a_name_that_occurs_twice_the_largest_value_wins() -> None:
    tree = parse("/f 0 100644 1 0 0 0 1.0 - - - b=2 a=9 b=3 a=10 b=", "/g 0 100644 1 0 0 0 1.0 - - - a=- b=")
    assert tree.stat(inode(tree, b"/f")).xattrs == ((b"a", b"9"), (b"b", b"3"))
    assert tree.stat(inode(tree, b"/g")).xattrs == ((b"a", b"-"), (b"b", b""))


def test_hard_links_share_an_inode_and_their_other_fields_are_ignored() -> None:
    tree = parse(
        "/d 0 40755 2 0 0 0 1.0 - - -",
        "/d/a 3 100644 7 0 0 0 1.0 - abc -",
        "/b 0 @120000 - - - - 0.0 /d/a - -",
        "/c 0 @100644 x y z w v /b",
    )
    assert inode(tree, b"/d/a") == inode(tree, b"/b") == inode(tree, b"/c")


def test_blank_lines_and_carriage_returns_do_not_matter() -> None:
    data = f"\n \t\n{ROOT_LINE}\r\n\u3000\n/f 0 100644 1 0 0 0 1.0 - - -\r\n\n".encode()
    assert dumpfile.parse(io.BytesIO(data), Algorithm.SHA256).find(b"/f") is not None


def test_a_later_line_replaces_unless_it_leaves_a_file_without_a_name() -> None:
    tree = parse("/d 0 40755 2 0 0 0 1.0 - - -", "/d 0 40711 2 0 0 0 1.0 - - -", ROOT_LINE.replace("1.0", "2.0"))
    assert (tree.mode[inode(tree, b"/d")], tree.mtime[ROOT]) == (0o711, 2)
    tree = parse(
        "/a 1 100644 1 0 0 0 1.0 - 1 -",
        "/b 0 @100644 - - - - - /a",
        "/a 1 100644 1 0 0 0 1.0 - 2 -",
        "/b 0 @100644 - - - - - /b",
    )
    assert (tree.text(inode(tree, b"/a")), tree.text(inode(tree, b"/b"))) == (b"2", b"1")
    for lines in (
        ["/a 1 100644 1 0 0 0 1.0 - 1 -"] * 2,
        ["/d 0 40755 2 0 0 0 1.0 - - -", "/d/a 1 100644 1 0 0 0 1.0 - 1 -", "/d 0 40755 2 0 0 0 1.0 - - -"],
    ):
        with pytest.raises(FormatError, match="twice"):
            parse(*lines)


def test_a_directory_that_was_replaced_is_no_parent_any_more() -> None:
    lines = ["/d 0 40755 2 0 0 0 1.0 - - -", "/d/e 0 40755 2 0 0 0 1.0 - - -", "/d 0 40755 2 0 0 0 1.0 - - -"]
    with pytest.raises(FormatError, match="parent"):
        parse(*lines, "/d/e/f 0 100644 1 0 0 0 1.0 - - -")


@pytest.mark.parametrize(
    "line",
    [
        "x 0 100644 1 0 0 0 1.0 - - -", "- 0 100644 1 0 0 0 1.0 - - -", " 0 100644 1 0 0 0 1.0 - - -",
        "//f 0 100644 1 0 0 0 1.0 - - -", "/f/ 0 100644 1 0 0 0 1.0 - - -", "/./f 0 100644 1 0 0 0 1.0 - - -",
        "/../f 0 100644 1 0 0 0 1.0 - - -", "/f\\x00 0 100644 1 0 0 0 1.0 - - -", "/f\\q 0 100644 1 0 0 0 1.0 - - -",
        "/f\\ 0 100644 1 0 0 0 1.0 - - -", "/f\\x2 0 100644 1 0 0 0 1.0 - - -", "/d/f 0 100644 1 0 0 0 1.0 - - -",
        "/f 0 100644 1 0 0 0 1.0 - -", "/f 0 100644", "/f", "/f  0 100644 1 0 0 0 1.0 - - -",
        "/f -1 100644 1 0 0 0 1.0 - - -", "/f 18446744073709551616 100644 1 0 0 0 1.0 - - -",
        "/f 0 100648 1 0 0 0 1.0 - - -", "/f 0 0644 1 0 0 0 1.0 - - -", "/f 0 40000100644 1 0 0 0 1.0 - - -",
        "/f 0 100644 4294967296 0 0 0 1.0 - - -", "/f 0 100644 1 4294967296 0 0 1.0 - - -",
        "/f 0 100644 1 0 0_1 0 1.0 - - -", "/f 0 100644 1 0 0 1 1.0 - - -", "/f 0 40755 1 0 0 1 1.0 - - -",
        "/f 0 100644 1 0 0 0 1 - - -", "/f 0 100644 1 0 0 0 -1.0 - - -", "/f 0 100644 1 0 0 0 1.1000000000 - - -",
        "/f 0 100644 1 0 0 0 1. - - -", "/f 0 100644 1 0 0 0 1.0.0 - - -",
        "/f 0 100644 1 0 0 0 9223372036854775808.0 - - -",
        "/f 0 120777 1 0 0 0 1.0 - - -", "/f 0 120777 1 0 0 0 1.0  - -", "/f 0 120777 1 0 0 0 1.0 to content -",
        f"/f 0 40755 1 0 0 0 1.0 - - {DIGEST}", "/f 0 20644 1 0 0 1 1.0 - x -", "/f 0 20644 2 0 0 0 1.0 - - -",
        f"/f 9 100644 1 0 0 0 1.0 - - {DIGEST}", f"/f 9 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST[:-1]}",
        f"/f 9 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST}{DIGEST}", f"/f 9 100644 1 0 0 0 1.0 {DIGEST} - -",
        f"/f 9 100644 1 0 0 0 1.0 {OBJECT[:-1]} - -", f"/f 9 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST[:-2]}zz",
        "/f 0 100644 1 0 0 0 1.0 - - - novalue", "/f 0 100644 1 0 0 0 1.0 - - - ",
        "/f 0 100644 1 0 0 0 1.0 - - - a\\x00=b",
        "/f 0 @120000 - - - - 0.0 - - -", "/f 0 @120000 - - - - 0.0", "/f 0 @120000 - - - - 0.0 /none - -",
        "/f 0 @120000 - - - - 0.0 / - -", "/f 0 @120000 - - - - 0.0 none - -", "/f x @120000 - - - - 0.0 /f - -",
        "/f 0 @40000 - - - - 0.0 /f - -", "/ 0 100644 1 0 0 0 1.0 - - -", "/ 0 @120000 - - - - 0.0 /f - -",
    ],
)  # fmt: skip
def test_what_composefs_rs_refuses_is_refused(line: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(line)
    assert caught.value.facts["line"] == 2
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b"/f 0 100644 1 0 0 0 1.0 - - -\n", b"\xff\n", b"/ 0 40755 2 0 0 0 1.0 - - - a=\xff"]
)
def test_a_dump_starts_with_the_root_and_is_utf8(data: bytes) -> None:
    with pytest.raises(FormatError):
        dumpfile.parse(io.BytesIO(data), Algorithm.SHA256)


@pytest.mark.parametrize(
    ("limit", "template"),
    [
        (255, "/{} 0 100644 1 0 0 0 1.0 - - -"),
        (512, "/f 0 100644 1 0 0 0 1.0 - {} -"),
        (1024, "/f 0 120777 1 0 0 0 1.0 {} - -"),
        (4096, f"/f 9 100644 1 0 0 0 1.0 {{}} - {DIGEST}"),
        (255, "/f 0 100644 1 0 0 0 1.0 - - - {}=x"),
        (65535, "/f 0 100644 1 0 0 0 1.0 - - - x={}"),
    ],
)
def test_fields_are_bounded(limit: int, template: str) -> None:
    parse(template.format("x" * limit))
    for text in ("x" * (limit + 1), "\\x78" * (limit + 1)):
        with pytest.raises(LimitExceededError):
            parse(template.format(text))


def test_the_names_of_extended_attributes_are_bounded_together() -> None:
    names = [f"{number:03}".ljust(255, "x") for number in range(257)]  # 257 times 255 is 65535
    line = "/f 0 100644 1 0 0 0 1.0 - - - " + " ".join(f"{name}=" for name in names)
    parse(line)
    with pytest.raises(LimitExceededError):
        parse(line + " y=")


def test_a_long_path_is_refused_and_a_deep_one_is_not() -> None:
    lines = []
    for depth in range(1, 1024):
        lines.append("/d/e"[:2] * depth + " 0 40755 2 0 0 0 1.0 - - -")
    assert len(list(parse(*lines).walk())) == 1023
    with pytest.raises(LimitExceededError):
        parse("/" + "x" * 4096 + " 0 100644 1 0 0 0 1.0 - - -")
    with pytest.raises(FormatError):
        parse("/d" * 2000 + " 0 100644 1 0 0 0 1.0 - - -")


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumpfile, "MAX_LINES", 2)
    parse("/f 0 100644 1 0 0 0 1.0 - - -")
    with pytest.raises(LimitExceededError):
        parse("/f 0 100644 1 0 0 0 1.0 - - -", "/g 0 100644 1 0 0 0 1.0 - - -")
    monkeypatch.setattr(dumpfile, "MAX_LINE_BYTES", 40)
    parse("/f 0 100644 1 0 0 0 1.0 - - -")
    with pytest.raises(LimitExceededError):
        parse("/" + "f" * 40 + " 0 100644 1 0 0 0 1.0 - - -")


# Writing


def test_writing_escapes_what_is_not_graphic_and_a_lone_dash() -> None:
    tree = Tree(Algorithm.SHA256)
    plain = Stat(0o644, 0, 0, 0, 0, ((b"user.a=b", b"-"), (b"user.b", b""), (b"user.c", b"x=\\\n\x7f\xff")))
    tree.insert(ROOT, b"a b=\\\xff", tree.add_inline(plain, b"-"))
    tree.insert(ROOT, b"b", tree.add_symlink(Stat(0o777, 0, 0, 0, 0), b"-"))
    tree.freeze()
    assert serialize(tree) == [
        "/ 0 40000 2 0 0 0 0.0 - - -",
        r"/a\x20b=\\\xff 1 100644 1 0 0 0 0.0 - \x2d - user.a\x3db=- user.b= user.c=x\x3d\\\n\x7f\xff",
        r"/b 1 120777 1 0 0 0 0.0 \x2d - -",
    ]


def test_links_are_counted_and_the_first_name_is_written_in_full() -> None:
    tree = parse(
        "/a 0 40755 9 0 0 0 1.0 - - -",
        "/a/d 0 40755 9 0 0 0 1.0 - - -",
        "/z 3 100644 9 0 0 0 1.5 - abc -",
        "/a/y 0 @120000 - - - - 0.0 /z - -",
    )
    assert serialize(tree) == [
        "/ 0 40755 3 0 0 0 1.0 - - -",
        "/a 0 40755 3 0 0 0 1.0 - - -",
        "/a/d 0 40755 2 0 0 0 1.0 - - -",
        "/a/y 3 100644 2 0 0 0 1.5 - abc -",
        "/z 0 @120000 - - - - 0.0 /a/y - -",
    ]


def test_modes_are_written_with_all_bits_that_the_tar_had() -> None:
    tree = Tree(Algorithm.SHA256)
    tree.insert(ROOT, b"f", tree.add_inline(Stat(0o7640755, 0, 0, 0, 0), b""))
    tree.freeze()
    assert serialize(tree)[1].split()[2] == "7740755"


def test_files_of_every_kind_are_written_as_composefs_rs_does() -> None:
    tree = parse(
        f"/a 9 100644 1 0 0 0 1.0 x - {DIGEST}", f"/b 9 100644 1 0 0 0 1.0 {OBJECT} - -",
        "/c 9 100644 1 0 0 0 1.0 - - -", "/d 0 20644 1 0 0 259 1.0 - - -", "/e 0 140644 1 0 0 0 1.0 - - -",
    )  # fmt: skip
    assert serialize(tree)[1:] == [
        f"/a 9 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST}", f"/b 9 100644 1 0 0 0 1.0 {OBJECT} - {DIGEST}",
        "/c 9 100644 1 0 0 0 1.0 - - -", "/d 0 20644 1 0 0 259 1.0 - - -", "/e 0 140644 1 0 0 0 1.0 - - -",
    ]  # fmt: skip


# Both


NAME = st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
XATTRS = st.dictionaries(NAME, st.binary(max_size=6), max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))
IDS = st.integers(0, 0xFFFF_FFFF)
STATS = st.builds(
    Stat, st.integers(0, 0o7777), IDS, IDS, st.integers(0, (1 << 63) - 1), st.integers(0, 999_999_999), XATTRS
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree(Algorithm.SHA256)
    tree.set_stat(ROOT, draw(STATS))
    directories, leaves = [ROOT], [tree.add_inline(draw(STATS), b"first")]
    tree.insert(ROOT, b"first", leaves[0])
    for name in draw(st.lists(NAME, max_size=8, unique=True)):
        stat, parent = draw(STATS), draw(st.sampled_from(directories))
        made = draw(st.integers(0, 5))
        if name == b"first":
            continue
        if made == 0:
            directories.append(tree.add_directory(stat))
            tree.insert(parent, name, directories[-1])
            continue
        if made == 1:
            leaves.append(tree.add_inline(stat, draw(st.binary(max_size=64))))
        elif made == 2:
            leaves.append(tree.add_symlink(stat, draw(NAME)))
        elif made == 3:
            leaves.append(
                tree.add_external(stat, draw(st.integers(0, 1 << 40)), draw(st.binary(min_size=32, max_size=32)))
            )
        elif made == 4:
            leaves.append(tree.add_special(draw(st.sampled_from((Kind.BLOCK, Kind.FIFO, Kind.SOCKET))), stat))
        tree.insert(parent, name, draw(st.sampled_from(leaves)) if made == 5 else leaves[-1])
    tree.freeze()
    return tree


def describe(tree: Tree) -> list[tuple[bytes, int, int, Stat, int]]:
    order: dict[int, int] = {}
    found = []
    for path, _entry, inode in tree.walk():
        found.append(
            (path, order.setdefault(inode, len(order)), tree.kind[inode], tree.stat(inode), tree.size[inode])
        )
    return found


@settings(max_examples=100, deadline=None)
@given(trees())
def test_a_tree_survives_its_text_form(tree: Tree) -> None:
    lines = list(dumpfile.serialize(tree))
    read = dumpfile.parse(io.BytesIO(b"".join(lines)), Algorithm.SHA256)
    assert describe(read) == describe(tree)
    assert list(dumpfile.serialize(read)) == lines


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_bytes_raise_nothing_but_two_errors(data: st.DataObject) -> None:
    bad = bytearray((VECTORS / "mini-rootfs.dump").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(bad) - 1))
        bad[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b" ", b"\\x", b"\n", b"@"])
        )
    with suppress(FormatError, LimitExceededError):
        tree = dumpfile.parse(io.BytesIO(bytes(bad)), Algorithm.SHA256)
        dumpfile.parse(io.BytesIO(b"".join(dumpfile.serialize(tree))), Algorithm.SHA256)
