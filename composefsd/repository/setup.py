"""Making a repository, and what there is to look at before one is used."""

import os
from collections.abc import Iterator
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
from composefsd.linux.oserrors import translated
from composefsd.repository import links, metadata
from composefsd.repository.drafts import Draft
from composefsd.repository.metadata import Metadata
from composefsd.repository.objects import DIRECTORY

TEMPORARY_PREFIX: Final = ".tmp-meta-"


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
        fd = os.open(metadata.NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError as error:
        if os.access(DIRECTORY, os.F_OK, dir_fd=root):
            message = f"the repository is from before {metadata.NAME}; composefs-rs can upgrade it"
        else:
            message = f"the directory is no repository: it has no {metadata.NAME}"
        raise IncompatibleRepositoryError(message) from error
    with translated(f"reading {metadata.NAME}"), os.fdopen(fd, "rb", buffering=0) as file:
        data = file.read(metadata.LIMIT_BYTES + 1)
        if len(data) > metadata.LIMIT_BYTES:
            raise LimitExceededError(f"{metadata.NAME} has more than {metadata.LIMIT_BYTES} bytes")
        found = Metadata.parse(data)
        return found, _has_verity(fd, found.algorithm)


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
    _check_legacy(root, wanted.algorithm, insecure=insecure)
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


def _check_legacy(root: int, algorithm: Algorithm, *, insecure: bool) -> None:
    """Older repositories lack `meta.json`: there any object tells which hash it is, and whether with fs-verity."""
    path = next(_objects(root), None)
    if path is None:
        return
    if len(path) != len(f"{DIRECTORY}/") + 2 * algorithm.digest_bytes + 1:
        raise IncompatibleRepositoryError(f"the objects of the repository are not named by {algorithm.label}")
    with translated(f"opening {path}", subject=path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
        try:
            if not insecure and fsverity.measure(fd, algorithm) is None:
                raise VerityRequiredError("the objects of the repository were stored without fs-verity")
        finally:
            os.close(fd)


def _objects(root: int) -> Iterator[str]:
    for fan_out, _, _ in links.listing(root, DIRECTORY):
        if len(fan_out) == 2:
            for name, _, _ in links.listing(root, f"{DIRECTORY}/{fan_out}"):
                yield f"{DIRECTORY}/{fan_out}/{name}"
