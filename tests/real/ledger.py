"""What tests that compare with other implementations share: how cases are generated, and a table of the results."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PROPERTY: Final = "interop"
"""Of a test's report: a line of the table."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """How generated cases are made: `random(name)` is a generator of its own for a test, `cases` scales a number."""

    seed: int
    factor: int

    def random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def cases(self, number: int) -> int:
        return number * self.factor


class Ledger:
    """Takes the lines of the table."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def record(self, area: str, peer: str, cases: int, result: str) -> None:
        """A line: what was compared, with whom, how many cases, and what came out."""
        self._record(PROPERTY, {"area": area, "peer": peer, "cases": cases, "result": result})
