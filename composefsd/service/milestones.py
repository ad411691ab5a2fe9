"""When the repository was last collected and checked, across restarts: `milestones.json` in the state directory."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

_FILE: Final = "milestones.json"
_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Milestones:
    """Times in microseconds since the epoch, 0 for never; `was_clean` is of the last check."""

    collected_usec: int = 0
    checked_usec: int = 0
    was_clean: bool = False

    @classmethod
    def load(cls, directory: Path) -> Self:
        """What was saved last; what cannot be read counts as never."""
        try:
            with (directory / _FILE).open("rb") as file:
                found = json.loads(file.read(_FILE_BYTES))
            return cls(int(found["collected_usec"]), int(found["checked_usec"]), bool(found["was_clean"]))
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def save(self, directory: Path) -> None:
        """Replace the file; raises OSError."""
        temporary = directory / f"{_FILE}.new"
        with temporary.open("wb") as file:
            file.write(json.dumps(asdict(self)).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / _FILE)
