"""Images against those of composefs-rs, byte for byte by their digests."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion, Head
from composefsd.erofs.layout import Layout
from composefsd.erofs.writer import compute_id, write
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import dumpfile
from composefsd.tree.table import ROOT, Kind, Stat, Tree, XattrSet
from composefsd.verity import compute

VECTORS = Path(__file__).parents[2] / "vectors" / "erofs"
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())["vectors"]
ROWS = [
    (vector, version, algorithm)
    for vector in INDEX
    for version in FormatVersion
    for algorithm in Algorithm
    if f"v{version}_{algorithm.value}" in vector
]
V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm
OCI_V1 = (
    "d06f1f6a73f62ed48e05ce9442ff045cdf2a9f5ba1ec623795de3d6177a253d9"
    "1076459795d94f55d8c3d71dab458bb3fc0071255a50c0a4896d86ffdc870b9a"
)
OCI_V2 = (
    "f7684c21050615c02cec250e0c7d4118fb0ff6340af5039e06f2f372a7614fff"
    "25dfd38cf7f28ad67d8b86e86371b7deafa9ae4bf543630322aee6196417de92"
)
"""Pinned in crates/composefs-integration-tests/src/tests/cli.rs of composefs-rs."""

ZERO = Stat(0, 0, 0, 0, 0)
PLAIN = Stat(0o644, 0, 0, 5, 0)


def vector_tree(vector: dict[str, Any], algorithm: Algorithm) -> Tree:
    name = vector["dump"] if algorithm is SHA256 else vector.get("dump_sha512", vector["dump"])
    with (VECTORS / name).open("rb") as source:
        return dumpfile.parse(source, algorithm)


def new_tree(root: Stat, algorithm: Algorithm = SHA256) -> Tree:
    tree = Tree(algorithm)
    tree.set_stat(ROOT, root)
    return tree


def with_file(xattrs: XattrSet, content: bytes = b"") -> Tree:
    tree = new_tree(ZERO)
    tree.insert(ROOT, b"f", tree.add_inline(Stat(0o644, 0, 0, 0, 0, xattrs), content))
    tree.freeze()
    return tree


@pytest.mark.parametrize(
    ("vector", "version", "algorithm"), ROWS, ids=[f"{vector['name']}-{v.label}-{a.value}" for vector, v, a in ROWS]
)
def test_images_are_those_of_composefs_rs(
    vector: dict[str, Any], version: FormatVersion, algorithm: Algorithm
) -> None:
    tree = vector_tree(vector, algorithm)
    image = b"".join(write(tree, version))
    assert compute(image, algorithm).hex == vector[f"v{version}_{algorithm.value}"]
    if algorithm is SHA256:
        assert len(image) == vector[f"v{version}_bytes"]


def test_there_are_vectors_for_all_formats_and_algorithms() -> None:
    assert len(ROWS) == 5 * len(INDEX)
    assert {(version, algorithm) for _, version, algorithm in ROWS} >= {(V0, SHA256), (V1, SHA512), (V2, SHA512)}


# Pinned in composefs-rs, crates/composefs/tests/mkfs.rs


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (V0, "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"),
        (V1, "14a26c957c84f6eb774b91205476adc13196c7c33b9dd97d08d43725ecb90b63"),
        (V2, "086b702a519b57d6ef5aea6f8b3f2be24355cd1fb835cd80fb4e3d388b24d5a5"),
    ],
)
def test_an_empty_tree_has_its_pinned_digest(version: FormatVersion, digest: str) -> None:
    tree = new_tree(Stat(0o755, 0, 0, 0, 0))
    tree.freeze()
    assert compute_id(tree, version) == ObjectId.parse(digest)


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (V0, "9f3f5620ee0c54708516467d0d58741e7963047c7106b245d94c298259d0fa01"),
        (V1, "ad6db6427568a1e4fdc772cbab7b6063f5eb4b33cb62982a740ba9213e5962b5"),
        (V2, "a8fcd41f8b313bede69f462f2af0a38d64b99a6333f5df884ea9ab4037fac722"),
    ],
)
def test_a_tree_of_every_kind_has_its_pinned_digest(version: FormatVersion, digest: str) -> None:
    tree = new_tree(Stat(0o755, 0, 0, 0, 0))
    inodes = {
        b"fifo": tree.add_special(Kind.FIFO, ZERO),
        b"regular-inline": tree.add_inline(ZERO, b"hihi"),
        b"regular-external": tree.add_external(ZERO, 1234, b"\x5a" * 32),
        b"chrdev": tree.add_special(Kind.CHAR, ZERO, 123),
        b"blkdev": tree.add_special(Kind.BLOCK, ZERO, 123),
        b"socket": tree.add_special(Kind.SOCKET, ZERO),
        b"symlink": tree.add_symlink(ZERO, b"/target"),
    }
    for name, inode in inodes.items():
        tree.insert(ROOT, name, inode)
    tree.freeze()
    assert compute_id(tree, version) == ObjectId.parse(digest)


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (V1, OCI_V1),
        (V2, OCI_V2),
    ],
)
def test_the_oci_layout_of_composefs_rs_has_its_pinned_digest(version: FormatVersion, digest: str) -> None:
    stat = Stat(0o755, 0, 0, 1234567890, 0)
    tree = new_tree(stat, SHA512)
    hello = tree.add_inline(Stat(0o644, 0, 0, 1234567890, 0), b"hello from test layer\n")
    tree.insert(ROOT, b"usr", tree.add_directory(stat))
    tree.insert(ROOT, b"hello.txt", hello)
    tree.insert(ROOT, b"hello-link.txt", hello)
    tree.freeze()
    assert compute_id(tree, version) == ObjectId.parse(digest)


# What the vectors lack, as composefs-rs 0.9.4 writes it


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (V0, "59e8d1e614d601f6e6bb5db56968902a5a2e966f99f4c662dc05ec5f2bf05a2f"),
        (V1, "cf0b171e571091d0d017f8f9989526bc4a2707ff484a0c8b75947f4821e23ecc"),
        (V2, "05cc59d306f62e2964702f9612504b53a5a66b049bfff04778c7b3e718864633"),
    ],
)
def test_a_list_of_chunks_that_is_too_long_gets_a_block(version: FormatVersion, digest: str) -> None:
    tree = new_tree(Stat(0o755, 0, 0, 0, 0))
    mode, odd = 0o644, b"user.odd"
    inodes = {
        b"a": tree.add_external(Stat(mode, 0, 0, 0, 0), 1 << 53, b"\x5a" * 32),
        b"b": tree.add_external(Stat(mode, 0, 0, 0, 0, ((odd, b"12345"),)), (1 << 53) + 1, b"\x5a" * 32),
        b"c": tree.add_sparse(Stat(mode, 0, 0, 0, 0), (1 << 63) - 1),
        b"d": tree.add_sparse(Stat(mode, 0, 0, 7, 8, ((odd, b"67"),)), (1 << 43) + 1),
    }
    for name, inode in inodes.items():
        tree.insert(ROOT, name, inode)
    tree.freeze()
    assert compute_id(tree, version) == ObjectId.parse(digest)


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (V0, "97c8b63cab84c8d4e9e5405399e83c593444f3c9a15a54d21495271fb49cf407"),
        (V1, "6663b67b7037b10352851ee0ce5f63cd373071d102af5ab274cd15c5ed8569af"),
        (V2, "6001871b0962b581509c320325d7349ee7874c5c49fb3a3b8573f640832584da"),
    ],
)
def test_files_share_what_names_their_common_object(version: FormatVersion, digest: str) -> None:
    label, lustre = (b"security.selinux", b"x"), (b"lustre.lov", b"1")
    files: dict[bytes, tuple[int, Kind, XattrSet]] = {
        b"twice": (0x5A, Kind.EXTERNAL, (lustre, label)),
        b"unverified": (0x5A, Kind.UNVERIFIED, (lustre, label, (b"user.a", b"1"))),
        b"again": (0x5A, Kind.EXTERNAL, ((b"user.a", b"22"), (b"user.b", b"1"))),
        b"alone": (0x01, Kind.EXTERNAL, ((b"user.a", b"1"), (b"user.b", b"22"))),
        b"redirect": (0x02, Kind.EXTERNAL, (label,)),
        b"same": (0x02, Kind.UNVERIFIED, ((b"trusted.overlay.metacopy", b"z"),)),
    }
    tree = new_tree(Stat(0o755, 0, 0, 5, 0))
    directory = tree.add_directory(Stat(0o755, 0, 0, 5, 0))
    tree.insert(ROOT, b"d", directory)
    for name, (first, kind, xattrs) in files.items():
        object_digest = bytes([first]) + b"\x5a" * 31
        tree.insert(directory, name, tree.add_external(Stat(0o644, 0, 0, 5, 0, xattrs), 100, object_digest, kind))
    tree.freeze()
    assert compute_id(tree, version) == ObjectId.parse(digest)


# How it is written


@pytest.mark.parametrize("version", FormatVersion)
def test_a_large_image_comes_in_pieces(version: FormatVersion) -> None:
    tree = new_tree(ZERO)
    for number in range(3000):
        name = b"%0200d" % number
        tree.insert(ROOT, name, tree.add_inline(Stat(0o644, 0, 0, number, 0, ((b"user.a", name * 2),)), b"x" * 64))
    tree.freeze()
    pieces = list(write(tree, version))
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 2 << 20
    image = b"".join(pieces)
    head = Head.parse(image)
    assert len(image) == head.blocks * 4096
    assert head.inodes == 3001 + (256 if version.c_compatible else 0)
    assert compute_id(tree, version) == compute(image, SHA256)


def test_a_layout_takes_some_bytes_a_file_and_no_object_for_each() -> None:
    tree, count = new_tree(ZERO), 2000
    for number in range(count):
        stat = Stat(0o644, 0, 0, number, 0, ((b"security.selinux", b"%d" % (number % 50)),))
        digest = number.to_bytes(4, "little") * 8
        tree.insert(ROOT, b"%d" % number, tree.add_external(stat, 100, digest))
    tree.freeze()
    tracemalloc.start()
    layout = Layout(tree, V1)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(layout.slot) >= count
    assert kept < 50 * count + 100_000  # columns take 24 bytes a file; what is left are the recipes


def test_writing_leaves_the_tree_as_it_was() -> None:
    tree = vector_tree(next(vector for vector in INDEX if vector["name"] == "mini-rootfs"), SHA256)
    before = list(dumpfile.serialize(tree)), list(tree.xattr_sets)
    for version in FormatVersion:
        compute_id(tree, version)
    assert (list(dumpfile.serialize(tree)), list(tree.xattr_sets)) == before


@pytest.mark.parametrize("version", FormatVersion)
def test_inodes_that_nothing_reaches_do_not_matter(version: FormatVersion) -> None:
    tree = new_tree(PLAIN)
    clean = new_tree(PLAIN)
    for one in (tree, clean):
        one.insert(ROOT, b"f", one.add_external(PLAIN, 100, bytes(32)))
        if one is tree:
            tree.insert(ROOT, b"g", tree.add_external(Stat(0o644, 0, 0, 1, 0, ((b"user.a", b""),)), 9, bytes(32)))
            tree.remove(ROOT, b"g")
        one.freeze()
    assert compute_id(tree, version) == compute_id(clean, version)


def test_a_fork_with_other_labels_shares_nothing_with_its_original() -> None:
    tree = vector_tree(next(vector for vector in INDEX if vector["name"] == "mini-rootfs"), SHA256)
    before = compute_id(tree, V1)
    fork = tree.fork()
    fork.set_stat(ROOT, Stat(0o700, 0, 0, 0, 0, ((b"security.selinux", b"other"),)))
    assert compute_id(fork, V1) != before
    assert compute_id(tree, V1) == before


@pytest.mark.parametrize("version", FormatVersion)
def test_paths_may_be_thousands_of_directories_deep(version: FormatVersion) -> None:
    tree = new_tree(PLAIN)
    directory = ROOT
    for _ in range(3000):
        inner = tree.add_directory(PLAIN)
        tree.insert(directory, b"d", inner)
        directory = inner
    tree.freeze()
    inodes = 3001 + (256 if version.c_compatible else 0)
    assert Head.parse(next(iter(write(tree, version)))).inodes == inodes


# What no image can hold


@pytest.mark.parametrize("version", FormatVersion)
@pytest.mark.parametrize("kind", [Kind.CHAR, Kind.BLOCK])
def test_a_device_number_of_more_than_32_bits_is_refused(version: FormatVersion, kind: Kind) -> None:
    tree = new_tree(ZERO)
    tree.insert(ROOT, b"dev", tree.add_special(kind, ZERO, 1 << 32))
    tree.freeze()
    with pytest.raises(FormatError, match="device number") as caught:
        write(tree, version)
    assert caught.value.facts == {"subject": "/dev"}


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 4085])
def test_a_name_that_no_file_can_have_is_refused(name: bytes) -> None:
    tree = new_tree(ZERO)
    tree.insert(ROOT, name, tree.add_inline(ZERO, b""))
    tree.freeze()
    for version in FormatVersion:
        with pytest.raises(FormatError, match="name"):
            write(tree, version)


@pytest.mark.parametrize(
    "xattrs",
    [
        ((b"user." + b"a" * 256, b""),),
        ((b"user.a", bytes(65536)),),
        tuple((b"user.%d" % number, bytes(65000)) for number in range(5)),
    ],
    ids=["name", "value", "sum"],
)
def test_attributes_that_are_too_long_are_refused(xattrs: XattrSet) -> None:
    for version in FormatVersion:
        with pytest.raises(FormatError, match="extended attribute"):
            write(with_file(xattrs), version)


def test_more_shared_attributes_than_an_inode_can_count_are_refused() -> None:
    tree = new_tree(ZERO)
    stat = Stat(0o644, 0, 0, 0, 0, tuple((b"user.%03d" % number, b"") for number in range(256)))
    for name in (b"a", b"b"):
        tree.insert(ROOT, name, tree.add_inline(stat, b""))
    tree.freeze()
    with pytest.raises(FormatError, match="more extended attributes"):
        write(tree, V1)


def test_an_image_that_readers_would_refuse_for_its_size_is_refused() -> None:
    tree = new_tree(ZERO)
    content = bytes(100 << 20)
    for number in range(11):
        tree.insert(ROOT, b"%d" % number, tree.add_inline(ZERO, content))
    tree.freeze()
    with pytest.raises(LimitExceededError, match="larger than"):
        Layout(tree, V1)
