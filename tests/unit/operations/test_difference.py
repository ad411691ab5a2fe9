"""Why digests differ: sides of each kind, and what a comparison of trees does not show."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.locate import Part
from composefsd.erofs.writer import compute_id, write
from composefsd.errors import FormatError, LimitExceededError
from composefsd.operations.difference import (
    ImageFile,
    Loaded,
    Pair,
    ReasonCode,
    Subject,
    SubjectKind,
    Wanted,
    choose,
    load,
)
from composefsd.operations.sources import opened
from composefsd.tree import dumpfile
from composefsd.tree.difference import Changed, Side
from composefsd.tree.table import ROOT, Kind, Stat, Tree

V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm
FOLDER = Stat(0o755, 0, 0, 5, 6)


def build(fill: Callable[[Tree], object], algorithm: Algorithm = SHA256) -> Tree:
    tree = Tree(algorithm)
    tree.set_stat(ROOT, FOLDER)
    fill(tree)
    tree.freeze()
    return tree


def with_object(tree: Tree, nsec: int = 8) -> None:
    digest = b"\x11" * tree.algorithm.digest_bytes
    tree.insert(ROOT, b"object", tree.add_external(Stat(0o644, 0, 0, 7, nsec), 1000, digest))


def image_of(tree: Tree, version: FormatVersion = V1) -> bytes:
    return b"".join(write(tree, version))


HOSTILE = image_of(build(with_object))


class Sides:
    """Files as sides; they stay open until the end of the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def subject(self, name: str, data: bytes, algorithm: Algorithm | None = None) -> Subject:
        path = self._folder / name
        path.write_bytes(data)
        return Subject.of_file(str(path), self._stack.enter_context(opened(str(path))), algorithm)

    def pair(self, a: bytes, b: bytes, wanted: Wanted | None = None) -> Pair:
        subjects = [self.subject(name, data) for name, data in (("a", a), ("b", b))]
        reading, version = choose(subjects, wanted or Wanted())
        return Pair(*(load(subject, reading, version) for subject in subjects))


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    with ExitStack() as stack:
        yield Sides(tmp_path, stack)


def dump(tree: Tree) -> bytes:
    return b"".join(dumpfile.serialize(tree))


def told(pair: Pair) -> tuple[int, int, list[ReasonCode]]:
    """How many changes the formats store and do not, and the reasons beside."""
    changes = [one for found in pair.differences() if isinstance(found, Changed) for one in found.changes]
    stored = sum(map(pair.is_stored, changes))
    unstored = len(changes) - stored
    return stored, unstored, [reason.code for reason in pair.reasons(stored, unstored)]


@pytest.mark.parametrize("version", FormatVersion)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_image_is_found_by_its_magic_and_has_its_own_format_and_hash(
    sides: Sides, version: FormatVersion, algorithm: Algorithm
) -> None:
    data = image_of(build(with_object, algorithm), version)
    for asked in (None, SHA256, SHA512):
        found = sides.subject("image", data, asked)
        assert (found.kind, found.version, found.algorithm) == (SubjectKind.EROFS, version, algorithm)
        loaded = load(found, *choose([found], Wanted(version=V1, algorithm=asked)))
        assert (loaded.digest, loaded.version) == (verity.compute(data, algorithm), version)


def test_an_image_without_objects_has_the_hash_that_is_asked_for(sides: Sides) -> None:
    data = image_of(build(lambda _tree: None))
    assert sides.subject("image", data).algorithm is SHA512
    assert sides.subject("image", data, SHA256).algorithm is SHA256


def test_sides_that_are_no_images_become_what_the_image_on_the_other_side_is(sides: Sides) -> None:
    tree = build(with_object)
    for version in (V0, V1):
        pair = sides.pair(dump(tree), image_of(tree, version))
        assert pair.equal
        assert pair.a.digest == verity.compute(image_of(tree, version), SHA256)
        assert told(pair) == (0, 0, [])


def test_what_is_wanted_goes_before_what_an_image_is(sides: Sides) -> None:
    tree = build(with_object)
    pair = sides.pair(dump(tree), image_of(tree, V0), Wanted(version=V1))
    assert (pair.a.version, pair.b.version, pair.equal) == (V1, V0, False)
    assert told(pair) == (0, 0, [ReasonCode.FORMAT])


def test_two_hashes_are_a_reason_and_the_objects_are_not_compared(sides: Sides) -> None:
    pair = sides.pair(image_of(build(with_object)), image_of(build(with_object, SHA512)))
    assert told(pair) == (0, 0, [ReasonCode.HASH])


def test_format_2_does_not_store_nanoseconds(sides: Sides) -> None:
    a, b = build(with_object), build(lambda tree: with_object(tree, 9))
    pair = sides.pair(dump(a), dump(b), Wanted(version=V2, algorithm=SHA256))
    assert pair.equal
    assert told(pair) == (0, 1, [ReasonCode.UNSTORED])
    pair = sides.pair(dump(a), dump(b), Wanted(version=V1, algorithm=SHA256))
    assert not pair.equal
    assert told(pair) == (1, 0, [])


def test_a_whiteout_that_looks_like_a_stub_makes_no_other_image(sides: Sides) -> None:
    def with_stub(tree: Tree) -> None:
        tree.insert(ROOT, b"00", tree.add_special(Kind.CHAR, Stat(0o644, 0, 0, 5, 6)))

    pair = sides.pair(dump(build(with_stub)), dump(build(lambda _tree: None)), Wanted(version=V1))
    assert pair.equal
    assert [reason.code for reason in pair.reasons(1, 0)] == [ReasonCode.SAME_IMAGE]


def test_bytes_that_are_not_the_writers_are_told_with_their_place(sides: Sides) -> None:
    image = image_of(build(with_object))
    at = 1000  # between header and superblock, where readers do not look
    pair = sides.pair(image, image[:at] + b"\x01" + image[at + 1 :])
    (reason,) = pair.reasons(0, 0)
    assert (reason.code, reason.side) == (ReasonCode.BYTES, Side.B)
    assert reason.spot is not None
    assert (reason.spot.offset, reason.spot.part) == (at, Part.PADDING)
    assert reason.message.endswith(f"the first byte that differs is {at}, in padding")


def test_an_image_that_nobody_could_have_written_is_told_as_such() -> None:
    def twice(tree: Tree) -> None:
        whiteout = tree.add_special(Kind.CHAR, FOLDER)
        tree.insert(ROOT, b"a", whiteout)
        tree.insert(ROOT, b"b", whiteout)

    tree, image = build(twice), image_of(build(with_object))
    side = Loaded("a", SubjectKind.EROFS, tree, V1, verity.compute(image, SHA256), image)
    other = Loaded("b", SubjectKind.DUMPFILE, tree, V1, verity.compute(b"", SHA256))
    (reason,) = Pair(side, other).reasons(0, 0)
    assert (reason.code, reason.side, reason.spot) == (ReasonCode.BYTES, Side.A, None)
    assert reason.message.endswith("since it writes none: a whiteout has more than one name")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 13), st.integers(0, 255)), min_size=1, max_size=3))
def test_the_first_difference_of_a_hostile_image_is_where_it_is_said_to_be(changes: list[tuple[int, int]]) -> None:
    data = bytearray(HOSTILE)
    for at, value in changes:
        data[1024 + at % (len(data) - 1024)] = value
    with suppress(FormatError, LimitExceededError):
        image = ImageFile.parse(bytes(data), SHA256)
        side = Loaded("a", SubjectKind.EROFS, image.tree, image.version, verity.compute(data, SHA256), image.data)
        other = Loaded("b", SubjectKind.DUMPFILE, image.tree, V1, compute_id(image.tree, V1))
        ours = image_of(image.tree, image.version)
        found = [reason.spot for reason in Pair(side, other).reasons(0, 0) if reason.code is ReasonCode.BYTES]
        assert bool(found) == (ours != data)
        for spot in found:
            assert spot is not None
            assert ours[: spot.offset] == data[: spot.offset]
            assert ours[spot.offset : spot.offset + 1] != data[spot.offset : spot.offset + 1]


def test_a_damaged_image_is_refused_by_its_name(sides: Sides) -> None:
    image = bytearray(image_of(build(with_object)))
    image[1024 + 14] ^= 0xFF  # the number of the root
    with pytest.raises(FormatError, match=r"/image: "):
        sides.subject("image", bytes(image))


def test_a_dumpfile_of_another_hash_is_refused_by_its_name(sides: Sides) -> None:
    with pytest.raises(FormatError, match=r"/a: dump, line 2: .*64 are due"):
        sides.pair(dump(build(with_object)), dump(build(with_object)))


def test_a_pair_of_loaded_sides_compares_digests_not_trees() -> None:
    tree = build(with_object)
    a = Loaded("a", SubjectKind.DUMPFILE, tree, V1, verity.compute(b"1", SHA256))
    b = Loaded("b", SubjectKind.DUMPFILE, tree, V1, verity.compute(b"2", SHA256))
    assert Pair(a, a).equal
    assert not Pair(a, b).equal
