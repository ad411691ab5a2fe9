"""Images read back: those of composefs-rs, our own, and hostile ones."""

import mmap
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.digests import Algorithm
from composefsd.erofs.format import COMPACT, EXTENDED, FormatVersion, Head
from composefsd.erofs.image import Image, Inode
from composefsd.erofs.reader import MAX_DEPTH, check, object_ids, read_tree
from composefsd.erofs.writer import write
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import dumpfile
from composefsd.tree.table import ROOT, Kind, Stat, Tree, XattrSet

VECTORS = Path(__file__).parents[2] / "vectors" / "erofs"
DUMPS = sorted(VECTORS.glob("*.dump"))
V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm
HEAD_V2 = Head(
    version=V2, has_acl=False, root_nid=36, inodes=1, build_time=0, build_nsec=0, blocks=1, xattr_block=0
).serialize()
PLAIN = Stat(0o644, 0, 0, 5, 6)
LOSSY = {"overlay-escapes", "stub-names", "diverge-opaque", "diverge-stub"}
"""Vectors with something that an image cannot tell apart from its own marks."""


def load(path: Path) -> Tree:
    with path.open("rb") as source:
        return dumpfile.parse(source, SHA512 if path.name.endswith(".sha512.dump") else SHA256)


def image_of(tree: Tree, version: FormatVersion) -> bytes:
    return b"".join(write(tree, version))


def dump(tree: Tree) -> bytes:
    return b"".join(dumpfile.serialize(tree))


def build(fill: Callable[[Tree], object], algorithm: Algorithm = SHA256) -> Tree:
    tree = Tree(algorithm)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, 5, 6))
    fill(tree)
    tree.freeze()
    return tree


def small_tree() -> Tree:
    """A file, a link, a directory and an object, all with attributes."""

    def fill(tree: Tree) -> None:
        stat = Stat(0o644, 1, 2, 7, 8, ((b"security.selinux", b"x"), (b"user.a", b"b")))
        directory = tree.add_directory(stat)
        tree.insert(ROOT, b"directory", directory)
        file = tree.add_inline(stat, b"content")
        tree.insert(ROOT, b"file", file)
        tree.insert(directory, b"name", file)
        tree.insert(directory, b"link", tree.add_symlink(stat, b"../target"))
        tree.insert(directory, b"object", tree.add_external(stat, 1000, b"\x11" * 32))
        tree.insert(directory, b"zeros", tree.add_sparse(PLAIN, 5000))

    return build(fill)


def locate(image: bytes, path: bytes) -> Inode:
    with Image.open(image) as opened:
        inode = opened.inode(opened.head.root_nid)
        for name in path.split(b"/"):
            if name:
                inode = opened.inode(opened.entries(inode)[name])
        return inode


def patched(image: bytes, offset: int, data: bytes) -> bytes:
    return image[:offset] + data + image[offset + len(data) :]


def refused(image: bytes, message: str, algorithm: Algorithm = SHA256) -> None:
    """All three functions say so, and soon."""
    for read in (check, object_ids, read_tree):
        started = monotonic()
        with pytest.raises(FormatError, match=message):
            read(image, algorithm)
        assert monotonic() - started < 5


# Vectors


@pytest.mark.parametrize("path", DUMPS, ids=[path.name for path in DUMPS])
@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_images_of_vectors_are_read_back(path: Path, version: FormatVersion) -> None:
    tree = load(path)
    image = image_of(tree, version)
    check(image, tree.algorithm)
    again = read_tree(image, tree.algorithm)
    if path.name.split(".")[0] not in LOSSY:
        assert image_of(again, version) == image
    else:
        assert image_of(read_tree(image_of(again, version), tree.algorithm), version) == image_of(again, version)
    expected = {
        tree.digest(inode) for _, _, inode in tree.walk() if tree.kind[inode] in (Kind.EXTERNAL, Kind.UNVERIFIED)
    }
    assert object_ids(image, tree.algorithm) == expected


def test_an_image_without_user_whiteouts_is_read_in_format_0_as_well() -> None:
    tree = load(VECTORS / "mini-rootfs.dump")
    assert dump(read_tree(image_of(tree, V0), SHA256)) == dump(tree)


# Round trips

names = st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
long_names = st.integers(200, 255).map(lambda size: b"n" * size)
keys = st.sampled_from(
    [b"security.selinux", b"user.a", b"user.", b"trusted.x", b"lustre.lov", b"system.posix_acl_access"]
)
attributes = st.dictionaries(
    keys, st.sampled_from([b"", b"x", b"value", b"\0\1\2"]) | st.binary(max_size=40), max_size=3
)
stats = st.builds(
    lambda mode, owner, mtime, nsec, xattrs: Stat(
        mode, owner, owner // 2, mtime, nsec, tuple(sorted(xattrs.items()))
    ),
    st.sampled_from([0, 0o644, 0o755, 0o7777]),
    st.sampled_from([0, 1000, 65536, 0xFFFF_FFFF]),
    st.sampled_from([0, 5, 1234567890]),
    st.sampled_from([0, 999_999_999]),
    attributes,
)


@st.composite
def trees(draw: st.DrawFn, algorithm: Algorithm) -> Tree:
    """Random trees of a dozen entries, without what is lost on reading."""
    tree = Tree(algorithm)
    tree.set_stat(ROOT, draw(stats))
    directories, leaves = [ROOT], list[int]()
    digests = st.sampled_from([b"\x01", b"\x02", b"\x03"]).map(lambda first: first * algorithm.digest_bytes)
    for _ in range(draw(st.integers(0, 12))):
        directory, name, stat = draw(st.sampled_from(directories)), draw(names | long_names), draw(stats)
        choice = draw(st.integers(0, 9))
        if choice < 2:
            inode = tree.add_directory(stat)
            directories.append(inode)
        elif choice == 2 and leaves:
            inode = draw(st.sampled_from(leaves))
        elif choice == 3:
            inode = tree.add_special(
                draw(st.sampled_from([Kind.CHAR, Kind.BLOCK])), stat, draw(st.integers(1, 2**32 - 1))
            )
        elif choice == 4:
            inode = tree.add_special(draw(st.sampled_from([Kind.FIFO, Kind.SOCKET])), stat)
        elif choice == 5:
            inode = tree.add_symlink(stat, draw(st.binary(min_size=1, max_size=100)))
        elif choice == 6:
            inode = tree.add_sparse(stat, draw(st.sampled_from([1, 4097, 2**45, 2**60])))
        elif choice == 7:
            inode = tree.add_inline(stat, draw(st.binary(max_size=512)))
        else:
            kind = draw(st.sampled_from([Kind.EXTERNAL, Kind.UNVERIFIED]))
            inode = tree.add_external(stat, draw(st.integers(0, 2**63)), draw(digests), kind)
        if tree.lookup(directory, name) is None:
            tree.insert(directory, name, inode)
            if tree.kind[inode] != Kind.DIRECTORY:
                leaves.append(inode)
    tree.freeze()
    return tree


@given(st.data(), st.sampled_from(FormatVersion), st.sampled_from(Algorithm))
@settings(max_examples=50, deadline=None)
def test_a_tree_comes_back_as_it_was(data: st.DataObject, version: FormatVersion, algorithm: Algorithm) -> None:
    tree = data.draw(trees(algorithm))
    image = image_of(tree, version)
    check(image, algorithm)
    again = read_tree(image, algorithm)
    if version is not V2:
        assert dump(again) == dump(tree)
    assert image_of(again, version) == image


@pytest.mark.parametrize("size", [2048, 2049, 4095, 4096, 4097, 8192, 10000])
def test_large_inline_files_come_back(size: int) -> None:
    content = bytes(1 + at % 251 for at in range(size))
    tree = build(lambda tree: tree.insert(ROOT, b"f", tree.add_inline(PLAIN, content)))
    for version in (V0, V1):
        image = image_of(tree, version)
        check(image, SHA256)
        again = read_tree(image, SHA256)
        inode = again.find(b"/f")
        assert inode is not None
        assert again.text(inode) == content
        assert image_of(again, version) == image
    image = image_of(tree, V2)
    check(image, SHA256)
    with pytest.raises(FormatError, match="content of"):
        read_tree(image, SHA256)


def test_whiteouts_come_back_outside_of_the_stubs_names() -> None:
    def fill(tree: Tree) -> None:
        directory = tree.add_directory(PLAIN)
        tree.insert(ROOT, b"d", directory)
        for parent in (ROOT, directory):
            for name in (b"w", b"a0"):
                tree.insert(parent, name, tree.add_special(Kind.CHAR, Stat(0o600, 0, 0, 9, 0)))

    again = read_tree(image_of(build(fill), V1), SHA256)
    assert [path for path, _, _ in again.walk()] == [b"/d", b"/d/a0", b"/d/w", b"/w"]
    whiteout = again.find(b"/d/a0")
    assert whiteout is not None
    assert (again.kind[whiteout], again.size[whiteout]) == (Kind.CHAR, 0)


def test_unverified_files_stay_unverified() -> None:
    tree = build(
        lambda tree: tree.insert(ROOT, b"f", tree.add_external(PLAIN, 9, b"\x22" * 64, Kind.UNVERIFIED)), SHA512
    )
    image = image_of(tree, V1)
    assert object_ids(image, SHA512) == {b"\x22" * 64}
    again = read_tree(image, SHA512)
    assert list(again.kind) == [Kind.DIRECTORY, Kind.UNVERIFIED]


def test_a_map_can_be_closed_after_reading() -> None:
    image = image_of(small_tree(), V1)
    with mmap.mmap(-1, len(image)) as mapped:
        mapped.write(image)
        assert object_ids(mapped, SHA256) == {b"\x11" * 32}
        check(memoryview(mapped), SHA256)
        assert dump(read_tree(mapped, SHA256)) == dump(small_tree())


def test_objects_of_another_algorithm_are_left_out_but_no_sound_part_of_an_image() -> None:
    image = image_of(small_tree(), V1)
    assert object_ids(image, SHA512) == set()
    for read in (check, read_tree):
        with pytest.raises(FormatError, match="metacopy"):
            read(image, SHA512)


# Rules of the formats


def test_an_image_that_lacks_a_stub_is_refused() -> None:
    image = image_of(small_tree(), V1)
    root = locate(image, b"/")
    block = image[root.u * 4096 :]
    refused(patched(image, root.u * 4096 + block.index(b"7e7f"), b"7g"), "lacks 1 of its 256 stubs")


def test_an_image_of_format_2_needs_no_stubs() -> None:
    image = image_of(small_tree(), V1)
    refused(patched(image_of(small_tree(), V2), 12, b"\1"), "lacks 256")
    check(patched(image, 12, b"\0"), SHA256)


def test_an_unescaped_whiteout_outside_of_the_root_is_refused() -> None:
    image = image_of(small_tree(), V1)
    link = locate(image, b"/directory/object")
    refused(
        patched(image, link.offset + 4, b"\xa4\x21" + image[link.offset + 6 : link.offset + 16] + bytes(4)), "escaped"
    )


def test_an_escaped_whiteout_in_format_2_is_refused() -> None:
    tree = build(
        lambda tree: tree.insert(
            ROOT, b"f", tree.add_inline(Stat(0o644, 0, 0, 0, 0, ((b"trusted.overlay.whiteout", b""),)), b"")
        )
    )
    refused(image_of(tree, V2), "format 2 has an escaped whiteout")


def test_a_symbolic_link_across_a_block_boundary_is_refused_but_not_in_format_2() -> None:
    tree = build(lambda tree: tree.insert(ROOT, b"link", tree.add_symlink(PLAIN, b"x" * 900)))
    for version in (V1, V2):
        image = image_of(tree, version) + bytes(4096)
        link = locate(image, b"/link")
        size = 4096 - link.tail_offset % 4096 + 1
        stretched = patched(image, link.offset + 8, size.to_bytes(4, "little"))
        if version is V1:
            refused(stretched, "crosses a block boundary")
            check(patched(image, link.offset + 8, (size - 1).to_bytes(4, "little")), SHA256)
        else:
            check(stretched, SHA256)


# Structure


@pytest.mark.parametrize("version", FormatVersion)
def test_an_image_that_is_cut_short_anywhere_is_refused(version: FormatVersion) -> None:
    image = image_of(small_tree(), version)
    for size in range(0, len(image) - 4096, 97):
        for read in (check, object_ids, read_tree):
            with pytest.raises(FormatError):
                read(image[:size], SHA256)


def test_an_image_of_more_than_a_gigabyte_is_refused_unread() -> None:
    with mmap.mmap(-1, (1 << 30) + 1) as mapped, pytest.raises(LimitExceededError, match="larger than"):
        check(mapped, SHA256)


def entry_offset(image: bytes, directory: bytes, name: bytes) -> int:
    """Where the head of an entry is, in a directory that is all tail."""
    inode = locate(image, directory)
    with Image.open(image) as opened:
        at = list(opened.entries(inode)).index(name)
    return inode.tail_offset + 12 * at


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"object", "a directory has two names"),
        (b".", "leads elsewhere"),
        (b"..", "leads elsewhere"),
    ],
)
@pytest.mark.parametrize("version", FormatVersion)
def test_directories_lead_nowhere_but_down(version: FormatVersion, name: bytes, message: str) -> None:
    image = image_of(small_tree(), version)
    target = locate(image, b"/" if name == b"object" else b"/file").nid
    refused(patched(image, entry_offset(image, b"/directory", name), target.to_bytes(8, "little")), message)


@pytest.mark.parametrize("nid", [0, 35, 1 << 40, (1 << 64) - 1])
def test_an_inode_that_is_not_there_is_refused(nid: int) -> None:
    image = image_of(small_tree(), V2)
    refused(patched(image, entry_offset(image, b"/directory", b"object"), nid.to_bytes(8, "little")), "does not have")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"linknameobjectzeros", b"nknkname/bjectzeros", "no file can have"),
        (b"linknameobjectzeros", b"nknkname\0bjectzeros", "no file can have"),
        (b"linknameobjectzeros", b"namenameobjectzeros", "twice"),
    ],
)
def test_names_that_cannot_be_are_refused(old: bytes, new: bytes, message: str) -> None:
    image = image_of(small_tree(), V2)
    assert image.count(old) == 1
    refused(image.replace(old, new), message)


@pytest.mark.parametrize("offset", [0, 13, 4092])
def test_a_group_without_a_sound_first_offset_is_refused(offset: int) -> None:
    image = image_of(small_tree(), V2)
    at = entry_offset(image, b"/directory", b".") + 8
    refused(patched(image, at, offset.to_bytes(2, "little")), "malformed")


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"\3\0", "unknown layout"),
        (0, b"\x21\0", "unknown layout"),
        (0, b"\x09\0", "not in the image"),
        (4, b"\0\0", "unknown layout or type"),
        (8, b"\xff\xff\xff\x7f", "beyond the end"),
        (2, b"\xff\xff", "beyond the end"),
    ],
)
def test_a_directory_that_lies_about_itself_is_refused(offset: int, data: bytes, message: str) -> None:
    image = image_of(small_tree(), V2)
    at = locate(image, b"/directory").offset
    refused(patched(image, at + offset, data), message)


def test_blocks_beyond_the_end_are_refused() -> None:
    image = image_of(small_tree(), V1)
    root = locate(image, b"/")
    at = root.offset + (8 if root.area_offset - root.offset == 32 else 16) + 8
    refused(patched(image, at, (1000).to_bytes(4, "little")), "beyond the end of the image")


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (4, b"\xff", "cut short"),  # number of references
        (12, b"\xff\xff\xff\xff", "beyond the end"),  # a reference
        (20, b"\xff", "malformed"),  # of a local entry: length of the name
        (21, b"\7", "malformed"),  # prefix
        (22, b"\xff\xff", "malformed"),  # length of the value
    ],
)
def test_malformed_attributes_are_refused(offset: int, data: bytes, message: str) -> None:
    image = image_of(small_tree(), V2)
    inode = locate(image, b"/directory/object")
    refused(patched(image, inode.area_offset + offset, data), message)


# Links, and what else a tree needs


@pytest.mark.parametrize(
    ("path", "links"),
    [(b"/", 2), (b"/directory", 3), (b"/file", 1), (b"/file", 3), (b"/file", 0), (b"/directory/link", 2)],
)
def test_wrong_link_counts_make_no_tree(path: bytes, links: int) -> None:
    image = image_of(small_tree(), V2)
    image = patched(image, locate(image, path).offset + 44, links.to_bytes(4, "little"))
    check(image, SHA256)
    with pytest.raises(FormatError, match="links"):
        read_tree(image, SHA256)


def test_a_tree_that_is_too_deep_is_refused_but_its_objects_are_found() -> None:
    def fill(tree: Tree) -> None:
        directory = ROOT
        for _ in range(MAX_DEPTH):
            inner = tree.add_directory(PLAIN)
            tree.insert(directory, b"d", inner)
            directory = inner
        tree.insert(directory, b"f", tree.add_external(PLAIN, 1, b"\x33" * 32))

    image = image_of(build(fill), V2)
    assert object_ids(image, SHA256) == {b"\x33" * 32}
    with pytest.raises(LimitExceededError, match="deep"):
        read_tree(image, SHA256)


def test_a_redirect_to_no_object_makes_no_tree() -> None:
    tree = build(lambda tree: tree.insert(ROOT, b"f", tree.add_external(PLAIN, 9, b"\xaa" * 32, Kind.UNVERIFIED)))
    image = image_of(tree, V2)
    image = image.replace(b"/aa/", b"/a./")
    check(image, SHA256)
    assert object_ids(image, SHA256) == set()
    with pytest.raises(FormatError, match="no object"):
        read_tree(image, SHA256)


# Images made to keep us busy


def directory_blocks(entries: list[tuple[bytes, int]], file_type: int) -> bytes:
    """Blocks of 200 entries each."""
    blocks = []
    for at in range(0, len(entries), 200):
        group = entries[at : at + 200]
        heads, offset = b"", 12 * len(group)
        for name, nid in group:
            heads += struct.pack("<QHBB", nid, offset, file_type, 0)
            offset += len(name)
        blocks.append((heads + b"".join(name for name, _ in group)).ljust(4096, b"\0"))
    return b"".join(blocks)


def hand_made(inodes: bytes, nids: list[int], file_type: int) -> bytes:
    """An image whose root has all the nids; inodes begin with nid 64."""
    data = directory_blocks([(b".", 36), (b"..", 36)] + [(b"%05d" % nid, nid) for nid in nids], file_type)
    first_block = 1 + -(-len(inodes) // 4096)
    root = EXTENDED.pack(1, 0, 0o40755, 0, len(data), first_block, 0, 0, 0, 0, 0, 2 + len(nids))
    image = (HEAD_V2 + root).ljust(2048, b"\0") + inodes
    return image.ljust(first_block * 4096, b"\0") + data


def test_directories_that_share_blocks_are_refused() -> None:
    shared = EXTENDED.pack(1, 0, 0o40755, 0, 10 * 4096, 100, 0, 0, 0, 0, 0, 2)
    refused(hand_made(shared * 10_000, list(range(64, 64 + 20_000, 2)), 2), "overlap")


def test_inodes_that_overlap_are_refused() -> None:
    """Each inode is 32 bytes behind the one before, and claims 200 kB of attributes."""
    inode = COMPACT.pack(0, 50_000, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0)
    refused(hand_made((inode * 5000).ljust(500_000, b"\0"), list(range(64, 5064)), 1), "overlap|malformed")


VICTIMS = [
    image_of(load(VECTORS / f"{name}.dump"), version)
    for name in ("mini-rootfs", "hardlinks-cross-dir")
    for version in FormatVersion
]


@given(
    st.sampled_from(VICTIMS),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_raise_nothing_but_our_errors(image: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(image)
    end = len(image.rstrip(b"\0"))
    for offset, value in changes:
        data[1024 + offset % (end - 1024)] = value  # past the magic, or nothing is tested
    for read in (check, object_ids, read_tree):
        with suppress(FormatError, LimitExceededError):
            read(data, SHA256)


@given(st.binary(max_size=2000))
@settings(max_examples=50, deadline=None)
def test_arbitrary_inodes_raise_nothing_but_our_errors(tail: bytes) -> None:
    for read in (check, object_ids, read_tree):
        with suppress(FormatError, LimitExceededError):
            read(HEAD_V2 + tail, SHA256)


def test_a_tree_with_many_attributes_survives_the_caches() -> None:
    def fill(tree: Tree) -> None:
        for number in range(300):
            xattrs: XattrSet = tuple((b"user.%d" % other, b"%d" % (number % 7)) for other in range(number % 5))
            tree.insert(ROOT, b"n%d" % number, tree.add_inline(Stat(0o644, 0, 0, 5, 6, xattrs), b""))

    tree: Any = build(fill)
    assert dump(read_tree(image_of(tree, V1), SHA256)) == dump(tree)
