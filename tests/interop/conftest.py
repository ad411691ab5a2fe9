"""The peers, and the table of what they and we agree on, which a whole run writes into `docs/interop.md`.

A peer that cannot be had fails a test here instead of skipping it.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pytest
from real import apt, peers
from real.harness import Harness
from real.ledger import PROPERTY, Ledger, Sweep

_BEGIN: Final = "<!-- written by make interop -->"
_END: Final = "<!-- end -->"

T = TypeVar("T")

_rows: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("interop")
    group.addoption("--seed", type=int, help="of generated cases; a new one each run unless given")
    group.addoption("--sweep", type=int, default=1, metavar="N", help="N times as many generated cases")
    group.addoption("--write-table", type=Path, metavar="FILE", help="put the results into FILE if all tests passed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seed") is None:
        config.option.seed = random.SystemRandom().randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"generated cases: --seed={config.getoption('--seed')} --sweep={config.getoption('--sweep')}"


def _available(get: Callable[[], T]) -> T:
    try:
        return get()
    except apt.UnavailableError as error:
        pytest.fail(f"a peer is missing: {error}", pytrace=False)


@pytest.fixture(scope="session")
def cfsctl() -> Path:
    """The tool of composefs-rs."""
    return _available(peers.cfsctl)


@pytest.fixture(scope="session")
def mkcomposefs() -> list[str]:
    """The command of the C implementation, to be followed by its arguments."""
    return _available(peers.mkcomposefs)


@pytest.fixture(scope="session")
def harness() -> Iterator[Harness]:
    """The crate `composefs`, ready to be asked."""
    with Harness(_available(peers.harness)) as running:
        yield running


@pytest.fixture(scope="session")
def sweep(pytestconfig: pytest.Config) -> Sweep:
    """The seed and the size of this run."""
    return Sweep(pytestconfig.getoption("--seed"), pytestconfig.getoption("--sweep"))


@pytest.fixture
def ledger(record_property: Callable[[str, object], None]) -> Ledger:
    """Where a test writes its line of the table."""
    return Ledger(record_property)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _rows.extend(cast("dict[str, Any]", value) for name, value in report.user_properties if name == PROPERTY)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--write-table")
    is_worker = hasattr(session.config, "workerinput")
    if path is None or is_worker or session.exitstatus != pytest.ExitCode.OK:
        return
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n\n{_table(session.config)}\n{_END}{after}")


def _table(config: pytest.Config) -> str:
    seed, sweep = config.getoption("--seed"), config.getoption("--sweep")
    rust = f"composefs-rs {peers.RUST_VERSION} (`cfsctl` and the crate `composefs`)"
    lines = [
        f"Peers: {rust}, C composefs {peers.c_version()}.",
        f"Generated cases: `--seed={seed} --sweep={sweep}`.",
        "",
        "| what was compared | with | cases | result |",
        "| --- | --- | ---: | --- |",
    ]
    for (area, peer, result), cases in sorted(_merged().items()):
        lines.append(f"| {area} | {peer} | {cases:,} | {result} |")
    return "".join(f"{line}\n" for line in lines)


def _merged() -> Counter[tuple[str, str, str]]:
    """What several tests found out about the same thing is one line, with the cases of all."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in _rows:
        found[row["area"], row["peer"], row["result"]] += row["cases"]
    return found
