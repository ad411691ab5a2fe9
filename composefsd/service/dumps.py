"""Dumpfiles of stored images' trees, in sealed memfds.

A dumpfile holds file names and small files, which an image that is private keeps to itself, and making one costs as
much as computing a digest.  So it takes the right to compute; one is made at a time, and a caller has to wait for it.
The memory of a dumpfile is the daemon's as long as the caller keeps the descriptor, so its size is bounded, and so is
what callers keep.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final

from dbus_next import Variant

from composefsd.digests import Algorithm, OciDigest
from composefsd.errors import LimitExceededError
from composefsd.operations.build import ImageOrder
from composefsd.operations.generate import dump
from composefsd.operations.model import ImageKind
from composefsd.service.loans import Loans
from composefsd.service.memfd import memory_file, seal
from composefsd.service.options import Options, choice, word
from composefsd.service.owner import is_owner
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.tree.normative import XattrMode

DUMPFILE: Final = "dumpfile"
"""What the document is called."""

MAX_BYTES: Final = 256 << 20
"""Of one dumpfile; that of a Debian with half a million files has less, with the longer of the hashes."""

LENT_BYTES: Final = 2 * MAX_BYTES
"""Of all dumpfiles that callers have open: two of the largest can be compared."""

WAITING: Final = 8
"""Callers that may wait in all; one for each uid, but for the daemon's own."""

_KIND: Final = word("kind", ImageKind)
_HASH: Final = choice("hash", [algorithm.value for algorithm in Algorithm])
_XATTRS: Final = word("xattrs", XattrMode)


class Dumps:
    """Makes dumpfiles; one for the life of the daemon."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._turn = asyncio.Lock()
        self._loans = Loans("dumpfiles", LENT_BYTES)
        self._waiting: list[int] = []

    def pause(self) -> AbstractAsyncContextManager[None]:
        """For a block in which none is made: it begins when those that wait already were made."""
        return self._turn

    async def open(self, image: OciDigest, options: dict[str, Variant]) -> int:
        """The dumpfile of an image, in a descriptor that is the caller's to close.

        Raises AccessDeniedError, LimitExceededError if it is too large, too many wait or callers keep too much open,
        and what `dump` raises.
        """
        given = Options(options, _KIND, _HASH, _XATTRS)
        kind = given.get(_KIND, ImageKind.NORMATIVE)
        order = ImageOrder(kind, self._services.host.formats[0], given.get(_XATTRS, XattrMode.ALLOWLIST_ONLY))
        name = given.get(_HASH, None)
        algorithm = None if name is None else Algorithm(name)
        caller = await self._services.callers.identify()
        details = {"image": str(image), "kind": kind.value}
        question = f"Authentication is required to read the tree of {image}"
        await self._services.polkit.require(Action.COMPUTE, caller, details, question)
        with self._place(caller.uid), caller.client.while_present():
            async with self._turn:
                self._loans.require(MAX_BYTES)
                descriptor = self._loans.lend(await self._make(image, order, algorithm))
        caller.client.charge_answer(os.fstat(descriptor).st_size)
        return descriptor

    @contextmanager
    def _place(self, uid: int) -> Iterator[None]:
        """A place among those who wait."""
        if len(self._waiting) >= WAITING or (uid in self._waiting and not is_owner(uid)):
            raise LimitExceededError("dumpfiles are made one at a time, and too many wait already; try again later")
        self._waiting.append(uid)
        try:
            yield
        finally:
            self._waiting.remove(uid)

    async def _make(self, image: OciDigest, order: ImageOrder, algorithm: Algorithm | None) -> int:
        with memory_file(DUMPFILE) as descriptor:
            await dump(self._services.host, image, order, descriptor, algorithm=algorithm, limit_bytes=MAX_BYTES)
            return seal(descriptor)
