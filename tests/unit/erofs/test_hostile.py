"""Images that are out to hurt: the kept corpus, what hypothesis makes of it, and images that are large on purpose."""

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real import hostile_corpus
from real.bounds import seconds
from real.hostile_corpus import ALGORITHM, Hostile

from composefsd.erofs import FormatVersion, check, object_ids, read_tree
from composefsd.erofs.format import COMPACT, EXTENDED, Head
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import table

IMAGES: Final = hostile_corpus.images()
READERS: Final = (check, object_ids, read_tree)
V0, V1, V2 = FormatVersion


@pytest.mark.parametrize("hostile", IMAGES, ids=lambda hostile: hostile.name)
def test_images_of_the_corpus_are_refused_with_what_is_wrong(hostile: Hostile) -> None:
    with pytest.raises((FormatError, LimitExceededError)) as caught:  # noqa: PT012 - whichever of the two sees it
        check(hostile.data, ALGORITHM)
        read_tree(hostile.data, ALGORITHM)
    assert hostile.message in str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_raise_nothing_but_two_errors(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(IMAGES)).data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(image)))
        image[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    for read in READERS:
        with seconds(10), suppress(FormatError, LimitExceededError):
            read(bytes(image), ALGORITHM)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_bytes_behind_a_sound_head_raise_nothing_but_two_errors(tail: bytes) -> None:
    head = Head(V2, has_acl=False, root_nid=36, inodes=1, build_time=0, build_nsec=0, blocks=1, xattr_block=0)
    for read in READERS:
        with suppress(FormatError, LimitExceededError):
            read(head.serialize() + tail, ALGORITHM)


# Images made to take memory or time


@contextmanager
def at_most(peak_bytes: int) -> Iterator[None]:
    """Memory, beside the image itself, and twenty seconds."""
    tracemalloc.start()
    try:
        with seconds(20):
            yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < peak_bytes


def group(entries: list[tuple[bytes, int, int]]) -> bytes:
    """Directory entries of name, nid and type."""
    heads, offset = b"", 12 * len(entries)
    for name, nid, file_type in entries:
        heads += struct.pack("<QHBB", nid, offset, file_type, 0)
        offset += len(name)
    return heads + b"".join(name for name, _, _ in entries)


def blocks(entries: list[tuple[bytes, int, int]], each: int = 200) -> bytes:
    groups = (group(entries[at : at + each]) for at in range(0, len(entries), each))
    return b"".join(part.ljust(4096, b"\0") for part in groups)


def image_of(inodes: bytes, entries: list[tuple[bytes, int, int]], *, table_bytes: bytes = b"") -> bytes:
    """A format 2 image: inodes begin with nid 64, the root has the entries, the table of attributes comes last."""
    data = blocks([(b".", 36, 2), (b"..", 36, 2), *entries])
    first = 1 + -(-len(inodes) // 4096)
    shared = first + len(data) // 4096
    head = Head(V2, has_acl=False, root_nid=36, inodes=1, build_time=0, build_nsec=0, blocks=1, xattr_block=shared)
    links = 2 + sum(file_type == 2 for _, _, file_type in entries)
    root = EXTENDED.pack(1, 0, 0o40755, 0, len(data), first, 0, 0, 0, 0, 0, links)
    image = (head.serialize() + root).ljust(2048, b"\0") + inodes
    return image.ljust(first * 4096, b"\0") + data + table_bytes


def numbered(count: int, step: int, file_type: int) -> list[tuple[bytes, int, int]]:
    return [(b"%07d" % number, 64 + number * step, file_type) for number in range(count)]


def refused(image: bytes, message: str, readers: tuple[Callable[..., object], ...] = READERS) -> None:
    for read in readers:
        with at_most(40 << 20), pytest.raises((FormatError, LimitExceededError), match=message):
            read(image, ALGORITHM)


@pytest.mark.parametrize("offset", [16, 36])
@pytest.mark.parametrize("version", FormatVersion)
def test_counts_of_the_superblock_allocate_nothing(offset: int, version: FormatVersion) -> None:
    image = bytearray(hostile_corpus.sound_images()[version])
    image[1024 + offset : 1024 + offset + 4] = b"\xff" * 4
    with at_most(8 << 20):
        check(image, ALGORITHM)
        read_tree(image, ALGORITHM)


def test_sizes_of_files_outside_allocate_nothing() -> None:
    inode = EXTENDED.pack(9, 0, 0o100644, 0, (1 << 64) - 1, 31, 0, 0, 0, 0, 0, 1) + b"\xff" * 4
    image = image_of(inode, [(b"f", 64, 1)])
    with at_most(1 << 20):
        tree = read_tree(image, ALGORITHM)
    assert max(tree.size) == (1 << 64) - 1


def test_directories_deep_in_each_other_take_no_stack() -> None:
    """Each is 96 bytes behind the one before; 4000 are more than a tree may have, but all are looked at."""
    depth, inodes = 4000, bytearray()
    for number in range(depth):
        nid, last = 64 + 3 * number, number == depth - 1
        above = 36 if number == 0 else nid - 3
        entries = [(b".", nid, 2), (b"..", above, 2)] + ([] if last else [(b"d", nid + 3, 2)])
        tail = group(entries)
        inodes += (COMPACT.pack(4, 0, 0o40755, 2 if last else 3, len(tail), 0, 0, 0, 0, 0, 0) + tail).ljust(96, b"\0")
    image = image_of(bytes(inodes), [(b"d", 64, 2)])
    with at_most(8 << 20):
        check(image, ALGORITHM)
    refused(image, "deep", (read_tree,))


def test_files_that_share_blocks_are_refused() -> None:
    """A thousand files that all consist of the same megabyte."""
    inode = COMPACT.pack(0, 0, 0o100644, 1, 1 << 20, 0, 1, 0, 0, 0, 0)
    image = image_of((inode * 1000).ljust(1 << 20, b"\0"), numbered(1000, 1, 1))
    refused(image, "overlap|content of 1048576 bytes")


def test_attributes_that_share_their_bytes_are_refused() -> None:
    """Files refer to values of 64 KiB, each 4 bytes behind the one before."""
    table_bytes = struct.pack("<BBH", 1, 1, 65535) * 20_000
    inodes = b""
    for number in range(100):
        references = struct.pack("<255I", *range(255 * number, 255 * number + 255))
        area = struct.pack("<IB7x", 0, 255) + references
        inodes += (COMPACT.pack(0, 256, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0) + area).ljust(1088, b"\0")
    refused(image_of(inodes, numbered(100, 34, 1), table_bytes=table_bytes.ljust(200_000, b"\0")), "overlap")


def many_sets(files: int) -> bytes:
    """Files that refer to the same 255 attributes, in sets that differ by the one that is left out."""
    entry = struct.pack("<BBH", 3, 1, 0)
    table_bytes = b"".join((entry + b"%03x" % number).ljust(8, b"\0") for number in range(4096))
    inodes = b""
    for number in range(files):
        references = struct.pack("<255I", *(2 * ((number + step) % 4096) for step in range(255)))
        area = struct.pack("<IB7x", 0, 255) + references
        inodes += (COMPACT.pack(0, 256, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0) + area).ljust(1088, b"\0")
    return image_of(inodes, numbered(files, 34, 1), table_bytes=table_bytes)


def test_many_shared_attributes_take_little_more_than_references() -> None:
    image = many_sets(300)
    with at_most(6 * len(image)):
        tree = read_tree(image, ALGORITHM)
    assert sum(map(len, tree.xattr_sets)) == 300 * 255


def test_attributes_in_sets_that_all_differ_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_XATTRS", 100 * 255)
    read_tree(many_sets(100), ALGORITHM)
    with pytest.raises(LimitExceededError, match="extended attributes"):
        read_tree(many_sets(101), ALGORITHM)


def test_a_directory_of_many_names_is_read_in_time_that_grows_with_it() -> None:
    """20,000 names of one inode, which is not quick with anything quadratic; and one name 20,000 times."""
    count = 20_000
    inode = EXTENDED.pack(1, 0, 0o100644, 0, 0, 0, 0, 0, 0, 0, 0, count)
    with at_most(12 << 20):
        read_tree(image_of(inode, [(b"%07d" % number, 64, 1) for number in range(count)]), ALGORITHM)
    refused(image_of(inode, [(b"same", 64, 1)] * count), "twice")


def test_what_is_behind_the_last_name_is_refused_unless_it_is_padding() -> None:
    """The kernel ends a last name at its first NUL, composefs-rs wherever its search finds one."""
    inode = EXTENDED.pack(1, 0, 0o100644, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    image = image_of(inode, [(b"name", 64, 1)])
    check(image, ALGORITHM)
    refused(image.replace(b"name\0\0", b"name\0x"), "behind its last name")


def test_a_table_of_attributes_behind_the_end_is_refused_even_if_nothing_refers_to_it() -> None:
    image = bytearray(image_of(b"", []))
    blocks_of_image = len(image) // 4096
    image[1024 + 44 : 1024 + 48] = blocks_of_image.to_bytes(4, "little")
    check(image, ALGORITHM)
    image[1024 + 44 : 1024 + 48] = (blocks_of_image + 1).to_bytes(4, "little")
    refused(bytes(image), "beyond its end")
