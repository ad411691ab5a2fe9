"""Running a check over cases that hypothesis generates, the same ones for the same seed."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from real.ledger import Sweep

T = TypeVar("T")


def for_each(strategy: st.SearchStrategy[T], sweep: Sweep, number: int, check: Callable[[T], None]) -> None:
    """Call `check` with `number` cases, or as many times more as the sweep says.

    If it fails, the smallest case that fails in the same way is looked for, and its failure is raised.
    """
    configured = settings(
        max_examples=sweep.cases(number),
        database=None,  # a run is determined by its seed alone
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def run(case: T) -> None:
        check(case)

    seed(sweep.seed)(configured(given(strategy)(run)))()
