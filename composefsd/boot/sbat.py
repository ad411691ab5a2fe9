"""The section `.sbat` of an EFI executable: lines of `component,generation,vendor,package,version,URL`.

Defined by shim's SBAT.md; read as shim reads it: six fields, none of them empty, and more are passed over.  By the
generations shim tells executables that are revoked.
"""

from dataclasses import dataclass
from typing import Final

from composefsd.errors import FormatError, LimitExceededError

ENTRIES_LIMIT: Final = 100
_FIELDS: Final = 6
_FIELD_LIMIT: Final = 200
_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class SbatEntry:
    """A component of the executable, the generation of its fixes, and whose build it is."""

    component: str
    generation: int
    vendor: str
    package: str
    version: str
    url: str


def parse(data: bytes) -> tuple[SbatEntry, ...]:
    """The entries in their order; lines without text count for nothing.

    Raises FormatError for a line that shim refuses, or that is no printable ASCII, and LimitExceededError for too
    many lines.
    """
    try:
        lines = [line.rstrip("\r") for line in data.decode("ascii").split("\n")]
    except UnicodeDecodeError as error:
        raise FormatError(".sbat is not ASCII", subject=".sbat", offset=error.start) from error
    found = tuple(_entry(line, number) for number, line in enumerate(lines, 1) if line)
    if len(found) > ENTRIES_LIMIT:
        raise LimitExceededError(f".sbat has {len(found)} lines", limit=ENTRIES_LIMIT)
    return found


def _entry(line: str, number: int) -> SbatEntry:
    fields = line.split(",")
    if len(fields) < _FIELDS or not all(fields[:_FIELDS]):
        raise FormatError(f".sbat, line {number}: there are not six fields with text", subject=".sbat")
    component, generation, vendor, package, version, url = fields[:_FIELDS]
    if not line.isprintable() or max(map(len, fields)) > _FIELD_LIMIT:
        raise FormatError(f".sbat, line {number}: a field is too long, or is no text", subject=".sbat")
    if not generation.isdecimal() or len(generation) > _DIGITS:
        raise FormatError(f".sbat, line {number}: the generation is not a number", subject=".sbat")
    return SbatEntry(component, int(generation), vendor, package, version, url)
