"""Refs: names below `images/refs` and `streams/refs`, the roots of garbage collection.  Tags are one kind of them.

A tag of an OCI image is `streams/refs/oci/NAME`, leading to the stream of the image's manifest; what a file name
cannot hold is escaped.  Setting and removing a ref is durable when it returns: a removal that a power cut undid would
leave a ref to what garbage collection has deleted meanwhile.
"""

import os
import re
from typing import Final

from composefsd.errors import InvalidNameError, NoSuchObjectError
from composefsd.repository import links
from composefsd.repository.links import Category

MANIFEST_PREFIX: Final = "oci-manifest-"

TAGS: Final = "oci"
_ESCAPE: Final = re.compile("%.{0,2}", re.DOTALL)
_ESCAPES: Final = {"%2F": "/", "%25": "%"}


def encode_tag(name: str) -> str:
    """The file name that stands for a tag."""
    return name.replace("%", "%25").replace("/", "%2F")


def decode_tag(encoded: str) -> str:
    """The tag that a file name stands for, in one pass as composefs-rs makes it; other escapes stay as they are."""
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[0], match[0]), encoded)


def check_tag(name: str) -> None:
    """Raises InvalidNameError for a tag that cannot be one; a leading `@` is reserved for digests."""
    if name.startswith("@"):
        raise InvalidNameError(f"tag {name[:100]!r} begins with @", subject=name[:100])
    links.check_component(encode_tag(name), "tag")


def tags(root: int) -> dict[str, str]:
    """The tags of the repository, and the names of the streams they lead to."""
    prefix = f"{Category.STREAMS}/{links.REFS}/{TAGS}/"
    found = {}
    for path, text in sorted(links.refs(root, Category.STREAMS, TAGS)):
        stream = links.last_component(text)
        if stream is not None and stream.startswith(MANIFEST_PREFIX) and _is_unicode(path):
            found[decode_tag(path.removeprefix(prefix))] = stream
    return found


def tag(root: int, name: str, stream: str) -> None:
    """Let the tag `name` lead to the manifest stream `stream`, and to no other from now on.

    Raises InvalidNameError, and NoSuchObjectError if there is no such stream.
    """
    check_tag(name)
    if not stream.startswith(MANIFEST_PREFIX):
        raise InvalidNameError(f"a tag names a manifest, not {stream[:100]!r}", subject=stream[:100])
    put(root, Category.STREAMS, f"{TAGS}/{encode_tag(name)}", stream)


def untag(root: int, name: str) -> bool:
    """Remove the tag `name`; False if there is none.  Raises InvalidNameError."""
    check_tag(name)
    return remove(root, Category.STREAMS, f"{TAGS}/{encode_tag(name)}")


def named(root: int, category: Category) -> dict[str, str]:
    """All refs of a category: their paths below `refs`, and the entry of the category that each leads to."""
    prefix = f"{category}/{links.REFS}/"
    return {path.removeprefix(prefix): links.last_component(text) or "" for path, text in links.refs(root, category)}


def put(root: int, category: Category, name: str, entry: str) -> None:
    """Let the ref `name`, a path, lead to an entry of the category.

    The entries come first on the disk, as a ref to nothing stops garbage collection.  Raises InvalidNameError, and
    NoSuchObjectError if there is no such entry.
    """
    path = _path(category, name)
    links.check_component(entry, "entry")
    if entry == links.REFS or links.read(root, f"{category}/{entry}") is None:
        raise NoSuchObjectError(f"there is no {category}/{entry}", subject=entry)
    links.sync(root, category.value)
    links.put(root, path, f"{category}/{entry}")
    links.sync(root, path.rpartition("/")[0])


def remove(root: int, category: Category, name: str) -> bool:
    """Remove the ref `name`; False if there is none.  Raises InvalidNameError."""
    path = _path(category, name)
    removed = links.remove(root, path)
    if removed:
        links.sync(root, path.rpartition("/")[0])
    return removed


def _path(category: Category, name: str) -> str:
    for part in name.split("/"):
        links.check_component(part, "ref")
    return f"{category}/{links.REFS}/{name}"


def _is_unicode(path: str) -> bool:
    """Whether the name of a file was UTF-8; composefs-rs does not list others."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True
