"""What cfsctl mounts, as records: it mounts in a mount namespace of its own, where nobody else sees it.

Run as `python -m interop.mounting POINT COMMAND…` in that namespace, it runs a command that mounts something at
POINT, and writes the records of the tree.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from real import inventory

_NAMESPACE = ("unshare", "--mount", "--propagation=private")


def scan(command: Sequence[str], point: Path) -> dict[bytes, inventory.Record]:
    """The records of what a command mounts at the directory `point`."""
    inside = [*_NAMESPACE, sys.executable, "-m", "interop.mounting", str(point), *command, str(point)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(inside, check=True, stdout=subprocess.PIPE, env=environment)
    records: dict[bytes, inventory.Record] = pickle.loads(done.stdout)
    return records


def _main(point: str, *command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        pickle.dump(inventory.scan(Path(point)), sys.stdout.buffer)
    finally:
        subprocess.run(["umount", "--recursive", point], check=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
