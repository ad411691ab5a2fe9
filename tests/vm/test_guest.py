"""The checks of `guest_*.py`, each by its own name: they ran in a virtual machine with fs-verity."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from real import apt
from vm import machine


@pytest.fixture(scope="session")
def report() -> Iterator[machine.Report]:
    """What the machine has reported; it is started once, for all checks."""
    with TemporaryDirectory(prefix="composefs-vm-") as folder:
        try:
            yield machine.run(Path(folder))
        except apt.UnavailableError as error:
            pytest.skip(f"needs a virtual machine: {error}")


@pytest.mark.parametrize("check", machine.checks(), ids=str)
def test_on_a_kernel_with_verity(report: machine.Report, check: str) -> None:
    outcome = report.outcomes.get(check)
    if outcome is None:
        pytest.fail(f"the machine ended after {report.seconds:.0f} s without a word about it\n{report.console}")
    if outcome.result == "skipped":
        pytest.skip(outcome.text)
    assert outcome.result == "passed", outcome.text
