"""The other implementations of composefs, built or fetched once and cached.

composefs-rs comes from its published crates and is built by the machine's cargo: Debian 12 and 13 have none that is
new enough.  The C `mkcomposefs` is a package of Debian's unstable only, and runs with the libraries of the Debian 13
root.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from real import apt, cache, root

RUST_VERSION: Final = "0.9.4"
"""Of composefs-rs: of `cfsctl` and, in its Cargo.toml, of the harness."""

HARNESS: Final = Path(__file__).parents[1] / "interop" / "harness"

_CARGO: Final = (1, 88)
_PACKAGES: Final = ("composefs", "libcomposefs1")
_LOADERS: Final = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
_LIBRARIES: Final = {"amd64": "usr/lib/x86_64-linux-gnu", "arm64": "usr/lib/aarch64-linux-gnu"}


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command says on standard output.  Raises UnavailableError with the end of what it complains about."""
    try:
        done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise apt.UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-12:])
        raise apt.UnavailableError(f"{command[0]} {command[1]} fails:\n{said}") from error
    return done.stdout


def _check_cargo() -> None:
    said = _run(["cargo", "--version"], Path("/"))
    found = re.match(r"cargo (\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < _CARGO:
        raise apt.UnavailableError(f"composefs-rs needs cargo {'.'.join(map(str, _CARGO))}, this is {said.strip()}")


def _cargo(*arguments: str) -> None:
    """Run cargo with a target directory of its own, which is gone afterwards: only the binary is kept."""
    _check_cargo()
    with TemporaryDirectory(prefix="composefs-peers-") as name:
        _run(["cargo", *arguments], Path("/"), {**os.environ, "CARGO_TARGET_DIR": name})


def cfsctl() -> Path:
    """The tool of composefs-rs.  Raises UnavailableError where it cannot be built."""

    def build(work: Path) -> None:
        _cargo("install", "--quiet", "--locked", "--root", str(work), "--version", RUST_VERSION, "composefs-ctl")

    saying = f"Building cfsctl {RUST_VERSION}, once: 5 to 10 minutes"
    return cache.ensure("cfsctl", cache.key(RUST_VERSION), build, saying=saying) / "bin/cfsctl"


def harness() -> Path:
    """A program that answers for the crate `composefs`; `real.harness` talks to it.  Raises as `cfsctl`."""

    def build(work: Path) -> None:
        _cargo("install", "--quiet", "--locked", "--root", str(work), "--path", str(HARNESS))

    sources = (HARNESS / name for name in ("Cargo.toml", "Cargo.lock", "src/main.rs"))
    saying = "Building the harness over composefs-rs, once: 1 to 3 minutes"
    return cache.ensure("harness", cache.key(*sources), build, saying=saying) / "bin/composefs-harness"


def _build(work: Path) -> None:
    with TemporaryDirectory() as name:
        for package in apt.download("unstable", _PACKAGES, Path(name)):
            apt.unpack(package, work)
            (work / "version").write_text(apt.version(package))


def _unpacked() -> Path:
    made_from = cache.key(Path(__file__), apt.architecture())
    return cache.ensure("composefs", made_from, _build, saying="Fetching the C implementation of composefs")


def c_version() -> str:
    """The version of the C implementation, as Debian numbers it.  Raises UnavailableError where it cannot be had."""
    return (_unpacked() / "version").read_text()


def mkcomposefs() -> list[str]:
    """The command that runs it, to be followed by its arguments.  Raises UnavailableError where it cannot be had."""
    debian, architecture, unpacked = root.ensure(), apt.architecture(), _unpacked()
    libraries = [str(base / _LIBRARIES[architecture]) for base in (unpacked, debian.tree)]
    loader = str((debian.tree / _LOADERS[architecture]).resolve())
    return [loader, "--library-path", ":".join(libraries), str(unpacked / "usr/bin/mkcomposefs")]
