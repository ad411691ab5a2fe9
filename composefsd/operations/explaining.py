"""What somebody asks about by name, and what keeps it: the part that runs beside the daemon."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from composefsd.digests import ObjectId
from composefsd.errors import FormatError, InvalidNameError, NoSuchObjectError, ObjectMissingError
from composefsd.oci.storage import CONFIG_PREFIX, LAYER_PREFIX, MANIFEST_PREFIX
from composefsd.operations.reasons import Reason, Why, reason
from composefsd.repository import Repository
from composefsd.repository.gc import explain as roots_of

MOST_REASONS: Final = 1000
"""How many roots one answer tells, so that it stays far below what the bus takes."""

_PREFIXES: Final = (MANIFEST_PREFIX, CONFIG_PREFIX, LAYER_PREFIX)


def reasons_for(repository: Repository, what: str) -> list[Reason]:
    """The roots that keep what is called so; none if the collector would take it.

    The caller holds the shared lock.  Raises NoSuchObjectError, ObjectMissingError for a link that leads nowhere, and
    what stops a collection.
    """
    digest = find(repository, what)
    if not repository.objects.has(digest):
        raise ObjectMissingError(
            f"{what[:200]!r} leads to object {digest.hex()}, which is missing", subject=what[:200]
        )
    roots = roots_of(repository, digest)
    found = [reason(root) for root in islice(roots, MOST_REASONS)]
    if len(roots) > MOST_REASONS:
        found.append(Reason(Why.MORE, f"{len(roots) - MOST_REASONS} more roots"))
    return found


def find(repository: Repository, what: str) -> bytes:
    """The digest of the object that is meant.  Raises NoSuchObjectError."""
    found = next(_candidates(repository, what), None)
    if found is None:
        raise NoSuchObjectError(f"no object, stream, image or tag {what[:200]!r}", subject=what[:200])
    return found


def _candidates(repository: Repository, what: str) -> Iterator[bytes]:
    """What may be meant, in this order: an object, a stream by its name or by a digest, a tag."""
    algorithm = repository.algorithm
    with suppress(FormatError):
        digits = what.removeprefix("fsverity-").removeprefix(f"{algorithm.value}:")
        yield from filter(repository.objects.has, [ObjectId.parse(digits, algorithm).digest])
    yield from _stream(repository, what)
    for prefix in _PREFIXES:
        yield from _stream(repository, f"{prefix}{what}" if ":" in what else f"{prefix}sha256:{what}")
    yield from _stream(repository, repository.tags().get(what, ""))


def _stream(repository: Repository, name: str) -> Iterator[bytes]:
    try:
        found = repository.stream(name)
    except InvalidNameError:
        return
    if found is not None:
        yield found
