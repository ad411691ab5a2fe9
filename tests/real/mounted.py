"""A composefs image of a repository as the kernel shows it: EROFS from a file, an overlay with the objects as data.

Run as `python -m real.mounted IMAGE OBJECTS` in a mount namespace of its own, it
writes the records of the mounted tree.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from real import inventory

_NAMESPACE = ("unshare", "--mount", "--propagation=private")


def why_not() -> str:
    """Why nothing can be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "needs root, to mount"
    if subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        return "needs the right to mount"
    return ""


def scan(image: Path, objects: Path) -> dict[bytes, inventory.Record]:
    """The records of a composefs image, mounted where nobody else sees it."""
    command = [*_NAMESPACE, sys.executable, "-m", "real.mounted", str(image), str(objects)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    records: dict[bytes, inventory.Record] = pickle.loads(done.stdout)
    return records


def _main(image: str, objects: str) -> None:
    with TemporaryDirectory(prefix="composefs-mount-") as name:
        erofs, root = Path(name) / "erofs", Path(name) / "root"
        erofs.mkdir()
        root.mkdir()
        options = f"ro,metacopy=on,redirect_dir=on,lowerdir={erofs}::{objects}"
        subprocess.run(["mount", "-t", "erofs", "-o", "ro", image, erofs], check=True)
        subprocess.run(["mount", "-t", "overlay", "-o", options, "composefs", root], check=True)
        try:
            pickle.dump(inventory.scan(root), sys.stdout.buffer)
        finally:
            subprocess.run(["umount", root, erofs], check=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
