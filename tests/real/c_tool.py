"""What the C mkcomposefs makes of a dump."""

import subprocess
from collections.abc import Sequence

from composefsd.erofs.format import FormatVersion


class RefusedError(Exception):
    """mkcomposefs refuses a dump, in its words."""


def digest(command: Sequence[str], dump: bytes, version: FormatVersion | None) -> str:
    """The digest, in hexadecimal, of the image of a dump; without a version, of what it writes unless told otherwise.

    Raises RefusedError.
    """
    limits = () if version is None else (f"--min-version={int(version)}", f"--max-version={int(version)}")
    done = subprocess.run(
        [*command, "--from-file", "--print-digest-only", *limits, "-"], input=dump, capture_output=True, check=False
    )
    if done.returncode:
        raise RefusedError(done.stderr.decode(errors="replace").strip() or f"status {done.returncode}")
    return done.stdout.decode().strip()
