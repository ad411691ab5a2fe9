"""What all tests share: CI can refuse skipped tests."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Times say nothing on a machine that does something else as well.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

_skipped: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--may-skip",
        metavar="FILE",
        type=Path,
        help="fail if a test is skipped whose id is not a line of FILE (# starts a comment)",
    )


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _refused(config: pytest.Config) -> dict[str, str]:
    path: Path | None = config.getoption("--may-skip")
    if path is None:
        return {}
    allowed = {line.partition("#")[0].strip() for line in path.read_text().splitlines()}
    return {test: reason for test, reason in _skipped.items() if test not in allowed}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _refused(session.config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for test, reason in _refused(config).items():
        terminalreporter.write_line(f"must not be skipped here: {test}: {reason}", red=True)
