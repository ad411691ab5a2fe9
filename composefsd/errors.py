"""The exception tree: one class for each thing a caller can act on.

Every error carries a message that a person can read and `facts` that a program can use: paths, digests, offsets,
sizes.  Both survive the way out of a worker process: `to_wire` turns an error into plain values, `from_wire` back.
"""

from typing import TypedDict

Fact = str | int | None


class ComposefsdError(Exception):
    """Root of all errors that are not bugs; raised itself only when nothing narrower fits."""

    def __init__(self, message: str, **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __str__(self) -> str:
        return self.message


# What was asked for


class InvalidArgumentsError(ComposefsdError):
    """A call's arguments or options are of the wrong form; the message names the one."""


class InvalidReferenceError(ComposefsdError):
    """An image reference does not parse, or names a transport that does not exist."""


class InvalidNameError(ComposefsdError):
    """A tag does not follow the grammar."""


class NameInUseError(ComposefsdError):
    """A tag already names another image."""


class NoSuchImageError(ComposefsdError):
    """The argument names no image of the repository."""


class AmbiguousImageError(ComposefsdError):
    """A digest prefix fits several images."""


class NoSuchJobError(ComposefsdError):
    """The id names no job that is remembered."""


class NoSuchDeploymentError(ComposefsdError):
    """The id names no deployment."""


class NoSuchDocumentError(ComposefsdError):
    """The image or job has no document of this name."""


class NoSuchObjectError(ComposefsdError):
    """The argument names no object, stream or image of the repository."""


class UnsupportedError(ComposefsdError):
    """A media type, algorithm, feature or filesystem that composefsd does not handle."""


# What arrived


class FormatError(ComposefsdError):
    """Input breaks its format; facts tell `subject` and `offset` where they are known."""


class DigestMismatchError(ComposefsdError):
    """Content differs from the digest it was promised under; facts tell `expected` and `actual`."""


class LimitExceededError(ComposefsdError):
    """Input is larger, deeper or more than the bound that protects this host."""


class SourceNotFoundError(ComposefsdError):
    """The source of a pull, or a tag or blob in it, does not exist."""


# What the host can do


class NoSpaceError(ComposefsdError):
    """A filesystem is full; facts tell `partition`, `needed_bytes` and `free_bytes`."""


class ReadOnlyError(ComposefsdError):
    """The repository, or the boot partition, cannot be written."""


class LockedError(ComposefsdError):
    """Another process holds the lock that this operation needs."""


class DeviceError(ComposefsdError):
    """The kernel reports an input/output error."""


class VerityRequiredError(UnsupportedError):
    """The filesystem has no fs-verity, and the configuration does not allow to go on without."""


# What the repository holds


class IncompatibleRepositoryError(ComposefsdError):
    """The repository's metadata asks for a version or feature that this release does not know."""


class ObjectMissingError(ComposefsdError):
    """A stream or image names an object that is not there."""


class CorruptError(ComposefsdError):
    """The repository contradicts itself."""


# What boots


class NotBootableError(ComposefsdError):
    """The image cannot be deployed; the message has one reason a line."""


class InUseError(ComposefsdError):
    """Something that is booted, the default or pinned would go."""


class EspNotFoundError(ComposefsdError):
    """There is no boot partition to write to."""


# How a job ended


class JobCancelledError(ComposefsdError):
    """Somebody asked the job to stop."""


class JobInterruptedError(ComposefsdError):
    """The daemon or a worker died under the job."""


class TimedOutError(ComposefsdError):
    """The time allowed by the caller ran out."""


class JobFinishedError(ComposefsdError):
    """It is too late to cancel: the job has ended."""


class NotCancellableError(ComposefsdError):
    """The job is past its point of no return."""


# Who asked


class AccessDeniedError(ComposefsdError):
    """The caller is not authorized."""


class InteractiveAuthorizationRequiredError(AccessDeniedError):
    """The caller would be asked for a password, but did not allow to be asked."""


class InternalError(ComposefsdError):
    """A bug; the message is fixed and the details are in the journal."""


class WireError(TypedDict):
    """An error as plain values, for the pipe between a worker and the daemon."""

    name: str
    message: str
    facts: dict[str, Fact]


def _classes(root: type[ComposefsdError]) -> dict[str, type[ComposefsdError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


def to_wire(error: ComposefsdError) -> WireError:
    """The error as values that JSON can carry."""
    return {"name": type(error).__name__, "message": error.message, "facts": dict(error.facts)}


def from_wire(wire: object) -> ComposefsdError:
    """The error that `to_wire` was given; anything else becomes an InternalError, for the sender may be hostile."""
    match wire:
        case {"name": str(name), "message": str(message), "facts": dict(facts)}:
            cls = _classes(ComposefsdError).get(name, InternalError)
            error = cls(message)
            error.facts = {str(key): value for key, value in facts.items() if isinstance(value, str | int | None)}
            return error
        case _:
            return InternalError("a worker failed, and told an error that cannot be read")
