"""The document of a collection: its lines, its bound, and its end."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composefsd.operations.listing import Listing
from composefsd.repository.gc import Gone, What
from composefsd.repository.links import Category
from composefsd.repository.marks import Origin, Root, Weight

OBJECT = Gone(What.OBJECT, f"objects/AB/{'cd' * 31}", 7)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "listing", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def lines(file: int) -> list[dict[str, Any]]:
    data = os.pread(file, os.fstat(file).st_size, 0)
    assert data.isascii()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def test_each_thing_has_its_line(file: int) -> None:
    with Listing(file, algorithm="sha256") as listing:
        listing.stays(Weight(Root(Origin.REF, Category.STREAMS, "oci/a%2Fb", "oci-manifest-sha256:1"), 9, 900, 2, 70))
        for kind, path in (
            (What.IMAGE, "images/x"),
            (What.STREAM, "streams/\udcff\u20ac"),
            (What.REF, "images/refs/y"),
        ):
            listing.goes(Gone(kind, path))
        listing.goes(Gone(What.TEMPORARY, ".tmp-meta-x", 5))
        listing.goes(OBJECT)
    assert lines(file) == [
        {
            "stays": "tag", "name": "a/b", "leads_to": "oci-manifest-sha256:1",
            "objects": 9, "bytes": 900, "objects_alone": 2, "bytes_alone": 70,
        },
        {"goes": "image", "path": "images/x"},
        {"goes": "stream", "path": "streams/\\xff\u20ac"},
        {"goes": "ref", "path": "images/refs/y"},
        {"goes": "temporary", "path": ".tmp-meta-x", "bytes": 5},
        {"goes": "object", "digest": "sha256:ab" + "cd" * 31, "bytes": 7},
        {"end": True, "unlisted": 0},
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [100, 101, 1000, 1001, 1111, 4096])
def test_what_does_not_fit_is_counted_and_the_end_always_fits(file: int, limit: int) -> None:
    with Listing(file, algorithm="sha256", limit_bytes=limit) as listing:
        for _ in range(100):
            listing.goes(OBJECT)
    found = lines(file)
    assert os.fstat(file).st_size <= limit
    assert len(found) - 1 + listing.unlisted == 100
    assert found[-1] == {"end": True, "unlisted": listing.unlisted}


def test_no_line_follows_one_that_was_left_out(file: int) -> None:
    with Listing(file, algorithm="sha256", limit_bytes=200) as listing:
        listing.goes(OBJECT)
        listing.goes(Gone(What.REF, "x"))
    assert listing.unlisted == 2
    assert len(lines(file)) == 1


def test_a_collection_that_was_stopped_has_its_lines_and_no_end(file: int) -> None:
    def stopped() -> None:
        with Listing(file, algorithm="sha256") as listing:
            listing.goes(OBJECT)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stopped()
    assert [set(line) for line in lines(file)] == [{"goes", "digest", "bytes"}]


def test_a_long_listing_is_written_as_it_comes(file: int) -> None:
    with Listing(file, algorithm="sha256") as listing:
        for _ in range(5000):
            listing.goes(OBJECT)
        assert os.fstat(file).st_size > 256 << 10
    assert len(lines(file)) == 5001
