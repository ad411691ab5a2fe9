"""Images of the daemon's repository as sides of a `diff`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from composefsd.client.exits import ClientError
from composefsd.client.failures import CallError
from composefsd.client.proxy import Proxy
from composefsd.client.records import ComposefsImage, Image
from composefsd.client.render import SHORT_DIGITS
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError
from composefsd.operations.difference import Subject, SubjectKind, Wanted, choose
from composefsd.operations.sources import Reading
from composefsd.service import names

_NO_SUCH_IMAGE: Final = f"{names.ERRORS}.NoSuchImage"
_DIGEST: Final = re.compile(rf"(?:(sha256|sha512):)?([0-9a-f]{{{SHORT_DIGITS},128}})")


@dataclass(frozen=True, slots=True)
class _Found:
    """An OCI image, and which of its composefs images is meant; that one's record if it was made."""

    image: Image
    kind: str
    made: ComposefsImage | None


async def fetch(
    proxy: Proxy, subjects: Sequence[Subject], wanted: Wanted
) -> tuple[list[Subject], Reading, FormatVersion]:
    """The sides with the dumpfiles of those that are stored, and how the others are to be read.

    The files are the caller's to close.  Raises ClientError.
    """
    found: dict[str, _Found] = {}
    known = []
    for subject in subjects:
        if subject.kind is SubjectKind.STORED:
            found[subject.text] = one = await _find(proxy, subject.text.partition(":")[2], wanted)
            known.append(await _describe(proxy, subject, one.made))
        else:
            known.append(subject)
    reading, version = choose(known, wanted)
    fetched = [await _read(proxy, one, found[one.text], reading) if one.text in found else one for one in known]
    return fetched, reading, version


async def _find(proxy: Proxy, text: str, wanted: Wanted) -> _Found:
    """By what `inspect` takes; or by the digest of a composefs image, which is also what a UKI has."""
    kind = "boot" if wanted.bootable else "normative"
    try:
        image = await proxy.image(text)
    except CallError as error:
        match = _DIGEST.fullmatch(text) if error.name == _NO_SUCH_IMAGE else None
        found = None if match is None else await _find_by_digest(proxy, match[1], match[2])
        if found is None:
            raise
        return found
    return _Found(image, kind, next((one for one in image.digests if one.kind == kind), None))


async def _find_by_digest(proxy: Proxy, algorithm: str | None, digits: str) -> _Found | None:
    for image in await proxy.images():
        for made in image.digests:
            name, _, rest = made.digest.partition(":")
            if rest.startswith(digits) and algorithm in (None, name):
                return _Found(image, made.kind, made)
    return None


async def _describe(proxy: Proxy, subject: Subject, made: ComposefsImage | None) -> Subject:
    """With the format and the hash of the image that was made, else with the hash of the repository."""
    try:
        if made is not None:
            version, algorithm = FormatVersion.from_label(made.format), Algorithm(made.hash)
            return replace(subject, version=version, algorithm=algorithm)
        return replace(subject, algorithm=Algorithm.from_label((await proxy.repository()).algorithm))
    except (FormatError, ValueError) as error:
        raise ClientError(f"the daemon has images that are not known here: {error}") from error


async def _read(proxy: Proxy, subject: Subject, found: _Found, reading: Reading) -> Subject:
    options = {"kind": found.kind, "hash": reading.algorithm.value, "xattrs": reading.xattrs.value}
    descriptor = await proxy.open_document(found.image, "dumpfile", options)
    return replace(subject, file=os.fdopen(descriptor, "rb"))
