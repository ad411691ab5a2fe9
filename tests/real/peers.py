"""The C `mkcomposefs`, which Debian has in unstable only; it runs with the libraries of the Debian 13 root."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from real import apt, cache, root

_PACKAGES: Final = ("composefs", "libcomposefs1")
_LOADERS: Final = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
_LIBRARIES: Final = {"amd64": "usr/lib/x86_64-linux-gnu", "arm64": "usr/lib/aarch64-linux-gnu"}


def _run(command: Sequence[str], directory: Path) -> None:
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise apt.UnavailableError(f"{command[0]} cannot fetch composefs: {error.stderr.strip()}") from error


def _fetch(folder: Path) -> None:
    """Download the packages with an apt that knows of unstable alone and leaves the machine's own state be."""
    (folder / "sources.list").write_text(apt.find_mirror().source("unstable") + "\n")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",  # a mirror may be a snapshot; the signature is checked all the same
        "APT::Sandbox::User": "root",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _run(["apt-get", *options, "update"], folder)
    _run(["apt-get", *options, "download", *_PACKAGES], folder)


def _build(work: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        _fetch(folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "--extract", str(package), str(work)], folder)


def mkcomposefs() -> list[str]:
    """The command that runs it, to be followed by its arguments.  Raises UnavailableError where it cannot be had."""
    debian, architecture = root.ensure(), apt.architecture()
    made_from = cache.key(Path(__file__), architecture)
    unpacked = cache.ensure("composefs", made_from, _build, saying="Fetching the C implementation of composefs")
    libraries = [str(base / _LIBRARIES[architecture]) for base in (unpacked, debian.tree)]
    loader = str((debian.tree / _LOADERS[architecture]).resolve())
    return [loader, "--library-path", ":".join(libraries), str(unpacked / "usr/bin/mkcomposefs")]
