"""Making a repository, and what there is to look at before one is used."""

import logging
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Final

from composefsd.digests import Algorithm
from composefsd.errors import (
    CorruptError,
    IncompatibleRepositoryError,
    LimitExceededError,
    VerityRequiredError,
)
from composefsd.linux import fsverity
from composefsd.linux.oserrors import translate, translated
from composefsd.repository import links, metadata
from composefsd.repository.drafts import Draft, temporary_name
from composefsd.repository.metadata import Metadata
from composefsd.repository.objects import DIRECTORY

log = logging.getLogger(__name__)

TEMPORARY_PREFIX: Final = ".tmp-meta-"

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_BY_NAME_LENGTH: Final = {2 * algorithm.digest_bytes - 2: algorithm for algorithm in Algorithm}
"""By the length of an object's name without its first byte, which is the directory."""


def ensure_directory(path: Path) -> None:
    """Make the directory at `path`, for its owner alone, if it is not there.  Raises OSError as it comes."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def load(root: int) -> tuple[Metadata, bool]:
    """What `meta.json` says, and whether it has fs-verity, which makes the repository demand it of all objects.

    Raises IncompatibleRepositoryError if there is no `meta.json`, or one that we must keep away from, and
    LimitExceededError and FormatError if it is not what it should be.
    """
    try:
        fd = os.open(metadata.NAME, _READ, dir_fd=root)
    except FileNotFoundError as error:
        if is_old(root):
            message = f"the repository is from before {metadata.NAME}, and was opened for reading only"
        else:
            message = f"the directory is no repository: it has no {metadata.NAME}"
        raise IncompatibleRepositoryError(message) from error
    except OSError as error:  # a symbolic link, for one
        raise translate(error, f"opening {metadata.NAME}", subject=metadata.NAME) from error
    try:
        with translated(f"reading {metadata.NAME}"), FileIO(fd, closefd=False) as file:
            found = Metadata.parse(_content(file))
            return found, _has_verity(fd, found.algorithm)
    finally:
        os.close(fd)


def _content(file: FileIO) -> bytes:
    data = file.read(metadata.LIMIT_BYTES + 1) or b""
    if len(data) > metadata.LIMIT_BYTES:
        raise LimitExceededError(f"{metadata.NAME} has more than {metadata.LIMIT_BYTES} bytes")
    return data


def _has_verity(fd: int, algorithm: Algorithm) -> bool:
    try:
        return fsverity.measure(fd, algorithm) is not None
    except CorruptError as error:
        raise IncompatibleRepositoryError(f"{metadata.NAME}: {error}") from error


def install(root: int, wanted: Metadata, *, insecure: bool) -> bool:
    """Write `meta.json` into a directory that has none; False if it has one, whatever that says.

    It appears complete, synced, and with fs-verity unless `insecure`; that raises VerityRequiredError where the
    filesystem has none.  Raises IncompatibleRepositoryError if there are objects already that do not fit.
    """
    if os.access(metadata.NAME, os.F_OK, dir_fd=root):
        return False
    if is_old(root):
        _check_old(root, wanted.algorithm, insecure=insecure)
    return _write(root, wanted, insecure=insecure)


def _write(root: int, wanted: Metadata, *, insecure: bool) -> bool:
    with translated(f"writing {metadata.NAME}", partition="repository"):
        with Draft.open(root, root, TEMPORARY_PREFIX) as draft:
            draft.write(wanted.serialize())
            os.fsync(draft.fd)
            draft.freeze()
            if not insecure:
                fsverity.enable(draft.fd, wanted.algorithm)
            new = draft.link(root, metadata.NAME)
        os.fsync(root)
    return new


def make_secure(root: int, algorithm: Algorithm) -> None:
    """Replace `meta.json` by a copy of itself that has fs-verity: from then on it is demanded of every object.

    The caller has the repository for itself, and all objects are durable and have fs-verity.  The copy is complete
    and synced before it gets the name, so that at each moment there is one of the two.  If `meta.json` has fs-verity
    already, only its name is made durable: whoever gave it to it may have died before that.  Raises
    VerityRequiredError, NoSpaceError, ReadOnlyError and DeviceError.
    """
    with translated(f"replacing {metadata.NAME}", partition="repository"):
        with os.fdopen(os.open(metadata.NAME, _READ, dir_fd=root), "rb", buffering=0) as file:
            if not _has_verity(file.fileno(), algorithm):
                _replace(root, _content(file), algorithm)
        os.fsync(root)


def _replace(root: int, data: bytes, algorithm: Algorithm) -> None:
    with Draft.open(root, root, TEMPORARY_PREFIX) as draft:
        draft.write(data)
        os.fsync(draft.fd)
        draft.freeze()
        fsverity.enable(draft.fd, algorithm)
        temporary = temporary_name(TEMPORARY_PREFIX)
        draft.link(root, temporary)
    try:
        os.rename(temporary, metadata.NAME, src_dir_fd=root, dst_dir_fd=root)
    except OSError:
        os.unlink(temporary, dir_fd=root)
        raise


def check_existing(found: Metadata, wanted: Metadata, *, verity: bool, insecure: bool) -> None:
    """Whether the repository that is there serves where `wanted` was asked for; raises as `Repository.create`."""
    if not found.same_repository(wanted):
        raise IncompatibleRepositoryError(
            f"the repository has {_described(found)}, not {_described(wanted)}, and that cannot be changed"
        )
    if not verity and not insecure:
        raise VerityRequiredError("the repository was made without fs-verity")


def _described(found: Metadata) -> str:
    return f"{found.algorithm.label} and formats {', '.join(version.label for version in found.formats)}"


# Repositories from before meta.json


def is_old(root: int) -> bool:
    """Whether the directory is a repository of the times when there was no `meta.json`: it has objects, but not that.

    Raises what `translate` says.
    """
    with translated("looking at the repository"):
        try:
            os.stat(metadata.NAME, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            return _exists(root, DIRECTORY)
    return False


def _exists(root: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=root)
    except FileNotFoundError:
        return False
    return True


def upgrade(root: int, expected: Algorithm | None = None) -> bool:
    """Give an old repository the `meta.json` that composefs-rs would; False if somebody else did so meanwhile.

    The first object tells which hash it is by the length of its name, and by its fs-verity whether the repository is
    to demand that.  The image format is today's default; a comment in composefs-rs 0.9 promises format 2, but that is
    not what it writes.  Streams and images stay as they are.

    Raises IncompatibleRepositoryError if there is no object to tell by, or one of another hash than `expected`.
    """
    algorithm, has_verity = _first_object(root)
    if expected not in (None, algorithm):
        raise IncompatibleRepositoryError(
            f"the repository is from before {metadata.NAME}, and its objects are named by {algorithm.value}, "
            f"not by {expected.value} as configured"
        )
    new = _write(root, Metadata.new(algorithm), insecure=not has_verity)
    if new:
        log.info("upgraded an old repository to %s, %s", algorithm.label, "secure" if has_verity else "insecure")
    return new


def _check_old(root: int, algorithm: Algorithm, *, insecure: bool) -> None:
    """Whether the objects of an old repository allow it to become one of `algorithm`."""
    found, has_verity = _first_object(root)
    if found is not algorithm:
        raise IncompatibleRepositoryError(f"the objects of the repository are not named by {algorithm.label}")
    if not insecure and not has_verity:
        raise VerityRequiredError("the objects of the repository were stored without fs-verity")


def _first_object(root: int) -> tuple[Algorithm, bool]:
    """The hash of the first object, and whether it has fs-verity; files with other names count for nothing."""
    for path in _files(root):
        algorithm = _BY_NAME_LENGTH.get(len(os.fsencode(path.rpartition("/")[2])))
        if algorithm is None:
            continue
        with translated(f"looking at {path}", subject=path):
            try:
                fd = os.open(path, _READ, dir_fd=root)
            except FileNotFoundError:  # collected meanwhile
                continue
            try:
                return algorithm, _object_has_verity(fd, algorithm, path)
            finally:
                os.close(fd)
    raise IncompatibleRepositoryError(
        f"the repository is from before {metadata.NAME} and has no object that could tell what it is"
    )


def _object_has_verity(fd: int, algorithm: Algorithm, path: str) -> bool:
    try:
        return fsverity.measure(fd, algorithm) is not None
    except CorruptError as error:
        raise IncompatibleRepositoryError(f"{path}: {error}", subject=path) from error


def _files(root: int) -> Iterator[str]:
    for fan_out, _, _ in links.listing(root, DIRECTORY):
        if len(fan_out) == 2:
            for name, is_link, is_directory in links.listing(root, f"{DIRECTORY}/{fan_out}"):
                if not is_link and not is_directory:
                    yield f"{DIRECTORY}/{fan_out}/{name}"
