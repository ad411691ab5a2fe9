"""Payload on $BOOT: UKIs, addons, kernels and initrds.

A payload file is written under a temporary name, renamed to a name that nothing had, and read back from the device.
It is removed only while no entry names it, whoever wrote that entry.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from composefsd.deploy import entries
from composefsd.deploy.names import KERNEL_DIRECTORY, PAYLOAD_PATH, UKI_DIRECTORY, payload_stem
from composefsd.deploy.state import File
from composefsd.deploy.volume import Volume, is_temporary, parent
from composefsd.errors import CorruptError, DeviceError, ObjectMissingError
from composefsd.linux.oserrors import translated

_CHUNK: Final = 1 << 20

Written = Callable[[int], None]
"""Told the bytes of every chunk that was written."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that belongs on $BOOT; `source` is what the caller calls its content."""

    path: str
    size: int
    source: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that is complete: under its temporary name, or with `in_place` under its own, where it was before."""

    file: File
    in_place: bool


def stage(
    boot: Volume, files: Sequence[PlannedFile], sources: Mapping[str, int], written: Written
) -> tuple[Staged, ...]:
    """Write all of `files` under temporary names, durably; equal ones that are there already stay.

    sources are descriptors of the contents by their `source`.  Raises ObjectMissingError for a content that was not
    opened, CorruptError for one that is not of the size planned and for another file under a final name that an entry
    boots.
    """
    for file in files:
        if file.source not in sources:
            raise ObjectMissingError(f"nothing was opened for {file.path}: {file.source}", subject=file.source)
    return tuple(_stage(boot, file, sources[file.source], written) for file in files)


def publish(boot: Volume, staged: Sequence[Staged]) -> tuple[File, ...]:
    """Give staged files their names, and read each back past the page cache: bad media and lying adapters show here.

    Raises DeviceError where the device does not give back what was written.
    """
    for waiting in staged:
        file = waiting.file
        if waiting.in_place:
            continue
        boot.publish(file.path)
        if boot.digest(file.path) != (file.size, file.sha256):
            text = f"{boot.label}: {file.path} reads back with other content than was written"
            raise DeviceError(text, partition=boot.label, expected=file.sha256)
    return tuple(waiting.file for waiting in staged)


def _stage(boot: Volume, planned: PlannedFile, source: int, written: Written) -> Staged:
    path = planned.path
    boot.ensure_directory(parent(path)[0])
    if boot.stat(path) is not None:
        expected = _digest(planned, source)
        if boot.digest(path) == expected:
            return Staged(File(path, *expected), in_place=True)
        if entries.naming(entries.scan(boot), _owner(path)):
            raise CorruptError(f"{boot.label}: {path} has other content than the image, and an entry boots it")
        boot.remove(path)
    return Staged(File(path, *boot.stage(path, _chunks(planned, source, written))), in_place=False)


def _digest(planned: PlannedFile, source: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    for chunk in _chunks(planned, source, lambda _count: None):
        digest.update(chunk)
    return planned.size, digest.hexdigest()


def _chunks(planned: PlannedFile, source: int, written: Written) -> Iterator[bytes]:
    offset = 0
    while offset < planned.size:
        with translated(f"reading {planned.source}"):
            chunk = os.pread(source, min(_CHUNK, planned.size - offset), offset)
        if not chunk:
            raise CorruptError(
                f"{planned.source} ends after {offset} bytes of {planned.size}", subject=planned.source
            )
        yield chunk
        offset += len(chunk)
        written(len(chunk))


def is_whole(boot: Volume, files: Sequence[File], *, content: bool = False) -> bool:
    """Whether all files are there in their size, and with option `content` in their content as well."""
    for file in files:
        found = boot.stat(file.path)
        if found is None or found.st_size != file.size:
            return False
        if content and boot.digest(file.path) != (file.size, file.sha256):
            return False
    return True


def remove(boot: Volume, files: Sequence[File]) -> int:
    """Remove files that no entry names, and directories of theirs that got empty.  Answers with the space freed.

    A UKI's addons go with it.  The deployment's own entry must be gone by now.
    """
    present = entries.scan(boot)
    space = boot.space()
    freed = 0
    removed = [file.path for file in files if not entries.naming(present, _owner(file.path))]
    for path in removed:
        freed += space.rounded(boot.remove(path) or 0)
    for directory in sorted({parent(path)[0] for path in removed}):
        if directory not in (UKI_DIRECTORY, KERNEL_DIRECTORY) and boot.remove_directory(directory):
            freed += space.cluster_bytes
    return freed


def _owner(path: str) -> str:
    """The name whose mention in an entry keeps a payload file: that of the UKI, or of the kernel's directory."""
    found = PAYLOAD_PATH.fullmatch(path)
    assert found is not None, path  # the journal's parser lets no other path in
    return payload_stem(found["uki"] or found["kernel"])


def sweep(boot: Volume) -> None:
    """Remove what we were writing when we were interrupted; temporary files of others stay."""
    subdirectories = [
        f"{above}/{name.name}"
        for above in (UKI_DIRECTORY, KERNEL_DIRECTORY)
        for name in boot.names(above)
        if name.is_directory and name.name.startswith(payload_stem(""))
    ]
    for directory in (UKI_DIRECTORY, KERNEL_DIRECTORY, *subdirectories):
        for name in boot.names(directory):
            if name.is_file and is_temporary(name.name):
                boot.remove(f"{directory}/{name.name}")
