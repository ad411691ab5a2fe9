"""The names that our errors have on the bus.  They are API: written out once, never changed."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dbus_next import DBusError

from composefsd import errors
from composefsd.errors import ComposefsdError
from composefsd.service import names
from composefsd.service.wire import safe_text

log = logging.getLogger(__name__)

_INTERNAL_TEXT: Final = "internal error, see the journal"
_TEXT_CHARACTERS: Final = 4000
"""Longer messages are cut: reasons may be many, and names in hostile input long."""

NAMES: Final[dict[type[ComposefsdError], str]] = {
    ComposefsdError: "Failed",
    errors.InvalidArgumentsError: f"{names.FREEDESKTOP_ERRORS}.InvalidArgs",
    errors.InvalidReferenceError: "InvalidReference",
    errors.InvalidNameError: "InvalidName",
    errors.NameInUseError: "NameInUse",
    errors.NoSuchImageError: "NoSuchImage",
    errors.AmbiguousImageError: "AmbiguousImage",
    errors.NoSuchJobError: "NoSuchJob",
    errors.NoSuchDeploymentError: "NoSuchDeployment",
    errors.NoSuchDocumentError: "NoSuchDocument",
    errors.NoSuchObjectError: "NoSuchObject",
    errors.UnsupportedError: "Unsupported",
    errors.VerityRequiredError: "Unsupported",
    errors.FormatError: "Format",
    errors.DigestMismatchError: "DigestMismatch",
    errors.LimitExceededError: "LimitExceeded",
    errors.SourceNotFoundError: "SourceNotFound",
    errors.NoSpaceError: "NoSpace",
    errors.ReadOnlyError: "ReadOnly",
    errors.LockedError: "Locked",
    errors.DeviceError: "Io",
    errors.IncompatibleRepositoryError: "IncompatibleRepository",
    errors.ObjectMissingError: "ObjectMissing",
    errors.CorruptError: "Corrupt",
    errors.NotBootableError: "NotBootable",
    errors.InUseError: "InUse",
    errors.EspNotFoundError: "EspNotFound",
    errors.JobCancelledError: "Cancelled",
    errors.JobInterruptedError: "Interrupted",
    errors.TimedOutError: "TimedOut",
    errors.JobFinishedError: "JobFinished",
    errors.NotCancellableError: "NotCancellable",
    errors.AccessDeniedError: f"{names.FREEDESKTOP_ERRORS}.AccessDenied",
    errors.InteractiveAuthorizationRequiredError: f"{names.FREEDESKTOP_ERRORS}.InteractiveAuthorizationRequired",
    errors.InternalError: "Internal",
}


def full_name(name: str) -> str:
    """An error's name as it goes over the bus: ours get our prefix."""
    return name if "." in name else f"{names.ERRORS}.{name}"


def name_of(error: ComposefsdError) -> str:
    """The name of an error on the bus; a class that has none of its own goes by its nearest ancestor's."""
    return full_name(next(NAMES[cls] for cls in type(error).__mro__ if cls in NAMES))


def name_of_class(stem: str) -> str:
    """The name on the bus of an error class of ours that is called `<stem>Error`."""
    for cls, name in NAMES.items():
        if cls.__name__ == f"{stem}Error":
            return full_name(name)
    return full_name(NAMES[errors.InternalError])


def describe(error: BaseException) -> tuple[str, str]:
    """Name and text by which an error is told to others.  A bug is logged, and told as `Internal` without detail."""
    if isinstance(error, ComposefsdError):
        return name_of(error), safe_text(error.message)[:_TEXT_CHARACTERS]
    if isinstance(error, asyncio.CancelledError):
        return full_name(NAMES[errors.JobCancelledError]), "cancelled"
    log.error("bug: %s", type(error).__name__, exc_info=error, extra={"COMPOSEFSD_ERROR": "Internal"})
    return full_name(NAMES[errors.InternalError]), _INTERNAL_TEXT


@contextmanager
def replies() -> Iterator[None]:
    """Turn whatever a method raises into the DBusError that its caller gets."""
    try:
        yield
    except DBusError:
        raise
    except (asyncio.CancelledError, Exception) as error:
        # A cancelled method answers as well, or its caller would wait for the timeout.
        raise DBusError(*describe(error)) from error
