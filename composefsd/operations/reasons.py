"""Why things stay, in words: what the roots of garbage collection are to those who made them."""

import os
from enum import StrEnum
from typing import Final, NamedTuple

from composefsd.oci.settling import HELD
from composefsd.oci.storage import MANIFEST_PREFIX, REPAIR_REFS
from composefsd.operations.deployment_order import DEPLOYMENT_REFS, DEPLOYMENT_TAG
from composefsd.repository import refs
from composefsd.repository.links import REFS, Category
from composefsd.repository.marks import Origin, Root

_REFERRERS: Final = "oci-referrers"
"""Refs below `streams/refs` that keep artifacts beside the image that they are about, as composefs-rs makes them:
`oci-referrers/SUBJECT/ARTIFACT`, both manifest digests."""

_HELD: Final = (HELD, REPAIR_REFS)


class Why(StrEnum):
    """What a root is.

    tag: somebody's name of an OCI image.  deployment: ours, for an image that is deployed.  referrer: for an
    artifact about an image.  held: ours, for a stream while those that name it are rewritten.  image-ref, stream-ref:
    any other ref.  name: the caller asked to keep it.  more: no root, but how many others there are.
    """

    TAG = "tag"
    DEPLOYMENT = "deployment"
    REFERRER = "referrer"
    HELD = "held"
    IMAGE_REF = "image-ref"
    STREAM_REF = "stream-ref"
    NAME = "name"
    MORE = "more"


class Reason(NamedTuple):
    """A root in words.

    name is the tag; of a deployment the digest of its manifest, or that of its boot image; of a referrer the digests
    of subject and artifact with a slash between; of what is held the stream; of another ref its path in the
    repository.
    """

    why: Why
    name: str


def reason(root: Root) -> Reason:
    """What `root` is to those who made it."""
    if root.origin is not Origin.REF:
        return Reason(Why.NAME, printable(root.entry))
    found = _known_stream(root) if root.category is Category.STREAMS else _known_image(root)
    if found is not None:
        return Reason(found.why, printable(found.name))
    why = Why.IMAGE_REF if root.category is Category.IMAGES else Why.STREAM_REF
    return Reason(why, printable(f"{root.category}/{REFS}/{root.name}"))


def _known_image(root: Root) -> Reason | None:
    folder, _, digest = root.name.partition("/")
    return Reason(Why.DEPLOYMENT, digest) if folder == DEPLOYMENT_REFS and digest else None


def _known_stream(root: Root) -> Reason | None:
    folder, _, rest = root.name.partition("/")
    if folder == refs.TAGS and root.entry.startswith(MANIFEST_PREFIX):
        tag = refs.decode_tag(rest)
        if tag.startswith(DEPLOYMENT_TAG):
            return Reason(Why.DEPLOYMENT, root.entry.removeprefix(MANIFEST_PREFIX))
        return Reason(Why.TAG, tag)
    if folder == _REFERRERS and rest.count("/") == 1:
        return Reason(Why.REFERRER, rest)
    if folder in _HELD and rest:
        return Reason(Why.HELD, root.entry)
    return None


def printable(name: str) -> str:
    """The name of a file with bytes that are no UTF-8 written as `\\xNN`."""
    return os.fsencode(name).decode(errors="backslashreplace")
