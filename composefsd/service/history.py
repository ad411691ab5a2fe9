"""The journal of jobs: what was accepted and how it ended, so that a restart of the daemon forgets neither.

`jobs.jsonl` in the state directory has a line of JSON for a job when it is accepted and another when it has ended;
the last line of an id counts.  Lines are appended durably by a thread of their own, in order.  At start the file is
read and written anew, bounded; a job that was accepted and did not end was interrupted.  Ids go on where the file
ends and are never given twice.
"""

import asyncio
import errno
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from composefsd.errors import ComposefsdError, FormatError, ReadOnlyError
from composefsd.service.owner import is_owner

log = logging.getLogger(__name__)

KEPT_JOBS: Final = 1000
KEPT_JOBS_OF_A_USER: Final = 100

_FILE: Final = "jobs.jsonl"
_FILE_BYTES: Final = 64 << 20
_REWRITE_BYTES: Final = 4 << 20
_VALUE_BYTES: Final = 4 << 10
_INTERRUPTED: Final = "interrupted"

Values = dict[str, tuple[str, Any]]
"""A result: by key, the D-Bus type and a value of JSON."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job as the journal has it.  Times in microseconds since the epoch, 0 for not yet; error as on the bus."""

    id: int
    type: str
    description: str
    uid: int
    request_id: str
    state: str
    created_usec: int
    started_usec: int = 0
    finished_usec: int = 0
    error: str = ""
    message: str = ""
    result: Values = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.finished_usec > 0

    def serialize(self) -> bytes:
        """A line; values of the result that are bulk are left out."""
        kept = {key: value for key, value in self.result.items() if len(json.dumps(value)) <= _VALUE_BYTES}
        return json.dumps(asdict(replace(self, result=kept)), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Raises FormatError for a line that `serialize` did not write."""
        try:
            found = json.loads(line)
            result = {str(key): (str(kind), value) for key, (kind, value) in found.pop("result").items()}
            record = cls(**found, result=result)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise FormatError("not a record of a job") from error
        numbers = (record.id, record.uid, record.created_usec, record.started_usec, record.finished_usec)
        if not all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
            raise FormatError("a job's record has something else where numbers should be")
        return record


class History:
    """The journal in one state directory.  `interrupted` are the jobs that a dead daemon left unfinished."""

    def __init__(self, directory: Path, now_usec: int, interruption: tuple[str, str]) -> None:
        """Read the journal and write it anew; `interruption` is the error of jobs that did not end.

        Raises ReadOnlyError if the directory cannot be written.
        """
        self._path = directory / _FILE
        self._records: dict[int, Record] = {}
        self._writer = ThreadPoolExecutor(1, "journal")
        self._appended_bytes = 0
        try:
            self._load()
            name, message = interruption
            self.interrupted = tuple(
                replace(record, state=_INTERRUPTED, finished_usec=now_usec, error=name, message=message)
                for record in self._records.values()
                if not record.has_ended
            )
            self._records |= {record.id: record for record in self.interrupted}
            _write(self._path, self._kept())
        except OSError as error:
            raise ReadOnlyError(f"the state directory {directory} cannot be used: {error.strerror}") from error
        self.next_id = max(self._records, default=0) + 1

    def find(self, job_id: int) -> Record | None:
        """What is known of a job."""
        return self._records.get(job_id)

    def find_request(self, matches: Callable[[Record], bool]) -> Record | None:
        """The latest job that matches."""
        return next((record for record in reversed(self._records.values()) if matches(record)), None)

    async def append(self, record: Record) -> None:
        """Remember a job; durable when this returns.  A disk that refuses is logged: the work matters more."""
        self._records.pop(record.id, None)
        self._records[record.id] = record
        line = record.serialize()
        self._appended_bytes += len(line)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, _append, self._path, line)
            if self._appended_bytes > _REWRITE_BYTES:
                self._appended_bytes = 0
                await loop.run_in_executor(self._writer, _write, self._path, self._kept())
        except OSError as error:
            log.warning("the journal of jobs cannot be written: %s", error)

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.shutdown()

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                lines = file.read(_FILE_BYTES).splitlines(keepends=True)
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, 1):
            try:
                record = Record.parse(line)
            except ComposefsdError as error:
                log.warning("%s:%d: %s", self._path, number, error)
                continue
            self._records.pop(record.id, None)
            self._records[record.id] = record

    def _kept(self) -> list[Record]:
        """Forget the oldest jobs, and of users who do not own the daemon beyond fewer: none pushes out another's."""
        seen: dict[int, int] = {}
        kept: list[Record] = []
        for record in sorted(self._records.values(), key=lambda record: record.id, reverse=True):
            seen[record.uid] = seen.get(record.uid, 0) + 1
            limit = KEPT_JOBS if is_owner(record.uid) else KEPT_JOBS_OF_A_USER
            if not record.has_ended or (seen[record.uid] <= limit and len(kept) < KEPT_JOBS):
                kept.append(record)
        kept.reverse()
        self._records = {record.id: record for record in kept}
        return kept


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(fd).st_size
        if os.write(fd, line) < len(line):  # the disk is full: half a line would spoil the next
            os.ftruncate(fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _write(path: Path, records: Iterable[Record]) -> None:
    """Replace the file; a crash leaves the old one or the new one."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:  # the daemon's umask keeps others out
        for record in records:
            file.write(record.serialize())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
