"""The listing of a collection as composefsctl reads and prints it."""

import io
import os

import pytest

from composefsd.client import garbage
from composefsd.client.failures import AnswerError
from composefsd.client.garbage import Garbage, Listing, Reason, Root
from composefsd.client.properties import Properties
from composefsd.client.records import Deployment
from composefsd.client.render import Screen

ROOT = (
    b'{"stays":"deployment","name":"sha256:11","leads_to":"oci-manifest-sha256:11","objects":9,"bytes":9000,'
    b'"objects_alone":2,"bytes_alone":70}\n'
)
IMAGE, OBJECT = b'{"goes":"image","path":"images/ab"}\n', b'{"goes":"object","digest":"sha512:cd","bytes":5}\n'
END = b'{"end":true,"unlisted":0}\n'
RESULT = {"objects-removed": 1, "freed-bytes": 5, "images-pruned": 1, "streams-pruned": 0, "unlisted": 0}
IDS = {"sha256:11": ["d" * 128, "d" * 128 + ".1"]}


def read(data: bytes) -> Listing:
    fd = os.memfd_create("listing")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    listing = Listing.read(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(fd)
    return listing


def test_a_listing_becomes_records() -> None:
    assert read(ROOT + IMAGE + OBJECT + END) == Listing(
        (Root("deployment", "sha256:11", "oci-manifest-sha256:11", 9, 9000, 2, 70),),
        (Garbage("image", "images/ab", None), Garbage("object", "sha512:cd", 5)),
        complete=True,
    )


@pytest.mark.parametrize("end", [b"", b'{"end":true,"unlisted":3}\n'])
def test_a_listing_that_lacks_something_is_not_complete(end: bytes) -> None:
    assert not read(IMAGE + end).complete


@pytest.mark.parametrize(
    "line", [b"\n", b"nothing\n", b"[]\n", b'{"goes":1}\n', b'{"stays":"tag","bytes":"9"}\n', b"\xff\n", b"[" * 9999]
)
def test_what_is_no_listing_is_told(line: bytes) -> None:
    with pytest.raises(AnswerError):
        read(OBJECT + line)


def shown(listing: Listing | None, width: int | None = None) -> str:
    stream = io.StringIO()
    garbage.dry_run(Screen(stream, width), RESULT, listing, IDS)
    return stream.getvalue()


def test_a_dry_run_tells_groups_and_roots() -> None:
    text = shown(read(ROOT + IMAGE + OBJECT + END))
    rows = [line.split() for line in text.splitlines()]
    assert text.startswith("nothing was removed")
    assert ["images", "1", "-"] in rows
    assert ["objects", "1", "5", "B"] in rows
    ids = ["d" * 128 + ",", "d" * 128 + ".1"]
    assert ["deployment", *ids, "oci-manifest-sha256:11", "9", "9", "kB", "2", "70", "B"] in rows
    assert "cut" not in text


def test_a_terminal_gets_short_ids() -> None:
    assert f"{'d' * 12}, {'d' * 12}.1" in shown(read(ROOT + END), width=200)


def test_objects_are_counted_by_the_daemon_where_the_listing_is_cut() -> None:
    text = shown(read(ROOT + b'{"end":true,"unlisted":1}\n'))
    assert ["objects", "1", "5", "B"] in [line.split() for line in text.splitlines()]
    assert "the listing was too long, and is cut" in text


def test_without_a_listing_the_counts_are_told_and_without_roots_that_there_are_none() -> None:
    assert ["objects", "removed", "1"] in [line.split() for line in shown(None).splitlines()]
    assert "nothing stays" in shown(read(END))


def test_every_line_is_printed_and_escaped() -> None:
    stream = io.StringIO()
    garbage.every_line(Screen(stream), read(b'{"goes":"ref","path":"streams/refs/\\u001b[2J"}\n' + OBJECT + END))
    lines = stream.getvalue().splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["ref", "-", "streams/refs/\\x1b[2J"],
        ["object", "5", "B", "sha512:cd"],
    ]


def test_reasons_are_told_with_the_ids_of_deployments() -> None:
    stream = io.StringIO()
    garbage.reasons(Screen(stream), [Reason("tag", "os"), Reason("deployment", "sha256:22")], IDS)
    garbage.reasons(Screen(stream), [], IDS)
    rows = [line.split() for line in stream.getvalue().splitlines()[1:]]
    assert rows == [["tag", "os"], ["deployment", "sha256:22"], ["nothing", "keeps", "it"]]


def test_deployments_are_known_by_their_images() -> None:
    made = [
        Deployment.parse("/", Properties({"Id": one, "ManifestDigest": "sha256:11", "BootDigest": f"sha512:{one}"}))
        for one in ("a", "b")
    ]
    assert garbage.deployed(made) == {"sha256:11": ["a", "b"], "a": ["a"], "b": ["b"]}
