"""Streams: names of splitstreams.  `streams/NAME` leads to the object that the splitstream is."""

from collections.abc import Iterator
from typing import Final

from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import CorruptError, FormatError, InvalidNameError, NoSuchObjectError
from composefsd.repository import links
from composefsd.repository.links import Category
from composefsd.repository.objects import ObjectStore
from composefsd.splitstream import Splitstream

LIMIT_BYTES: Final = 1 << 30
"""Of a splitstream's file.  A layer of a million files takes some hundred megabytes."""


def digest(root: int, name: str, algorithm: Algorithm) -> bytes | None:
    """The raw digest of the splitstream that `name` stands for, by the text of the link; None if there is none.

    Raises CorruptError if the text names no object, and InvalidNameError.
    """
    text = links.read(root, path(name))
    if text is None:
        return None
    found = links.object_in_text(text, algorithm)
    if found is None:
        raise CorruptError(f"streams/{name} leads to {text[:200]!r}, which is no object", subject=name)
    return found


def put(root: int, name: str, digest: bytes) -> None:
    """Let `name` stand for the splitstream `digest`."""
    links.put(root, path(name), f"objects/{ObjectId(digest).path}")


def names(root: int) -> Iterator[str]:
    """The names of all streams, sorted.  Raises CorruptError if something else is among them."""
    for link in links.entries(root, Category.STREAMS):
        yield link.path.removeprefix(f"{Category.STREAMS}/")


def read(objects: ObjectStore, digest: bytes, content_type: int | None = None) -> Splitstream:
    """The splitstream `digest`, checked against it.

    Raises ObjectMissingError, CorruptError for content that is no splitstream, and FormatError for one that is not of
    `content_type`.
    """
    data = objects.read(digest, LIMIT_BYTES)
    try:
        stream = Splitstream.parse(data, objects.algorithm)
    except FormatError as error:
        raise CorruptError(f"object {digest.hex()} is no splitstream: {error}", subject=digest.hex()) from error
    stream.require(content_type)
    return stream


def path(name: str) -> str:
    """Where the link is.  Raises InvalidNameError."""
    links.check_component(name, "stream")
    if name == links.REFS:
        raise InvalidNameError("no stream can be called refs", subject=name)
    return f"{Category.STREAMS}/{name}"


def require(root: int, name: str, algorithm: Algorithm) -> bytes:
    """Like `digest`, but raises NoSuchObjectError if there is no such stream."""
    found = digest(root, name, algorithm)
    if found is None:
        raise NoSuchObjectError(f"there is no stream {name}", subject=name)
    return found
