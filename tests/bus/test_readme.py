"""The busctl lines of the README, pasted into a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bus import Stage

COMPOSEFSCTL = str(Path(sys.executable).with_name("composefsctl"))
README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("busctl")]
MONITOR = "busctl monitor org.composefs.Composefs1"


@pytest.fixture
def environment(stage: Stage, layout: str) -> dict[str, str]:
    """What the demo exports, after it has pulled and deployed: jobs 1 and 2."""
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": stage.address, "DEMO_IMAGE": f"oci:{layout}:small"}
    for verb in (["pull", environment["DEMO_IMAGE"], "--name=demo"], ["deploy", "demo", "--verity=deferred"]):
        subprocess.run([COMPOSEFSCTL, "--bus", stage.address, *verb], capture_output=True, timeout=60, check=True)
    return environment


def paste(line: str, environment: dict[str, str]) -> str:
    """Run a line in a shell; what it prints."""
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def test_the_readme_has_the_three_kinds_of_lines() -> None:
    assert {line.split()[1] for line in LINES} >= {"introspect", "call", "monitor"}


def test_every_line_works_as_pasted(environment: dict[str, str]) -> None:
    answers = {line: paste(line, environment) for line in LINES if line != MONITOR}
    joined = "".join(answers.values())
    assert 'to 3 "/org/composefs/Composefs1/job/_3"' in joined
    assert 'sa{sv} "succeeded"' in joined
    assert 'a(sasoa{sv}) 1 "sha256:' in joined
    assert "org.composefs.Composefs1.Manager" in joined


def test_the_monitor_shows_a_job_as_pasted(environment: dict[str, str]) -> None:
    monitor = subprocess.Popen(["sh", "-c", f"exec {MONITOR}"], env=environment, stdout=subprocess.PIPE, text=True)
    assert monitor.stdout is not None
    try:
        (pull,) = (line for line in LINES if " Pull " in line)
        line = ""
        while "JobFinished" not in line:  # the first pull may come before the monitor listens
            if not line:
                paste(pull, environment)
            line = monitor.stdout.readline()
    finally:
        monitor.kill()
        monitor.communicate()
