"""Layers read back from their splitstreams: what was hashed as a whole may still have been cut wrongly."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.layers import directory, regular, tar_layer

from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError, ObjectMissingError
from composefsd.operations.imaging import Objects, _StoredTar
from composefsd.repository import Metadata, Repository
from composefsd.splitstream import ContentType, Splitstream, Writer
from composefsd.tree.tar import parse_layer

FIRST, SECOND = b"a" * 1000, b"b" * 1000
TAR = tar_layer([directory("usr"), regular("usr/a", FIRST), regular("usr/b", SECOND)])
A, B = TAR.index(FIRST), TAR.index(SECOND)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.create(tmp_path / "repository", Metadata.new(Algorithm.SHA256), insecure=True) as made:
        yield made


@pytest.fixture
def objects(repository: Repository) -> Iterator[Objects]:
    repository.objects.store(FIRST)
    fd = os.open(repository.path / "objects", os.O_RDONLY | os.O_DIRECTORY)
    yield Objects(fd, Algorithm.SHA256)
    os.close(fd)


def stored(repository: Repository, *cuts: tuple[int, int]) -> Splitstream:
    """The tar with these ranges as objects."""
    writer, at = Writer(Algorithm.SHA256, ContentType.OCI_LAYER), 0
    for start, end in cuts:
        writer.inline(TAR[at:start])
        writer.external(repository.objects.store(TAR[start:end]), end - start)
        at = end
    writer.inline(TAR[at:])
    return Splitstream.parse(writer.finish(), Algorithm.SHA256)


def test_a_layer_comes_back_as_its_tar_was(repository: Repository, objects: Objects) -> None:
    tar = _StoredTar(objects, stored(repository, (A, A + 1000), (B, B + 1000)))
    table = parse_layer(tar)
    assert [table.path(row) for row in range(3)] == [b"usr/", b"usr/a", b"usr/b"]
    assert len(tar.digests) == 2 * 32


@pytest.mark.parametrize(
    "cuts",
    [
        ((A, A + 1536), (B, B + 1000)),
        ((A, B), (B, B + 1000)),
        ((A, A + 999), (B, B + 1000)),
        ((A, A + 1000),),
        ((A, A + 1000), (B, B + 1000), (len(TAR) - 512, len(TAR))),
        ((512, 1024), (A, A + 1000), (B, B + 1000)),
    ],
    ids=["padding hidden", "entry hidden", "short", "inline", "behind the end", "header"],
)
def test_a_tar_that_was_cut_otherwise_than_it_reads_is_refused(
    repository: Repository, objects: Objects, cuts: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(FormatError):
        parse_layer(_StoredTar(objects, stored(repository, *cuts)))


def test_objects_are_read_within_bounds(objects: Objects, repository: Repository) -> None:
    digest = repository.objects.store(FIRST)
    assert objects.read(digest, 1000) == FIRST
    assert objects.read_range(digest, 990, 100) == FIRST[990:]
    with pytest.raises(LimitExceededError):
        objects.read(digest, 999)
    for missing in (objects.open, objects.size):
        with pytest.raises(ObjectMissingError):
            missing(bytes(32))
