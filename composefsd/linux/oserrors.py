"""What an `OSError` means to a caller, where its meaning does not depend on the call."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from composefsd.errors import ComposefsdError, DeviceError, Fact, LimitExceededError, NoSpaceError, ReadOnlyError

_MEANINGS: Final[dict[int, type[ComposefsdError]]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EROFS: ReadOnlyError,
    errno.EACCES: ReadOnlyError,
    errno.EPERM: ReadOnlyError,
    errno.EIO: DeviceError,
    errno.EUCLEAN: DeviceError,  # the filesystem found its own structures damaged
    errno.EBADMSG: DeviceError,  # the same, or data that fails its checksum
    errno.EFBIG: LimitExceededError,
}


def translate(error: OSError, doing: str, **facts: Fact) -> ComposefsdError:
    """The error that `error` becomes when it stopped us from `doing` ("writing an object").

    Permissions count as a thing that cannot be written: all that composefsd touches belongs to its own user.
    """
    number = error.errno or 0
    cls = _MEANINGS.get(number, ComposefsdError)
    return cls(f"{doing}: {os.strerror(number)}", errno=number, **facts)


@contextmanager
def translated(doing: str, **facts: Fact) -> Iterator[None]:
    """Turns any OSError of its block into what `translate` makes of it."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing, **facts) from error
