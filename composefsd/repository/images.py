"""Images: `images/DIGEST` leads to the object that is the EROFS image of that digest."""

import re
from typing import Final

from composefsd.digests import Algorithm, ObjectId
from composefsd.repository import links
from composefsd.repository.links import Category
from composefsd.repository.objects import ObjectStore

LIMIT_BYTES: Final = 1 << 30
"""Of an image's file.  An image of a million files takes some hundred megabytes."""

_HEX: Final = re.compile("[0-9a-f]+")


def ids(root: int, algorithm: Algorithm) -> list[bytes]:
    """The raw digests of all images, sorted; entries that are no digest are left to fsck."""
    found = [link.path.removeprefix(f"{Category.IMAGES}/") for link in links.entries(root, Category.IMAGES)]
    width = 2 * algorithm.digest_bytes
    return [bytes.fromhex(name) for name in found if len(name) == width and _HEX.fullmatch(name)]


def path(digest: bytes) -> str:
    """Where the link is."""
    return f"{Category.IMAGES}/{digest.hex()}"


def put(root: int, digest: bytes) -> None:
    """Make the object `digest` an image."""
    links.put(root, path(digest), f"objects/{ObjectId(digest).path}")


def read(objects: ObjectStore, digest: bytes) -> bytes:
    """The content of an image, checked against its digest.  Raises what `ObjectStore.read` raises."""
    return objects.read(digest, LIMIT_BYTES)
