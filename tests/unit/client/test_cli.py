"""The program from outside, as far as it goes without a bus."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from composefsd import VERSION
from composefsd.client.cli import main
from composefsd.client.exits import Exit

RUN = [sys.executable, "-c", "import sys; from composefsd.client.cli import main; sys.exit(main())"]

# Unbuffered, argparse would meet the error itself, and it swallows errors of output.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == Exit.DONE
    assert capsys.readouterr().out == f"composefsctl {VERSION}\n"


@pytest.mark.parametrize(
    "bus", ["unix:path={}/none", "unix:path={}", "nonsense", "", "tcp:host=x", "unix:path={}/a;unix:path={}/b"]
)
def test_without_a_bus_it_is_one_line_and_status_5(
    bus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["images", "--bus", bus.replace("{}", str(tmp_path))]) == Exit.NO_SERVICE
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("composefsctl: cannot connect to the bus at ")


def test_without_a_session_there_is_no_session_bus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--user", "status"]) == Exit.NO_SERVICE
    assert "no session bus" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_cause_for_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*RUN, "--help"], stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.FAILED, b"")


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*RUN, "--help"], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    assert done.returncode == Exit.FAILED
    assert done.stderr == b"composefsctl: cannot write: No space left on device\n"


def test_closed_streams_are_survived() -> None:
    closed = subprocess.run(["/bin/sh", "-c", '"$@" >&- 2>&-', "sh", *RUN, "--help"], check=False)
    assert closed.returncode == Exit.DONE


def test_help_loads_neither_the_bus_nor_asyncio() -> None:
    code = (
        "import sys; from composefsd.client.cli import main; main(['--help']); "
        "print(*({'asyncio', 'dbus_next', 'dataclasses', 'composefsd.tree'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_verbs_of_the_bus_load_no_codec() -> None:
    code = (
        "import sys; from composefsd.client.cli import main; main(['--bus', 'unix:path=/none', 'images']); "
        "print(*({'composefsd.tree', 'composefsd.erofs', 'composefsd.operations', 'zstandard'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
